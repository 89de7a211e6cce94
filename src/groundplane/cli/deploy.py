"""`groundplane deploy`: manifests of an App, rendered from its description."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli.loading import Description, describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output
from groundplane.core.errors import FailedPrecondition, InvalidArgument, NotFound
from groundplane.core.settings import Settings
from groundplane.deploy.plan import PROXY_IMAGE, Plan, plan_of

OWN_MARK = b"# written by `groundplane deploy`"

Image = Annotated[str, Parameter(help="Image that runs every role, as registry.example.com/acme/plane:1.0.")]
Folder = Annotated[Path | None, Parameter(help="Write the files into this folder instead of printing them.")]
InImage = Annotated[str, Parameter(help="Folder of the image that the app is in.")]
Gateways = Annotated[int, Parameter(help="How many gateways; with one, requests fail while it is made anew.")]
Serving = Annotated[int, Parameter(help="How many processes serve what the app declares for the bus, if anything.")]
Memory = Annotated[str, Parameter(help="Memory of what runs the app's code, as 512Mi.")]


def compose(
    app: str,
    /,
    *,
    image: Image,
    out: Folder = None,
    publish: Annotated[str, Parameter(help="Address of this host that the proxy gets.")] = "127.0.0.1:8080",
    folder: InImage = "/app",
    gateway_replicas: Gateways = 2,
    proxy_image: Annotated[
        str, Parameter(help="Image of the nginx before the gateways, 1.27.3 or newer.")
    ] = PROXY_IMAGE,
    services_replicas: Serving = 2,
    memory: Memory = "512Mi",
    common: Common = COMMON,
) -> int:
    """Render a Compose file. Secrets are files in the folder `secrets` beside it; see the how-to `deploy`.

    Examples:

      groundplane deploy compose app:app --image acme:1.0

      groundplane deploy compose app:app --image acme:1.0 --out deploy/
    """
    from groundplane.deploy import compose as renderer

    chosen = {
        "folder": folder, "proxy_image": proxy_image, "gateway_replicas": gateway_replicas, "memory": memory,
        "services_replicas": services_replicas,
    }  # fmt: skip
    plan = _plan(app, image, common, chosen)
    _deliver(renderer.render(plan, publish=publish), out, common.output, printed=("compose.yaml",))
    names = ", ".join(f"{port}_url" for port in plan.secrets.values())
    common.output.note(f"note: these files are to be in secrets/ beside it, readable for the containers: {names}")
    _tell_of_keys(plan, "docker compose exec gateway-1", common.output)
    return EXIT_OK


def kubernetes(
    app: str,
    /,
    *,
    image: Image,
    namespace: Annotated[str | None, Parameter(help="Namespace of the cluster (default: the plane's name).")] = None,
    out: Folder = None,
    folder: InImage = "/app",
    urls_secret: Annotated[str | None, Parameter(help="Secret with the URLs (default: NAME-urls).")] = None,
    gateway_replicas: Gateways = 2,
    services_replicas: Serving = 2,
    replicas_min: Annotated[int, Parameter(help="Least pods of an actor; 0 stops those without work.")] = 1,
    replicas_max: Annotated[int, Parameter(help="Most pods of an actor.")] = 10,
    backlog: Annotated[int, Parameter(help="Messages for each call at once that one pod is to have.")] = 10,
    no_keda: Annotated[bool, Parameter(negative="", help="No ScaledObjects: replicas-min pods of each actor.")] = False,
    memory: Memory = "512Mi",
    cpu: Annotated[str, Parameter(help="Processor time that a runtime requests, as 100m.")] = "100m",
    common: Common = COMMON,
) -> int:
    """Render manifests: settings, a migration that runs once, gateway, ends, services, actors with their ScaledObjects.

    Examples:

      groundplane deploy kubernetes app:app --image registry.example.com/acme:1.0 --out deploy/kubernetes/

      groundplane deploy kubernetes app:app --image acme:1.0 | kubectl apply -f -
    """
    from groundplane.deploy import kubernetes as renderer

    chosen = {
        "folder": folder, "gateway_replicas": gateway_replicas, "replicas_min": replicas_min,
        "replicas_max": replicas_max, "backlog": backlog, "memory": memory, "cpu": cpu,
        "services_replicas": services_replicas,
    }  # fmt: skip
    place = renderer.place_of(
        _plan(app, image, common, chosen), namespace=namespace, urls_secret=urls_secret,
        keda=not no_keda,
    )  # fmt: skip
    _deliver(renderer.render(place), out, common.output, stale="[0-9][0-9]-*.yaml")
    keys = " ".join(f"--from-literal={name}=…" for name in place.plan.secrets)
    made = f"kubectl -n {place.namespace} create secret generic {place.urls_secret} {keys}"
    common.output.note(f"note: the manifests refer to a secret that is to be there before:\n  {made}")
    _tell_of_keys(place.plan, f"kubectl -n {place.namespace} exec deployment/{place.name('gateway')} --", common.output)
    return EXIT_OK


def _tell_of_keys(plan: Plan, inside: str, output: Output) -> None:
    """How the first callers come in."""
    if plan.settings.auth in ("none", "keys", "keys+oauth"):
        made = "groundplane keys create admin --scope admin --scope 'tools:*'"
        output.note(
            f"note: callers need an API key; once a gateway is ready, the first one is made in it:\n  {inside} {made}"
        )


def _plan(app: str, image: str, common: Common, chosen: dict[str, Any]) -> Plan:
    settings = common.settings()
    description = describe_apart(app)
    address, folder = _in_image(app, description, chosen["folder"])
    return plan_of(
        app=address,
        image=image,
        actors=description.actors.values(),
        serves=description.serves,
        settings=settings,
        routes=_routes(settings),
        **{**chosen, "folder": folder},
    )


def _in_image(app: str, description: Description, folder: str) -> tuple[str, str]:
    """The App's address and its folder in the image: what this folder is here, `folder` is there."""
    place, colon, attribute = app.partition(":")
    if not (place.endswith(".py") or "/" in place):
        return app, folder
    here = description.folder.resolve()
    try:
        inside = here.relative_to(Path.cwd().resolve())
    except ValueError as error:
        raise InvalidArgument(
            f"app: {app!r} is in {str(here)!r}, not below this folder; run this where the image is built"
        ) from error
    return f"{Path(place).stem}{colon}{attribute}", os.path.normpath(os.path.join(folder, inside))


def _routes(settings: Settings) -> dict[str, str]:
    """The files with tools, by name."""
    if settings.routes is None:
        return {}
    place = settings.routes
    files = sorted(one for one in place.iterdir() if one.suffix in (".yaml", ".yml")) if place.is_dir() else [place]
    try:
        return {file.name: file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"routes: {str(place)!r} cannot be read: {error}; mend GROUNDPLANE_ROUTES") from error


def _deliver(
    files: dict[str, str],
    out: Path | None,
    output: Output,
    printed: tuple[str, ...] | None = None,
    stale: str | None = None,
) -> None:
    """Print the files as one document, or write them. Own files whose names are like `stale` and that are not among
    these are of an earlier rendering, and go.
    """
    if out is None:
        shown = {name: text for name, text in files.items() if printed is None or name in printed}
        output.result({"files": files}, "---\n".join(shown.values()))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [str(out / name) for name, text in files.items() if _written(out / name, text, output)]
        for old in sorted(out.glob(stale)) if stale else ():
            if old.name not in files and _is_own(old):
                old.unlink()
                output.note(f"note: {old} is removed: the app has it no longer")
    except OSError as error:
        raise FailedPrecondition(
            f"out: {str(out)!r} cannot be written: {error.strerror}; choose another folder"
        ) from error
    output.result({"written": written}, "\n".join(written))


def _written(file: Path, text: str, output: Output) -> bool:
    """Write one file, unless somebody else wrote what is there."""
    if file.exists() and not _is_own(file):
        output.note(f"note: {file} is left as it is: it was not written by `groundplane deploy`")
        return False
    file.write_text(text, encoding="utf-8")
    return True


def _is_own(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(OWN_MARK)) == OWN_MARK
