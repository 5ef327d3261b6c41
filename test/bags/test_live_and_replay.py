"""Two doors to one house: the frames that the live node is sent and the replay of them give the same messages, byte for
byte."""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
sys.path.append(str(Path(__file__).parents[1] / "ros"))

from live_node import SMALL, TIMEOUT_S, TYPES, Client, LiveNode, wait_for  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from recorded import picture  # noqa: E402

from dino_perception.bags.job import Job, run  # noqa: E402
from dino_perception.bags.storage.reader import BagReader  # noqa: E402
from dino_perception.bags.storage.topic import Record, Topic  # noqa: E402
from dino_perception.bags.storage.writer import BagWriter  # noqa: E402
from dino_perception.messages.topics import offered as offered_topics  # noqa: E402
from dino_perception.messages.types import RosbagsTypes  # noqa: E402
from dino_perception.models.checkpoints import load_backbone  # noqa: E402
from dino_perception.models.heads import Label, create_head, save_head  # noqa: E402
from dino_perception.perception.perceiver import Perceiver  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402
from dino_perception.training.teaching import made_of  # noqa: E402

HEADS = [*Settings().heads, "detection", "features", "place"]
OFFERED = offered_topics(HEADS)
TOPICS = {name: about for name, about in OFFERED.items() if TYPES.available(about.type)}
"""Those whose messages this ROS installation knows, as the node offers them."""

NODE = "/dino_perception/"
PARAMETERS = {**SMALL, "precision": "float32", "max_age": 3600.0, "heads": HEADS}
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def frames(count=7):
    """(image, camera_info) messages of a moving camera, in several encodings, one in reverse in time."""
    from live_node import info

    begin = time.time_ns() // 1_000_000_000 * 1_000_000_000
    for number in range(count):
        stamp = begin + (number if number != 5 else 1) * 100_000_000
        pixels = picture(number)
        encoding, data = [("rgb8", pixels), ("bgr8", pixels[..., ::-1]), ("mono8", pixels[..., 1])][number % 3]
        yield (
            TYPES.make(
                "sensor_msgs/msg/Image",
                header=TYPES.header(stamp, "camera_optical"),
                height=pixels.shape[0],
                width=pixels.shape[1],
                encoding=encoding,
                step=data[0].size,
                data=data.copy().reshape(-1),
            ),
            info(stamp),
        )


@pytest.fixture(scope="module")
def both(tmp_path_factory, ros):
    folder = tmp_path_factory.mktemp("both")
    save_head(create_head("detection", load_backbone("rover-tiny"), candidates=50), folder / "random.safetensors")
    return through_both_doors(folder, {**PARAMETERS, "detection.weights": str(folder / "random.safetensors")}, TOPICS)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, ros):
    """The same with a segmentation head that was shown where a picture is dark and where bright, and not trained."""
    folder, backbone = tmp_path_factory.mktemp("taught"), load_backbone("rover-tiny")
    pixels = cv2.resize(picture(0), (128, 96))
    (features,) = backbone.at(96, 128, (backbone.spec.depth - 1,))(torch.from_numpy(pixels)[None])
    grey = cv2.resize(pixels.mean(axis=2), (8, 6), interpolation=cv2.INTER_AREA)
    truth = np.kron(grey > np.median(grey), np.ones((2, 2))).astype(np.uint8)
    labels = (Label(0, "dark", (60, 60, 60)), Label(1, "bright", (230, 230, 230)))
    save_head(made_of(backbone, features[0], truth, labels), folder / "taught.safetensors")
    parameters = {**PARAMETERS, "heads": ["segmentation"], "segmentation.weights": str(folder / "taught.safetensors")}
    names = ("segmentation/mask", "segmentation/confidence", "segmentation/label_info", "segmentation/overlay")
    return through_both_doors(folder, parameters, {name: TOPICS[name] for name in names})


def through_both_doors(folder, parameters, topics):
    """(live bytes by topic, output bag, QoS that the live node offers by topic, the replay's result)."""
    sent = list(frames())
    node, client = (
        LiveNode(
            {
                **parameters,
                **{f"qos_overrides./{name}.subscription.reliability": "reliable" for name in ("image", "camera_info")},
            }
        ),
        Client(),
    )
    try:
        client.wait_for_state("active")
        heard = {name: [] for name in topics}
        subscriptions = [
            client.node.create_subscription(
                TYPES.type(about.type),
                NODE + name,
                heard[name].append,
                LATCHED if about.latched else RELIABLE,
                raw=True,
            )
            for name, about in topics.items()
        ]
        wait_for(lambda: all(client.node.count_publishers(NODE + name) for name in topics), "the node's publishers")
        time.sleep(1.0)  # the node sees its listeners a little after they see it
        infos = client.node.create_publisher(TYPES.type("sensor_msgs/msg/CameraInfo"), "/camera_info", RELIABLE)
        images = client.node.create_publisher(TYPES.type("sensor_msgs/msg/Image"), "/image", RELIABLE)
        wait_for(lambda: infos.get_subscription_count() and images.get_subscription_count(), "the node's subscriptions")
        for number, (image, info) in enumerate(sent):
            infos.publish(info)
            time.sleep(0.1)  # another topic: it could arrive behind the image
            images.publish(image)
            data = [name for name, about in topics.items() if not about.latched and not about.followed]
            wait_for(
                lambda: all(len(heard[name]) == number + 1 for name in data),
                f"every output of frame {number}",
                TIMEOUT_S,
            )
        wait_for(lambda: heard["segmentation/label_info"], "the labels")
        time.sleep(0.5)  # what comes only where ground is seen comes with the matches
        offered = {name: client.node.get_publishers_info_by_topic(NODE + name)[0].qos_profile for name in topics}
        del subscriptions
    finally:
        node.stop()
        client.close()
    writer = BagWriter(folder / "in.mcap")
    for number, (image, info) in enumerate(sent):
        for name, message in (("/camera_info", info), ("/image", image)):
            kind = f"sensor_msgs/msg/{type(message).__name__}"
            writer.write([Record(Topic(name, kind), 1_000_000 * number, serialize_message(message))])
    writer.close()
    settings = Settings.from_flat(parameters)
    result = run(
        Job(folder / "in.mcap", folder / "out.mcap", settings, overlays=True),
        lambda: Perceiver(settings, report=lambda line: None),
    )
    return heard, folder / "out.mcap", offered, result


def replayed(path, name):
    with BagReader(path) as bag:
        return [bytes(record.data) for record in bag.messages([NODE + name])]


def canonical(raw, kind):
    """The bytes with padding at zero: Fast CDR leaves it as the memory was, which means nothing."""
    types = RosbagsTypes()
    return bytes(types.serialize(types.deserialize(raw, kind)))


@pytest.mark.parametrize("name", [name for name, about in TOPICS.items() if not about.latched])
def test_every_message_has_the_same_bytes(both, name):
    heard, output, _, result = both
    ours, kind = replayed(output, name), TOPICS[name].type
    if TOPICS[name].followed:  # there is one where ground was seen, and the place is known
        assert len(ours) == len(heard[name])
    else:
        assert result.figures["frames_out"] == len(ours) == len(heard[name]) == 7
    for live, replay in zip(heard[name], ours):
        assert len(replay) <= len(live) <= len(replay) + 7
        assert canonical(live, kind) == replay


def test_a_head_that_was_shown_its_classes_says_the_same_through_both_doors(taught):
    heard, output, _, _ = taught
    for name in ("segmentation/mask", "segmentation/confidence", "segmentation/overlay"):
        ours = replayed(output, name)
        assert [canonical(live, TOPICS[name].type) for live in heard[name]] == ours and len(ours) == 7
    with BagReader(output) as bag:
        masks = [np.asarray(bag.decode(record).data) for record in bag.messages([NODE + "segmentation/mask"])]
    assert all({0, 1} <= set(np.unique(mask)) for mask in masks), "equal, and both classes are seen"


def test_the_labels_are_the_same(both):
    heard, output, _, _ = both
    types = RosbagsTypes()
    live, replay = (
        types.deserialize(raw[-1], "vision_msgs/msg/LabelInfo")
        for raw in (heard["segmentation/label_info"], replayed(output, "segmentation/label_info"))
    )
    assert [(c.class_id, c.class_name) for c in live.class_map] == [
        (c.class_id, c.class_name) for c in replay.class_map
    ]
    assert live.threshold == replay.threshold and live.header == replay.header
    assert (live.header.stamp.sec, live.header.stamp.nanosec) == (0, 0)  # of a configuration, not of a frame


def test_the_matches_are_real_ones(both):
    """The equality above would be worth little for empty messages. After the step back in time tracking starts anew."""
    with BagReader(both[1]) as bag:
        counts = [len(bag.decode(record).x) for record in bag.messages([NODE + "correspondences"])]
    assert counts[0] == 0 and counts[5] == 0 and min(counts[1:5]) > 0 and sum(counts) > 300


def test_the_detections_are_some(both):
    with BagReader(both[1]) as bag:
        for name in ("detections", "detections_3d"):
            assert min(len(bag.decode(record).detections) for record in bag.messages([NODE + name])) > 0


def test_topics_and_qos_in_the_bag_are_what_the_node_offers(both):
    heard, output, offered, _ = both
    silent = {name for name, about in TOPICS.items() if about.followed and not heard[name]}
    with BagReader(output) as bag:
        own = {name.removeprefix(NODE): topic for name, topic in bag.topics.items() if name.startswith(NODE)}
    assert set(own) == set(OFFERED) - silent
    for name, topic in ((name, own[name]) for name in TOPICS if name in own):
        assert topic.type == TOPICS[name].type
        assert topic.latched == (offered[name].durability == DurabilityPolicy.TRANSIENT_LOCAL)
        assert ("reliability: reliable" in topic.qos) == (offered[name].reliability == ReliabilityPolicy.RELIABLE)
