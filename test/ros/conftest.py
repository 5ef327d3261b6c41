"""What the tests of the live node share."""

from __future__ import annotations

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs a ROS 2 installation")


@pytest.fixture(scope="session")
def ros():
    """rclpy, running."""
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
