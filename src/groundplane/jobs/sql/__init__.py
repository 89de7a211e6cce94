"""The tables of jobs, one folder for each dialect."""
