"""A recorded drive as a dataset: camera frames, and where they are recorded, aligned depth, masks and poses.

So a robot with a depth camera teaches its own monocular depth without a label.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dino_perception.bags.storage.problems import BagError
from dino_perception.bags.storage.reader import BagReader, is_bag
from dino_perception.messages.camera_info import CameraInfoError, camera_model
from dino_perception.messages.compressed_depth import decode_compressed_depth
from dino_perception.messages.images import ImageError, decode_compressed, decode_image
from dino_perception.perception.transforms import TransformTree
from dino_perception.training.datasets.base import DataError, Dataset, Sample, metres, text_key
from dino_perception.training.datasets.labels import DEFAULT, LabelMap

TOLERANCE_NS = 25_000_000
"""How far the stamps of a picture and its depth or mask may be apart."""

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def fits(path: Path) -> bool:
    return is_bag(path)


def read(
    path: Path,
    *,
    labels: LabelMap | None = None,
    image_topic: str = "",
    depth_topic: str = "",
    mask_topic: str = "",
    **_,
) -> Dataset:
    """The frames of one camera. Topics that are not named are found by their types and names.

    Depth is sensor_msgs/Image of 16UC1 millimetres or 32FC1 metres, or what compressed_depth_image_transport makes of
    them; it must be aligned with the pictures. Masks are Image mono8 or a PNG of class ids. Poses come from tf, or from
    nav_msgs/Odometry where tf does not move. Pictures without depth or mask within 25 ms keep only what they have.
    Raises DataError.
    """
    bag = Bag(path)
    image = bag.image_topic(image_topic)
    depth, mask = bag.truth_topic("depth", depth_topic, image), bag.truth_topic("mask", mask_topic, image)
    index = bag.index([t for t in (image, depth, mask) if t])
    tree = bag.transforms()
    camera = bag.camera(image)
    frame_id = str(bag.message(image, index[image][0].log_ns).header.frame_id)
    moving = tree.moving(frame_id)
    label_map = labels or DEFAULT
    samples = []
    for number, entry in enumerate(index[image]):
        depth_ns, mask_ns = (_nearest(index.get(topic, []), entry.stamp_ns) for topic in (depth, mask))
        samples.append(
            Sample(
                f"{path.name} {image} {entry.stamp_ns}",
                path.name,
                text_key(bag.key, image, entry.log_ns),
                partial(bag.picture, image, entry.log_ns),
                partial(bag.mask, mask, mask_ns, label_map) if mask_ns is not None else None,
                partial(bag.depth, depth, depth_ns) if depth_ns is not None else None,
                camera,
                tree.pose(frame_id, entry.stamp_ns) if moving else None,
                entry.stamp_ns,
                number,
                text_key(depth, depth_ns, mask, mask_ns, label_map),
            )
        )
    for topic, what in ((depth, depth_topic), (mask, mask_topic)):
        if topic and what and not any(s.read_depth if topic == depth else s.read_classes for s in samples):
            raise DataError(f"{path}: no message of {topic} has the stamp of a picture of {image} (within 25 ms)")
    return Dataset(f"bag {path.name}", tuple(samples), label_map.labels if mask else (), continuous=True)


@dataclass(frozen=True)
class IndexEntry:
    stamp_ns: int
    log_ns: int


class Bag:
    """An open bag with random access. Raises DataError."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.reader = BagReader(path)
        except BagError as error:
            raise DataError(str(error)) from None
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        self.key = text_key(*((str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
        self.types = {name: topic.type for name, topic in self.reader.topics.items() if topic.count}

    def image_topic(self, wanted: str = "") -> str:
        """The camera topic: the one named, else the only one there is."""
        found = [t for t in self.types if self._kind(t) == "picture"]
        if wanted:
            if self.types.get(wanted) not in (IMAGE, COMPRESSED):
                raise DataError(f"{self.path} has no image topic '{wanted}'; it has {', '.join(found) or 'none'}")
            return wanted
        if not found:
            raise DataError(
                f"{self.path} has no camera topic; its topics are {', '.join(sorted(self.types)) or 'none'}"
            )
        stems = {t.removesuffix("/compressed") for t in found}
        if len(stems) > 1:
            raise DataError(
                f"{self.path} has several camera topics; choose one with --image-topic: {', '.join(sorted(found))}"
            )
        return min(found, key=len)  # the raw one, when it was recorded too

    def truth_topic(self, kind: str, wanted: str, image: str) -> str:
        """The topic of depth or masks: the one named, else one that can only be it, else none ("")."""
        if wanted:
            if wanted not in self.types:
                raise DataError(f"{self.path} has no topic '{wanted}'; its topics are {', '.join(sorted(self.types))}")
            return wanted
        found = [t for t in self.types if t != image and self._kind(t) == kind]
        if len(found) > 1:
            found = [t for t in found if "aligned" in t] or found
            found = [t for t in found if not t.endswith(("/compressed", "/compressedDepth"))] or found
        if len(found) > 1:
            raise DataError(
                f"{self.path} has several {kind} topics; choose one with --{kind}-topic: {', '.join(sorted(found))}"
            )
        return found[0] if found else ""

    def index(self, topics: Sequence[str]) -> dict[str, list[IndexEntry]]:
        """The messages of each topic in the order of their stamps."""
        entries: dict[str, list[IndexEntry]] = {t: [] for t in topics}
        for record in self.reader.messages(topics):
            entries[record.topic.name].append(IndexEntry(_stamp(record.data), record.time_ns))
        for topic, found in entries.items():
            if not found:
                raise DataError(f"{self.path} announces {topic}, but holds no message of it")
            found.sort(key=lambda e: e.stamp_ns)
        return entries

    def message(self, topic: str, log_ns: int) -> Any:
        for record in self.reader.messages([topic], log_ns, log_ns + 1):
            return self.reader.decode(record)
        raise DataError(f"{self.path} has no message of {topic} at {log_ns} any more; was it changed?")

    def picture(self, topic: str, log_ns: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        message = self.message(topic, log_ns)
        try:
            return decode_compressed(message) if self.types[topic] == COMPRESSED else decode_image(message)
        except ImageError as error:
            raise DataError(f"{self.path} {topic} at {log_ns}: {error}") from None

    def depth(self, topic: str, log_ns: int) -> np.ndarray:
        """(h, w) float32 metres, NaN where unknown."""
        message = self.message(topic, log_ns)
        where = f"{self.path} {topic} at {log_ns}"
        return _compressed_depth(message, where) if self.types[topic] == COMPRESSED else _raw_depth(message, where)

    def mask(self, topic: str, log_ns: int, labels: LabelMap) -> np.ndarray:
        """(h, w) uint8 label ids."""
        message, where = self.message(topic, log_ns), f"{self.path} {topic} at {log_ns}"
        if self.types[topic] == COMPRESSED:
            stored = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
        else:
            stored = _plane(
                message, {"mono8": np.uint8, "8UC1": np.uint8, "mono16": np.uint16, "16UC1": np.uint16}, where
            )
        if stored is None or stored.ndim != 2 or stored.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{where} is not a mask of class ids (mono8, mono16 or a PNG of them)")
        return labels.ids(stored, where)

    def camera(self, image: str):
        """The camera model beside an image topic, None where there is none that can be used."""
        stem = image.removesuffix("/compressed")
        for topic in (f"{stem.rpartition('/')[0]}/camera_info", f"{stem}/camera_info"):
            for record in self.reader.messages([topic]) if topic in self.types else ():
                try:
                    return camera_model(self.reader.decode(record))
                except CameraInfoError:
                    return None
        return None

    def transforms(self) -> TransformTree:
        """What tf and, for frames it does not move, odometry say."""
        tree, odometry = TransformTree(), []
        kinds = {"tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"}
        topics = [t for t, kind in self.types.items() if kind in kinds]
        for record in self.reader.messages(topics) if topics else ():
            message = self.reader.decode(record)
            if record.topic.type.endswith("Odometry"):
                odometry.append(
                    (
                        message.header.frame_id,
                        message.child_frame_id,
                        _ns(message.header.stamp),
                        message.pose.pose.position,
                        message.pose.pose.orientation,
                    )
                )
                continue
            for t in message.transforms:
                tree.add(
                    t.header.frame_id,
                    t.child_frame_id,
                    _ns(t.header.stamp),
                    _numbers(t.transform.translation, "xyz"),
                    _numbers(t.transform.rotation, "xyzw"),
                    static=record.topic.name.endswith("tf_static"),
                )
        if odometry and not tree.knows(odometry[0][1]):
            for parent, child, stamp, position, orientation in odometry:
                tree.add(parent, child, stamp, _numbers(position, "xyz"), _numbers(orientation, "xyzw"))
        return tree

    def close(self) -> None:
        self.reader.close()

    def _kind(self, topic: str) -> str:
        """ "picture", "depth", "mask" or "" for a topic, from its type, its encoding and its name."""
        if self.types[topic] not in (IMAGE, COMPRESSED):
            return ""
        for record in self.reader.messages([topic]):
            message = self.reader.decode(record)
            raw = record.topic.type == IMAGE
            coding = str(message.encoding if raw else message.format)
            if any(word in topic for word in ("mask", "label")):
                return "mask"
            if (
                coding.startswith(("16UC1", "32FC1"))
                or "compressedDepth" in coding
                or ("depth" in topic and "png" in coding)
            ):
                return "depth"
            return "picture"
        return ""


def _stamp(cdr: Any) -> int:
    """The stamp of a message that begins with a header, without unpacking its pixels."""
    order = "<" if cdr[1] & 1 else ">"  # the second byte of the CDR header is the byte order
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", cdr, 4)
    return seconds * 1_000_000_000 + nanoseconds


def _plane(message: Any, types: dict[str, Any], where: str) -> np.ndarray:
    """The single channel of an Image, (h, w)."""
    encoding = str(message.encoding)
    if encoding not in types:
        raise DataError(f"{where} has the encoding '{encoding}'; accepted are {', '.join(types)}")
    dtype = np.dtype(types[encoding]).newbyteorder(">" if message.is_bigendian else "<")
    rows = np.frombuffer(message.data, np.uint8)
    if rows.size < message.height * message.step or message.step < message.width * dtype.itemsize:
        raise DataError(f"{where} holds {rows.size} bytes; {message.width}x{message.height} {encoding} takes more")
    rows = rows[: message.height * message.step].reshape(message.height, message.step)[
        :, : message.width * dtype.itemsize
    ]
    return np.ascontiguousarray(rows).view(dtype).astype(dtype.newbyteorder("="), copy=False)


def _raw_depth(message: Any, where: str) -> np.ndarray:
    plane = _plane(message, {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}, where)
    return metres(plane / np.float32(1000) if plane.dtype == np.uint16 else plane)


def _compressed_depth(message: Any, where: str) -> np.ndarray:
    try:
        return metres(decode_compressed_depth(message))
    except ImageError as error:
        raise DataError(f"{where}: {error}") from None


def _nearest(entries: Sequence[IndexEntry], stamp_ns: int) -> int | None:
    """The log time of the entry whose stamp is nearest, None beyond the tolerance."""
    at = bisect_left(entries, stamp_ns, key=lambda e: e.stamp_ns)
    near = min(entries[max(at - 1, 0) : at + 1], key=lambda e: abs(e.stamp_ns - stamp_ns), default=None)
    return near.log_ns if near and abs(near.stamp_ns - stamp_ns) <= TOLERANCE_NS else None


def _ns(stamp: Any) -> int:
    return int(getattr(stamp, "sec", 0)) * 1_000_000_000 + int(getattr(stamp, "nanosec", getattr(stamp, "nsec", 0)))


def _numbers(message: Any, fields: str) -> list[float]:
    return [float(getattr(message, f)) for f in fields]
