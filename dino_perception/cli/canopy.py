"""`dino-perception canopy`: how high trees stand, from a satellite's or an aeroplane's picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results
from dino_perception.cli.argument_types import positive, threads, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from dino_perception.perception.perceiver import Perceiver

HELP = "map how high trees stand, from a picture taken from above"
PICTURES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg")


class CanopyError(ValueError):
    """No heights can be told; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, metavar="IN", help="a raster of red, green, blue, or a folder of them")
    parser.add_argument(
        "out", type=results.file_or_folder, metavar="OUT", help="GeoTIFF to write, metres; a folder where IN is one"
    )  # fmt: skip
    parser.add_argument("--bands", type=_three, default=(1, 2, 3), metavar="R,G,B", help="default: 1,2,3")
    parser.add_argument(
        "--pixel-size", type=positive, default=0.0, metavar="M",
        help="metres a pixel, for a picture that does not say where on Earth it is",
    )  # fmt: skip
    parser.add_argument("--tile", type=whole, default=512, metavar="PIXELS", help="side of a tile (default: 512)")
    parser.add_argument(
        "--overlap", type=whole, default=128, metavar="PIXELS", help="that neighbouring tiles share (default: 128)"
    )
    parser.add_argument("--batch", type=whole, default=1, help="tiles a pass (default: 1)")
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", default="dinov3-vitl16-chmv2", help="default: dinov3-vitl16-chmv2")
    model.add_argument("--weights", default="", metavar="FILE", help="of the backbone; default: the downloaded ones")
    model.add_argument(
        "--head", default="chmv2", metavar="FILE|NAME", help="the height head; default: the released one, chmv2"
    )
    model.add_argument("--engine", default="auto", help="runtime (default: auto)")
    model.add_argument("--precision", default="auto", help="its arithmetic (default: auto)")
    model.add_argument("--threads", type=threads, default=0, help="CPU threads, 0: all (default)")
    model.add_argument("--allow-untrained", action="store_true", help="random weights, to try out what a map costs")
    model.add_argument("--cache", type=results.folder, metavar="DIR", help="where engines are kept")


def run(args: argparse.Namespace) -> int:
    import rasterio  # noqa: F401  before the weights are read

    from dino_perception.bags.fingerprint import weights_of
    from dino_perception.canopy.rasters import heights, opened
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.models import catalog
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.perception.settings import Settings

    pairs = _pairs(args.picture, args.out)
    settings = Settings.from_flat(
        {
            "backbone": args.backbone, "weights": args.weights, "heads": ["depth"], "depth.weights": args.head,
            "engine": args.engine, "precision": args.precision, "threads": args.threads,
            "input_height": args.tile, "input_width": args.tile, "output_height": args.tile, "output_width": args.tile,
            "allow_untrained": args.allow_untrained,
        }
    )  # fmt: skip
    console = wide_console()
    with Stages(console) as stages:
        perceiver = Perceiver(settings, cache=args.cache, batch_sizes={args.batch}, report=stages.say)
        weights = weights_of(settings)
        made = {"backbone": f"{args.backbone} {weights['backbone']}", "head": f"{args.head} {weights['depth']}"}
        mean = catalog.get(args.backbone).normalisation.mean
        fill = [round(255 * value) for value in mean]
        try:
            for number, (picture, out) in enumerate(pairs):
                name = f"{picture.name} ({number + 1} of {len(pairs)})" if len(pairs) > 1 else picture.name
                with opened(picture, own=args.pixel_size, bands=args.bands, fill=fill) as ground:
                    heights(
                        ground, out, _teller(perceiver), side=args.tile, overlap=args.overlap, batch=args.batch,
                        made={**made, "picture": f"{picture.resolve()} {picture.stat().st_mtime_ns}"},
                        progress=lambda done, total: stages(name, done, total),
                    )  # fmt: skip
        finally:
            perceiver.close()
        stages.stop()
    for _, out in pairs:
        console.print(f"{out}: metres, CRS and grid of its picture", soft_wrap=True)
    return 0


def _teller(perceiver: Perceiver) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    from dino_perception.perception.frame import Frame

    def tell(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        frames = [Frame(f"tile{i}", 0, "", picture) for i, picture in enumerate(pictures)]
        return [percept.depth.metres for percept in perceiver.perceive(frames)]

    return tell


def _pairs(picture: Path, out: Path) -> list[tuple[Path, Path]]:
    """Each picture and where its heights go. Raises CanopyError."""
    if not picture.is_dir():
        if why := results.refusal(out):
            raise CanopyError(why)
        if out.exists() and picture.exists() and out.samefile(picture):
            raise CanopyError(f"{out} is the picture itself; name another file for its heights")
        return [(picture, out)]
    found = sorted(path for path in picture.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise CanopyError(f"{picture} holds no picture; accepted are {', '.join(PICTURES)}")
    stems = [path.stem for path in found]
    if twice := sorted({path.name for path in found if stems.count(path.stem) > 1}):
        raise CanopyError(f"{', '.join(twice)} would have one map; give pictures names that differ before the suffix")
    if why := results.refusal(out, folder=True):
        raise CanopyError(why)
    if out.exists() and out.samefile(picture):
        raise CanopyError(f"{out} is the folder of the pictures; name another one for their heights")
    out.mkdir(parents=True, exist_ok=True)
    return [(path, out / f"{path.stem}.tif") for path in found if not (out / f"{path.stem}.tif").exists()]


def _three(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) != 3 or len(parts) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not three bands; accepted is red, green, blue, such as 1,2,3")
    return tuple(numbers)
