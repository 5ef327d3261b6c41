"""Every test session has a ROS domain of its own, chosen before anything imports rclpy.

`make test` and `python -m pytest` inside .venv see the built messages by themselves (tools/workspace.py); elsewhere the
tests need a sourced workspace, as `colcon test` provides it, and those of the ROS room are skipped without.
"""

from __future__ import annotations

import pytest

from dino_perception.ros.rig.isolation import isolated

_isolation = isolated()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "launch: a launch_pytest test")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    _isolation.__enter__()


def pytest_unconfigure(config: pytest.Config) -> None:
    _isolation.__exit__(None, None, None)


@pytest.fixture(scope="session")
def ros():
    """rclpy, running: a process may start it once, so all rooms share it."""
    rclpy = pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
