"""What the tests of the live node share."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")


@pytest.fixture(scope="module")
def start(ros):
    """start(parameters, *arguments, name=..., program=...) -> (LiveNode, Client); all end with the module."""
    from live_node import Client, LiveNode

    started = []

    def make(parameters, *arguments, name="dino_perception", **options):
        started.append((LiveNode(parameters, *arguments, name=name, **options), Client(name)))
        return started[-1]

    yield make
    for node, client in started:
        node.stop()
        client.close()
