"""Handlers that know nothing of Groundplane: they could run anywhere."""

import statistics


def describe(numbers: list[float]) -> dict[str, float]:
    """Mean, median and spread of some numbers."""
    return {
        "mean": statistics.fmean(numbers),
        "median": statistics.median(numbers),
        "spread": max(numbers) - min(numbers),
    }


def stamp(message: dict) -> dict:
    """Gets the whole message, as `handler_mode="message"` says, and returns it with one field more."""
    message["payload"]["stamped_by"] = "plain handler"
    return message
