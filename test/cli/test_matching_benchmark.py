"""The measurement of matching: warps are what they say, and a worker answers by the matching of the checkout it is given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "perception"))
from scenes import sift, texture

from dino_perception.measuring.matching_benchmark import ROOT, WARPS, Clip, MatchingProcess, accuracy, times, warped
from dino_perception.perception.geometry import letterbox


def test_a_warped_picture_holds_its_points_where_the_homography_puts_them():
    grey = np.zeros((480, 640), np.uint8)
    grey[200:207, 300:307] = 255
    for warp in WARPS.values():
        h, other = warped(np.repeat(grey[..., None], 3, axis=2), **warp)
        bright = other[..., 0] > 200 * warp.get("gain", 1) * (0.5 if "blur" in warp else 1)
        y, x = np.argwhere(bright).mean(axis=0)
        there = h @ [303, 203, 1]
        assert np.abs(there[:2] / there[2] - [x, y]).max() < 0.6, warp


def test_a_checkouts_matching_is_timed_and_judged(tmp_path):
    picture = np.repeat(texture(480, 640)[..., None], 3, axis=2)
    h, other = warped(picture, turn=4)
    box = letterbox(480, 640, 480, 640, 240, 320)
    clip = tmp_path / "clip.npz"
    descriptors = np.stack([sift(image, box).numpy() for image in (picture, other)])
    np.savez(clip, images=np.stack([picture, other]), descriptors=descriptors, input=(480, 640), stride=16)

    def off(start, end):
        there = np.c_[start, np.ones(len(start))] @ h.T
        return np.linalg.norm(there[:, :2] / there[:, 2:] - end, axis=1)

    worker = MatchingProcess(ROOT)
    try:
        table = times({"here": worker}, clip, rounds=1)
        judged = accuracy({"here": worker}, [Clip(clip, [("a texture", "a turn", 0, 1, off)])])
    finally:
        worker.close()
    took = {cells[1].strip(): float(cells[2]) for line in table[2:] if (cells := line.split("|"))}
    parts = sum(ms for part, ms in took.items() if part not in ("all of match", "prepare"))
    assert 0 < parts < 2 * took["all of match"]
    source, what, name, pairs, matches, pck1, _, median = (cell.strip() for cell in judged[2].split("|")[1:-1])
    assert (source, what, name, pairs) == ("a texture", "a turn", "here", "1")
    assert float(matches) > 350 and float(pck1) > 0.98 and float(median) < 0.1
