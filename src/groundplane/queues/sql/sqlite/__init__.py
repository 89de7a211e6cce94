"""Numbered migrations for SQLite. A released file never changes."""
