"""Migrations of jobs for PostgreSQL."""
