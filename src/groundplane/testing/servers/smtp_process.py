"""The process of the SMTP server: `smtp_process.py PORT FOLDER REJECT`. Stands alone, imports aiosmtpd."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP  # type: ignore[import-untyped,unused-ignore]


class Keeper:
    """Writes each accepted message to a file before it answers."""

    def __init__(self, folder: Path, reject: str) -> None:
        self.folder, self.reject = folder, reject
        self.count = 0

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if self.reject and self.reject in address:
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        for recipient in envelope.rcpt_tos:  # a copy for each, as if delivered to their mailboxes
            self.count += 1
            headers = f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {recipient}\r\n"
            name = f"{time.time_ns():020d}-{self.count:08d}"
            half = self.folder / f"{name}.tmp"
            half.write_bytes(headers.encode() + envelope.original_content)
            half.rename(self.folder / f"{name}.eml")
        return "250 OK"


async def serve(port: int, folder: Path, reject: str) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    keeper = Keeper(folder, reject)
    server = await loop.create_server(lambda: SMTP(keeper, enable_SMTPUTF8=True), "127.0.0.1", port)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
