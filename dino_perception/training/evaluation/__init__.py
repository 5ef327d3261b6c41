"""How good perception is on data with truth, beside simple baselines."""
