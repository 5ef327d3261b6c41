"""One frame in, one percept out. No ROS."""
