"""Every test session has a ROS domain of its own, chosen before anything imports rclpy.

`make test` and `python -m pytest` inside .venv see the built messages by themselves (tools/workspace.py); elsewhere the
tests need a sourced workspace, as `colcon test` provides it, and those of the ROS room are skipped without.
"""

from __future__ import annotations

import begun_early
import pytest

from dino_perception.ros.rig.isolation import isolated

_isolation = isolated()
_early: list[begun_early.Within] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "launch: a launch_pytest test")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    _isolation.__enter__()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is only waited for begins now."""
    names = {getattr(item, "originalname", "") for item in session.items}
    chosen = [job for job in begun_early.jobs if job.test in names]
    if chosen and not session.config.option.collectonly:
        _early.append(begun_early.Within(chosen))


def pytest_sessionfinish() -> None:
    for jobs in _early:
        jobs.end()


def pytest_unconfigure(config: pytest.Config) -> None:
    _isolation.__exit__(None, None, None)


@pytest.fixture(scope="session")
def ros():
    """rclpy, running: a process may start it once, so all rooms share it."""
    rclpy = pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
