"""What travels: a frame goes in, a percept comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_perception.models.label_sets import Label
from dino_perception.models.outputs import Output
from dino_perception.perception.pose import Pose

if TYPE_CHECKING:  # both are made of percepts
    from dino_perception.perception.obstacles import Obstacles
    from dino_perception.perception.traversability import TraversabilityGrid


@dataclass(frozen=True)
class CameraModel:
    """Pinhole intrinsics with distortion, as a calibrated `sensor_msgs/CameraInfo` carries them.

    `k` (3, 3) and `p` (3, 4) are float64, in pixels of a `width` x `height` image whose pixel centres are at
    integers. `model` is "plumb_bob", "rational_polynomial" or "equidistant"; `d` holds its coefficients
    (empty: no distortion). `r` (3, 3) is the rectification rotation.
    """

    width: int
    height: int
    k: np.ndarray
    d: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = "plumb_bob"
    r: np.ndarray = field(default_factory=lambda: np.eye(3))
    p: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """One image of one camera.

    `image` is (H, W, 3) uint8 RGB. `stamp_ns` is the acquisition time in nanoseconds of whatever clock the camera
    uses; it is copied to every output and never compared with the wall clock here. `camera_model` is None when the
    camera is not calibrated.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    image: np.ndarray
    camera_model: CameraModel | None = None


IGNORE = 255
"""The mask value of a pixel that carries no class; it is in no label list."""


@dataclass(frozen=True)
class Segmentation:
    """`mask` (h, w) uint8 class ids, `confidence` (h, w) uint8, 255 = probability 1."""

    mask: np.ndarray
    confidence: np.ndarray
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Depth:
    """`metres` (h, w) float32 along the optical axis (REP 118), NaN where unknown. `confidence` (h, w) uint8: 255 (1 - s),
    with s the relative error to expect where the head was calibrated, else its answer's relative spread; None where the
    head does not say."""

    metres: np.ndarray
    confidence: np.ndarray | None = None


@dataclass(frozen=True)
class Correspondences:
    """Matches of this frame with a reference frame of the same camera, one row a match.

    Coordinates are float32 pixels of the input images, pixel centres at integers. `track_id` (N,) uint64 stays the
    same while a point stays tracked; `score` (N,) float32 is the cosine similarity of the descriptors, 0..1.
    """

    reference_stamp_ns: int
    reference_frame_id: str
    width: int
    height: int
    track_id: np.ndarray
    x: np.ndarray
    y: np.ndarray
    reference_x: np.ndarray
    reference_y: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What a head without a class of its own here says: its arrays by name, what they mean (models/outputs.py), its
    classes where it knows any, and which backbone, weights and head say it.

    `labels`, `levels` and `metres` are (h, w) of the percept's output size; `vector` is (D,); `boxes` are (N, 6): left,
    top, right, bottom in pixels of the image, score, class.
    """

    arrays: Mapping[str, np.ndarray]
    outputs: tuple[Output, ...]
    labels: tuple[Label, ...] = ()
    model: str = ""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


ANSWERS: Mapping[str, type] = {"segmentation": Segmentation, "depth": Depth}
"""The heads whose answer has a class of its own, with the head's outputs as fields."""


def array_of(answer: Any, name: str) -> np.ndarray:
    """One array of a head's answer, by its output's name."""
    return answer[name] if isinstance(answer, Answer) else getattr(answer, name)


@dataclass(frozen=True)
class Percept:
    """Everything one pass says about one frame; a head nobody wanted is None, or not among the `others`.

    `output_camera` is the frame's camera model scaled to the output size (None when the frame had none); mask,
    confidence, depth and points all have that size. `output_scale` (x, y) is output pixels per image pixel.
    `stage_ms` holds the wall time of each stage of the batch that this frame was part of. `camera_problem` is one
    sentence when the frame's camera model is missing or cannot be used, so that there will be no points. `others` holds
    the answers of all other heads, by kind.
    """

    frame: Frame
    output_height: int
    output_width: int
    output_camera: CameraModel | None = None
    segmentation: Segmentation | None = None
    depth: Depth | None = None
    correspondences: Correspondences | None = None
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    output_scale: tuple[float, float] | None = None
    camera_problem: str = ""
    others: Mapping[str, Answer] = field(default_factory=dict)
    strangeness: Mapping[str, float] = field(default_factory=dict)
    """Head -> how unlike its training the frame is: over 1, it had better not be believed. Heads whose files do not know
    what they were trained on are not here."""
    pose: Pose | None = None
    """Where the camera stands in odom, once its odometry has seen the frame; None where there is none."""
    obstacles: Obstacles | None = None
    """The ground and what is in the way on it, where somebody asked for it and ground was seen."""
    traversability: TraversabilityGrid | None = None
    """The map of where one can drive with this frame in it, where somebody asked for it and the pose is known."""

    def answer(self, head: str) -> Any:
        """What this head said; None when it did not run."""
        return getattr(self, head) if head in OWN else self.others.get(head)

    def with_answers(self, answers: Mapping[str, Any]) -> Percept:
        """A copy that holds these answers, by head, and no others."""
        own = {head: answers.get(head) for head in OWN}
        return dataclasses.replace(
            self, **own, others={k: v for k, v in answers.items() if k not in OWN and v is not None}
        )

    def answers(self) -> dict[str, Any]:
        """Head -> what it said, for all that ran."""
        own = {head: answer for head in OWN if (answer := getattr(self, head)) is not None}
        return {**own, **self.others}


OWN = (*ANSWERS, "correspondences")
"""The heads whose answer is a field of the percept."""
