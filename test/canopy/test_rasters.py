"""Rasters of the ground become rasters of heights: grid, CRS, mask and metres right, and gone on with after a break."""

import argparse
import math

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from dino_perception.canopy.rasters import RasterError, heights, opened  # noqa: E402
from dino_perception.cli.__main__ import main  # noqa: E402
from dino_perception.cli.canopy import CanopyError, _pairs, _three  # noqa: E402

MADE = {"by": "a test"}


def write(path, pixels, transform, crs="EPSG:32633", mask=None, **more):
    count = pixels.shape[2]
    profile = dict(driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=count, dtype=pixels.dtype)
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, **more) as file:
        file.write(pixels.transpose(2, 0, 1))
        if mask is not None:
            file.write_mask(mask)
    return path


def slope(height, width):
    """Red rises by one each four columns, green by one each four rows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x // 4, y // 4, 0 * x], axis=2).astype(np.uint8)


def tell(pictures):
    """The red of each pixel in metres."""
    return [p[..., 0].astype(np.float32) for p in pictures]


def run(path, out, tell=tell, side=64, overlap=16, made=MADE, **more):
    with opened(path, **more) as ground:
        heights(ground, out, tell, side=side, overlap=overlap, made=made)
    return rasterio.open(out)


def test_a_raster_of_the_right_grid_keeps_it(tmp_path):
    at = from_origin(500000, 5200000, 0.6, 0.6)
    pixels = slope(150, 210)
    with run(write(tmp_path / "in.tif", pixels, at), tmp_path / "out.tif") as file:
        assert (file.crs, file.transform, file.shape) == ("EPSG:32633", at, (150, 210))
        np.testing.assert_allclose(file.read(1), pixels[..., 0], atol=1e-4)
        assert file.dtypes == ("float32",) and math.isnan(file.nodata) and file.units == ("metre",)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert not (tmp_path / "out.tif.parts").exists()


@pytest.mark.parametrize("own", [0.3, 1.2])
def test_another_resolution_is_brought_to_sixty_centimetres(tmp_path, own):
    at = from_origin(500000, 5200000, own, own)
    with run(write(tmp_path / "in.tif", slope(200, 400), at), tmp_path / "out.tif") as file:
        assert file.res == (0.6, 0.6) and file.shape == (round(200 * own / 0.6), round(400 * own / 0.6))
        row, column = file.index(500000 + 300.5 * own, 5200000 - 100.5 * own)
        assert file.read(1)[row, column] == pytest.approx(300 // 4, abs=1)


def test_pixels_are_metres_of_ground_also_in_a_web_map_in_feet_and_in_degrees(tmp_path):
    """At 60 degrees north a metre of ground is two units of a web map; New York's grid counts in feet."""
    web = write(tmp_path / "web.tif", slope(100, 100), from_origin(1e6, 8399738, 2, 2), "EPSG:3857")
    with run(web, tmp_path / "web_out.tif") as file:
        assert file.crs == "EPSG:3857" and file.res[0] == pytest.approx(1.2, rel=0.01)
    feet = write(tmp_path / "feet.tif", slope(100, 100), from_origin(980000, 200000, 4, 4), "EPSG:2263")
    with run(feet, tmp_path / "feet_out.tif") as file:
        assert file.crs == "EPSG:2263" and file.res[0] == pytest.approx(0.6 / 0.3048006, rel=0.01)
    degrees = write(tmp_path / "degrees.tif", slope(100, 100), from_origin(15.1, -33.2, 1e-5, 1e-5), "EPSG:4326")
    with run(degrees, tmp_path / "degrees_out.tif") as file:
        assert file.crs == "EPSG:32733" and file.res == (0.6, 0.6)
        assert file.width == pytest.approx(100 * 1e-5 * 111320 * math.cos(math.radians(33.2)) / 0.6, rel=0.03)


@pytest.mark.parametrize("own", [0.6, 0.3])
@pytest.mark.parametrize("how", ["nodata", "mask", "alpha"])
def test_what_is_unknown_stays_unknown(tmp_path, how, own):
    pixels, more = slope(160, 160) + np.uint8(1), {}
    known = np.ones((160, 160), bool)
    known[40:120, 80:] = False
    if how == "nodata":
        pixels[~known], more = 0, {"nodata": 0}
    elif how == "mask":
        more = {"mask": known.astype(np.uint8) * 255}
    else:
        alpha = known.astype(np.uint8)[..., None] * 255
        pixels, more = np.concatenate([pixels, alpha], axis=2), {"photometric": "RGB", "alpha": "yes"}
    path = write(tmp_path / "in.tif", pixels, from_origin(5e5, 5e6, own, own), **more)
    with run(path, tmp_path / "out.tif") as file:
        out = file.read(1)
        ratio = 160 / len(out)
        seen = known[np.ix_(*2 * [(np.arange(len(out)) * ratio).astype(int)])]
        assert np.mean(np.isfinite(out) == seen) > 0.98
        assert np.array_equal(file.read_masks(1) > 0, np.isfinite(out))


def test_a_picture_without_a_place_needs_the_size_of_its_pixels(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "in.png"), slope(120, 200)[..., ::-1])
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        with pytest.raises(RasterError, match="give the metres of its pixels"), opened(tmp_path / "in.png"):
            pass
        with run(tmp_path / "in.png", tmp_path / "out.tif", own=0.3) as file:
            assert file.crs is None and file.shape == (60, 100)
            assert file.read(1)[30, 50] == pytest.approx(25, abs=1)


def test_what_cannot_be_told_is_refused(tmp_path):
    at = from_origin(5e5, 5e6, 0.6, 0.6)
    deep = write(tmp_path / "deep.tif", slope(20, 20).astype(np.uint16), at)
    grey = write(tmp_path / "grey.tif", slope(20, 20)[..., :1], at)
    (tmp_path / "text.tif").write_text("no raster")
    for path, why in ((deep, "uint16; accepted are colours of 8 bits"), (grey, "has 1 bands and no band 2"),
                      (tmp_path / "text.tif", "cannot be read as a raster")):  # fmt: skip
        with pytest.raises(RasterError, match=why), opened(path):
            pass


def test_an_interrupted_map_goes_on_where_it_stopped(tmp_path):
    path = write(tmp_path / "in.tif", slope(400, 100), from_origin(5e5, 5e6, 0.6, 0.6))
    asked = []

    def dies(pictures):
        if len(asked) >= 9:
            raise KeyboardInterrupt
        asked.extend(pictures)
        return tell(pictures)

    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out.tif", dies)
    assert not (tmp_path / "out.tif").exists()
    again = []
    run(path, tmp_path / "out.tif", lambda p: again.extend(p) or tell(p)).close()
    whole = []
    run(path, tmp_path / "whole.tif", lambda p: whole.extend(p) or tell(p)).close()
    assert len(again) < len(whole) <= len(again) + len(asked)
    with rasterio.open(tmp_path / "out.tif") as one, rasterio.open(tmp_path / "whole.tif") as other:
        np.testing.assert_array_equal(one.read(1), other.read(1))


def test_rows_of_another_model_are_not_taken_over(tmp_path):
    path = write(tmp_path / "in.tif", slope(400, 100), from_origin(5e5, 5e6, 0.6, 0.6))
    seen = []

    def dies(pictures):
        if len(seen) >= 9:
            raise KeyboardInterrupt
        seen.extend(pictures)
        return tell(pictures)

    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out.tif", dies)
    with run(path, tmp_path / "out.tif", lambda p: [np.full((64, 64), 7, np.float32) for _ in p], made={}) as file:
        np.testing.assert_allclose(file.read(1), 7, rtol=1e-6)


def test_the_command_maps_a_picture_and_a_folder(tmp_path, monkeypatch, capsys):
    """With the bundled backbone and a depth head in place of the released ones, which have to be asked for."""
    at = from_origin(5e5, 5e6, 0.6, 0.6)
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.tif", rng.integers(0, 256, (70, 90, 3)).astype(np.uint8), at)
    more = ["--backbone", "rover-tiny", "--head", "", "--tile", "64", "--overlap", "16", "--engine", "torch",
            "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main(["canopy", str(tmp_path / "in"), str(tmp_path / "out"), *more]) == 0
    for name in ("a", "b"):
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as file:
            out = file.read(1)
            assert (file.crs, file.transform, out.shape) == ("EPSG:32633", at, (70, 90))
            assert np.isfinite(out).all() and (out > 0).all() and "rover-tiny" in file.tags()["backbone"]
    monkeypatch.setenv("DINO_PERCEPTION_WEIGHTS", str(tmp_path / "empty"))
    assert main(["canopy", str(tmp_path / "in" / "a.tif"), str(tmp_path / "c.tif")]) == 1
    assert "dinov3_vitl16_chmv2_dpt_head-3703d643.pth is not in" in capsys.readouterr().err


def test_a_map_takes_nobodys_place(tmp_path):
    """Neither the picture's own, nor another map's, nor that of files which no map left."""
    picture = write(tmp_path / "in.tif", slope(80, 80), from_origin(5e5, 5e6, 0.6, 0.6))
    before = picture.read_bytes()
    (tmp_path / "link.tif").symlink_to(picture)
    (tmp_path / "twins").mkdir()
    for name in ("a.tif", "a.tiff"):
        (tmp_path / "twins" / name).write_bytes(before)
    for source, out, why in (
        ("in.tif", "in.tif", "is the picture itself"),
        ("in.tif", "link.tif", "is the picture itself"),
        ("twins", "maps", "a.tif, a.tiff would have one map"),
    ):
        with pytest.raises(CanopyError, match=why):
            _pairs(tmp_path / source, tmp_path / out)
    (tmp_path / "twins" / "a.tiff").unlink()
    with pytest.raises(CanopyError, match="is the folder of the pictures"):
        _pairs(tmp_path / "twins", tmp_path / "twins")
    (tmp_path / "out.tif.parts").mkdir()
    (tmp_path / "out.tif.parts" / "letter").write_text("mine")
    with pytest.raises(RasterError, match="is there and no map that was broken off"):
        run(picture, tmp_path / "out.tif")
    assert (tmp_path / "out.tif.parts" / "letter").read_text() == "mine" and picture.read_bytes() == before


def test_a_note_of_parts_that_was_cut_short_is_begun_anew(tmp_path):
    picture = write(tmp_path / "in.tif", slope(80, 80), from_origin(5e5, 5e6, 0.6, 0.6))
    (tmp_path / "out.tif.parts").mkdir()
    (tmp_path / "out.tif.parts" / "made.json").write_text('{"by": "a te')
    with run(picture, tmp_path / "out.tif") as file:
        assert file.shape == (80, 80)


@pytest.mark.parametrize("bands", ["1,2", "1,2,x,3", "0,1,2"])
def test_three_bands_are_three_numbers(bands):
    with pytest.raises(argparse.ArgumentTypeError, match="accepted is red, green, blue"):
        _three(bands)
