"""How high trees stand, from pictures taken from above: rasters read and written tile by tile."""
