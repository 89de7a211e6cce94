"""Secrets and URLs that hold them: values which do not show themselves in logs, errors, `repr` or crash output."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from groundplane.core.errors import InvalidArgument

MASK = "***"
_SECRET_WORDS = re.compile(r"pass|secret|token|(?:^|[_-])key$|credential|signature|apikey", re.IGNORECASE)
_OAUTH_WORDS = frozenset({"code", "state", "nonce", "code_verifier", "assertion"})
_PLAIN_WORD = re.compile(r"[a-z]{1,20}")
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s:/@'\"]*):(?P<password>[^\s/'\"]*)@")
_LONE_TOKEN = re.compile(r"(?P<scheme>\b(?:nats|tls)://)[^\s:/@'\"]+@", re.IGNORECASE)  # NATS: user alone is a token


class Secret:
    """A text that only `reveal()` shows. `str`, `repr`, `format` and pickling do not."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself: hand it to what needs it, keep it nowhere."""
        return self._value

    def masked(self) -> str:
        """What may be shown."""
        return MASK

    def __str__(self) -> str:
        return self.masked()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.masked()!r})"

    def __format__(self, spec: str) -> str:
        return format(self.masked(), spec)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._value))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{type(self).__name__} is not pickled: a secret at rest is a leak")


class Url(Secret):
    """A URL whose password and secret query parameters are masked wherever it is shown."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """What stands before `://`, in lower case; empty where nothing does."""
        return self._value.partition("://")[0].lower() if "://" in self._value else ""

    def masked(self) -> str:
        """The URL without its secrets."""
        return mask_url(self._value)

    @property
    def host(self) -> str:
        """What stands between `://` and the path, the user part included: show it to nobody."""
        return urlsplit(self._value).netloc

    def query(self) -> dict[str, str]:
        """The query parameters, decoded; of a repeated one the last."""
        return dict(parse_qsl(urlsplit(self._value).query, keep_blank_values=True))


def mask_url(text: str) -> str:
    """`text` with the password of its user part, and query parameters that are named like secrets, replaced."""
    try:
        readable = bool(urlsplit(text).scheme) and "://" in text
    except ValueError:
        readable = False
    if not readable:  # the secret may be anywhere in it, or be all of it
        return text if _PLAIN_WORD.fullmatch(text) else MASK
    head, mark, query = mask_urls(text).partition("?")
    return head + mark + "&".join(map(_masked_pair, query.split("&")))


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={MASK}" if equals and hides(unquote(name), value) else pair


def hides(name: str, value: object = "") -> bool:
    """Whether what was given under this name is not shown: the name is one of secrets, or one that OAuth sends secrets
    under and the value is more than a plain word.
    """
    if _SECRET_WORDS.search(name):
        return True
    return name.lower() in _OAUTH_WORDS and not (isinstance(value, str) and _PLAIN_WORD.fullmatch(value))


def mask_urls(text: str) -> str:
    """`text` with the passwords of all URLs in it replaced: for messages of others that quote one."""
    text = _LONE_TOKEN.sub(lambda found: f"{found['scheme']}{MASK}@", text)
    return _USER_INFO.sub(lambda found: f"{found['scheme']}{found['user']}:{MASK}@", text)


def check_url(field: str, text: str) -> Url:
    """`text` as a `Url`. `InvalidArgument` that names `field` where it has no scheme or cannot be read. Some drivers
    take several hosts, separated by commas.
    """
    scheme, separator, _ = text.partition("://")
    try:
        for host in urlsplit(text).netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        raise InvalidArgument(f"{field}: {mask_url(text)!r} is not a URL: its host or port cannot be read") from None
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or any(c.isspace() for c in text):
        shown = mask_url(text)
        raise InvalidArgument(
            f"{field}: {shown!r} is not a URL; write scheme://…, as embedded:// or https://example.com"
        )
    return Url(text)
