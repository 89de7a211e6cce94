"""Real servers for tests: native processes on free loopback ports, each with its own data folder."""
