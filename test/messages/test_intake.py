"""What both doors do with a frame before it is looked at: rates, stamps that go back, labels once."""

import json

import numpy as np

from dino_perception.messages.intake import Intake
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads.base import load_head
from dino_perception.perception.frame import Depth, Frame, Percept
from dino_perception.perception.settings import Settings

TOPICS = {"segmentation/mask", "depth/image"}


class Noting:
    """Remembers which cameras' tracks were reset, and which settings it was given."""

    specs = {"segmentation": load_head("segmentation", load_backbone("rover-tiny")).spec}

    def __init__(self):
        self.resets, self.settings = [], []

    def reset_tracks(self, camera=None):
        self.resets.append(camera)

    def update(self, settings):
        self.settings.append(settings)


def intake(**settings):
    perceiver = Noting()
    return perceiver, Intake(perceiver, Settings.from_flat(settings), RosbagsTypes())


def test_a_stamp_that_goes_back_starts_the_cameras_tracks_anew():
    perceiver, door = intake()
    assert [door.order("front", stamp, TOPICS).back_s for stamp in (5 * 10**9, 6 * 10**9, 6 * 10**9)] == [0, 0, 0]
    assert door.order("rear", 10**9, TOPICS).back_s == 0 and perceiver.resets == []
    assert door.order("front", 4 * 10**9, TOPICS).back_s == 2.0 and perceiver.resets == ["front"]
    assert door.order("front", 5 * 10**9, TOPICS).back_s == 0 and perceiver.resets == ["front"]


def test_changed_settings_hold_from_the_next_order_on():
    perceiver, door = intake()
    assert door.order("front", 1, TOPICS).heads == {"segmentation", "depth"}
    changed = door.settings.changed({"depth.enabled": False})
    door.change(changed)
    order = door.order("front", 2, TOPICS)
    assert (order.topics, order.heads) == ({"segmentation/mask"}, {"segmentation"}) and perceiver.settings == [changed]


def test_labels_are_told_once_a_camera_and_not_again_by_who_goes_on():
    _, door = intake()
    topics = [*TOPICS, "segmentation/label_info"]
    assert set(door.once("front", topics)) == set(door.once("rear", topics)) == {"segmentation/label_info"}
    assert door.once("front", topics) == {}
    _, again = intake()
    again.told = set(door.told)
    assert again.once("rear", topics) == {} and set(again.once("left", topics)) == {"segmentation/label_info"}


def test_rates_and_stamps_go_on_from_what_was_remembered():
    stamps = [round(number * 0.13e9) for number in range(20)]
    stamps[12] = 0
    _, whole = intake(**{"depth.rate": 3.0})
    expected = [whole.order("front", stamp, TOPICS) for stamp in stamps]
    _, first = intake(**{"depth.rate": 3.0})
    before = [first.order("front", stamp, TOPICS) for stamp in stamps[:12]]
    perceiver, second = intake(**{"depth.rate": 3.0})
    second.recall(json.loads(json.dumps(first.memory())))
    assert before + [second.order("front", stamp, TOPICS) for stamp in stamps[12:]] == expected
    assert perceiver.resets == ["front"]


def test_a_reset_forgets_stamps_rates_and_tracks():
    perceiver, door = intake(**{"depth.rate": 1.0})
    assert "depth" in door.order("front", 9 * 10**9, TOPICS).heads
    door.reset()
    assert perceiver.resets == [None]
    order = door.order("front", 9 * 10**9 + 1, TOPICS)
    assert "depth" in order.heads and order.back_s == 0


def test_the_height_of_a_cameras_frame_is_asked_for_only_where_the_settings_do_not_say_it():
    asked = []

    def height(frame, ground):
        asked.append((frame, ground))

    seen = Percept(
        Frame("front", 1, "optical", np.zeros((4, 4, 3), np.uint8), None), 4, 4, None,
        depth=Depth(np.ones((4, 4), np.float32)),
    )  # fmt: skip
    scaling = {"depth.camera_height_scaling": True, "ground_frame": "base_link"}
    for more, wanted in (({}, [("optical", "base_link")]), ({"camera_height": 1.0}, [])):
        door = Intake(Noting(), Settings.from_flat({**scaling, **more}), RosbagsTypes(), height)
        assert door.scaled(seen) is seen and asked == wanted
        asked.clear()


def test_only_the_robots_camera_is_followed_for_the_transforms():
    _, door = intake(**{"odometry.tf": True})
    door.transforms_of = "front"
    followed = {camera: "odometry" in door.order(camera, 1, TOPICS).topics for camera in ("front", "rear")}
    assert followed == {"front": True, "rear": False}


def test_diagnostics_tell_of_no_ground_that_nobody_asks_for_any_more():
    _, door = intake()
    percept = Percept(Frame("front", 1, "optical", np.zeros((4, 4, 3), np.uint8), None), 4, 4, None)
    assert door.ground("front") == {}
    door.followed(percept, {"obstacles"})
    assert door.ground("front") == {"ground": "not seen"}
    door.followed(percept, TOPICS)
    assert door.ground("front") == {}
