"""The live front door: the ROS 2 node."""
