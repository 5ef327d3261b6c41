"""Datasets, head training, metrics and the procedural terrain."""
