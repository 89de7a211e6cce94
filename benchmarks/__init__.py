"""Benchmarks: beside the raw client and a named peer, in one run, as medians and ratios. `python -m benchmarks`."""
