"""The actor mesh: envelopes that carry their own route through actors, each a durable queue, a sidecar and a runtime.

Importing this package imports nothing else: a runtime has to start in milliseconds.
"""
