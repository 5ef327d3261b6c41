"""The loop closed: a rover in the rendered terrain that steers by what is perceived, and how far it gets."""
