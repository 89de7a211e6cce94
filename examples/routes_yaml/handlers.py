"""Handlers that know nothing of Groundplane: functions from values to values."""

import re
from collections import Counter

STOP_WORDS = {"a", "an", "and", "in", "is", "it", "of", "on", "or", "that", "the", "to", "was", "with"}


def tokenize(text: str, language: str = "en", limit: int = 10) -> dict:
    """The words of a text in lower case, without the most common ones."""
    words = re.findall(r"\w+", text.lower())
    kept = [word for word in words if language != "en" or word not in STOP_WORDS]
    return {"words": kept, "limit": limit}


def count(words: list[str], limit: int = 10) -> dict:
    """How often each word occurs, the most frequent first."""
    return {"total": len(words), "top": [list(pair) for pair in Counter(words).most_common(limit)]}
