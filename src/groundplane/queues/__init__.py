"""Durable work queues with dead letters."""
