"""Matching on the engine's device, run on the CPU: against the CPU's own matching, and without a wait for the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scenes import moved, texture
from test_matching import IMAGE, colour, view
from test_tracks import SETTINGS, pair, update, window

from dino_perception.perception import matching, refine, track_memory
from dino_perception.perception.descriptors import gradients, joined
from dino_perception.perception.device import look as device
from dino_perception.perception.device import tracks as tracks_on_device
from dino_perception.perception.device import windows
from dino_perception.perception.device.captured import CapturedFunction
from dino_perception.perception.device.tracks import TURNS, DeviceTracker
from dino_perception.perception.refine import Refiner
from dino_perception.perception.track_memory import memory, tracker
from dino_perception.perception.tracks import Tracker

GREY = IMAGE[..., 0]
AFFINE = np.array([[1.05, 0.02, 8.0], [-0.02, 1.05, -5.0]])
GRID = device.PatchGrid(30, 40, (16.0, 16.0))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()[None]


def test_what_is_taken_from_an_image_is_the_same():
    levels = windows.pyramid(torch.from_numpy(GREY)[None])
    for ours, theirs in zip(levels, refine.pyramid(GREY)):
        assert np.array_equal(ours[0].numpy(), theirs)
    ours = windows.histograms(levels, 30, 40, GRID.patch)[0]
    assert (ours - gradients(refine.pyramid(GREY), 30, 40, GRID.patch)).abs().max() < 1e-5
    found = windows.corners(levels, 900)[0].numpy()
    xy, strength = matching.corners(view(IMAGE), 900)
    assert np.array_equal(found[found[:, 2] > 0][:, :2], xy)
    assert found[found[:, 2] > 0][:, 2] == pytest.approx(strength, rel=1e-3, abs=0.1)


def test_two_cameras_at_once_are_two_cameras_one_by_one():
    both = torch.from_numpy(np.stack([GREY, texture(480, 640, 9)]))
    together = windows.histograms(windows.pyramid(both), 30, 40, GRID.patch)
    for i in range(2):
        alone = windows.histograms(windows.pyramid(both[i : i + 1]), 30, 40, GRID.patch)
        assert torch.allclose(together[i], alone[0], atol=1e-6)


def test_windows_are_aligned_as_on_the_cpu():
    other = moved(GREY, AFFINE)
    rng = np.random.default_rng(0)
    xy = rng.uniform([0, 0], [640, 480], (300, 2))
    seed = xy @ AFFINE[:, :2].T + AFFINE[:, 2] + rng.normal(0, 2, xy.shape)
    shape = np.broadcast_to(AFFINE[:, :2], (300, 2, 2))
    levels = [windows.pyramid(torch.from_numpy(image)[None]) for image in (GREY, other)]
    ours = windows.refine(*levels, tensor(xy), tensor(seed), tensor(shape), 16.0)
    theirs = Refiner().refine(refine.pyramid(GREY), refine.pyramid(other), xy, seed, shape, 16.0)
    inside = theirs[1] > 0.8
    assert inside.sum() > 200
    for a, b, most in zip(ours, theirs, (0.03, 1e-3, 0.03)):
        assert np.quantile(np.abs(a[0].numpy() - b)[inside], 0.98) < most
    assert ((ours[1][0].numpy() == -1) == (theirs[1] == -1)).mean() > 0.99


def test_votes_shift_and_similarity_are_those_of_the_cpu():
    other = moved(GREY, AFFINE)
    first, second = view(IMAGE), view(colour(other))
    start, end = matching._mutual(first, second)
    flow, jacobian, known = device.field(GRID, tensor(start), tensor(end), torch.ones(1, len(start), dtype=torch.bool))
    expected = matching.field(first, start, end)
    assert known.all()
    np.testing.assert_allclose(flow[0], expected.displacement, atol=0.02)
    np.testing.assert_allclose(jacobian[0], expected.jacobian, atol=1e-3)
    xy = np.random.default_rng(0).uniform([-20, -20], [660, 500], (200, 2))
    there, shape = device.follow(GRID, flow, jacobian, tensor(xy))
    for a, b in zip((there, shape), expected.at(xy)):
        np.testing.assert_allclose(a[0], b, atol=0.05)
    cosine = device.similarity(GRID, first.descriptors[None], tensor(xy), second.descriptors[None], tensor(xy))
    assert cosine[0].numpy() == pytest.approx(matching.similarity(first, xy, second, xy), abs=1e-4)
    slid = view(colour(np.roll(GREY, (12, -20), (0, 1))))
    ours = device.shift(*(windows.pyramid(torch.from_numpy(i)[None]) for i in (GREY, np.roll(GREY, (12, -20), (0, 1)))))
    assert ours[0].numpy() == pytest.approx(matching.shift(first, slid), abs=0.5)


def test_mutual_neighbours_are_those_of_the_cpu_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    pictures = view(IMAGE), view(colour(moved(GREY, AFFINE)))
    codes = [joined(v.descriptors, gradients(v.levels, 30, 40, GRID.patch))[None] for v in pictures]
    start, end, valid = device.mutual(GRID, *codes)
    expected = matching._mutual(*pictures)
    ours = {tuple(np.round(row, 2)) for row in torch.cat([start, end], dim=2)[0][valid[0]].numpy().astype(float)}
    theirs = {tuple(np.round(row, 2)) for row in np.concatenate(expected, axis=1)}
    assert len(ours & theirs) > 0.97 * len(theirs) and abs(len(ours) - len(theirs)) <= 3


@pytest.mark.parametrize("reference", ["previous", "keyframe"])
def test_the_rules_of_ids_and_key_frames_are_the_same(reference):
    settings = dataclasses.replace(SETTINGS, reference=reference, max_matches=100)
    cpu, own = Tracker(), DeviceTracker()
    for index, step in enumerate((0, 18, 36, 300, 310)):
        frame = window(100 + step, 150 + step // 3, index=index)
        theirs, ours = update(cpu, frame, settings), update(own, frame, settings)
        assert ours.reference_stamp_ns == theirs.reference_stamp_ns
        assert abs(len(ours.x) - len(theirs.x)) <= 0.05 * len(theirs.x)
        shared = np.intersect1d(ours.track_id, theirs.track_id)
        if index in (1, 2):
            assert len(shared) > 0.95 * len(theirs.x) > 80
            places = [np.concatenate(pair(f), axis=1)[np.searchsorted(f.track_id, shared)] for f in (ours, theirs)]
            assert np.quantile(np.abs(places[0] - places[1]).max(axis=1), 0.95) < 0.1
        if index == 2:
            own = _stopped_and_gone_on(own)


def _stopped_and_gone_on(own: DeviceTracker) -> DeviceTracker:
    """What a tracker remembers as arrays is all that matters."""
    copy = DeviceTracker()
    plain = tracker(memory(own), torch.device("cpu"))
    for name in vars(plain).keys() - {"_refiner", "_ahead"}:
        setattr(copy, name, getattr(plain, name))
    return copy


@pytest.mark.parametrize("jump", [(0, 0, True), (760, 420, False)])
def test_a_picture_of_another_place_has_no_matches(jump):
    own = DeviceTracker()
    settings = dataclasses.replace(SETTINGS, max_matches=60)
    update(own, window(0, 0), settings)
    found = update(own, window(*jump[:2], index=1), settings)
    assert len(found.x) == 60 if jump[2] else len(found.x) <= 3


def test_nothing_waits_for_the_host():
    """Run with tensors that hold no values, as a capture runs: asking for one is an error there."""
    nowhere = torch.device("meta")
    grey = torch.empty(2, 480, 640, dtype=torch.uint8, device=nowhere)
    levels = windows.pyramid(grey)
    descriptors = torch.empty(2, 1200, 64, device=nowhere)
    codes = torch.cat([descriptors, windows.histograms(levels, 30, 40, GRID.patch)], dim=2)
    sight = device.ViewBatch(levels, descriptors, codes)
    points = torch.empty(2, 460, 2, device=nowhere)
    bend = torch.empty(2, 15, 20, 2, 2, device=nowhere)
    turn, most = (
        torch.zeros(2, 460, dtype=torch.int64, device=nowhere),
        torch.zeros(2, dtype=torch.int64, device=nowhere),
    )
    out = device.look(GRID, TURNS, sight, sight, sight, points, points, turn, bend, most > 0, most)
    assert [tuple(t.shape) for t in out] == [(2, 460, 5), (2, 2), (2, 15, 20, 2), (2, 15, 20, 2, 2)]
    assert all(t.device.type == "meta" for t in out)
    assert windows.corners(levels, 900).device.type == "meta"


def fails(*arguments):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")


@pytest.mark.parametrize(
    ("where", "resumed"),
    [
        ("_sight", False),
        ("look", False),
        ("look", True),
        ("CapturedFunction._capture", False),
        ("windows.corners", False),
    ],
)
def test_what_the_device_cannot_do_the_cpu_does_from_then_on(where, resumed, monkeypatch, caplog):
    """Beginning with the frame at which it failed, as a new tracker would, and with ids that were never given out."""
    owner, _, name = where.rpartition(".")
    owner = getattr(tracks_on_device, owner) if owner else tracks_on_device
    own, cpu = DeviceTracker(), Tracker()
    frames = [window(100 + 12 * i, 150, index=i) for i in range(4)]
    if where == "CapturedFunction._capture":  # as on a GPU: what has been called once is captured
        monkeypatch.setattr(CapturedFunction, "__call__", lambda self, static, tensors: self._capture(static, tensors))
    monkeypatch.setattr(owner, name, fails)
    tracks_on_device._say.cache_clear()
    ours = [update(own, frame) for frame in frames[:2]]
    if resumed:
        monkeypatch.setattr(track_memory, "tracker_on", lambda device: DeviceTracker())
        own = tracker(memory(own), torch.device("cpu"))
    ours += [update(own, frame) for frame in frames[2:]]
    begun = 0 if where == "_sight" else 1  # the first frame needs nothing else
    theirs = [update(cpu, frame) for frame in frames[begun:]]
    assert sum("matched on the CPU" in record.message for record in caplog.records) == 1
    assert "DSA" not in caplog.text
    skipped = int(own._next_id) - int(cpu._next_id)
    assert skipped >= 0
    for a, b in zip(ours[begun:], theirs):
        assert np.array_equal(a.track_id, b.track_id + np.uint64(skipped))
        for one, other in zip(pair(a), pair(b)):
            assert np.array_equal(one, other)
    assert len(ours[-1].x) > 100


def test_a_frame_that_the_cpu_cannot_match_either_is_an_error(monkeypatch):
    monkeypatch.setattr(tracks_on_device, "_sight", fails)
    monkeypatch.setattr(matching.View, "of", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        update(DeviceTracker(), window(0, 0))
