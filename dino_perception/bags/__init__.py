"""The offline front door: bags in, bags with percepts out, no ROS installation needed."""
