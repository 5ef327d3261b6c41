"""Detections as vision_msgs and as Foxglove's annotations, by either library."""

import numpy as np
import pytest

from dino_perception.messages.detections import annotations, detections_2d, detections_3d
from dino_perception.messages.types import RclpyTypes, RosbagsTypes
from dino_perception.models.label_sets import Label
from dino_perception.models.outputs import Output
from dino_perception.perception.frame import Answer
from dino_perception.perception.lifted_boxes import LiftedBox

LABELS = (Label(0, "rock", (255, 0, 51)), Label(1, "person", (0, 0, 0)))
BOXES = np.array([[9.5, 19.5, 29.5, 79.5, 0.75, 1], [0, 0, 5, 7, 0.5, 0]], np.float32)
ANSWER = Answer({"boxes": BOXES}, (Output("boxes", "boxes"),), LABELS)
LIFTED = [LiftedBox(1, np.array([0.5, -0.25, 4.0]), np.array([0.3, 0.2, 0.1]))]
STAMP = 1_700_000_000_123_456_789


@pytest.fixture
def types() -> RosbagsTypes:
    return RosbagsTypes()


def test_boxes_in_the_picture(types):
    header = types.header(STAMP, "optical")
    message = detections_2d(types, header, ANSWER)
    first, second = message.detections
    assert message.header == first.header == header
    assert (first.bbox.center.position.x, first.bbox.center.position.y) == (19.5, 49.5)
    assert (first.bbox.size_x, first.bbox.size_y, first.bbox.center.theta) == (20.0, 60.0, 0.0)
    (said,) = first.results
    assert (said.hypothesis.class_id, said.hypothesis.score) == ("person", 0.75)
    assert second.results[0].hypothesis.class_id == "rock"


def test_boxes_in_space_are_those_that_were_lifted(types):
    message = detections_3d(types, types.header(STAMP, "optical"), ANSWER, LIFTED)
    (found,) = message.detections
    centre, size = found.bbox.center, found.bbox.size
    assert (centre.position.x, centre.position.y, centre.position.z) == (0.5, -0.25, 4.0)
    assert (size.x, size.y, size.z, centre.orientation.w) == (0.3, 0.2, 0.1, 1.0)
    assert found.results[0].hypothesis.class_id == "rock" and found.results[0].pose.pose.position.z == 4.0


def test_foxglove_counts_from_the_corner_of_the_first_pixel(types):
    message = annotations(types, types.header(STAMP, "optical"), None, ANSWER)
    outline, text = message.points[0], message.texts[0]
    assert [(p.x, p.y) for p in outline.points] == [(10, 20), (30, 20), (30, 80), (10, 80)]
    assert outline.type == 2 and (text.text, text.position.x, text.position.y) == ("person 0.75", 10, 20)
    assert (outline.timestamp.sec, outline.timestamp.nanosec) == divmod(STAMP, 10**9)
    colour = message.points[1].outline_color
    assert (colour.r, colour.g, colour.b, colour.a) == (1.0, 0.0, 0.2, 1.0)


def test_the_fields_are_those_of_foxglove():
    """Against the schemas that its own package carries; the ROS messages of older versions lack `metadata`."""
    schemas = pytest.importorskip("foxglove_schemas_protobuf", reason="an independent writer of Foxglove's messages")
    from importlib import import_module

    store = RosbagsTypes().typestore
    for name in ("ImageAnnotations", "PointsAnnotation", "TextAnnotation", "CircleAnnotation", "Point2", "Color"):
        theirs = getattr(import_module(f"{schemas.__name__}.{name}_pb2"), name).DESCRIPTOR.fields
        own = [field for field, _ in store.fielddefs[f"foxglove_msgs/msg/{name}"][1]]
        assert own == [field.name for field in theirs if field.name in own] or set(own) <= {f.name for f in theirs}
        kept = {field.name for field in theirs} - {"metadata", "timestamp"}
        assert kept <= set(own), name


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_both_libraries_write_the_same_bytes(types, kind):
    pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
    from rclpy.serialization import serialize_message

    live = RclpyTypes()
    make = detections_2d if kind == "2D" else detections_3d
    lifted = () if kind == "2D" else (LIFTED,)
    by_ros = serialize_message(make(live, live.header(STAMP, "optical"), ANSWER, *lifted))
    by_bags = types.serialize(make(types, types.header(STAMP, "optical"), ANSWER, *lifted))
    name = f"vision_msgs/msg/Detection{kind}Array"
    assert bytes(types.serialize(types.deserialize(by_ros, name))) == bytes(by_bags)


def test_a_message_is_made_without_the_defaults_it_does_not_keep(monkeypatch):
    """Two hundred boxes would make thousands of headers, poses and covariances only to drop them."""
    messages = pytest.importorskip("geometry_msgs.msg", reason="needs a ROS 2 installation")
    live, made = RclpyTypes(), []
    plain = messages.PoseWithCovariance.__init__
    monkeypatch.setattr(messages.PoseWithCovariance, "__init__", lambda *a, **k: (made.append(1), plain(*a, **k))[1])
    header = live.header(STAMP, "optical")
    first = detections_3d(live, header, ANSWER, LIFTED)
    count = len(made)
    second = detections_3d(live, header, ANSWER, LIFTED * 50)
    assert len(second.detections) == 50 and len(made) == count
    assert first.detections[0] == second.detections[-1]
    assert live.make("geometry_msgs/msg/Point") == messages.Point(), "what one was given is not another's default"
    with pytest.raises(AttributeError):
        live.make("geometry_msgs/msg/Point", w=1.0)
