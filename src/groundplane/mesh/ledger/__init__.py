"""The mesh's ledger: effects done once, children that arrived at a join."""
