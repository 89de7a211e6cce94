"""One module per external system: settings from a URL, opening and closing, pools, the table of errors.

Each imports `groundplane.core` and exactly one SDK, and knows nothing of the features that are built on it.
"""
