"""Every output topic once: its type, the heads it needs, how its message is made, and what it shows.

The live node offers these topics, a replay writes them, and `compare` judges them; none of them knows a topic by name.
A head that is to be published gets its rows here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dino_perception.messages.camera_info import camera_info
from dino_perception.messages.detections import annotations, detections_2d, detections_3d
from dino_perception.messages.odometry import odometry
from dino_perception.messages.percepts import (
    correspondences,
    global_descriptor,
    image,
    label_info,
    occupancy_grid,
    point_cloud,
)
from dino_perception.models.outputs import Output
from dino_perception.perception import drawing
from dino_perception.perception.frame import Percept, array_of
from dino_perception.perception.ground_drawing import ground_overlay
from dino_perception.perception.lifted_boxes import lifted_boxes
from dino_perception.perception.obstacles import obstacle_points
from dino_perception.perception.points import perceive_points
from dino_perception.perception.settings import Settings

if TYPE_CHECKING:  # torch takes seconds to import
    from dino_perception.models.heads.base import HeadSpec


@dataclass(frozen=True)
class OutputTopic:
    """`heads` are those whose answers the message shows; without the first there is none, the others are shown where
    they ran. `make(types, header, percept, settings)` gives the message, or None where the percept has nothing for it.

    `kind`: "data"; "picture", which is for people and made only while somebody looks; or "latched", which belongs to a
    configuration and not to a frame: the last message is kept for whoever comes late, and `make(types, specs)` makes it
    from what the heads say of themselves. `shows` is what `compare` holds two messages against each other by.
    """

    name: str
    type: str
    heads: tuple[str, ...]
    make: Callable[..., Any]
    shows: str
    kind: str = "data"
    output: str = ""
    """The one array that it shows; a head of the kind need not give it."""
    followed: bool = False
    """Whether it shows what is made of the whole percept and of frames before (Intake.followed), so that it waits for
    every head that was asked."""

    placed: bool = False
    """Whether it needs the pose of the camera, which its odometry then follows; correspondences are among its heads."""

    @property
    def latched(self) -> bool:
        return self.kind == "latched"

    def fits(self, heads: Collection[str]) -> bool:
        """Whether there can be messages where these heads are loaded."""
        return not self.heads or self.heads[0] in heads

    def filled(self, outputs: Mapping[str, Sequence[Output]]) -> bool:
        """Whether there can be messages where heads that give these outputs, by kind, are loaded."""
        own = outputs.get(self.heads[0], ()) if self.heads else ()
        return self.fits(outputs) and (not self.output or any(output.name == self.output for output in own))


def outputs(types: Any, percept: Percept, settings: Settings, topics: Collection[str]) -> dict[str, Any]:
    """The messages of one percept, by relative topic name, for those of `topics` that the percept can fill.

    All carry the stamp and frame of the percept's image. Mask, confidence, depth, camera_info and points have one size.
    """
    header = types.header(percept.frame.stamp_ns, percept.frame.frame_id)
    messages: dict[str, Any] = {}
    for name, topic in TOPICS.items():
        if name not in topics or topic.latched or (topic.heads and percept.answer(topic.heads[0]) is None):
            continue
        message = topic.make(types, header, percept, settings)
        if message is not None:
            messages[name] = message
    return messages


def latched(types: Any, specs: Mapping[str, HeadSpec], topics: Collection[str]) -> dict[str, Any]:
    """The messages of a configuration, for those of `topics` that are latched and whose heads are among `specs`."""
    chosen = (TOPICS[name] for name in topics)
    return {topic.name: topic.make(types, specs) for topic in chosen if topic.latched and topic.fits(specs)}


def offered(heads: Collection[str]) -> dict[str, OutputTopic]:
    """The topics on which there can be messages where these heads are loaded, by name."""
    return {name: topic for name, topic in TOPICS.items() if topic.fits(heads)}


def waiting(heads: Collection[str]) -> frozenset[str]:
    """The topics that wait for the answer of one of these heads."""
    heads = set(heads)
    return frozenset(name for name, topic in TOPICS.items() if heads & set(topic.heads) or (heads and topic.followed))


def of_kind(kind: str) -> tuple[str, ...]:
    """The names of the topics of one kind."""
    return tuple(name for name, topic in TOPICS.items() if topic.kind == kind)


def known(name: str) -> OutputTopic | None:
    """The topic that a full name ends with, below whatever node and camera; None for a foreign one."""
    found = [topic for short, topic in TOPICS.items() if name == short or name.endswith(f"/{short}")]
    return max(found, key=lambda topic: len(topic.name), default=None)


def need_pose(names: Collection[str]) -> bool:
    """Whether one of these topics needs the pose of the camera."""
    return any(TOPICS[name].placed for name in names)


def _image(head: str, output: str, shows: str, encoding: str, name: str = "") -> OutputTopic:
    """One of a head's arrays as an image."""

    def make(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
        array = array_of(percept.answer(head), output)
        return None if array is None else image(types, header, array, encoding)

    return OutputTopic(f"{head}/{name or output}", "sensor_msgs/msg/Image", (head,), make, shows, output=output)


def _overlay(head: str, name: str = "") -> OutputTopic:
    """The picture of what a head says."""

    def make(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
        return image(types, header, drawing.overlay(percept, head, settings), "rgb8")

    return OutputTopic(f"{name or head}/overlay", "sensor_msgs/msg/Image", (head,), make, "picture", "picture")


def _camera(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return camera_info(types, percept.output_camera, header, width=percept.output_width, height=percept.output_height)


def _points(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    cloud = perceive_points(percept, settings)
    return None if cloud is None else point_cloud(types, header, cloud)


def _obstacles(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    if percept.obstacles is None:
        return None
    points = obstacle_points(percept, percept.obstacles, settings.obstacles.min_confidence)
    return point_cloud(types, header, points[None], dense=True)


def _ground(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return image(types, header, ground_overlay(percept, settings), "rgb8") if percept.obstacles is not None else None


def _traversability(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    if percept.traversability is None:
        return None
    return occupancy_grid(types, types.header(percept.frame.stamp_ns, settings.odometry.frame), percept.traversability)


def _matches(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return correspondences(types, header, percept.correspondences)


def _vector(head: str) -> OutputTopic:
    """A head's unit vector, with what made it: only vectors of one model can be compared."""

    def make(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
        answer = percept.others[head]
        return types.make("dino_perception/msg/Descriptor", header=header, model=answer.model, vector=answer["vector"])

    return OutputTopic(head, "dino_perception/msg/Descriptor", (head,), make, "vector")


def _for_rtabmap(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return global_descriptor(types, header, percept.others["place"]["vector"])


def _boxes(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return detections_2d(types, header, percept.answer("detection"))


def _boxes_in_space(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    lifted = lifted_boxes(percept, settings)
    return None if lifted is None else detections_3d(types, header, percept.answer("detection"), lifted)


def _annotations(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    return annotations(types, header, percept, percept.answer("detection"))


def _labels(types: Any, specs: Mapping[str, HeadSpec]) -> Any:
    return label_info(types, specs["segmentation"].labels)


_ROWS = (
    _image("segmentation", "mask", "labels", "mono8"),
    _image("segmentation", "confidence", "levels", "mono8"),
    OutputTopic(
        "segmentation/label_info", "vision_msgs/msg/LabelInfo", ("segmentation",), _labels, "classes", "latched"
    ),
    _overlay("segmentation"),
    _image("depth", "metres", "metres", "32FC1", name="image"),
    _image("depth", "confidence", "levels", "mono8"),
    OutputTopic("depth/camera_info", "sensor_msgs/msg/CameraInfo", (), _camera, "camera"),
    _overlay("depth"),
    OutputTopic("points", "sensor_msgs/msg/PointCloud2", ("depth", "segmentation"), _points, "points"),
    OutputTopic(
        "obstacles", "sensor_msgs/msg/PointCloud2", ("depth", "segmentation"), _obstacles, "scattered", followed=True
    ),
    OutputTopic(
        "ground", "sensor_msgs/msg/Image", ("depth", "segmentation"), _ground, "picture", "picture", followed=True
    ),
    OutputTopic(
        "traversability",
        "nav_msgs/msg/OccupancyGrid",
        ("depth", "segmentation", "correspondences"),
        _traversability,
        "grid",
        followed=True,
        placed=True,
    ),
    OutputTopic("correspondences", "dino_perception/msg/Correspondences", ("correspondences",), _matches, "matches"),
    _overlay("correspondences"),
    OutputTopic("odometry", "nav_msgs/msg/Odometry", ("correspondences", "depth"), odometry, "odometry", placed=True),
    _vector("descriptor"),
    _overlay("descriptor"),
    _vector("place"),
    OutputTopic("place/global_descriptor", "rtabmap_msgs/msg/GlobalDescriptor", ("place",), _for_rtabmap, ""),
    _overlay("place"),
    OutputTopic("detections", "vision_msgs/msg/Detection2DArray", ("detection",), _boxes, "boxes"),
    OutputTopic(
        "detections_3d",
        "vision_msgs/msg/Detection3DArray",
        ("detection", "depth", "segmentation"),
        _boxes_in_space,
        "boxes in space",
    ),
    OutputTopic(
        "detections/annotations", "foxglove_msgs/msg/ImageAnnotations", ("detection",), _annotations, "", "picture"
    ),
    _overlay("detection", "detections"),
    _overlay("features"),
)
TOPICS: Mapping[str, OutputTopic] = {topic.name: topic for topic in _ROWS}
"""Every output topic by its name below the node's (and camera's) namespace, in the order in which a frame's messages are
written."""
ON_GROUND = frozenset(name for name, topic in TOPICS.items() if topic.followed)
"""The topics that need the local ground."""
