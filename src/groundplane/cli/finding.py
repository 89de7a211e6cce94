"""What a check of `groundplane doctor` found."""

from __future__ import annotations

from typing import Literal

import msgspec

from groundplane.core.errors import GroundplaneError
from groundplane.core.reasons import REASONS
from groundplane.core.secrets import mask_urls

Severity = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. `remedy` says what to do where something is to be done."""

    check: str
    severity: Severity
    message: str
    reason: str = ""
    remedy: str = ""


def of_error(check: str, error: GroundplaneError) -> Finding:
    """An error as a finding. What its message advises after the last semicolon is the remedy, else its reason's."""
    row = REASONS.get(error.reason)
    message, _, advice = mask_urls(error.message).rpartition("; ")
    if not message:
        message, advice = advice, ""
    general = row.remedy if row is not None else "See the message."
    remedy = f"{advice[0].upper()}{advice[1:]}{'' if advice.endswith('?') else '.'}" if advice else general
    if advice.startswith("pip "):  # a command stays as it is typed
        remedy = advice
    return Finding(check=check, severity="error", message=message, reason=error.reason or error.code, remedy=remedy)
