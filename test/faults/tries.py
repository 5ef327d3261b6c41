"""The campaign's tries: each takes a Random and a folder, and raises what must not be raised."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from campaign import Loss
from mutations import HOSTILE, damaged
from parsers import folder_of, parsers

NUMBERS = (0.0, -0.0, 1e-320, 1e-30, 1e-3, 1.0, -1.0, 1e3, 1e9, 1e150, 1e308, -1e308, float("inf"), float("nan"))


@functools.cache
def _parsers():
    return parsers()


def weights_and_texts(random_, folder) -> None:
    """A damaged weights file, YAML or index: its parser's one error."""
    name = random_.choice(
        [name for name, parser in _parsers().items() for _ in range(max(1, round(10 * parser.share)))]
    )
    parser = _parsers()[name]
    with contextlib.suppress(parser.error):
        parser.read(folder_of(parser, folder, parser.bad(random_)))


@functools.cache
def _pictures():
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 255, (12, 16, 3), np.uint8), (163, 121))
    options = (
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 5]),
        (".png", []),
        (".tiff", []),
        (".webp", []),
    )
    return [cv2.imencode(suffix, pixels, how)[1].tobytes() for suffix, how in options]


def compressed_image(random_, folder) -> None:
    """A damaged picture file: an ImageError or a picture."""
    from dino_perception.messages.images import ImageError, decode_compressed

    data = damaged(random_.choice(_pictures()), random_, random_.choice((None, 100, 700)))
    form = random_.choice(("jpeg", "rgb8; jpeg compressed bgr8", "bayer_rggb8; png compressed ", "", "x" * 100))
    with contextlib.suppress(ImageError):
        picture = decode_compressed(SimpleNamespace(data=data, format=form))
        assert picture.dtype == np.uint8 and picture.ndim == 3


def raw_image(random_, folder) -> None:
    """An Image whose fields do not fit one another."""
    from dino_perception.messages.images import ENCODINGS, ImageError, decode_image

    sizes = (0, 1, 2, 3, 16, 17, 640, 2**16, 2**31, 2**32 - 1)
    message = SimpleNamespace(
        height=random_.choice(sizes), width=random_.choice(sizes), step=random_.choice((*sizes, 48, 1920)),
        encoding=random_.choice((*ENCODINGS, "", "32FC1", "\x1b[31m")), is_bigendian=random_.randrange(256),
        data=random_.randbytes(random_.choice((0, 1, 100, 5000, 300000))),
    )  # fmt: skip
    with contextlib.suppress(ImageError):
        assert decode_image(message).dtype == np.uint8


def calibration(random_, folder) -> None:
    """A CameraInfo of extreme numbers: a CameraInfoError, or rays that are finite or NaN."""
    from dino_perception.messages.camera_info import CameraInfoError, camera_model
    from dino_perception.messages.types import RosbagsTypes
    from dino_perception.perception.geometry import rays, reach

    types, good = RosbagsTypes(), np.array([40.0, 0, 16, 0, 40, 12, 0, 0, 1])

    def spoilt(values):
        return np.array([random_.choice(NUMBERS) if random_.random() < 0.07 else v for v in values], np.float64)

    model = random_.choice(("plumb_bob", "rational_polynomial", "equidistant", "", "fisheye"))
    message = types.make(
        "sensor_msgs/msg/CameraInfo", header=types.header(1, "c"), height=random_.choice((24, 24, 24, 0, 2**31)), width=32,
        distortion_model=model, d=spoilt([random_.gauss(0, 0.2) for _ in range(random_.choice((0, 4, 5, 8, 14, 3)))]),
        k=spoilt(good), r=spoilt(np.eye(3).ravel()), p=spoilt(np.insert(good, (3, 6, 9), 0)),
        binning_x=random_.choice((0, 0, 1, 2, 2**32 - 1)),
        roi=types.make("sensor_msgs/msg/RegionOfInterest", width=random_.choice((0, 0, 8, 2**32 - 1))),
    )  # fmt: skip
    with contextlib.suppress(CameraInfoError):
        found = camera_model(message)
        if found is not None and found.width * found.height < 10**6 and min(found.width, found.height) > 0:
            from dino_perception.perception.lens import GeometryError

            with contextlib.suppress(GeometryError):
                assert not np.isinf(rays(found)).any() and reach(found, 10.0).shape == (found.height, found.width)


def settings(random_, folder) -> None:
    """A setting of any value: a SettingError or settings."""
    from dino_perception.perception.settings import SettingError, Settings

    names = [parameter.name for parameter in Settings().parameters()]
    values = {random_.choice((*names, "x.y", "")): random_.choice((*HOSTILE, *NUMBERS)) for _ in range(3)}
    with contextlib.suppress(SettingError):
        Settings().changed(values, live_only=random_.random() < 0.5)


@functools.cache
def _bags() -> dict[str, bytes]:
    """Small bags of every kind, as bytes of their one file, and their metadata."""
    import tempfile

    from recorded import drive, record
    from rosbags.rosbag2 import StoragePlugin

    folder, found = Path(tempfile.mkdtemp(prefix="bags-")), {}
    for plugin, suffix in ((StoragePlugin.MCAP, ".mcap"), (StoragePlugin.SQLITE3, ".db3")):
        path = record(folder / suffix[1:], drive(4, compressed=True), plugin)
        found[suffix] = next(path.glob(f"*{suffix}")).read_bytes()
        found[f"metadata {suffix}"] = (path / "metadata.yaml").read_bytes()
    shutil.rmtree(folder)
    return found


def _damaged_bag(random_, folder: Path) -> Path:
    suffix = random_.choice((".mcap", ".db3"))
    path = folder / "bag"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    content, metadata = _bags()[suffix], _bags()[f"metadata {suffix}"]
    if random_.random() < 0.8:
        content = damaged(content, random_, random_.choice((None, 3000)))
    if random_.random() < 0.4:
        metadata = damaged(metadata, random_)
    (path / f"{suffix[1:]}{suffix}").write_bytes(content)
    if random_.random() < 0.9:
        (path / "metadata.yaml").write_bytes(metadata)
    return path if random_.random() < 0.6 else path / f"{suffix[1:]}{suffix}"


def bag(random_, folder) -> None:
    """A damaged bag, read from one end to the other: a BagError, or what can be read of it."""
    from rosbags.serde import SerdeError

    from dino_perception.bags.storage.problems import BagError
    from dino_perception.bags.storage.reader import BagReader

    path = _damaged_bag(random_, folder)
    before = _hash(folder / "bag")
    with contextlib.suppress(BagError), BagReader(path) as reader:
        for message in reader.messages(list(reader.topics)):
            with contextlib.suppress(SerdeError, KeyError):
                reader.decode(message)
    if _hash(folder / "bag") != before:
        raise Loss("the bag that was read is another one now")


def replay(random_, folder) -> None:
    """A damaged bag, replayed: the input stays as it is, and what is written can be read to its end."""
    import recorded
    from rosbags.highlevel import AnyReader

    from dino_perception.bags.storage.problems import BagError

    path, output = _damaged_bag(random_, folder), folder / "out.mcap"
    output.unlink(missing_ok=True)
    before = _hash(folder / "bag")
    with contextlib.suppress(BagError), contextlib.redirect_stderr(io.StringIO()):
        result = recorded.replay(path, output, force=True)
        with AnyReader([output]) as reader:
            count = sum(1 for _ in reader.messages())
        if count < result.figures["frames_out"]:
            raise Loss(f"{result.figures['frames_out']} percepts were written, {count} messages can be read")
    if _hash(folder / "bag") != before:
        raise Loss("the bag that was replayed is another one now")


def command(random_, folder) -> None:
    """A command line of nonsense: an exit code, never an exception."""
    from dino_perception.cli.__main__ import main

    strange = [
        "",
        "-1",
        "nan",
        "x",
        "\x1b[31m",
        "[red]",
        "/dev/null",
        "/proc/self/mem",
        "/",
        "a" * 300,
        "0",
        "1e400",
        "∞",
    ]
    file = folder / "file"
    file.write_bytes(random_.randbytes(random_.choice((0, 10, 3000))))
    strange += [str(file), str(folder / "nothing"), f"{file}/below"]
    lines = {
        "models": ("--identify",), "compile": ("--config", "--frames", "--workspace", "--batch", "--set"),
        "extract": ("--count", "--labels"), "evaluate": ("--pairs", "--farthest", "--data", "--config", "--limit"),
        "replay": ("--start", "--every", "--config", "--camera", "--outputs", "--copy"), "play": ("--rate", "--remap"),
        "benchmark": ("--rounds", "--bag", "--size", "--config"),
    }  # fmt: skip
    name = random_.choice(list(lines))
    given = [name]
    if name in ("extract", "replay"):
        given += [str(random_.choice((file, folder / "nothing", "/dev/null"))), str(folder / "no" / "out.mcap")]
    elif name == "play":
        given += [str(file)]
    # One argument is always such that no work begins.
    given += ["--config", str(file)] if name in ("compile", "evaluate", "replay", "benchmark") else []
    for _ in range(random_.randrange(1, 4)):
        given += [random_.choice(lines[name]), random_.choice(strange)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main(given)


def _hash(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in sorted(folder.iterdir()))).hexdigest()


TRIES = {
    "weights and texts": (weights_and_texts, 6),
    "compressed image": (compressed_image, 5),
    "raw image": (raw_image, 5),
    "calibration": (calibration, 5),
    "settings": (settings, 5),
    "bag": (bag, 3),
    "replay": (replay, 1),
    "command": (command, 1),
}
"""Name -> what is done, and how often."""
