"""Logs, metrics and the admin server that every process of a plane has."""
