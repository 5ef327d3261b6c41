"""`~/teach` on the live node: what somebody shows is in the next frame's mask, and in the latched classes."""

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")

from live_node import SMALL, image, wait_for  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402

from dino_perception.models.checkpoints import load_backbone  # noqa: E402
from dino_perception.models.heads import save_head  # noqa: E402
from dino_perception.srv import Teach  # noqa: E402
from dino_perception.training.teaching import made  # noqa: E402

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_a_class_that_is_shown_is_found_in_the_next_frame(start, tmp_path):
    from dino_perception.models.label_sets import Label

    empty = made(load_backbone("rover-tiny"), [Label(0, "background", (127, 127, 127))], {}, 20.0)
    save_head(empty, tmp_path / "empty.safetensors")
    given = {**SMALL, "heads": ["segmentation"], "segmentation.weights": str(tmp_path / "empty.safetensors")}
    _, client = start(given)
    client.wait_for_state("active")
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    infos = client.listen("segmentation/label_info", "vision_msgs/msg/LabelInfo", LATCHED)

    def next_mask():
        count = len(masks)
        client.send(image(client.now_ns()))
        wait_for(lambda: len(masks) > count, "the mask")
        return set(bytes(masks[-1].data))

    refused = client.call(Teach, "teach", class_name="block", box=[0, 0, 64, 96])
    assert not refused.success and "no frame" in refused.message
    assert next_mask() == {0}
    answer = client.call(Teach, "teach", class_name="block", box=[0, 0, 64, 96])
    assert answer.success and answer.class_id == 1 and "'block'" in answer.message
    assert next_mask() == {0, 1}
    wait_for(lambda: [c.class_name for c in infos[-1].class_map] == ["background", "block"], "the new classes")
    beyond = client.call(Teach, "teach", class_name="block", box=[0, 0, 64, 9600])
    assert not beyond.success and "not within the image of 128x96" in beyond.message
