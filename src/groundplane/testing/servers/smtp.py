"""A mail server that delivers nothing: what it accepted lies as one file for each message in its data folder.

`caught(data)` reads them. The server is aiosmtpd, from PyPI, in a process of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Running, Server, Source
from groundplane.testing.servers.sources import PyPI


def _read(programs: Mapping[str, Path]) -> str:
    found = sorted(programs["aiosmtpd"].parent.glob("aiosmtpd-*.dist-info"))
    return found[-1].name.removeprefix("aiosmtpd-").removesuffix(".dist-info") if found else ""


class SmtpServer(Server):
    """SMTP."""

    name = "smtp"
    title = "SMTP (aiosmtpd)"
    light = True
    ports = ("smtp",)
    customary = ("SMTP_URL",)
    options: ClassVar[Mapping[str, str]] = {"reject": "A recipient's word: whoever has it in the address is refused."}

    def sources(self) -> Sequence[Source]:
        programs = {"aiosmtpd": "aiosmtpd"}
        return (PyPI("aiosmtpd==1.4.6", version="1.4.6", programs=programs, read=_read, size_mb=1, seconds=5,
                     dependencies=True),)  # fmt: skip

    def launch(self, place: Place) -> Sequence[Program]:
        script = Path(__file__).with_name("smtp_process.py")
        words = [str(place.port), str(place.data), str(place.options.get("reject", ""))]
        library = {"PYTHONPATH": str(place.installation.programs["aiosmtpd"].parent)}
        return [Program(argv=[sys.executable, str(script), *words], env=library)]

    def check(self, place: Place) -> None:
        with wire.dial(place.port) as connection:
            greeting = connection.recv(200)
            connection.sendall(b"QUIT\r\n")
        if not greeting.startswith(b"220"):
            raise NotReady(f"greeting: {greeting!r}")

    def url(self, place: Place) -> str:
        return f"smtp://{wire.HOST}:{place.port}"


def caught(data: Path, *, to: str = "") -> list[EmailMessage]:
    """The mail that was accepted, oldest first, one copy for each recipient; `to`: only where this is in the
    recipient's address. The envelope's addresses are in the headers X-Envelope-From and X-Envelope-To.
    """
    return [message for _, message in _stored(data, to)]


def clear(data: Path, *, to: str = "") -> int:
    """Forget caught mail, all or that to a recipient; how many."""
    found = _stored(data, to)
    for path, _ in found:
        path.unlink(missing_ok=True)
    return len(found)


@dataclass(frozen=True)
class Mailbox:
    """A domain of one test's own on the shared server: other tests' mail is neither seen nor cleared."""

    server: Running
    domain: str

    def address(self, name: str = "somebody") -> str:
        """An address whose mail is caught here."""
        return f"{name}@{self.domain}"

    def messages(self, *, to: str = "", subject: str = "") -> list[EmailMessage]:
        """What was accepted, oldest first; only to this address, only with this in the subject."""
        found = caught(self.server.data, to=to or f"@{self.domain}")
        return [message for message in found if subject in str(message["Subject"])]

    def clear(self) -> int:
        """Forget it; how many there were."""
        return clear(self.server.data, to=f"@{self.domain}")


def _stored(data: Path, to: str) -> list[tuple[Path, EmailMessage]]:
    found = []
    for path in sorted(data.glob("*.eml")):
        with contextlib.suppress(FileNotFoundError):  # another test cleared its own meanwhile
            message = BytesParser(EmailMessage, policy=policy.default).parsebytes(path.read_bytes())
            if to in str(message["X-Envelope-To"]):
                found.append((path, message))
    return found


SERVER = SmtpServer()
