"""How it is run: one runtime, one file, each checked against the float32 reference before it is used."""
