"""Tables of security."""
