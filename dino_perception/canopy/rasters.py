"""A raster of the ground in, one of heights out: by rasterio, tile by tile, to be gone on with after a break."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception import results
from dino_perception.canopy.tiles import Tiling, bands

PIXEL = 0.6
"""Metres of ground a pixel: what CHMv2 was trained on."""
PLANE = 3857
"""Any EPSG number of a plane does for a picture without a place."""
EARTH = 6378137.0
"""Metres, its radius at the equator; it is told from others by less than MOST_OFF."""
MOST_OFF = 0.01
"""A raster whose pixels are within this share of the wanted size is read as it is."""


class RasterError(ValueError):
    """A raster that cannot be used; the message says why."""


@dataclass(frozen=True)
class Ground:
    """A picture of the ground, open, on a grid of pixels of one size in metres. `source` is rasterio's, `placed` says
    whether it knows where on Earth it is, `fill` is the colour of pixels that are not known."""

    source: Any
    bands: tuple[int, int, int]
    pixel: float
    placed: bool
    fill: Sequence[int]

    def tile(self, top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """(side, side, 3) uint8 and which of its pixels are known, (side, side) bool; beyond the picture none is."""
        from rasterio.windows import Window

        low, high = (max(top, 0), max(left, 0)), (top + side, left + side)
        window = Window(
            low[1], low[0], min(high[1], self.source.width) - low[1], min(high[0], self.source.height) - low[0]
        )
        picture, known = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), bool)
        place = slice(low[0] - top, low[0] - top + window.height), slice(low[1] - left, low[1] - left + window.width)
        picture[place] = self.source.read(self.bands, window=window).transpose(1, 2, 0)
        known[place] = self.source.dataset_mask(window=window) > 0
        picture[~known] = self.fill
        return picture, known


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    pixel: float = PIXEL,
    own: float = 0.0,
    bands: Sequence[int] = (1, 2, 3),
    fill: Sequence[int] = (0, 0, 0),
) -> Iterator[Ground]:
    """The picture at `path`, resampled to `pixel` metres of ground: the mean of what becomes one pixel, bilinear where
    pixels become more. A raster in degrees is brought to its UTM zone; a picture without a place on Earth needs its `own`
    metres a pixel. Raises RasterError.
    """
    import rasterio
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import calculate_default_transform

    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(rasterio.open(path))
        except rasterio.RasterioIOError as error:
            raise RasterError(f"{path} cannot be read as a raster ({error})") from None
        if missing := [band for band in bands if band not in source.indexes]:
            raise RasterError(
                f"{path} has {source.count} bands and no band {missing[0]}; name red, green, blue by --bands"
            )
        if kinds := {source.dtypes[band - 1] for band in bands} - {"uint8"}:
            raise RasterError(
                f"{path} holds {', '.join(sorted(kinds))}; accepted are colours of 8 bits: stretch it with gdal_translate "
                "-ot Byte -scale"
            )
        if source.crs is None:
            if not own:
                raise RasterError(
                    f"{path} does not say where on Earth it is; give the metres of its pixels (--pixel-size)"
                )
            from_crs = to_crs = CRS.from_epsg(PLANE)
            transform, size = Affine.scale(own, -own), pixel
        else:
            from_crs, transform = source.crs, source.transform
            to_crs = _utm(source) if from_crs.is_geographic else from_crs
            size = pixel / _metres_a_unit(source, to_crs)
        if from_crs == to_crs and transform.is_rectilinear and _near(transform, size):
            yield Ground(source, tuple(bands), pixel, source.crs is not None, fill)
            return
        corners = rasterio.transform.array_bounds(source.height, source.width, transform)
        grid, width, height = calculate_default_transform(
            from_crs, to_crs, source.width, source.height, *corners, resolution=size
        )
        shrinks = width * height < source.width * source.height
        vrt = WarpedVRT(
            source, src_crs=from_crs, src_transform=transform, crs=to_crs, transform=grid, width=width, height=height,
            add_alpha=source.nodata is None and ColorInterp.alpha not in source.colorinterp,
            resampling=Resampling.average if shrinks else Resampling.bilinear,
        )  # fmt: skip
        yield Ground(stack.enter_context(vrt), tuple(bands), pixel, source.crs is not None, fill)


def heights(
    ground: Ground,
    out: Path,
    tell: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    *,
    side: int = 512,
    overlap: int = 128,
    batch: int = 1,
    made: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write what `tell` says of the ground to `out`, a cloud-optimised GeoTIFF of float32 metres on the ground's grid, NaN
    where the ground is unknown.

    Rows of tiles are kept beside it (`out`.parts) until all are there; those of a run before that agrees in `made`, the
    ground and the tiles are not worked out again. `progress` is told the rows done and all. Raises RasterError.
    """
    import rasterio
    from rasterio.shutil import copy
    from rasterio.windows import Window

    source, parts = ground.source, Path(f"{out}.parts")
    tiling = Tiling(source.height, source.width, side, overlap)
    count = len(tiling.tops)
    made = {**made, "tile": side, "overlap": overlap, "pixel": ground.pixel, "size": [source.height, source.width]}
    made = json.loads(json.dumps({**made, "transform": list(source.transform)[:6]}))
    _begin(parts, made)
    names = [parts / f"{row:05}.npy" for row in range(count)]
    first = next((row for row, name in enumerate(names) if not name.exists()), count)
    progress(first, count)
    if first < count:
        read = lambda top, left: ground.tile(top, left, side)
        for row, band in bands(tiling, read, tell, first=first, batch=batch):
            part = names[row].with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, band)
            os.replace(part, names[row])
            progress(row + 1, count)
    whole = parts / "whole.tif"
    profile = dict(
        driver="GTiff", dtype="float32", count=1, height=source.height, width=source.width, nodata=math.nan, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", predictor=3, bigtiff="if_safer", transform=source.transform,
        crs=source.crs if ground.placed else None,
    )  # fmt: skip
    with rasterio.open(whole, "w", **profile) as file:
        for row, name in enumerate(names):
            low, high = tiling.band(row)
            file.write(np.load(name), 1, window=Window(0, low, source.width, high - low))
        file.update_tags(**{key: str(value) for key, value in made.items()})
        file.set_band_description(1, "height")
        file.units = ("metre",)
    cog = parts / "cog.tif"
    copy(whole, cog, driver="COG", compress="deflate", predictor=3, overview_resampling="average", bigtiff="if_safer")
    os.replace(cog, out)
    shutil.rmtree(parts)


def _begin(parts: Path, made: dict[str, Any]) -> None:
    """The folder for rows, emptied where it holds those of other work. Raises RasterError where somebody else's files lie
    there: only what a run before left is ever removed."""
    said = parts / "made.json"
    if said.is_file():
        with contextlib.suppress(ValueError):  # cut by a full disk, or changed
            if json.loads(said.read_text()) == made:
                return
    elif parts.exists() and (not parts.is_dir() or any(parts.iterdir())):
        raise RasterError(f"{parts} is there and no map that was broken off; move it, or name another map")
    shutil.rmtree(parts, ignore_errors=True)
    if why := results.refusal(parts, folder=True):
        raise RasterError(why)
    parts.mkdir(parents=True)
    said.write_text(json.dumps(made))


def _utm(source: Any) -> Any:
    """The UTM zone of the raster's middle, on WGS 84."""
    from rasterio.crs import CRS

    x, y = source.xy(source.height // 2, source.width // 2)
    return CRS.from_epsg((32600 if y >= 0 else 32700) + min(int((x + 180) // 6) + 1, 60))


def _metres_a_unit(source: Any, crs: Any) -> float:
    """Metres of ground that a unit of `crs` is in the raster's middle: a foot's in feet, less than 1 in a web map."""
    from rasterio.warp import transform

    ((x,), (y,)) = transform(source.crs, crs, *([value] for value in source.xy(source.height // 2, source.width // 2)))
    reach = 100.0
    (west, east), (south, north) = transform(crs, "EPSG:4326", [x - reach, x + reach], [y, y])
    along = math.radians(east - west) * math.cos(math.radians((south + north) / 2)), math.radians(north - south)
    ratio = EARTH * math.hypot(*along) / (2 * reach)
    return 1.0 if abs(ratio - 1) < MOST_OFF else ratio


def _near(transform: Any, size: float) -> bool:
    return all(abs(abs(side) / size - 1) < MOST_OFF for side in (transform.a, transform.e))
