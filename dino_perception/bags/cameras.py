"""Which topics of a bag are cameras, and the calibration that holds for each of their images."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rosbags.serde import SerdeError

from dino_perception.bags.pictures import RAW, form_of, is_info, look_at
from dino_perception.bags.storage.problems import NO_IMAGES, BagError, Problem
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.messages.camera_info import CameraInfoError, camera_model
from dino_perception.messages.images import MAX_MEGAPIXELS
from dino_perception.perception.frame import CameraModel

_GREY = ("mono8", "mono16", "8UC1", "16UC1")


@dataclass(frozen=True)
class CameraTopics:
    """A camera of a bag: its name, its image topic and its camera_info topic ("" when there is none)."""

    name: str
    image: str
    info: str
    compressed: bool


def choose_cameras(
    bag: BagReader,
    asked: Sequence[str],
    names: Sequence[str],
    own: Collection[str] = (),
    max_megapixels: float = MAX_MEGAPIXELS,
) -> list[CameraTopics]:
    """The cameras to look at.

    `asked` are "[NAME=]IMAGE_TOPIC[,INFO_TOPIC]"; without any, every topic with colour images that has a camera_info
    beside it is taken, or every one with colour images, or with grey ones. A topic
    is one with images when one of its first messages can be decoded. Of a raw and a compressed topic of one image the
    raw one is taken. `names` are the settings' camera names: a single camera takes its name from there. `own` are
    topics that a replay writes, which are never looked at. Raises BagError, naming the image topics that there are.
    """
    images = {topic.name: topic for topic in bag.topics.values() if form_of(topic) and topic.count}
    if asked:
        chosen = [_asked(bag, images, text) for text in asked]
    else:
        chosen = [("", name, _info_beside(bag, name)) for name in _guessed(bag, images, own, max_megapixels)]
    taken: list[CameraTopics] = []
    for name, topic, info in chosen:
        if not name and len(chosen) == 1 and len(names) == 1:
            name = names[0]
        name = name or _name(topic, [t.name for t in taken])
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in [t.name for t in taken]:
            raise BagError(
                f"'{name}' cannot be the name of a camera: letters, digits and underscores, a letter first, each once",
                NO_IMAGES,
            )
        taken.append(CameraTopics(name, topic, info, form_of(images[topic]) != RAW))
    return taken


class Calibrations:
    """The camera models of one camera as its CameraInfos come by; the first one also holds for images before it."""

    def __init__(self, bag: BagReader, info: str):
        self._bag, self._info = bag, info
        self._raw: dict[tuple[int, int], tuple[bytes, CameraModel]] = {}
        self.reason = "the bag has no camera_info for this camera" if not info else ""
        self.latest: bytes = b""
        self._usable, self._told = True, False
        if info:
            first = next(iter(bag.messages([info])), None)
            if first is not None:
                self.take(first)

    def take(self, record: Record) -> None:
        """A CameraInfo message."""
        raw = bytes(record.data)
        self.latest, self._usable = raw, True
        stampless = raw[12:]  # the stamp changes with every message, the calibration hardly ever
        for size, (known, model) in list(self._raw.items()):
            if known == stampless:
                self._raw[size] = self._raw.pop(size)  # the newest last
                return
        message: Any = None
        try:
            message = self._bag.decode(record)
            model = camera_model(message)
            reason = f"the camera_info on {self._info} says the camera is not calibrated (K is zero)"
        except (CameraInfoError, SerdeError, KeyError) as error:
            model, reason = None, f"{self._info}: {error}"
        if model is None:
            # As live: an older one does not stand in for the newest when that cannot be used.
            self.reason, self._usable = reason, False
            self._raw.pop((getattr(message, "width", 0), getattr(message, "height", 0)), None)
            if not self._told and "not calibrated" not in reason:
                self._told = True
                self._bag.note(Problem("", f"images have no points while this holds: {reason}", self._info))
            return
        self._raw.pop((model.width, model.height), None)
        self._raw[model.width, model.height] = (stampless, model)

    def models(self) -> dict[tuple[int, int], CameraModel]:
        """The newest model for each image size (width, height); none while the newest CameraInfo cannot be used."""
        if not self._usable:
            return {}
        return {size: model for size, (_, model) in self._raw.items()}


def _asked(bag: BagReader, images: dict[str, Topic], text: str) -> tuple[str, str, str]:
    name, _, rest = text.rpartition("=")
    topic, _, info = rest.partition(",")
    if topic not in images:
        there = bag.topics.get(topic)
        why = f"is of type {there.type}" if there and there.count else "is not in the bag or has no message"
        raise BagError(f"topic {topic} {why}; {_what_there_is(bag, images)}", NO_IMAGES)
    if info and (info not in bag.topics or not is_info(bag.topics[info])):
        raise BagError(f"topic {info} is no CameraInfo of this bag", NO_IMAGES)
    return name, topic, info or _info_beside(bag, topic)


def _guessed(bag: BagReader, images: dict[str, Topic], own: Collection[str], max_megapixels: float) -> list[str]:
    colour: list[str] = []
    grey: list[str] = []
    refused: dict[str, tuple[str, str]] = {}
    for name, topic in images.items():
        if name in own or _base(name) != name and _base(name) in images:
            continue
        encoding, why = look_at(bag, topic, max_megapixels)
        if why:
            refused[name] = (encoding, why)
        else:
            (grey if encoding.partition(";")[0].strip() in _GREY else colour).append(name)
    with_info = [name for name in colour if _info_beside(bag, name)]
    found = with_info or colour or [name for name in grey if _info_beside(bag, name)] or grey
    if not found:
        raise BagError(f"{bag.path} holds no camera images; {_what_there_is(bag, images, refused)}", NO_IMAGES)
    for name, (encoding, why) in refused.items():
        if why != "depth":
            bag.note(Problem("", f"topic {name} ({encoding or 'no encoding'}) is not looked at: {why}", name))
    return found


def _base(image: str) -> str:
    return re.sub(r"/(compressed|ffmpeg|foxglove|h264)$", "", image)


def _info_beside(bag: BagReader, image: str) -> str:
    folder = _base(image).rpartition("/")[0]
    for info in (f"{folder}/camera_info", f"{folder}/calibration"):
        if info in bag.topics and is_info(bag.topics[info]) and bag.topics[info].count:
            return info
    return ""


def _name(topic: str, taken: Collection[str]) -> str:
    """A name from the topic: the last part that does not just say that it is an image, more parts where needed."""
    parts = [part for part in _base(topic).split("/") if part]
    parts = [part for part in parts if not re.fullmatch(r"image(_\w+)?|color|colour|rgb|raw|compressed", part)] or [
        "camera"
    ]
    for count in range(1, len(parts) + 1):
        name = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9]", "_", "_".join(parts[-count:]))).strip("_")
        name = name if name[:1].isalpha() else f"camera_{name}"
        if name not in taken:
            return name
    return next(f"{name}_{n}" for n in range(2, 1000) if f"{name}_{n}" not in taken)


def _what_there_is(bag: BagReader, images: dict[str, Topic], refused: dict[str, tuple[str, str]] | None = None) -> str:
    """The topics that could have been meant, each with its encoding and why it is none."""

    def about(topic: Topic) -> str:
        coding = f" as {topic.coding}" if topic.coding != "cdr" else ""
        encoding, why = (refused or {}).get(topic.name, ("", ""))
        said = f" with encoding '{encoding}'" if encoding else ""
        return f"{topic.name} ({topic.type}{coding}, {topic.count}){said}{f' ({why})' if why else ''}"

    if images:
        return "its image topics are " + ", ".join(about(topic) for topic in images.values())
    there = ", ".join(about(topic) for topic in bag.topics.values())
    return f"its topics are {there}" if there else "it has no topics"
