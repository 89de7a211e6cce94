"""The tables of the queues, a folder for each dialect."""
