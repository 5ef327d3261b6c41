"""The worker: newest frames of all cameras in one batch, nothing too old, nothing unwatched, no frame that stops it.

The engine is a stand-in whose speed and failures the test decides; messages are rclpy's own, made by the real room.
"""

import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from dino_perception.messages.images import decode_image
from dino_perception.messages.intake import Intake
from dino_perception.messages.types import RclpyTypes
from dino_perception.models.label_sets import Label
from dino_perception.perception import drawing
from dino_perception.perception.frame import Correspondences, Depth, Frame, Percept, Segmentation
from dino_perception.perception.settings import Settings
from dino_perception.perception.sight import Sight
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.mailbox import Letter, Mailbox
from dino_perception.ros.worker import Worker

TYPES = RclpyTypes()
MATCHES = Correspondences(
    0, "front_optical", 2, 2, np.zeros(1, np.uint64), *(np.zeros(1, np.float32) for _ in range(5))
)
TOPICS = {"segmentation/mask", "depth/image", "depth/camera_info"}


class ScriptedPerceiver:
    """Takes `seconds` a batch, fails on frames whose first pixel is 13, remembers what it was asked."""

    labels = (Label(0, "soil", (1, 2, 3)),)

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.resets, self.settings = seconds, [], [], []
        self.answers, self.most_at_once = True, 8
        self.matching = lambda: None

    def alive(self):
        return self.answers

    def look(self, frames, wanted):
        if any(frame.image[0, 0, 0] == 13 for frame in frames):
            raise RuntimeError("the device fell over")
        self.batches.append([(frame.camera, set(heads)) for frame, heads in zip(frames, wanted)])
        time.sleep(self.seconds)
        return [
            Sight(self._percept(frame, heads), Future() if "correspondences" in heads else None)
            for frame, heads in zip(frames, wanted)
        ]

    def complete(self, sight):
        if not sight.pending:
            return sight.percept
        self.matching()
        return replace(sight.percept, correspondences=MATCHES)

    def _percept(self, frame, heads):
        mask = np.zeros((4, 6), np.uint8)
        segmentation = Segmentation(mask, mask, self.labels) if "segmentation" in heads else None
        depth = Depth(np.ones((4, 6), np.float32)) if "depth" in heads else None
        return Percept(frame, 4, 6, segmentation=segmentation, depth=depth, stage_ms={"backbone": 1.0})

    def prepare(self):
        self.prepared = getattr(self, "prepared", 0) + 1

    def update(self, settings):
        self.settings.append(settings)

    def reset_tracks(self, camera=None):
        self.resets.append(camera)


class ScriptedCamera:
    def __init__(self, name, listened=TOPICS):
        self.name, self.topics, self.published = name, set(listened), []

    def listened(self):
        return set(self.topics)

    def frame(self, letter):
        return Frame(self.name, letter.stamp_ns, f"{self.name}_optical", decode_image(letter.message))

    def publish(self, messages):
        self.published.append(messages)

    def stamps(self):
        masks = [messages["segmentation/mask"] for messages in self.published if "segmentation/mask" in messages]
        return [mask.header.stamp.sec for mask in masks]


class Bench:
    """A worker with scripted surroundings. Stamps are seconds; the node's clock shows `now_s`."""

    def __init__(self, cameras=("front",), seconds=0.0, **settings):
        self.now_s = 0.0
        self.complaints, self.lost = [], []
        self.mailbox, self.account = Mailbox(), Account(cameras)
        self.perceiver = ScriptedPerceiver(seconds)
        self.cameras = {name: ScriptedCamera(name) for name in cameras}
        self.settings = Settings.from_flat({"cameras": list(cameras), **settings})
        self.worker = Worker(
            self.mailbox,
            self.perceiver,
            Intake(self.perceiver, self.settings, TYPES),
            self.cameras,
            self.account,
            now_ns=lambda: round(self.now_s * 1e9),
            complain=lambda text, error, who: self.complaints.append(text),
            lost=self.lost.append,
        )

    def send(self, camera, stamp_s, first_pixel=0, encoding="rgb8"):
        header = TYPES.header(round(stamp_s * 1e9), f"{camera}_optical")
        image = TYPES.make(
            "sensor_msgs/msg/Image",
            header=header,
            height=2,
            width=2,
            encoding=encoding,
            step=6,
            data=np.full(12, first_pixel, np.uint8),
        )
        return self.mailbox.put(camera, Letter(image, round(stamp_s * 1e9), time.monotonic()))

    def wait(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within 10 s"
            time.sleep(0.002)

    def settle(self, camera, stamp_s):
        """Send a frame and wait until it is published: everything before it has been dealt with then."""
        self.send(camera, stamp_s)
        self.wait(lambda: stamp_s in self.cameras[camera].stamps())


@pytest.fixture
def bench():
    benches = []

    def make(*args, **options):
        benches.append(Bench(*args, **options))
        return benches[-1]

    yield make
    for each in benches:
        assert each.worker.stop()


def test_waiting_frames_of_all_cameras_go_through_in_one_batch(bench):
    b = bench(("front", "rear", "left"))
    for camera in b.cameras:
        b.send(camera, 1)
    b.worker.start()
    b.wait(lambda: all(camera.published for camera in b.cameras.values()))
    assert b.perceiver.batches == [[(name, {"segmentation", "depth"}) for name in ("front", "rear", "left")]]


def test_where_a_batch_gains_nothing_each_frame_is_out_before_the_next_is_looked_at(bench):
    b = bench(("front", "rear", "left"))
    b.perceiver.most_at_once = 1
    out = []
    look = b.perceiver.look
    b.perceiver.look = lambda frames, wanted: (
        out.append([name for name, camera in b.cameras.items() if camera.published]),
        look(frames, wanted),
    )[1]
    for camera in b.cameras:
        b.send(camera, 1)
    b.worker.start()
    b.wait(lambda: all(camera.published for camera in b.cameras.values()))
    assert [[name for name, _ in batch] for batch in b.perceiver.batches] == [["front"], ["rear"], ["left"]]
    assert out == [[], ["front"], ["front", "rear"]]


def test_outputs_carry_the_stamp_and_frame_of_their_own_image(bench):
    b = bench(("front", "rear"))
    b.send("front", 7)
    b.send("rear", 5)
    b.worker.start()
    b.wait(lambda: all(camera.published for camera in b.cameras.values()))
    for name, stamp in (("front", 7), ("rear", 5)):
        messages = b.cameras[name].published[0]
        assert set(messages) == TOPICS
        assert {(m.header.stamp.sec, m.header.frame_id) for m in messages.values()} == {(stamp, f"{name}_optical")}


def test_a_silent_camera_delays_nobody(bench):
    b = bench(("front", "silent"))
    b.worker.start()
    for stamp in range(1, 6):
        b.settle("front", stamp)
    assert b.cameras["front"].stamps() == [1, 2, 3, 4, 5] and not b.cameras["silent"].published


def test_under_overload_the_newest_frames_are_taken_and_every_camera_gets_its_turn(bench):
    b = bench(("fast", "slow"), seconds=0.05)
    b.worker.start()
    replaced = 0
    for number in range(1, 101):  # the fast camera sends ten frames a pass, the slow one two
        replaced += b.send("fast", number)
        if number % 5 == 0:
            b.send("slow", number)
        time.sleep(0.005)
    b.wait(lambda: 100 in b.cameras["fast"].stamps() and 100 in b.cameras["slow"].stamps())
    fast, slow = b.cameras["fast"].stamps(), b.cameras["slow"].stamps()
    assert fast == sorted(set(fast)) and len(fast) + replaced == 100  # in order, none twice, none unaccounted
    assert len(b.perceiver.batches) < 60
    assert len(slow) >= 5


def test_a_frame_older_than_max_age_is_dropped_before_any_work(bench):
    b = bench(max_age=0.5)
    b.now_s = 100.0
    b.worker.start()
    b.send("front", 99)
    b.wait(lambda: b.account.cameras["front"].too_old.total == 1)
    assert b.account.cameras["front"].age_s == pytest.approx(1.0) and not b.account.cameras["front"].late
    b.settle("front", 100)
    assert b.cameras["front"].stamps() == [100] and len(b.perceiver.batches) == 1


def test_nothing_older_than_max_age_is_published_however_long_it_took(bench):
    b = bench(max_age=0.5)
    b.now_s = 100.0
    look = b.perceiver.look

    def slow(frames, wanted):
        b.now_s += 2.0
        return look(frames, wanted)

    b.perceiver.look = slow
    b.worker.start()
    b.send("front", 100)
    b.wait(lambda: b.account.cameras["front"].too_old.total == 1)
    assert b.account.cameras["front"].late and not b.cameras["front"].published


def watched_for_matches(bench, **settings):
    b = bench(**settings)
    b.cameras["front"].topics = TOPICS | {"correspondences"}
    b.now_s = 100.0
    return b


def test_mask_and_depth_do_not_wait_for_the_matches(bench):
    b = watched_for_matches(bench)
    out = []

    def matching():
        out.append([set(messages) for messages in b.cameras["front"].published])
        assert b.account.cameras["front"].published.total == 0, "a frame counts when all of it is out"
        b.now_s += 0.25

    b.perceiver.matching = matching
    b.worker.start()
    b.send("front", 100)
    b.wait(lambda: b.account.cameras["front"].published.total)
    assert out == [[TOPICS]]
    assert [set(messages) for messages in b.cameras["front"].published] == [TOPICS, {"correspondences"}]
    late, dense = (b.account.latencies()[f"stamp to publish{part}"][0] for part in ("", " (dense)"))
    assert dense == pytest.approx(0) and late == pytest.approx(250)


def test_matches_that_come_too_late_are_left_out_and_the_frame_counts_as_published(bench):
    b = watched_for_matches(bench, max_age=0.5)
    b.perceiver.matching = lambda: setattr(b, "now_s", 102.0)
    b.worker.start()
    b.send("front", 100)
    b.wait(lambda: b.account.cameras["front"].published.total)
    assert [set(messages) for messages in b.cameras["front"].published] == [TOPICS]
    assert b.account.cameras["front"].too_old.total == 0


def test_what_was_sent_before_the_matching_failed_is_not_sent_again(bench):
    b = bench(("front", "rear"))
    for camera in b.cameras.values():
        camera.topics = TOPICS | {"correspondences"}
    failures = iter([RuntimeError("no match"), None, None])

    def matching():
        if error := next(failures):
            raise error

    b.perceiver.matching = matching
    for name in b.cameras:
        b.send(name, 1)
    b.worker.start()
    b.wait(lambda: all(camera.published.total for camera in b.account.cameras.values()))
    for camera in b.cameras.values():
        assert [set(messages) for messages in camera.published] == [TOPICS, {"correspondences"}]


def test_before_the_clock_runs_no_age_is_known_and_nothing_is_too_old(bench):
    b = bench(max_age=0.01)
    b.worker.start()
    b.settle("front", 5)
    assert b.account.cameras["front"].age_s is None
    assert "stamp to publish" not in b.account.latencies() and "receipt to publish" in b.account.latencies()


def test_stamps_are_compared_with_the_nodes_clock_alone(bench):
    b = bench(max_age=0.5)
    b.now_s = 12.25  # simulated time, far from the wall clock
    b.worker.start()
    b.settle("front", 12)
    assert b.account.latencies()["stamp to publish"][0] == pytest.approx(250)


def test_what_nobody_watches_is_neither_decoded_nor_perceived(bench):
    b = bench(("front", "rear"))
    b.cameras["rear"].topics = set()
    b.cameras["rear"].frame = None  # decoding would fail
    b.worker.start()
    b.send("rear", 1)
    b.settle("front", 1)
    b.wait(lambda: b.account.cameras["rear"].unwatched.total == 1)
    assert b.perceiver.batches == [[("front", {"segmentation", "depth"})]] and not b.complaints


def test_each_camera_gets_the_heads_its_own_listeners_need(bench):
    b = bench(("front", "rear"))
    b.cameras["front"].topics = {"segmentation/mask"}
    b.cameras["rear"].topics = {"depth/image"}
    b.send("front", 1)
    b.send("rear", 1)
    b.worker.start()
    b.wait(lambda: all(camera.published for camera in b.cameras.values()))
    assert b.perceiver.batches == [[("front", {"segmentation"}), ("rear", {"depth"})]]
    assert set(b.cameras["front"].published[0]) == {"segmentation/mask"}


def test_a_bad_image_is_counted_with_its_reason_and_the_others_go_on(bench):
    b = bench(("front", "rear"))
    b.send("rear", 1, encoding="nonsense")
    b.send("front", 1)
    b.worker.start()
    b.wait(lambda: b.cameras["front"].published)
    account = b.account.cameras["rear"]
    assert account.bad.total == 1 and "nonsense" in account.bad_reason
    assert any("rear" in text and "nonsense" in text for text in b.complaints)
    b.settle("rear", 2)


def test_an_engine_that_fails_on_one_camera_does_not_blind_the_others(bench):
    b = bench(("front", "rear"))
    b.send("rear", 1, first_pixel=13)
    b.send("front", 1)
    b.worker.start()
    b.wait(lambda: b.cameras["front"].published)
    assert b.account.cameras["rear"].failed.total == 1 and b.account.cameras["front"].failed.total == 0
    assert b.account.last_error == "RuntimeError: the device fell over"
    b.settle("rear", 2)


def test_a_device_that_answers_no_more_is_told_once_an_error_says_so(bench):
    b = bench(("front", "rear"))
    b.perceiver.answers = False
    b.send("rear", 1, first_pixel=13)
    b.send("front", 1)
    b.worker.start()
    b.wait(lambda: b.lost)
    assert b.lost == ["RuntimeError: the device fell over"]
    assert not b.cameras["front"].published  # no second try on a dead device
    assert b.account.cameras["front"].failed.total == b.account.cameras["rear"].failed.total == 1


def test_an_output_that_fails_does_not_end_the_worker(bench):
    b = bench()
    publish, b.cameras["front"].publish = b.cameras["front"].publish, None
    b.worker.start()
    b.send("front", 1)
    b.wait(lambda: b.account.cameras["front"].failed.total == 1)
    b.cameras["front"].publish = publish
    b.settle("front", 2)


def test_pictures_are_drawn_when_the_data_of_every_camera_is_on_its_way(bench):
    b = bench(("front", "rear"))
    sent = []
    for name, camera in b.cameras.items():
        camera.topics = {"segmentation/mask", "segmentation/overlay"}
        camera.publish = lambda messages, name=name: sent.append((name, set(messages)))
        b.send(name, 1)
    b.worker.start()
    b.wait(lambda: len(sent) == 4)
    assert sent == [
        ("front", {"segmentation/mask"}),
        ("rear", {"segmentation/mask"}),
        ("front", {"segmentation/overlay"}),
        ("rear", {"segmentation/overlay"}),
    ]


def test_a_picture_that_cannot_be_drawn_costs_no_data(bench, monkeypatch):
    b = bench()
    b.cameras["front"].topics = {"segmentation/mask", "segmentation/overlay"}
    monkeypatch.setitem(drawing.OVERLAYS, "segmentation", None)
    b.worker.start()
    for stamp in (1, 2):
        b.settle("front", stamp)
    b.wait(lambda: b.account.errors == 2)
    assert b.account.cameras["front"].published.total == 2 and b.account.cameras["front"].failed.total == 0


def test_new_settings_hold_from_the_next_batch_on(bench):
    b = bench(max_age=0.5)
    b.now_s = 100.0
    b.worker.start()
    b.settle("front", 100)
    changed = b.settings.changed({"max_age": 50.0, "depth.enabled": False})
    b.worker.change(changed)
    b.settle("front", 60)
    assert b.perceiver.settings == [changed]
    assert b.perceiver.batches[-1] == [("front", {"segmentation"})]


def test_tracks_are_forgotten_on_request_and_when_a_cameras_time_goes_back(bench):
    b = bench(("front", "rear"))
    b.worker.start()
    for stamp in (10, 11):
        b.settle("front", stamp)
        b.settle("rear", stamp)
    assert b.perceiver.resets == []
    b.worker.reset_tracks()
    b.settle("front", 12)
    assert b.perceiver.resets == [None]
    b.settle("rear", 3)  # a bag that starts again
    assert b.perceiver.resets == [None, "rear"]


def test_a_restart_forgets_what_waits(bench):
    b = bench(("front", "rear"), seconds=0.1)
    b.worker.start()
    b.send("front", 1)
    b.wait(lambda: b.perceiver.batches)
    b.send("rear", 2)
    b.worker.restart()
    b.settle("front", 0.0)
    assert b.cameras["front"].stamps() == [1, 0] and not b.cameras["rear"].published
    assert b.perceiver.resets == [None]


def test_after_stop_nothing_is_published_not_even_what_was_under_way(bench):
    b = bench(seconds=0.2)
    b.worker.start()
    b.send("front", 1)
    b.wait(lambda: b.perceiver.batches)
    assert b.worker.stop()
    assert not b.cameras["front"].published
    assert not any(thread.name == "perception" for thread in threading.enumerate())
