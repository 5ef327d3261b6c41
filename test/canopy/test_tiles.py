"""Tiles cover a picture, and what is told of them is put together without seams."""

import tracemalloc

import numpy as np
import pytest

from dino_perception.canopy.tiles import TileError, Tiling, bands, weight


def picture(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 251, x % 241, (y * x) % 239], axis=2).astype(np.uint8)


def reader(whole, known=None):
    known = np.ones(whole.shape[:2], bool) if known is None else known

    def read(top, left, side):
        tile, seen = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), bool)
        rows, columns = (slice(max(start, 0), start + side) for start in (top, left))
        part = whole[rows, columns]
        place = (
            slice(rows.start - top, rows.start - top + part.shape[0]),
            slice(columns.start - left, columns.start - left + part.shape[1]),
        )
        tile[place], seen[place] = part, known[rows, columns]
        return tile, seen

    return read


def mapped(tiling, whole, tell, known=None, **more):
    read = reader(whole, known)
    found = list(bands(tiling, lambda top, left: read(top, left, tiling.side), tell, **more))
    return np.concatenate([band for _, band in found])


def per_pixel(pictures):
    return [p.astype(np.float32) @ np.array([0.5, 0.3, 0.2], np.float32) for p in pictures]


@pytest.mark.parametrize("side, overlap", [(32, 8), (32, 16), (32, 0), (33, 5)])
def test_weights_of_neighbours_add_up_to_one(side, overlap):
    tile = weight(side, overlap)
    step = side - overlap
    total = np.zeros(side + 4 * step)
    for i in range(5):
        total[i * step : i * step + side] += np.sqrt(np.diag(tile))
    np.testing.assert_allclose(total[overlap : -overlap or None], 1, atol=1e-6)
    assert tile.min() > 0


@pytest.mark.parametrize("height, width", [(100, 70), (32, 32), (20, 9), (57, 33)])
@pytest.mark.parametrize("offset", [0, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_told_of_each_pixel_comes_out_as_it_is(height, width, offset, batch):
    whole = picture(height, width)
    out = mapped(Tiling(height, width, 32, 8, offset), whole, per_pixel, batch=batch)
    np.testing.assert_allclose(out, per_pixel([whole])[0], rtol=1e-5)


def test_a_tile_that_says_more_than_its_neighbour_leaves_no_step():
    """Tiles of 64 pixels that differ by 10 m: over an overlap of 32 pixels heights change by at most pi / 2 of the even
    10 / 32 m a pixel."""
    seen = []
    tell = lambda pictures: [np.full((64, 64), 10.0 * (seen.append(0) or len(seen) % 2), np.float32) for _ in pictures]
    out = mapped(Tiling(64, 400, 64, 32), picture(64, 400), tell)
    assert np.ptp(out) == pytest.approx(10, abs=1e-4)
    assert np.abs(np.diff(out, axis=1)).max() < 1.6 * 10 / 32


def test_the_answer_hardly_depends_on_where_the_tiles_lie():
    """A network that sees its tile's edge differently, here zeros beyond it in a mean over 15 pixels: what it says of a pixel
    changes with the grid only where a tile's edge is near, and there weighs next to nothing."""
    import cv2

    rng = np.random.default_rng(0)
    whole = cv2.GaussianBlur(rng.integers(0, 256, (200, 300, 3)).astype(np.uint8), (0, 0), 2)
    tell = lambda pictures: [
        cv2.boxFilter(p[..., 0].astype(np.float32), -1, (15, 15), borderType=cv2.BORDER_CONSTANT) for p in pictures
    ]
    outs = [mapped(Tiling(200, 300, 96, 48, offset), whole, tell)[60:140, 60:240] for offset in (0, 17, 31)]
    truth = tell([whole])[0][60:140, 60:240]
    hard = mapped(Tiling(200, 300, 96, 0), whole, tell)[60:140, 60:240]
    assert np.abs(hard - truth).max() > 0.3 * truth.mean(), "tiles side by side have seams"
    for out in outs:
        assert np.abs(out - truth).max() < 0.02 * truth.mean()
        assert np.abs(out - outs[0]).max() < 0.02 * truth.mean()


def test_unknown_pixels_stay_unknown_and_tiles_of_nothing_else_are_not_looked_at():
    whole, known = picture(100, 100), np.ones((100, 100), bool)
    known[:, 40:] = False
    asked = []
    out = mapped(Tiling(100, 100, 32, 8), whole, lambda p: asked.extend(p) or per_pixel(p), known)
    assert np.isnan(out[:, 40:]).all() and np.isfinite(out[:, :40]).all()
    assert len(asked) == 4 * 2


def test_work_goes_on_at_any_row_with_the_same_result():
    whole = picture(150, 60)
    tiling = Tiling(150, 60, 32, 12)
    read = reader(whole)
    at = lambda top, left: read(top, left, 32)
    tell = lambda pictures: [p[..., 0] + p[..., 1].mean().astype(np.float32) for p in pictures]
    whole_run = dict(bands(tiling, at, tell))
    for first in (1, 4, len(tiling.tops) - 1):
        again = dict(bands(tiling, at, tell, first=first))
        assert list(again) == list(range(first, len(tiling.tops)))
        for row, band in again.items():
            np.testing.assert_array_equal(band, whole_run[row])


def test_memory_does_not_grow_with_the_height():
    def peak(height):
        tile = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)
        tracemalloc.start()
        for _ in bands(Tiling(height, 400, 64, 16), lambda top, left: tile, lambda p: [np.ones((64, 64), np.float32)]):
            pass
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    assert peak(4000) < 1.1 * peak(400)


def test_tiles_that_cannot_cover_are_refused():
    with pytest.raises(TileError, match="accepted is 0 to 256, half a tile"):
        Tiling(100, 100, 512, 300)
    with pytest.raises(TileError, match="begin 500 pixels outside"):
        Tiling(100, 100, 512, 128, 500)
