"""The tables of the bus in the plane's SQLite file."""
