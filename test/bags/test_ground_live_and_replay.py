"""Obstacles, the picture of the ground and the map of a real drive: the live node's and a replay's are the same bytes."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
sys.path.append(str(Path(__file__).parents[1] / "ros"))

from live_node import TIMEOUT_S, TYPES, Client, LiveNode, wait_for  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402

from dino_perception.bags.job import Job, run  # noqa: E402
from dino_perception.bags.storage.reader import BagReader  # noqa: E402
from dino_perception.bags.storage.topic import Record, Topic  # noqa: E402
from dino_perception.bags.storage.writer import BagWriter  # noqa: E402
from dino_perception.messages.images import decode_compressed  # noqa: E402
from dino_perception.messages.topics import ON_GROUND, TOPICS  # noqa: E402
from dino_perception.messages.types import RosbagsTypes  # noqa: E402
from dino_perception.perception.perceiver import Perceiver  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402

NODE = "/dino_perception/"
DRIVE = Path(__file__).parents[2] / "data" / "sample_drive"
PARAMETERS = {
    "engine": "torch",
    "precision": "float32",
    "threads": 1,
    "input_height": 240,
    "input_width": 320,
    "output_height": 120,
    "output_width": 160,
    "max_age": 3600.0,
}
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
FRAMES = 4


def frames():
    """The first (image, camera_info) of the sample drive, stamped now."""
    begin, sent, info = time.time_ns(), 0, None
    with BagReader(DRIVE) as bag:
        for record in bag.messages(["/camera/camera_info", "/camera/image_raw/compressed"]):
            if record.topic.name == "/camera/camera_info":
                info = bag.decode(record)
                continue
            pixels = decode_compressed(bag.decode(record))
            header = TYPES.header(begin + sent * 100_000_000, "camera_optical")
            yield (
                TYPES.make(
                    "sensor_msgs/msg/Image", header=header, height=pixels.shape[0], width=pixels.shape[1],
                    encoding="rgb8", step=pixels.shape[1] * 3, data=pixels.reshape(-1),
                ),
                TYPES.make(
                    "sensor_msgs/msg/CameraInfo", header=header, height=info.height, width=info.width,
                    distortion_model="plumb_bob", d=[0.0] * 5, k=list(info.k), r=list(info.r), p=list(info.p),
                ),
            )  # fmt: skip
            sent += 1
            if sent == FRAMES:
                return


@pytest.fixture(scope="module")
def both(tmp_path_factory, ros):
    """(live bytes by topic, replayed bytes by topic)."""
    folder, sent = tmp_path_factory.mktemp("ground"), list(frames())
    reliable = {f"qos_overrides./{name}.subscription.reliability": "reliable" for name in ("image", "camera_info")}
    node, client = LiveNode({**PARAMETERS, **reliable}), Client()
    try:
        client.wait_for_state("active")
        heard = {name: [] for name in ON_GROUND}
        kept = [
            client.node.create_subscription(TYPES.type(TOPICS[n].type), NODE + n, heard[n].append, RELIABLE, raw=True)
            for n in ON_GROUND
        ]
        wait_for(lambda: all(client.node.count_publishers(NODE + name) for name in ON_GROUND), "the publishers")
        send = [
            client.node.create_publisher(TYPES.type(f"sensor_msgs/msg/{kind}"), topic, RELIABLE)
            for kind, topic in (("CameraInfo", "/camera_info"), ("Image", "/image"))
        ]
        wait_for(lambda: all(p.get_subscription_count() for p in send), "the node's subscriptions")
        time.sleep(1.0)  # the node sees its listeners a little after they see it
        for number, (image, info) in enumerate(sent):
            send[0].publish(info)
            time.sleep(0.1)
            send[1].publish(image)
            wait_for(lambda number=number: len(heard["ground"]) > number, f"the picture of {number}", TIMEOUT_S)
        time.sleep(0.3)
        del kept
    finally:
        node.stop()
        client.close()
    writer = BagWriter(folder / "in.mcap")
    for number, (image, info) in enumerate(sent):
        for name, message in (("/camera_info", info), ("/image", image)):
            kind = f"sensor_msgs/msg/{type(message).__name__}"
            writer.write([Record(Topic(name, kind), 1_000_000 * number, serialize_message(message))])
    writer.close()
    settings = Settings.from_flat(PARAMETERS)
    job = Job(folder / "in.mcap", folder / "out.mcap", settings, overlays=True)
    assert run(job, lambda: Perceiver(settings, report=lambda line: None)).code == 0
    with BagReader(folder / "out.mcap") as bag:
        return heard, {name: [bytes(r.data) for r in bag.messages([NODE + name])] for name in ON_GROUND}


@pytest.mark.parametrize("name", sorted(ON_GROUND))
def test_they_are_the_same_bytes(both, name):
    types, (live, replayed) = RosbagsTypes(), both
    kind = TOPICS[name].type
    assert len(live[name]) == len(replayed[name]) > 0
    for mine, other in zip(live[name], replayed[name]):
        assert bytes(types.serialize(types.deserialize(mine, kind))) == other


def test_they_hold_something(both):
    types = RosbagsTypes()
    clouds = [types.deserialize(raw, "sensor_msgs/msg/PointCloud2") for raw in both[1]["obstacles"]]
    assert sum(cloud.width for cloud in clouds) > 100 and all(cloud.is_dense for cloud in clouds)
    grid = types.deserialize(both[1]["traversability"][-1], "nav_msgs/msg/OccupancyGrid")
    cells = np.asarray(grid.data)
    assert grid.header.frame_id == "odom" and (cells >= 0).sum() > 300 and cells.min() == -1
