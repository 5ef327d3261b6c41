"""Visual odometry of one camera, from the points that are followed and from estimated depth."""
