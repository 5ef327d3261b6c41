"""A procedural rover terrain with exact ground truth: seeded worlds, drives through them, rendered frames."""
