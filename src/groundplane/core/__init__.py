"""What every part shares: errors, envelope, codec, ids, deadlines, retry, settings, lifecycle, clock.

Imports the standard library and msgspec alone, and nothing else of Groundplane.
"""
