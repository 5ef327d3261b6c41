"""Percepts to ROS messages and back, with rclpy's message classes or with rosbags' own."""
