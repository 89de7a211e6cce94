"""Where notices of alerts go: the log, a webhook, e-mail.

A channel raises `unavailable` where it may be tried again and another `GroundplaneError` where that would not help. The
`Courier` keeps what a channel could not take, the newest notice of each rule, and offers it again with the next ones.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.secrets import Url
from groundplane.telemetry.alerts import Notice
from groundplane.telemetry.logs import get_logger

TIMEOUT_S = 10.0
_log = get_logger("alerts")


class Channel(Protocol):
    """Takes notices to somebody."""

    name: str

    async def send(self, notice: Notice) -> None:
        """Returns when it was accepted, within `TIMEOUT_S` seconds. Repeats may come after an error."""
        ...


class LogChannel:
    """A line of the log for each notice: what fires at level WARNING or ERROR, what resolved at INFO."""

    name = "log"

    async def send(self, notice: Notice) -> None:
        """See the protocol."""
        tell = _log.info if notice.status == "resolved" else _log.warning
        tell = _log.error if notice.status == "firing" and notice.rule.severity == "critical" else tell
        labels = [dict(one.labels) for one in (notice.firing or notice.resolved)]
        tell(
            f"alert_{notice.status}",
            rule=notice.rule.name,
            severity=notice.rule.severity,
            alerts=labels[:10],
            summary=notice.rule.summary,
            runbook=notice.rule.runbook,
        )


class WebhookChannel:
    """POST of JSON as Alertmanager sends it, to `http://` or `https://`; any status below 300 is an acceptance."""

    name = "webhook"

    def __init__(self, url: Url) -> None:
        if url.scheme not in ("http", "https"):
            raise InvalidArgument(f"webhook: {url.scheme!r} is no scheme of a webhook; give an http:// or https:// URL")
        self._url = url
        self._shown = f"{url.scheme}://{urlsplit(url.reveal()).hostname}/…"  # the path of such a URL is its secret

    async def send(self, notice: Notice) -> None:
        """See the protocol. A status of 400 to 499 but 408 and 429 is `failed_precondition`: it would come again."""
        body = msgspec.json.encode(notice.document())
        await asyncio.to_thread(self._post, body)

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(
            self._url.reveal(), data=body, method="POST", headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            with error:
                message = f"webhook: {self._shown!r} answered {error.code}"
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    raise FailedPrecondition(f"{message}; mend the URL or its service") from error
                raise Unavailable(message) from error
        except (OSError, urllib.error.URLError) as error:
            raise Unavailable(f"webhook: {self._shown!r} cannot be reached: {error}") from error


class MailChannel:
    """E-mail over `smtp://[user:password@]host[:port]` (STARTTLS where the server offers it) or `smtps://` (TLS from
    the start). A login is never sent without TLS.
    """

    name = "mail"

    def __init__(self, server: Url, *, sender: str, recipients: Sequence[str]) -> None:
        if server.scheme not in ("smtp", "smtps"):
            raise InvalidArgument(f"smtp: {server.masked()!r} is no smtp:// or smtps:// URL")
        for field, addresses in (("mail_from", [sender]), ("mail_to", list(recipients))):
            if not addresses or any("@" not in one or "\n" in one or "\r" in one for one in addresses):
                raise InvalidArgument(f"{field}: {', '.join(addresses)!r} is no address; write ops@example.com")
        self._server = server
        self._sender = sender
        self._recipients = list(recipients)

    async def send(self, notice: Notice) -> None:
        """See the protocol. A refusal of the server for good (5xx) is `failed_precondition`."""
        try:
            import aiosmtplib
        except ImportError as error:
            raise FailedPrecondition(
                "smtp: aiosmtplib is not installed; install groundplane[alerts]", reason="missing_extra"
            ) from error
        shown = self._server.masked()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._deliver(self._message(notice))
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise FailedPrecondition(f"mail_to: {shown!r} refused the recipients: {error.recipients}") from error
        except aiosmtplib.SMTPResponseException as error:
            message = f"smtp: {shown!r} answered {error.code} {error.message}"
            raise (FailedPrecondition if error.code >= 500 else Unavailable)(message) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise Unavailable(f"smtp: {shown!r} cannot be reached: {error!r}") from error

    async def _deliver(self, message: EmailMessage) -> None:
        from aiosmtplib import SMTP

        parts, secure = urlsplit(self._server.reveal()), self._server.scheme == "smtps"
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        async with SMTP(
            hostname=parts.hostname or "127.0.0.1",
            port=parts.port,
            use_tls=secure,
            start_tls=False if secure else None if user is None else True,
            username=user,
            password=password,
            timeout=TIMEOUT_S,
        ) as client:
            await client.send_message(message, sender=self._sender, recipients=self._recipients)

    def _message(self, notice: Notice) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = notice.subject()
        message["From"] = self._sender
        message["To"] = ", ".join(self._recipients)
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain=self._sender.rpartition("@")[2])
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence note answers it
        message.set_content(notice.text())
        return message


class Courier:
    """Takes notices to all channels, each by itself: one that is away delays no other."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = list(channels)
        self.delivered: dict[str, int] = {one.name: 0 for one in channels}
        self.failed: dict[str, int] = {one.name: 0 for one in channels}
        self._waiting: dict[str, dict[str, Notice]] = {one.name: {} for one in channels}

    def waiting(self) -> int:
        """Notices that a channel has not taken yet."""
        return sum(map(len, self._waiting.values()))

    async def send(self, notices: Sequence[Notice]) -> None:
        """Offer these, and what was left before. Never raises but for a cancellation: what a channel did not take is
        logged, counted and offered again; what it refused for good is logged and counted.
        """
        await asyncio.gather(*(self._send(channel, notices) for channel in self.channels))

    async def _send(self, channel: Channel, notices: Sequence[Notice]) -> None:
        waiting = self._waiting[channel.name]
        for one in notices:
            waiting[one.rule.name] = _joined(waiting.pop(one.rule.name, None), one)
        for name, notice in list(waiting.items()):
            try:
                await channel.send(notice)
            except GroundplaneError as error:
                self.failed[channel.name] += 1
                again = error.code == "unavailable"
                _log.error("notice_not_delivered", channel=channel.name, rule=name, error=error.message, again=again)
                if again:
                    return  # nor would it take the others now
            else:
                self.delivered[channel.name] += 1
            del waiting[name]


def _joined(old: Notice | None, new: Notice) -> Notice:
    """The newer notice, with what had resolved and was not told, unless that fires again."""
    if old is None:
        return new
    known = {one.fingerprint for one in (*new.firing, *new.resolved)}
    earlier = [one for one in old.resolved if one.fingerprint not in known]
    return msgspec.structs.replace(new, resolved=[*earlier, *new.resolved])
