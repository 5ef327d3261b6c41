"""The heads: one head, one file; `base` states the contract."""
