"""The full-text index of the guide: SQLite's FTS5, one file, ranked by BM25."""

import math
import os
import re
import sqlite3
from contextlib import closing
from typing import Any

FILE = os.environ.get("LIBRARY_GUIDE_INDEX", "library_guide.db")
SCHEMA = """
CREATE VIRTUAL TABLE IF NOT EXISTS symbols USING fts5(
    words, text, name UNINDEXED, signature UNINDEXED, kind UNINDEXED, file UNINDEXED, line UNINDEXED, root UNINDEXED,
    tokenize = 'porter unicode61'
)
"""
STOP_WORDS = {
    "a",
    "an",
    "and",
    "do",
    "for",
    "from",
    "how",
    "i",
    "in",
    "into",
    "is",
    "of",
    "on",
    "the",
    "to",
    "what",
    "with",
}


def replace(root: str, symbols: list[dict[str, Any]]) -> None:
    """Index `symbols` as the whole of `root`, in one transaction: doing it twice leaves what doing it once does."""
    rows = [
        (_words(s["name"]), s["text"], s["name"], s["signature"], s["kind"], s["file"], s["line"], root)
        for s in symbols
    ]
    with closing(sqlite3.connect(FILE, timeout=30)) as database, database:
        database.execute(SCHEMA)
        database.execute("DELETE FROM symbols WHERE root = ?", (root,))
        database.executemany("INSERT INTO symbols VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def search(question: str, limit: int) -> list[dict[str, Any]]:
    """The `limit` best symbols. Rare words of the question count more, private names count less."""
    words = [word for word in re.findall(r"\w+", question.lower()) if word not in STOP_WORDS]
    if not words:
        raise ValueError(f"question: {question!r} has no words to look for")
    with closing(sqlite3.connect(FILE, timeout=30)) as database:
        database.execute(SCHEMA)
        rarity = {word: _rarity(database, word) for word in words}
        rows = database.execute(
            "SELECT name, signature, kind, text, file, line, root, bm25(symbols, 4.0, 1.0) FROM symbols "
            "WHERE symbols MATCH ? ORDER BY rank LIMIT 1000",
            (" OR ".join(f'"{word}"' for word in words),),
        ).fetchall()
    ranked = sorted(rows, key=lambda row: row[7] * _weight(row, rarity))
    return [
        {"name": name, "signature": signature, "kind": kind, "text": text, "file": file, "line": line, "root": root}
        for name, signature, kind, text, file, line, root, _ in ranked[:limit]
    ]


def count() -> tuple[int, int]:
    """How many symbols are indexed, and how many of them are different places: equal when nothing is there twice."""
    with closing(sqlite3.connect(FILE, timeout=30)) as database:
        database.execute(SCHEMA)
        row = database.execute("SELECT count(*), count(DISTINCT root || file || line || name) FROM symbols").fetchone()
    return row[0], row[1]


def _rarity(database: sqlite3.Connection, word: str) -> float:
    [[everything]] = database.execute("SELECT count(*) FROM symbols").fetchall()
    [[found]] = database.execute("SELECT count(*) FROM symbols WHERE symbols MATCH ?", (f'"{word}"',)).fetchall()
    return math.log((everything + 1) / (found + 0.5))


def _weight(row: tuple[Any, ...], rarity: dict[str, float]) -> float:
    """More for each word that is there (by its first letters), less for what is private or undocumented."""
    name, _, kind, text = row[:4]
    there = f"{_words(name)} {text}".lower()
    covered = sum(value for word, value in rarity.items() if word[:5] in there) / (sum(rarity.values()) or 1)
    *path, last = name.split(".")
    private = 0.4 if last.startswith("_") else 0.7 if any(part.startswith("_") for part in path) else 1.0
    depth = 1.0 if len(path) <= 1 else 0.8
    return covered**2 * private * depth * (1.0 if text else 0.6) * (1.0 if kind == "module" else 1.3)


def _words(name: str) -> str:
    """`tomllib.loads` and `TarFile` as words that can be found: names split at dots, underscores and capitals."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[._]", " ", name)
    return f"{spaced} {name.replace('.', ' ')} {re.sub('lib$|lib(?= )', '', spaced)}"
