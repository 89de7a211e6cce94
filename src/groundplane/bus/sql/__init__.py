"""The tables of the bus, a folder for each dialect."""
