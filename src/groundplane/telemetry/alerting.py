"""From settings to a watcher: which rules, which channels."""

from __future__ import annotations

from groundplane.core.errors import InvalidArgument
from groundplane.core.settings import Settings
from groundplane.telemetry.alerts import Alerts
from groundplane.telemetry.default_rules import default_rules
from groundplane.telemetry.delivery import Channel, Courier, LogChannel, MailChannel, WebhookChannel
from groundplane.telemetry.rules import Rule, check_names, load_rules
from groundplane.telemetry.scraping import Source
from groundplane.telemetry.watcher import Watcher


def rules_of(settings: Settings) -> list[Rule]:
    """The default rules and the own ones of `alerts.rules`, which take the place of default ones of their name."""
    own = load_rules(settings.alerts_rules) if settings.alerts_rules is not None else []
    named = {one.name for one in own}
    rules = [*(one for one in default_rules() if one.name not in named), *own]
    check_names(rules)
    return rules


def channels_of(settings: Settings) -> list[Channel]:
    """The log, and what is set. `invalid_argument` where e-mail is set in part."""
    channels: list[Channel] = [LogChannel()]
    if settings.alerts_webhook is not None:
        channels.append(WebhookChannel(settings.alerts_webhook))
    if settings.alerts_smtp is not None:
        if not settings.alerts_mail_to:
            raise InvalidArgument("alerts.mail_to: is not set, and alerts.smtp is; say who gets the mail")
        channels.append(
            MailChannel(
                settings.alerts_smtp,
                sender=settings.alerts_mail_from or settings.alerts_mail_to[0],
                recipients=settings.alerts_mail_to,
            )
        )
    return channels


def watcher_of(settings: Settings, source: Source) -> Watcher:
    """A watcher of the source, as the settings say."""
    return Watcher(source, Alerts(rules_of(settings)), Courier(channels_of(settings)))
