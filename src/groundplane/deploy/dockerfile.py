"""The Dockerfile of the one image that runs every role, as a user without rights."""

from __future__ import annotations

from groundplane._version import __version__
from groundplane.deploy.plan import USER, Plan

BASE = "python:3.12-slim"
EXTRAS = "gateway,rabbitmq,postgres,s3"


def dockerfile(plan: Plan) -> str:
    """The text. The folder that is the context holds the App, and `requirements.txt` where the App needs more."""
    on_nats = any(one.scheme != "embedded" for one in (plan.settings.kv, plan.settings.bus))
    return _TEXT.format(
        base=BASE, extras=f"{EXTRAS},nats" if on_nats else EXTRAS, version=__version__, user=USER, folder=plan.folder
    )


def dockerignore() -> str:
    """What never gets into the image: secrets, stored data, and what is built elsewhere."""
    return _IGNORED


_TEXT = """\
# written by `groundplane deploy`; from the folder of the app:  docker build -f FOLDER/Dockerfile -t IMAGE .
FROM {base} AS build
ARG GROUNDPLANE="groundplane[{extras}]=={version}"
RUN python -m venv /opt/groundplane
ENV PATH=/opt/groundplane/bin:$PATH
RUN pip install --no-cache-dir "$GROUNDPLANE"
COPY . /build
RUN if [ -f /build/requirements.txt ]; then pip install --no-cache-dir -r /build/requirements.txt; fi

FROM {base}
RUN groupadd --gid {user} groundplane \\
 && useradd --uid {user} --gid {user} --no-create-home --home-dir /tmp --shell /usr/sbin/nologin groundplane \\
 && install -d -o {user} -g {user} -m 0700 /run/groundplane
COPY --from=build /opt/groundplane /opt/groundplane
ENV PATH=/opt/groundplane/bin:$PATH PYTHONUNBUFFERED=1
COPY . {folder}
WORKDIR {folder}
USER {user}:{user}
ENTRYPOINT ["groundplane"]
CMD ["--help"]
"""
_IGNORED = """\
# written by `groundplane deploy`
**/secrets
**/*.env
**/.env
**/htpasswd
**/.groundplane
**/.git
**/.venv
**/__pycache__
"""
