"""A frame goes to the device once and its answers come back once; what is counted here on the CPU is the GPU's path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dino_perception.perception.frame import Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.perception.transfers import Home, Uploads

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
"""Operations that make the host wait for a GPU, because their result or its size is needed at once."""


class Watched(TorchDispatchMode):
    """Notes what would make the host wait, in the order in which it happens."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in WAITS or (packet is torch.ops.aten._to_copy and (kwargs or {}).get("device") is not None):
            self.seen.append(str(packet))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def perceiver(tmp_path_factory):
    flat = {"engine": "torch", "input_height": 96, "input_width": 128, "output_height": 48, "output_width": 64}
    perceiver = Perceiver(Settings.from_flat(flat), cache=tmp_path_factory.mktemp("engines"), report=lambda line: None)
    yield perceiver
    perceiver.close()


def frame(seed: int) -> Frame:
    image = np.random.default_rng(seed).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    return Frame("front", seed, "camera", image)


def test_the_host_waits_once_a_pass_and_reads_nothing_before(perceiver, monkeypatch):
    with Watched() as watched:
        arrive, bring = perceiver._home.arrive, perceiver._home.bring
        monkeypatch.setattr(perceiver._home, "arrive", lambda: watched.seen.append("arrive") or arrive())
        monkeypatch.setattr(perceiver._home, "bring", lambda *a: watched.seen.append("bring") or bring(*a))
        (sight,) = perceiver.look([frame(1)])
    perceiver.complete(sight)
    before = watched.seen[: watched.seen.index("arrive")]
    assert watched.seen.count("arrive") == 1
    assert before == ["bring"] * 3, "one a head, and nothing that waits"


def test_a_pass_is_queued_and_collected_in_two_steps(perceiver, monkeypatch):
    waits, arrive = [], perceiver._home.arrive
    monkeypatch.setattr(perceiver._home, "arrive", lambda: waits.append(1) or arrive())
    under_way = perceiver.queue([frame(6), frame(7)], [{"segmentation", "depth"}, set()])
    with pytest.raises(RuntimeError, match="collect it before the next"):
        perceiver.look([frame(8)])
    assert not waits
    seen, unwanted = (sight.percept for sight in perceiver.collect(under_way))
    (percept,) = perceiver.perceive([frame(6)], [{"segmentation", "depth"}])
    assert np.array_equal(seen.segmentation.mask, percept.segmentation.mask) and not unwanted.answers()
    assert np.array_equal(seen.depth.metres, percept.depth.metres, equal_nan=True)


def test_a_pass_that_fails_is_not_in_the_way_of_the_next(perceiver, monkeypatch):
    for part, name in ((perceiver.graphs, "maps"), (perceiver._home, "arrive")):
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="fell over"):
            patched.setattr(part, name, lambda *_: (_ for _ in ()).throw(RuntimeError("fell over")))
            perceiver.look([frame(9)])
        assert perceiver.perceive([frame(9)])[0].depth is not None


def test_what_is_matched_on_the_device_stays_there(perceiver, monkeypatch):
    brought, bring = [], perceiver._home.bring
    monkeypatch.setattr(
        perceiver._home,
        "bring",
        lambda name, arrays: brought.append((name.split()[0], len(arrays))) or bring(name, arrays),
    )
    monkeypatch.setattr(perceiver, "_off_cpu", True)
    perceiver.reset_tracks()
    percepts = [perceiver.perceive([frame(10)])[0] for _ in range(2)]
    assert [count for head, count in brought if head == "correspondences"] == [0, 0], "no descriptors come home"
    assert all(count for head, count in brought if head in ("segmentation", "depth")) and len(brought) == 6
    assert len(percepts[1].correspondences.x) and percepts[1].correspondences.reference_stamp_ns == 10


def test_an_image_is_uploaded_once(perceiver, monkeypatch):
    uploads = perceiver._preprocess._uploads
    seen = []
    monkeypatch.setattr(perceiver._preprocess, "device", torch.device("meta"))  # the path of every device but the CPU
    monkeypatch.setattr(uploads, "up", lambda slot, image: seen.append(slot) or torch.from_numpy(image))
    picture = frame(2)
    with torch.inference_mode():
        perceiver._preprocess([picture.image], [perceiver._box(picture)], 1)
    assert seen == [0]


def test_answers_are_memory_of_their_own(perceiver):
    (first,) = perceiver.perceive([frame(3)])
    mask, metres = first.segmentation.mask.copy(), first.depth.metres.copy()
    perceiver.perceive([frame(4)])
    assert np.array_equal(first.segmentation.mask, mask) and np.array_equal(first.depth.metres, metres, equal_nan=True)


def test_stages_are_told_as_before(perceiver):
    (percept,) = perceiver.perceive([frame(5)])
    stages = ["preprocess", "backbone", "segmentation", "depth", "correspondences", "copy", "matching"]
    assert sorted(percept.stage_ms) == sorted(stages) and min(percept.stage_ms.values()) >= 0


def test_a_cpu_copies_nothing_on_the_way():
    image, cpu = np.zeros((4, 6, 3), np.uint8), torch.device("cpu")
    up = Uploads(cpu).up(0, image)
    assert up.data_ptr() == image.ctypes.data and up.shape == image.shape
    arrays = [torch.zeros(2)]
    assert Home(cpu).bring("depth 0", arrays)[0] is arrays[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU")
def test_on_a_gpu_what_comes_home_is_what_was_sent():
    gpu = torch.device("cuda")
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    uploads, home = Uploads(gpu), Home(gpu)
    for turn in range(3):
        (back,) = home.bring("depth 0", [uploads.up(0, image + turn).float()])
        home.arrive()
        assert back.is_pinned() and np.array_equal(back.numpy(), (image + turn).astype(np.float32))
