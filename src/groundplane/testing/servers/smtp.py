"""A mail server that delivers nothing: what it accepted lies as one file for each message in its data folder.

`caught(data)` reads them. The server is aiosmtpd, from PyPI, in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Server, Source
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
    """The mail that was accepted, oldest first; `to`: only where the envelope names this in a recipient. The envelope's
    addresses are in the headers X-Envelope-From and X-Envelope-To.
    """
    found = [BytesParser(EmailMessage, policy=policy.default).parsebytes(p.read_bytes()) for p in _files(data)]
    return [message for message in found if to in str(message["X-Envelope-To"])]


def clear(data: Path, *, to: str = "") -> int:
    """Forget caught mail, all or that to a recipient; how many."""
    count = 0
    for path, message in zip(_files(data), caught(data), strict=True):
        if to in str(message["X-Envelope-To"]):
            path.unlink()
            count += 1
    return count


def _files(data: Path) -> list[Path]:
    return sorted(data.glob("*.eml"))


SERVER = SmtpServer()
