"""Single active: of many instances one acts, and what a former one still sends is refused.

`policies` says how long leases last, `election` decides, and says why there are never two.
"""
