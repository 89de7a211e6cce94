"""Tables of key-value storage."""
