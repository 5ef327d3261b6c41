"""Every setting once: its name, default, meaning and accepted values, for the node and for the offline commands.

The names are those of the ROS parameters (`points.max_range`). `ros/` declares them, `cli/` reads them from the same
YAML file, and both get the same `Settings`, checked by the same rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_perception.engines.runtimes import RUNTIMES
from dino_perception.models.yaml_text import YamlError, load_file


class SettingError(ValueError):
    """A setting has a value that cannot be used; the message names it, the value and what is accepted."""


def setting(default, description: str, *, low=None, high=None, choices=None, live=False):
    """A dataclass field with what a parameter needs: a description, a range or choices, and whether it may change
    while the node runs."""
    kind = {"default_factory": lambda: default} if isinstance(default, list) else {"default": default}
    return field(metadata=dict(description=description, low=low, high=high, choices=choices, live=live), **kind)


@dataclass(frozen=True)
class HeadSettings:
    weights: str = setting(
        "",
        "Head file, or the name of a released head (`dino-perception models --heads`). Empty: the head that ships with "
        "the backbone.",
    )
    enabled: bool = setting(True, "Run this head when somebody listens to it.", live=True)
    rate: float = setting(
        0.0, "Highest rate of this head in Hz; 0 runs it on every frame.", low=0.0, high=1000.0, live=True
    )


@dataclass(frozen=True)
class CorrespondenceSettings(HeadSettings):
    max_matches: int = setting(400, "Most matches a message carries.", low=1, high=20000, live=True)
    min_score: float = setting(0.4, "Least cosine similarity of a match.", low=0.0, high=1.0, live=True)
    reference: str = setting(
        "previous",
        "Match against the previous frame or the last key frame.",
        choices=("previous", "keyframe"),
        live=True,
    )
    keyframe_overlap: float = setting(
        0.5,
        "A new key frame is taken when fewer than this share of its points is still tracked.",
        low=0.0,
        high=1.0,
        live=True,
    )


@dataclass(frozen=True)
class SegmentationSettings(HeadSettings):
    groups: bool = setting(
        False,
        "Tell what classes mean to a driver instead of the classes: traversable, obstacle, water, vegetation, person, "
        "vehicle, sky, unknown. A costmap then fits every label set.",
    )


@dataclass(frozen=True)
class DepthSettings(HeadSettings):
    focal_length_scaling: float = setting(
        0.0,
        "Focal length, in pixels of the head's input, at which the head learnt its metres: depth is multiplied by the "
        "camera's own over it. 0: off.",
        low=0.0,
        high=100000.0,
    )
    camera_height_scaling: bool = setting(
        False,
        "Multiply depth such that the ground lies camera_height below the camera (median of recent frames, between half "
        "and twice). Needs camera_height, or TF to ground_frame, and the segmentation head.",
    )


@dataclass(frozen=True)
class DetectionSettings(HeadSettings):
    min_score: float = setting(
        0.0,
        "Least score of a detection that is told; 0 takes that of the head's file.",
        low=0.0,
        high=1.0,
        live=True,
    )
    max_boxes: int = setting(
        100, "Most detections of a frame that are told, the surest first.", low=1, high=2000, live=True
    )


@dataclass(frozen=True)
class FeatureSettings(HeadSettings):
    basis: str = setting(
        "",
        "File with the three directions of ~/features/overlay, which `dino-perception calibrate features` writes. Empty: "
        "they are fitted on the first 8 frames of each camera that are watched.",
    )


@dataclass(frozen=True)
class PointSettings:
    max_range: float = setting(30.0, "Farthest depth in metres that becomes a point.", low=0.1, high=10000.0, live=True)
    min_confidence: float = setting(
        0.0, "Least segmentation confidence (0..1) of a point.", low=0.0, high=1.0, live=True
    )
    min_depth_confidence: float = setting(
        0.0,
        "Least confidence (0..1) of a point's depth, 1 - the relative error to expect where its head was calibrated; heads "
        "that do not say are believed.",
        low=0.0,
        high=1.0,
        live=True,
    )
    fields: list[str] = setting(
        ["rgb", "label"],
        "Fields of a point beside x y z: any of rgb, label, confidence.",
        choices=("rgb", "label", "confidence"),
    )
    exclude: list[str] = setting(
        ["sky"], "Classes, or groups of classes as in segmentation.groups, whose pixels never become points."
    )


@dataclass(frozen=True)
class RobotSettings:
    step: float = setting(
        0.2,
        "Metres up or down that the robot's wheels take: what is more is an obstacle.",
        low=0.01,
        high=10.0,
        live=True,
    )
    max_slope: float = setting(
        25.0, "Degrees that the robot climbs: steeper ground is an obstacle.", low=1.0, high=89.0, live=True
    )
    height: float = setting(
        1.6,
        "Height of the robot in metres: what is higher over the ground is passed under.",
        low=0.05,
        high=100.0,
        live=True,
    )
    width: float = setting(
        0.7, "Width of the robot in metres: slopes are those of ground so wide.", low=0.05, high=100.0, live=True
    )


@dataclass(frozen=True)
class ObstacleSettings:
    max_range: float = setting(
        8.0, "Metres ahead up to which ~/obstacles, ~/ground and ~/traversability look.", low=1.0, high=50.0, live=True
    )
    min_confidence: float = setting(
        0.3, "Least confidence (0..1) of a point of ~/obstacles.", low=0.0, high=1.0, live=True
    )


@dataclass(frozen=True)
class TraversabilitySettings:
    size: float = setting(12.0, "Side of the map in metres; the camera is in its middle.", low=1.0, high=100.0)
    resolution: float = setting(0.1, "Metres a cell.", low=0.05, high=2.0)
    decay: float = setting(
        30.0,
        "Seconds after which what was seen counts about a third; what counts too little is unknown again. 0: never.",
        low=0.0,
        high=86400.0,
        live=True,
    )


@dataclass(frozen=True)
class DomainSettings:
    check: bool = setting(
        True,
        "Compare frames with those that a head was trained on, where its file knows them: a frame that is unlike them "
        "has low confidence and is told in diagnostics.",
        live=True,
    )
    ignore: bool = setting(
        False,
        "Say nothing about such a frame: its mask is 255 (ignore), its depth NaN, so that no costmap marks by it.",
        live=True,
    )


@dataclass(frozen=True)
class OdometrySettings:
    frame: str = setting("odom", "Frame that ~/odometry is in.", live=True)
    child_frame: str = setting(
        "",
        "Frame whose motion ~/odometry tells, such as base_link; the fixed transforms of TF must lead from it to the "
        "camera. Empty: the camera's own optical frame.",
        live=True,
    )
    wheels: str = setting(
        "",
        "Topic of the robot's own odometry (nav_msgs/Odometry, of wheels or whatever knows metres), whose distances set the "
        "scale of ~/odometry; needs odometry.child_frame. Empty: estimated depth does, and camera_height where it is given.",
    )
    tf: bool = setting(
        False,
        "Publish the transform from odometry.frame to odometry.child_frame on /tf too, by the first camera. Leave it to "
        "robot_localization where that runs.",
    )


@dataclass(frozen=True)
class OverlaySettings:
    alpha: float = setting(0.5, "Opacity of the class colours in ~/segmentation/overlay.", low=0.0, high=1.0, live=True)
    legend: bool = setting(True, "Draw the class names into the overlay.", live=True)


@dataclass(frozen=True)
class Settings:
    """All settings. Nested groups are dotted names: `settings.points.max_range` is parameter `points.max_range`."""

    backbone: str = setting("rover-tiny", "Backbone id; `dino-perception models` lists them.")
    weights: str = setting("", "Backbone weights: a file or folder. Empty: the bundled or downloaded ones.")
    heads: list[str] = setting(
        ["segmentation", "depth", "correspondences"], "Heads to load; each has its own <head>.* parameters."
    )
    engine: str = setting("auto", "Runtime of the backbone and the heads.", choices=("auto", *RUNTIMES))
    precision: str = setting(
        "auto",
        "Arithmetic of the engine; auto takes the fastest that passes the parity gate.",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    parity_override: bool = setting(False, "Use an engine although it failed the parity gate.")
    threads: int = setting(0, "CPU threads of the engine; 0 takes all cores.", low=0, high=1024)
    engine_cache: str = setting(
        "", "Folder of built engines. Empty: $XDG_CACHE_HOME/dino_perception or ~/.cache/dino_perception."
    )
    input_height: int = setting(
        480, "Height in pixels that the backbone sees; a multiple of its patch size.", low=32, high=2048
    )
    input_width: int = setting(
        640, "Width in pixels that the backbone sees; a multiple of its patch size.", low=32, high=2048
    )
    output_height: int = setting(
        240, "Height in pixels of masks, depth and points for an image that fills the input.", low=8, high=2048
    )
    output_width: int = setting(
        320, "Width in pixels of masks, depth and points for an image that fills the input.", low=8, high=2048
    )
    cameras: list[str] = setting(
        ["camera"], "Camera names. With one, topics are ~/segmentation/mask; with more, ~/<camera>/segmentation/mask."
    )
    image_transport: str = setting("raw", "What the image topics carry.", choices=("raw", "compressed"))
    rectified: bool = setting(
        False, "The images are rectified (image_rect): points use P of camera_info and no distortion."
    )
    max_age: float = setting(
        0.5,
        "Greatest age in seconds, by its stamp, at which a frame is still processed and published.",
        low=0.01,
        high=3600.0,
        live=True,
    )
    image_bits: int = setting(
        16, "Bits that the camera uses of 16-bit samples (mono16, bayer_*16): 12 for a 12-bit camera.", low=8, high=16
    )
    max_megapixels: float = setting(
        64.0,
        "Largest image in megapixels that is looked at; a compressed one is refused by its header, before it is decoded.",
        low=0.001,
        high=1000.0,
        live=True,
    )
    camera_height: float = setting(
        0.0,
        "Height of the camera over the ground in metres, which its depth is compared with in diagnostics and scaled by "
        "where that is asked for; 0: as the fixed transforms of TF say, to ground_frame.",
        low=0.0,
        high=1000.0,
        live=True,
    )
    ground_frame: str = setting(
        "base_footprint",
        "TF frame of the robot whose origin lies on the ground, for the height of the camera.",
        live=True,
    )
    autostart: bool = setting(True, "Configure and activate at start instead of waiting for a lifecycle manager.")
    exit_on_failure: bool = setting(
        False, "With autostart, end the process when configuring fails; the launch file sets it."
    )
    allow_untrained: bool = setting(
        False, "Run a backbone or head without trained weights, for trying things out; its outputs mean nothing."
    )
    points: PointSettings = field(default_factory=PointSettings)
    robot: RobotSettings = field(default_factory=RobotSettings)
    obstacles: ObstacleSettings = field(default_factory=ObstacleSettings)
    traversability: TraversabilitySettings = field(default_factory=TraversabilitySettings)
    domain: DomainSettings = field(default_factory=DomainSettings)
    odometry: OdometrySettings = field(default_factory=OdometrySettings)
    overlay: OverlaySettings = field(default_factory=OverlaySettings)
    head: Mapping[str, HeadSettings] = field(
        default_factory=lambda: default_heads(["segmentation", "depth", "correspondences"])
    )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from dotted names. What is said about one of the usual heads that is not among `heads` is ignored.
        Raises SettingError on an unknown name or a value that is not accepted."""
        heads = list(check("heads", _field(cls, "heads"), values.get("heads", cls().heads)))
        settings = cls(heads=heads, head=default_heads(heads))
        idle = {p.name for p in cls().parameters()} - {p.name for p in settings.parameters()}
        return settings.changed({name: value for name, value in values.items() if name not in idle})

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Settings from a ROS parameter file (`<node or /**>: ros__parameters:`), later nodes and overrides winning."""
        return cls.from_flat({**flat_values(path), **(overrides or {})})

    def changed(self, values: Mapping[str, Any], *, live_only: bool = False) -> Settings:
        """A copy with some settings changed, all or none. With `live_only`, one that takes effect only at configure
        time is refused. Raises SettingError."""
        known = {p.name: p for p in self.parameters()}
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise SettingError(f"there is no setting '{name}'; the settings are {', '.join(sorted(known))}")
            value = check(name, known[name].field, value)
            if live_only and not known[name].field.metadata["live"] and value != known[name].value:
                raise SettingError(
                    f"'{name}' takes effect only at configure time; deactivate and clean the node up, set it, and configure again"
                )
            checked[name] = value
        return _replaced(self, checked)

    def parameters(self) -> Iterator[Parameter]:
        """Every setting with its dotted name and present value, in the order of this file."""
        yield from _parameters(self, "")


@dataclass(frozen=True)
class Parameter:
    name: str
    value: Any
    field: dataclasses.Field


def default_heads(names) -> dict[str, HeadSettings]:
    own = {
        "correspondences": CorrespondenceSettings,
        "segmentation": SegmentationSettings,
        "depth": DepthSettings,
        "detection": DetectionSettings,
        "features": FeatureSettings,
    }
    return {name: own.get(name, HeadSettings)() for name in names}


def flat_values(path: str | Path) -> dict[str, Any]:
    """What a ROS parameter file sets, by dotted names. Raises SettingError."""
    values: dict[str, Any] = {}
    try:
        document = load_file(Path(path)) or {}
    except (OSError, YamlError) as error:
        raise SettingError(f"{path} cannot be read as a parameter file: {error}") from None
    for node in document.values() if isinstance(document, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("ros__parameters"), dict):
            values.update(_dotted(node["ros__parameters"]))
    for foreign in [name for name in values if name == "use_sim_time" or name.startswith("qos_overrides.")]:
        del values[foreign]
    return values


def check(name: str, f: dataclasses.Field, value: Any) -> Any:
    """The value in the setting's own type. Raises SettingError with one sentence."""
    default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    if isinstance(default, list):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise SettingError(f"'{name}' is {value!r}; accepted is a list of strings")
        value = [item for item in value if item]  # ROS has no empty string array: [''] stands for it
        if len(set(value)) != len(value):
            raise SettingError(f"'{name}' is {value!r}; each entry may stand there once")
        if choices and not set(value) <= set(choices):
            raise SettingError(f"'{name}' is {value!r}; accepted are any of {', '.join(choices)}")
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not type(default):
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[type(default)]
        raise SettingError(f"'{name}' is {value!r}; accepted is {kind}")
    if choices and value not in choices:
        raise SettingError(f"'{name}' is '{value}'; accepted are {', '.join(choices)}")
    if low is not None and not (low <= value <= high and math.isfinite(value)):
        raise SettingError(f"'{name}' is {value}; accepted is {low} to {high}")
    return value


def _field(cls, name: str) -> dataclasses.Field:
    return next(f for f in dataclasses.fields(cls) if f.name == name)


def _parameters(group, prefix: str) -> Iterator[Parameter]:
    for f in dataclasses.fields(group):
        value = getattr(group, f.name)
        if f.name == "head":
            for head, settings in value.items():
                yield from _parameters(settings, f"{head}.")
        elif dataclasses.is_dataclass(value):
            yield from _parameters(value, f"{prefix}{f.name}.")
        else:
            yield Parameter(prefix + f.name, value, f)


def _replaced(settings: Settings, values: Mapping[str, Any]) -> Settings:
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, leaf = name.rpartition(".")
        groups.setdefault(group, {})[leaf] = value
    top = groups.pop("", {})
    heads = dict(settings.head)
    for group, changes in groups.items():
        if group in heads:
            heads[group] = dataclasses.replace(heads[group], **changes)
        else:
            top[group] = dataclasses.replace(getattr(settings, group), **changes)
    return dataclasses.replace(settings, head=heads, **top)


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_dotted(value, f"{prefix}{name}."))
        else:
            flat[prefix + str(name)] = value
    return flat
