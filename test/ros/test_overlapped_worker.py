"""Decoding, the pass and sending go on beside one another, and nobody can tell by what comes out.

Stages are made slow by sleeping, which leaves the interpreter to the other threads as a device or a JPEG decoder does.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rclpy.serialization import serialize_message
from test_worker import TOPICS, TYPES, Bench

from dino_perception.engines import ladder
from dino_perception.engines.eager import Eager, EagerCompiled
from dino_perception.messages.images import decode_image
from dino_perception.messages.intake import Intake
from dino_perception.messages.topics import TOPICS as ALL_TOPICS
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import CameraModel, Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.handover import Handover
from dino_perception.ros.mailbox import Letter, Mailbox
from dino_perception.ros.overlapped_worker import OverlappedWorker
from dino_perception.ros.worker import Worker

sys.path.append(str(Path(__file__).parents[1] / "bags"))
from recorded import picture  # noqa: E402

STAGE_S = 0.02


class Line(Bench):
    """A worker whose stages take as long as the test says, and a note of when they did what."""

    def __init__(self, kind=OverlappedWorker, decode=STAGE_S, looking=STAGE_S, send=STAGE_S, **options):
        super().__init__(kind=kind, **options)
        self.spans = {"decode": {}, "pass": {}, "send": {}}
        self.taken = 0
        for camera in self.cameras.values():
            self._slow(camera, "frame", "decode", decode, lambda letter: letter.stamp_ns)
            self._slow(camera, "publish", "send", send, lambda messages: stamp_of(messages))
        stamp = lambda frames, *_: frames[0].stamp_ns
        self._slow(self.perceiver, "look", "pass", looking, stamp)

    def _slow(self, owner, name, stage, seconds, stamp_of):
        quick = getattr(owner, name)

        def slow(*arguments):
            self.taken += stage == "decode"
            begun = time.monotonic()
            time.sleep(seconds)
            done = quick(*arguments)
            self.spans[stage][stamp_of(*arguments) // 10**9] = (begun, time.monotonic())
            return done

        setattr(owner, name, slow)

    def feed(self, count):
        """Send each frame when the one before was taken: none is replaced."""
        for number in range(1, count + 1):
            assert not self.send("front", number)
            self.wait(lambda: self.taken == number)  # noqa: B023
        self.wait(lambda: self.cameras["front"].stamps() == list(range(1, count + 1)))

    def flood(self, seconds):
        """Frames far faster than they can be dealt with. Returns for each one sent how long it took, in seconds."""
        received = {}
        for number in itertools.count(1):
            received[number] = time.monotonic()
            self.send("front", number)
            if received[number] - received[1] > seconds:
                break
            time.sleep(0.002)
        return [done - received[number] for number, (_, done) in list(self.spans["send"].items())]


def stamp_of(messages):
    return next(iter(messages.values())).header.stamp.sec * 10**9


@pytest.fixture
def line():
    lines = []

    def make(**options):
        lines.append(Line(**options))
        lines[-1].worker.start()
        return lines[-1]

    yield make
    for each in lines:
        assert each.worker.stop()


def test_three_stages_take_the_time_of_one(line):
    period = {}
    for kind in (Worker, OverlappedWorker):
        made = line(kind=kind)
        made.feed(25)
        ends = [end for _, end in made.spans["send"].values()]
        period[kind] = statistics.median(b - a for a, b in zip(ends, ends[1:]))
    assert period[Worker] > 3 * STAGE_S
    assert period[OverlappedWorker] < 1.5 * STAGE_S


def test_a_frame_is_decoded_and_another_is_sent_while_one_is_on_the_device(line):
    made = line()
    made.feed(20)
    meets = lambda a, b: a[0] < b[1] and b[0] < a[1]
    decode, looks, send = (made.spans[stage] for stage in ("decode", "pass", "send"))
    both = [meets(looks[n], decode[n + 1]) and meets(looks[n], send[n - 1]) for n in range(2, 20)]
    assert sum(both) >= 14
    for n in range(1, 21):
        assert decode[n][1] <= looks[n][0] <= looks[n][1] <= send[n][0]
    for stage in (decode, looks, send):
        assert all(stage[n][1] <= stage[n + 1][0] for n in range(1, 20)), "one at a time in each stage"


@pytest.mark.parametrize(
    "slow, most",
    [
        ({"looking": 0.06}, 0.01 + 2 * 0.06 + 0.01),  # decoded at once, it waits for the pass before
        ({"send": 0.06}, 0.01 + 0.01 + 2 * 0.06),  # only one is on its way while one is sent
        ({"decode": 0.06}, 0.06 + 0.01 + 0.01),
    ],
)
def test_under_overload_a_frame_waits_for_one_stage_at_most(line, slow, most):
    made = line(**{"decode": 0.01, "looking": 0.01, "send": 0.01, **slow})
    took = made.flood(1.2)[5:]
    assert len(took) > 6 and statistics.median(took) < most + 0.015


def test_a_frame_decoded_ahead_that_is_too_old_at_its_turn_is_dropped_and_counted(line):
    made = line(cameras=("front", "rear"), looking=0.2, decode=0, send=0, max_age=0.5)
    made.perceiver.most_at_once = 1
    made.now_s = 100.0
    made.send("front", 101)
    made.wait(lambda: made.taken == 1)
    made.send("rear", 100)
    made.wait(lambda: made.taken == 2)
    made.now_s = 101.25
    made.wait(lambda: made.account.cameras["rear"].too_old.total)
    assert not made.account.cameras["rear"].late and made.account.cameras["rear"].age_s == pytest.approx(1.25)
    made.wait(lambda: made.account.cameras["front"].published.total)
    assert [batch[0][0] for batch in made.perceiver.batches] == ["front"]


def test_every_frame_ends_in_one_counter(line):
    made = line(decode=0.004, looking=0.01, send=0.006, max_age=0.03)
    begun, replaced = time.monotonic(), 0
    for number in range(150):
        made.now_s = 1000 + time.monotonic() - begun
        image = TYPES.make(
            "sensor_msgs/msg/Image", header=TYPES.header(round(made.now_s * 1e9), "x"), height=2, width=2,
            encoding="nonsense" if number % 7 == 0 else "rgb8", step=6, data=np.full(12, 13 if number % 11 == 0 else 0, np.uint8),
        )  # fmt: skip
        replaced += made.mailbox.put("front", Letter(image, round(made.now_s * 1e9), time.monotonic()))
        time.sleep(0.004)
    account = made.account.cameras["front"]
    ends = lambda: account.published.total + account.too_old.total + account.bad.total + account.failed.total
    made.wait(lambda: ends() + replaced >= 150)
    time.sleep(0.05)
    assert ends() + replaced == 150 and account.bad.total and account.failed.total and account.published.total


@pytest.mark.parametrize("stage", ["decode", "pass", "send"])
def test_stopping_in_the_middle_ends_all_threads_and_publishes_nothing_after(line, stage):
    seconds = {"decode": 0.02, "looking": 0.02, "send": 0.02, {"pass": "looking"}.get(stage, stage): 0.2}
    made = line(**seconds)
    made.send("front", 1)
    made.wait(lambda: made.taken == 1)
    time.sleep({"decode": 0.1, "pass": 0.12, "send": 0.14}[stage])
    made.send("front", 2)
    assert made.worker.stop()
    out = len(made.cameras["front"].published)
    assert out == (stage == "send"), "what was being sent is sent"
    time.sleep(0.3)
    assert len(made.cameras["front"].published) == out


@pytest.mark.parametrize("stage", ["decode", "queue", "collect", "complete", "publish"])
def test_an_error_in_any_stage_costs_its_frame_alone(line, stage):
    made = line(decode=0.005, looking=0.005, send=0.005)
    camera = made.cameras["front"]
    owner, name = {
        "decode": (camera, "frame"),
        "queue": (made.perceiver, "queue"),
        "collect": (made.perceiver, "collect"),
        "complete": (made.perceiver, "complete"),
        "publish": (camera, "publish"),
    }[stage]
    works, failures = getattr(owner, name), iter([None, RuntimeError("broken"), None, None, None])

    def broken(*arguments):
        if error := next(failures):
            raise error
        return works(*arguments)

    if stage in ("queue", "collect"):  # a pass that fails with one frame is not tried again: it is alone already
        made.perceiver.most_at_once = 1
    setattr(owner, name, broken)
    for stamp in range(1, 5):
        made.send("front", stamp)
        account = made.account.cameras["front"]
        made.wait(lambda: account.published.total + account.failed.total == stamp)  # noqa: B023
    assert camera.stamps() == [1, 3, 4] and account.failed.total == 1
    assert "broken" in made.account.last_error


def test_tracks_are_reset_between_the_frames_before_and_after(line):
    made = line(decode=0.001, looking=0.05, send=0.001)
    log, reset, look = [], made.perceiver.reset_tracks, made.perceiver.look
    made.perceiver.reset_tracks = lambda camera=None: (log.append(f"reset {camera}"), reset(camera))
    made.perceiver.look = lambda frames, wanted: (
        log.append(f"begin {frames[0].stamp_ns // 10**9}"),
        look(frames, wanted),
        log.append(f"end {frames[0].stamp_ns // 10**9}"),
    )[1]
    for number, stamp in enumerate([10, 11, 3, 4], 1):
        if stamp == 4:
            made.worker.reset_tracks()
        made.send("front", stamp)
        made.wait(lambda: made.taken == number)  # noqa: B023
    made.wait(lambda: made.cameras["front"].stamps() == [10, 11, 3, 4])
    passes = [f"{what} {stamp}" for stamp in (10, 11, 3, 4) for what in ("begin", "end")]
    assert log == [*passes[:4], "reset front", *passes[4:6], "reset None", *passes[6:]]


def test_what_is_handed_over_is_one_thing_at_a_time():
    over = Handover()
    assert over.room() and over.settle()
    over.put("a")
    assert over.take() == "a"
    over.begun()
    assert over.room()
    over.put("b")
    over.close()
    assert over.take() is None and not over.room() and not over.settle()


BAG_TYPES = RosbagsTypes()
RUN_S = 0.008
SMALL = {
    "engine": "torch", "precision": "float32", "threads": 1, "input_height": 192, "input_width": 256,
    "output_height": 48, "output_width": 64, "points.max_range": 1000.0, "max_age": 3600.0, "depth.rate": 6.0,
}  # fmt: skip
MODEL = CameraModel(128, 96, np.array([[100.0, 0, 63.5], [0, 100, 47.5], [0, 0, 1]]))
HEARD = TOPICS | {"segmentation/confidence", "points", "correspondences", "segmentation/overlay"}
STAMPS = [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 7, 8]


class SlowDevice(Eager):
    """Takes a graph's inputs and is done `RUN_S` later, as a device that was given work; the host may go on or `wait`."""

    free_s = 0.0

    def device(self):
        return torch.device("cpu")

    def compile(self, program, precision, threads):
        return SlowGraph(self, program, precision, threads, self.device())

    def wait(self):
        time.sleep(max(0.0, self.free_s - time.monotonic()))


class SlowGraph(EagerCompiled):
    def __init__(self, on, *arguments):
        super().__init__(*arguments)
        self.on = on

    def run(self, *inputs):
        outputs = super().run(*inputs)
        self.on.free_s = max(time.monotonic(), self.on.free_s) + RUN_S
        return outputs


class Calibrated:
    """A camera whose messages are kept by topic, as the bytes that go over the wire but for their padding."""

    def __init__(self, busy):
        self.busy, self.beside, self.published = busy, [], {name: [] for name in HEARD}

    def listened(self):
        return HEARD

    def frame(self, letter):
        self.beside.append(self.busy())
        return Frame("front", letter.stamp_ns, "front_optical", decode_image(letter.message), MODEL)

    def publish(self, messages):
        for name, message in messages.items():
            kind = BAG_TYPES.deserialize(serialize_message(message), ALL_TOPICS[name].type)
            self.published[name].append(bytes(BAG_TYPES.serialize(kind)))


def drive(kind, off_cpu, cache, monkeypatch):
    """What a worker makes of a moving camera whose stamps go back once; and how many frames were decoded beside a pass."""
    device = SlowDevice()
    monkeypatch.setitem(ladder.ENGINES, "torch", device)
    settings = Settings.from_flat(SMALL)
    perceiver = Perceiver(settings, cache=cache, report=lambda line: None)
    perceiver._off_cpu = off_cpu
    monkeypatch.setattr(perceiver._home, "arrive", device.wait)
    camera, mailbox, account = Calibrated(lambda: device.free_s > time.monotonic()), Mailbox(), Account(["front"])
    complaints = []
    worker = kind(
        mailbox, perceiver, Intake(perceiver, settings, TYPES), {"front": camera}, account, lambda: 10**12,
        lambda text, error, who: complaints.append(text),
    )  # fmt: skip
    worker.start()
    deadline = time.monotonic() + 60
    try:
        for number, stamp in enumerate(STAMPS):
            stamp_ns = 10**12 + stamp * 10**8
            image = TYPES.make(
                "sensor_msgs/msg/Image", header=TYPES.header(stamp_ns, "front_optical"), height=96, width=128,
                encoding="rgb8", step=384, data=picture(number).reshape(-1),
            )  # fmt: skip
            assert not mailbox.put("front", Letter(image, stamp_ns, time.monotonic()))
            while len(camera.beside) <= number and time.monotonic() < deadline:
                time.sleep(0.001)
        while account.cameras["front"].published.total < len(STAMPS) and time.monotonic() < deadline:
            time.sleep(0.002)
        drawn, patience = camera.published["segmentation/overlay"], time.monotonic() + 10
        while len(drawn) < len(STAMPS) and time.monotonic() < patience:
            time.sleep(0.002)  # a picture comes after its frame's other messages
    finally:
        assert worker.stop()
        perceiver.close()
    assert not complaints and account.cameras["front"].published.total == len(STAMPS)
    return camera.published, sum(camera.beside)


def test_overlapped_messages_are_the_same_bytes_in_the_same_order(tmp_path, monkeypatch):
    alone, none = drive(Worker, False, tmp_path, monkeypatch)
    overlapped, beside = drive(OverlappedWorker, True, tmp_path, monkeypatch)
    assert none == 0 and beside >= len(STAMPS) // 2, "frames were decoded while others were on the device"
    assert {name: len(messages) for name, messages in overlapped.items()} == {
        name: len(messages) for name, messages in alone.items()
    }
    assert len(alone["segmentation/mask"]) == len(alone["correspondences"]) == len(STAMPS)
    assert min(map(len, alone["correspondences"])) < max(map(len, alone["correspondences"])), "points are matched"
    assert 0 < len(alone["depth/image"]) < len(STAMPS) and overlapped == alone
