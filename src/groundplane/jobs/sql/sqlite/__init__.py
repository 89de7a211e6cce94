"""The numbered migrations for SQLite. A released file is never edited."""
