"""Depth that does not fit the camera's mast is a warning with both numbers, from a parameter or from TF."""

from __future__ import annotations

import math
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from live_node import TYPES, picture_of, wait_for
from rclpy.qos import DurabilityPolicy, QoSProfile

from dino_perception.ros.camera_height import StaticFrames, disagreement
from dino_perception.share import share
from dino_perception.training.datasets import open_dataset

DOUBT = "over the ground by its estimated depth"
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def transform(parent: str, child: str, move, turn=(0.0, 0.0, 0.0, 1.0)):
    pose = dict(
        translation=TYPES.make("geometry_msgs/msg/Vector3", **dict(zip("xyz", move))),
        rotation=TYPES.make("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", turn))),
    )
    return TYPES.make(
        "geometry_msgs/msg/TransformStamped",
        header=TYPES.header(0, parent),
        child_frame_id=child,
        transform=TYPES.make("geometry_msgs/msg/Transform", **pose),
    )


def mast(height: float):
    """base_footprint -> base_link -> camera, `height` over base_footprint in all, base_link pitched by 0.1 rad."""
    return TYPES.make(
        "tf2_msgs/msg/TFMessage",
        transforms=[
            transform("base_footprint", "base_link", (0.0, 0.0, 0.2)),
            transform("base_link", "camera_optical_frame", (0.3, 0.0, height - 0.2), (-0.5, 0.5, -0.5, 0.5)),
        ],
    )


def test_the_difference_that_matters_is_a_sentence_with_both_numbers():
    sentence = disagreement(1.1, 0.8, "TF from base_footprint")
    assert all(part in sentence for part in ("1.10 m", "0.80 m", "TF from base_footprint", "38% too long"))
    assert "20% too short" in disagreement(0.8, 1.0, "it")
    for agreed in ((1.1, 1.0), (1.0, 1.1), (None, 1.0), (1.0, None), (1.0, 0.0)):
        assert disagreement(*agreed, "it") == ""


def test_the_height_of_a_frame_follows_the_fixed_transforms(ros):
    frames = StaticFrames(ros.create_node("frames"), TYPES.type("tf2_msgs/msg/TFMessage"))
    assert frames.height("camera_optical_frame", "base_footprint") is None  # nothing has come
    frames._add(mast(0.8))
    assert frames.height("camera_optical_frame", "base_footprint") == pytest.approx(0.8)
    assert frames.height("camera_optical_frame", "base_link") == pytest.approx(0.6)
    assert frames.height("camera_optical_frame", "map") is None and frames.height("other", "base_link") is None
    tilted = (0.0, math.sin(0.1), 0.0, math.cos(0.1))
    frames._add(
        TYPES.make("tf2_msgs/msg/TFMessage", transforms=[transform("earth", "base_footprint", (0, 0, 9), tilted)])
    )
    assert frames.height("camera_optical_frame", "base_footprint") == pytest.approx(0.8)  # over the robot's own ground


def test_a_node_compares_its_depth_with_tf_and_with_the_parameter(start, tmp_path):
    """With the sample drive's first picture again and again."""
    sample = open_dataset(share("data", "sample_drive"), cache=tmp_path).samples[0]
    small = {"input_height": 240, "input_width": 320, "output_height": 120, "output_width": 160}
    node, client = start({"engine": "torch", "threads": 1, "max_age": 600.0, **small}, name="tall")
    frames = client.node.create_publisher(TYPES.type("tf2_msgs/msg/TFMessage"), "/tf_static", LATCHED)
    client.wait_for_state("active")
    client.listen("points", "sensor_msgs/msg/PointCloud2")

    def found():
        return client.found("camera camera")

    def once(condition, what):
        wait_for(
            lambda: client.send(*picture_of(sample, client.now_ns())) or time.sleep(0.2) or condition(), what, 180.0
        )

    once(lambda: client.values("camera camera").get("height over ground by depth [m]"), "a height")
    metres = float(client.values("camera camera")["height over ground by depth [m]"])
    assert 0.5 < metres < 2.5 and DOUBT not in found().message  # nothing says how high it should be
    frames.publish(mast(metres))
    once(lambda: client.values("camera camera")["height over ground as told [m]"], "the height by TF")
    assert float(client.values("camera camera")["height over ground as told [m]"]) == pytest.approx(metres)
    assert DOUBT not in found().message
    frames.publish(mast(0.7 * metres))
    once(lambda: DOUBT in found().message, "a warning by TF")
    assert found().level == DiagnosticStatus.WARN
    assert f"but {0.7 * metres:.2f} m by TF from base_footprint" in found().message
    assert client.set(camera_height=1.5 * metres).successful
    once(lambda: "too short" in found().message, "a warning by the parameter")
    assert f"{1.5 * metres:.2f} m by the parameter camera_height" in found().message
    assert node.alive()
