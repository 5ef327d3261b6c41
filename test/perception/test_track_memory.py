"""What a tracker remembers can be laid down as arrays and taken up again, to the same bits."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from dino_perception.perception.frame import Frame
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.settings import CorrespondenceSettings
from dino_perception.perception.track_memory import _SCRATCH, memory, tracker
from dino_perception.perception.tracks import Tracker

STRIDE, SIDE = 16, 160
BOX = letterbox(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE)


def frames(count=10):
    """A texture that moves to the side, with descriptors that move with it; strided as some engines give them."""
    rng = np.random.default_rng(5)
    texture = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
    words = torch.from_numpy(rng.standard_normal((32, 40, 64)).astype(np.float32))
    for number in range(count):
        image = np.ascontiguousarray(texture[:SIDE, 3 * number : 3 * number + SIDE])
        shift = 3 * number // STRIDE
        grid = torch.nn.functional.normalize(words[:10, shift : shift + 10].reshape(100, 64), dim=1)
        yield Frame("camera", 10 + number, "optical", image), grid.T.contiguous().T


def followed(given, frames_, settings):
    return [given.update(frame, BOX, descriptors, STRIDE, settings) for frame, descriptors in frames_]


@pytest.mark.parametrize("reference", ["previous", "keyframe"])
@pytest.mark.parametrize("stop", [1, 2, 6])
def test_a_recalled_tracker_goes_on_as_if_nothing_had_happened(reference, stop):
    settings = dataclasses.replace(CorrespondenceSettings(), reference=reference, max_matches=60)
    whole = followed(Tracker(), frames(), settings)
    first = Tracker()
    followed(first, list(frames())[:stop], settings)
    arrays = memory(first)
    rest = followed(tracker(arrays, torch.device("cpu")), list(frames())[stop:], settings)
    assert any(len(c.x) for c in rest)
    for expected, found in zip(whole[stop:], rest):
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("reference", ["previous", "keyframe"])
def test_what_is_made_ready_later_gives_the_same_bits(reference):
    settings = dataclasses.replace(CorrespondenceSettings(), reference=reference, max_matches=60)
    made, expected = Tracker(), followed(Tracker(), frames(), settings)
    found = []
    for number, (frame, descriptors) in enumerate(frames()):
        found.append(made.match(frame, BOX, descriptors, STRIDE, settings))
        if number % 3 == 0:
            made.prepare()
        elif number % 3 == 1:
            made = tracker(memory(made), torch.device("cpu"))  # remembers what was not yet made ready
    assert sum(len(c.x) for c in found) > 100
    for a, b in zip(expected, found):
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(b, field.name), getattr(a, field.name))


def test_after_a_reset_ids_are_the_same_whether_points_had_been_made_ready_or_not():
    settings, ids = CorrespondenceSettings(), []
    for ready in (False, True):
        made = Tracker()
        for number, (frame, descriptors) in enumerate(frames(4)):
            if number == 2:
                made.reset()
            found = made.match(frame, BOX, descriptors, STRIDE, settings)
            if ready:
                made.prepare()
        ids.append(found.track_id)
    assert len(ids[0]) > 30 and ids[0].tolist() == ids[1].tolist()


def test_what_is_remembered_is_a_copy():
    """The tracker goes on while its memory is written to the disk."""
    made, settings = Tracker(), CorrespondenceSettings()
    todo = list(frames())
    followed(made, todo[:3], settings)
    arrays = memory(made)
    before = {name: array.copy() for name, array in arrays.items()}
    followed(made, todo[3:], settings)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_everything_a_tracker_holds_is_remembered():
    made = Tracker()
    followed(made, list(frames())[:3], CorrespondenceSettings())
    again = tracker(memory(made), torch.device("cpu"))
    assert vars(again).keys() == vars(made).keys() and set(_SCRATCH) < vars(made).keys()
    assert (again._previous is again._reference) == (made._previous is made._reference)
    empty = tracker(memory(Tracker()), torch.device("cpu"))
    assert empty._reference is None and empty._next_id == 1
