"""Matching on the engine's device: plain torch of fixed shapes, batched over cameras and points, without a wait for the host."""
