"""Migrations for SQLite."""
