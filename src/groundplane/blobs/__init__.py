"""Blobs: objects by key, whole and checked."""
