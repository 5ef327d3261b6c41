"""What Nav2's semantic_segmentation_layer accepts, written down from its source, and the live node held to it.

Topics, distances and classes are those of config/nav2/local_costmap_semantic.yaml.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from live_node import SMALL, TYPES, image, info, stamp_ns, wait_for
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from dino_perception import engines
from dino_perception.messages.topics import TOPICS
from dino_perception.models.heads import LABELS
from dino_perception.share import share

DEPTH = 10  # the layer's sensor_data_depth
SENSOR = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
LATCHED = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
FLOAT32 = 7  # sensor_msgs/PointField


class Accepted(NamedTuple):
    """A frame that the layer would use."""

    stamp_ns: int
    shapes: set  # (height, width) of mask, confidence and cloud
    finite: int  # pixels with a finite z
    near: int  # of those, the ones within the distances
    counted: dict  # of those, pixels by class name


class Layer:
    """The layer's rules for one source: `mask`, `confidence`, `cloud` and `labels` take messages as its callbacks do.

    Frames go to `accepted`; the reasons for the others are counted in `refused`.
    """

    def __init__(self, source: dict):
        self.accepted: list[Accepted] = []
        self.refused: Counter = Counter()
        self._near = source["min_obstacle_distance"], source["max_obstacle_distance"]
        self._classes = {name for group in source["class_types"] for name in source[group]["classes"]}
        self._names: dict[int, str] | None = None
        self._waiting: dict[int, dict] = {}  # exact-time synchronisation: stamp -> kind -> message

    def labels(self, message) -> None:
        unknown = [entry.class_name for entry in message.class_map if entry.class_name not in self._classes]
        self.refused.update(f"class '{name}' has no cost" for name in unknown)
        self._names = {
            entry.class_id: entry.class_name for entry in message.class_map if entry.class_name in self._classes
        }

    def mask(self, message) -> None:
        self._take("mask", message)

    def confidence(self, message) -> None:
        self._take("confidence", message)

    def cloud(self, message) -> None:
        self._take("cloud", message)

    def _take(self, kind: str, message) -> None:
        stamp = stamp_ns(message)
        parts = self._waiting.setdefault(stamp, {})
        parts[kind] = message
        if len(parts) == 3:  # what is older will never be complete
            for older in [other for other in self._waiting if other < stamp]:
                self._waiting.pop(older)
                self.refused["not synchronised"] += 1
            self._judge(stamp, **self._waiting.pop(stamp))
        elif len(self._waiting) > DEPTH:
            self._waiting.pop(min(self._waiting))
            self.refused["not synchronised"] += 1

    def _judge(self, stamp: int, mask, confidence, cloud) -> None:
        pixels = mask.width * mask.height
        types = {field.name: field.datatype for field in cloud.fields}
        for reason, wrong in {
            "mask and cloud differ in size": pixels != cloud.width * cloud.height,
            "mask data too short": len(mask.data) < pixels,
            "no labels yet": not self._names,
            # The layer trusts its input in the rest, and reads rubbish or beyond the end where it is wrong:
            "not mono8": {mask.encoding, confidence.encoding} != {"mono8"},
            "padded rows": any(m.step != m.width or len(m.data) > m.width * m.height for m in (mask, confidence)),
            "confidence data too short": len(confidence.data) < pixels,
            "no x y z as FLOAT32": any(types.get(axis) != FLOAT32 for axis in "xyz"),
            "cloud data too short": len(cloud.data) < cloud.row_step * cloud.height
            or cloud.row_step != cloud.point_step * cloud.width
            or cloud.is_bigendian,
        }.items():
            if wrong:
                self.refused[reason] += 1
                return
        ids = np.frombuffer(mask.data, np.uint8)
        points = read_xyz(cloud)
        finite = np.isfinite(points[:, 2])
        distance = np.sqrt((points.astype(float) ** 2).sum(1))  # a change of frame keeps it
        near = finite & (distance > self._near[0]) & (distance < self._near[1])
        counted = {name: int((near & (ids == number)).sum()) for number, name in self._names.items()}
        shapes = {(m.height, m.width) for m in (mask, confidence, cloud)}
        self.accepted.append(Accepted(stamp, shapes, int(finite.sum()), int(near.sum()), counted))


def read_xyz(cloud) -> np.ndarray:
    """(N, 3) float32 by the offsets that the fields state."""
    offsets = {field.name: field.offset for field in cloud.fields}
    layout = np.dtype(
        {
            "names": list("xyz"),
            "formats": ["<f4"] * 3,
            "offsets": [offsets[axis] for axis in "xyz"],
            "itemsize": cloud.point_step,
        }
    )
    table = np.frombuffer(cloud.data, layout, cloud.width * cloud.height)
    return np.stack([table[axis] for axis in "xyz"], 1)


def semantic_source() -> dict:
    """The layer's parameters for its source, from the file that comes with the package."""
    file = yaml.safe_load(share("config", "nav2", "local_costmap_semantic.yaml").read_text())
    layer = file["local_costmap"]["local_costmap"]["ros__parameters"]["semantic_layer"]
    (name,) = layer["observation_sources"].split()
    return layer[name]


# The rules themselves, with messages written by hand: two rows of three pixels, points with gaps between the fields.


XYZ = np.array([[0, 0, 1], [0, 0, np.nan], [0, 3, 4], [0, 0, 0.25], [1, 2, 2], [0, -1, 1]], np.float32)


def frame(stamp: int = 1) -> dict:
    header = TYPES.header(stamp, "camera_optical")
    ids = np.array([0, 0, 0, 0, 3, 255], np.uint8)
    table = np.zeros((6, 8), np.float32)
    table[:, [1, 2, 4]] = XYZ
    fields = [
        TYPES.make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=FLOAT32, count=1)
        for name, offset in (("x", 4), ("y", 8), ("z", 16))
    ]

    def picture(pixels):
        return TYPES.make(
            "sensor_msgs/msg/Image", header=header, height=2, width=3, encoding="mono8", step=3, data=pixels
        )

    cloud = TYPES.make(
        "sensor_msgs/msg/PointCloud2",
        header=header,
        height=2,
        width=3,
        fields=fields,
        point_step=32,
        row_step=96,
        data=table.reshape(-1).view(np.uint8),
    )
    return {"mask": picture(ids), "confidence": picture(np.full(6, 200, np.uint8)), "cloud": cloud}


def label_info(**more: int):
    names = {**{label.name: label.id for label in LABELS}, **more}
    classes = [
        TYPES.make("vision_msgs/msg/VisionClass", class_id=number, class_name=name) for name, number in names.items()
    ]
    return TYPES.make("vision_msgs/msg/LabelInfo", class_map=classes)


def give(layer: Layer, messages: dict) -> Layer:
    for kind, message in messages.items():
        getattr(layer, kind)(message)
    return layer


@pytest.fixture
def layer():
    if not TYPES.available("vision_msgs/msg/LabelInfo"):
        pytest.skip("vision_msgs is not installed")
    return Layer({**semantic_source(), "min_obstacle_distance": 0.3, "max_obstacle_distance": 5.0})


def test_the_rules_count_finite_points_within_the_distances_and_of_known_classes(layer):
    layer.labels(label_info())
    (seen,) = give(layer, frame()).accepted
    assert not layer.refused
    # One NaN; 5 m is too far by being equal to the limit, 0.25 m too near; the last one's id, 255, has no name.
    assert (seen.finite, seen.near) == (5, 3)
    assert {name: count for name, count in seen.counted.items() if count} == {"soil": 1, "big_rock": 1}


def test_the_rules_refuse_frames_that_come_before_the_labels(layer):
    give(layer, frame(1)).labels(label_info())
    give(layer, frame(2))
    assert layer.refused == {"no labels yet": 1} and [seen.stamp_ns for seen in layer.accepted] == [2]


def test_the_rules_refuse_what_has_not_exactly_one_stamp(layer):
    layer.labels(label_info())
    give(layer, {**frame(1), "cloud": frame(2)["cloud"]})
    assert not layer.accepted
    give(layer, frame(3))
    assert layer.refused == {"not synchronised": 2} and [seen.stamp_ns for seen in layer.accepted] == [3]
    for stamp in range(10, 10 + DEPTH + 3):
        layer.mask(frame(stamp)["mask"])
    assert layer.refused == {"not synchronised": 5}  # the queue holds no more than its depth


def test_the_rules_name_a_class_without_cost(layer):
    layer.labels(label_info(water=9))
    assert layer.refused == {"class 'water' has no cost": 1}


def padded(messages, kind):
    rows = np.zeros((2, 4), np.uint8)
    rows[:, :3] = np.frombuffer(messages[kind].data, np.uint8).reshape(2, 3)
    messages[kind].step, messages[kind].data = 4, TYPES.make("sensor_msgs/msg/Image", data=rows.reshape(-1)).data


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda m: padded(m, "mask"), "padded rows"),
        (lambda m: padded(m, "confidence"), "padded rows"),
        (lambda m: setattr(m["mask"], "encoding", "rgb8"), "not mono8"),
        (lambda m: setattr(m["mask"], "data", m["mask"].data[:5]), "mask data too short"),
        (lambda m: setattr(m["confidence"], "data", m["confidence"].data[:5]), "confidence data too short"),
        (lambda m: setattr(m["cloud"], "width", 2), "mask and cloud differ in size"),
        (lambda m: setattr(m["cloud"], "data", m["cloud"].data[:100]), "cloud data too short"),
        (lambda m: setattr(m["cloud"].fields[2], "datatype", 8), "no x y z as FLOAT32"),
        (lambda m: setattr(m["cloud"].fields[0], "name", "range"), "no x y z as FLOAT32"),
    ],
)
def test_the_rules_refuse_what_does_not_fit(layer, spoil, reason):
    layer.labels(label_info())
    messages = frame()
    spoil(messages)
    give(layer, messages)
    assert layer.refused == {reason: 1} and not layer.accepted


# The live node.


@pytest.fixture(scope="module")
def live(start):
    node, client = start(SMALL)
    client.wait_for_state("active")
    return node, client


def test_the_layer_takes_every_frame_of_the_live_node(live, layer):
    node, client = live
    source = semantic_source()
    picture = cv2.resize(cv2.imread(str(Path(engines.__file__).parent / "pictures" / "mars.jpg")), (128, 96))

    def subscribe(parameter, take, qos):
        kind = TYPES.type(TOPICS[source[parameter].removeprefix("/dino_perception/")].type)
        return client.node.create_subscription(kind, source[parameter], take, qos)

    def send() -> int:
        stamp = client.now_ns()
        message = image(stamp, encoding="bgr8")
        message.data = TYPES.make("sensor_msgs/msg/Image", data=picture.reshape(-1)).data
        client.send(message, info(stamp))
        return stamp

    def sent_and(condition):
        send()
        time.sleep(0.05)
        return condition()

    subscriptions = [
        subscribe("segmentation_topic", layer.mask, SENSOR),
        subscribe("confidence_topic", layer.confidence, SENSOR),
        subscribe("pointcloud_topic", layer.cloud, SENSOR),
    ]
    try:
        wait_for(lambda: sent_and(lambda: layer.refused["no labels yet"]), "a frame without labels")
        assert not layer.accepted
        subscriptions.append(subscribe("labels_topic", layer.labels, LATCHED))  # published long before
        wait_for(lambda: sent_and(lambda: layer.accepted), "an accepted frame")
        time.sleep(0.2)  # what is under way arrives
        assert set(layer.refused) <= {"no labels yet", "not synchronised"}  # before all was connected
        layer.accepted.clear()
        layer.refused.clear()
        sent = []
        for _ in range(15):
            sent.append(send())
            wait_for(
                lambda: layer.refused or sent[-1] in [seen.stamp_ns for seen in layer.accepted], "the layer's answer"
            )
    finally:
        for subscription in subscriptions:
            client.node.destroy_subscription(subscription)
    assert not layer.refused, node.log()
    assert [seen.stamp_ns for seen in layer.accepted if seen.stamp_ns >= sent[0]] == sent
    for seen in layer.accepted:
        assert seen.shapes == {(48, 64)}
        assert 48 * 64 >= seen.finite >= seen.near >= sum(seen.counted.values())
        assert seen.counted["sky"] == 0  # its points are NaN
    assert any(seen.finite for seen in layer.accepted)
