"""The kinds of messages in a bag that carry camera pictures, and how the messages of one topic become pixels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from rosbags.serde import SerdeError

from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.messages import foxglove
from dino_perception.messages.images import ImageError, decode_compressed, decode_image
from dino_perception.messages.video import VideoDecoder, codec_of, is_key

RAW, COMPRESSED, VIDEO = "raw", "compressed", "video"
_FORMS = {
    "sensor_msgs/msg/Image": RAW,
    "sensor_msgs/msg/CompressedImage": COMPRESSED,
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": VIDEO,
    **{
        f"{prefix}{name}": form
        for prefix in ("foxglove_msgs/msg/", "foxglove.")
        for name, form in (("RawImage", RAW), ("CompressedImage", COMPRESSED), ("CompressedVideo", VIDEO))
    },
}
_INFOS = ("sensor_msgs/msg/CameraInfo", "foxglove_msgs/msg/CameraCalibration", "foxglove.CameraCalibration")
_TRIES = 20
"""A topic is a camera's when one of its first messages, this many of them, can be decoded."""


def form_of(topic: Topic) -> str:
    """RAW, COMPRESSED or VIDEO; "" for a topic without pictures."""
    readable = topic.coding == "cdr" or foxglove.known(topic.type, topic.coding)
    return _FORMS.get(topic.type, "") if readable else ""


def is_info(topic: Topic) -> bool:
    """Whether a topic holds calibrations."""
    return topic.type in _INFOS and (topic.coding == "cdr" or foxglove.known(topic.type, topic.coding))


class Pictures:
    """Decodes the pictures of one topic. Those of a video must all come, in the order of the bag."""

    def __init__(self, topic: Topic, max_megapixels: float, bits: int = 16):
        self.form = form_of(topic)
        self._limits = (max_megapixels, bits)
        self._video = VideoDecoder(max_megapixels) if self.form == VIDEO else None

    def decode(self, message: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises ImageError."""
        if self._video is not None:
            return self._video.decode(message)
        return (decode_compressed if self.form == COMPRESSED else decode_image)(message, *self._limits)

    def submit(self, message: Any, made: Callable[[np.ndarray], Any], pool: Executor) -> Future:
        """`made` of the pixels, in the future: by the pool, but a video at once, since its order counts."""
        if self._video is None:
            return pool.submit(lambda: made(self.decode(message)))
        done: Future = Future()
        try:
            done.set_result(made(self.decode(message)))
        except ImageError as error:
            done.set_exception(error)
        return done

    def catch_up(self, bag: BagReader, name: str, start_ns: int | None, seen: int) -> None:
        """Bring a video to its state after `seen` pictures since `start_ns` (None: the beginning), by decoding what
        came before, from the last key frame on."""
        if self._video is None or not (seen or start_ns):
            return
        since: list[Record] = []
        for record in bag.messages([name]):
            if start_ns is None or record.time_ns >= start_ns:
                if not seen:
                    break
                seen -= 1
            try:
                if is_key(bag.decode(record)):
                    since.clear()
            except (SerdeError, ImageError):
                continue
            since.append(record)
        for record in since:
            try:
                self._video.decode(bag.decode(record))
            except ImageError:
                continue


def look_at(bag: BagReader, topic: Topic, max_megapixels: float) -> tuple[str, str]:
    """(encoding, why the topic is no camera's): the encoding or format of its first messages, and "" when one of them
    decodes, which decides; "depth" when they say that they are depth."""
    said, why = "", "no message of it can be read"
    pictures = Pictures(topic, max_megapixels)
    for number, record in enumerate(bag.messages([topic.name])):
        if number == _TRIES:
            break
        try:
            message = bag.decode(record)
            said = str(message.encoding if hasattr(message, "encoding") else message.format)
            if said.startswith(("16UC1", "32FC1")) or "compressedDepth" in said:
                return said, "depth"
            if pictures.form == VIDEO:
                codec_of(message)
            pictures.decode(message)
            return said, ""
        except (ImageError, SerdeError, KeyError, AttributeError) as error:
            why = str(error)
    return said, why
