"""The testing kit: what Groundplane's own suites use, for the tests of its users."""
