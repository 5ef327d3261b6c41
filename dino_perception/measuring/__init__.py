"""What `demo` and `benchmark` measure and how they show it."""
