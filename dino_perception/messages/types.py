"""Message classes of the two libraries behind one call, so that a message is described once and built by either.

`RclpyTypes` makes the classes that a ROS 2 installation generates, `RosbagsTypes` those of the pure Python `rosbags`.
Both are called the same way and serialise to the same bytes:

    header = types.header(stamp_ns, frame_id)
    types.make("sensor_msgs/msg/Image", header=header, height=480, width=640, encoding="mono8", step=640, data=array)
"""

from __future__ import annotations

import array
import copy
import importlib
import re
from typing import Any

import numpy as np

DEFINITIONS = {
    "dino_perception/msg/Correspondences": """\
std_msgs/Header header
std_msgs/Header reference_header
uint32 width
uint32 height
uint64[] track_id
float32[] x
float32[] y
float32[] reference_x
float32[] reference_y
float32[] score
""",
    "dino_perception/msg/Descriptor": """\
std_msgs/Header header
string model
float32[] vector
""",
    "rtabmap_msgs/msg/GlobalDescriptor": """\
std_msgs/Header header
int32 type
uint8[] info
uint8[] data
""",
    "foxglove_msgs/msg/Color": """\
float64 r
float64 g
float64 b
float64 a
""",
    "foxglove_msgs/msg/Point2": """\
float64 x
float64 y
""",
    "foxglove_msgs/msg/CircleAnnotation": """\
builtin_interfaces/Time timestamp
foxglove_msgs/Point2 position
float64 diameter
float64 thickness
foxglove_msgs/Color fill_color
foxglove_msgs/Color outline_color
""",
    "foxglove_msgs/msg/PointsAnnotation": """\
uint8 UNKNOWN=0
uint8 POINTS=1
uint8 LINE_LOOP=2
uint8 LINE_STRIP=3
uint8 LINE_LIST=4
builtin_interfaces/Time timestamp
uint8 type
foxglove_msgs/Point2[] points
foxglove_msgs/Color outline_color
foxglove_msgs/Color[] outline_colors
foxglove_msgs/Color fill_color
float64 thickness
""",
    "foxglove_msgs/msg/TextAnnotation": """\
builtin_interfaces/Time timestamp
foxglove_msgs/Point2 position
string text
float64 font_size
foxglove_msgs/Color text_color
foxglove_msgs/Color background_color
""",
    "foxglove_msgs/msg/ImageAnnotations": """\
foxglove_msgs/CircleAnnotation[] circles
foxglove_msgs/PointsAnnotation[] points
foxglove_msgs/TextAnnotation[] texts
""",
    "vision_msgs/msg/Point2D": """\
float64 x
float64 y
""",
    "vision_msgs/msg/Pose2D": """\
vision_msgs/Point2D position
float64 theta
""",
    "vision_msgs/msg/BoundingBox2D": """\
vision_msgs/Pose2D center
float64 size_x
float64 size_y
""",
    "vision_msgs/msg/BoundingBox3D": """\
geometry_msgs/Pose center
geometry_msgs/Vector3 size
""",
    "vision_msgs/msg/ObjectHypothesis": """\
string class_id
float64 score
""",
    "vision_msgs/msg/ObjectHypothesisWithPose": """\
vision_msgs/ObjectHypothesis hypothesis
geometry_msgs/PoseWithCovariance pose
""",
    "vision_msgs/msg/Detection2D": """\
std_msgs/Header header
vision_msgs/ObjectHypothesisWithPose[] results
vision_msgs/BoundingBox2D bbox
string id
""",
    "vision_msgs/msg/Detection2DArray": """\
std_msgs/Header header
vision_msgs/Detection2D[] detections
""",
    "vision_msgs/msg/Detection3D": """\
std_msgs/Header header
vision_msgs/ObjectHypothesisWithPose[] results
vision_msgs/BoundingBox3D bbox
string id
""",
    "vision_msgs/msg/Detection3DArray": """\
std_msgs/Header header
vision_msgs/Detection3D[] detections
""",
    "vision_msgs/msg/VisionClass": """\
uint16 class_id
string class_name
""",
    "vision_msgs/msg/LabelInfo": """\
std_msgs/Header header
vision_msgs/VisionClass[] class_map
float32 threshold
""",
}
"""Field lists of the message types that the `rosbags` stores do not know."""

_ARRAY_CODES = {
    "uint8": "B",
    "octet": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float": "f",
    "double": "d",
}


class RclpyTypes:
    """Messages of the ROS 2 installation. Needs `rclpy` and the message packages only when a type is first made."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[type, dict[str, str]]] = {}
        self._zeros: dict[str, Any] = {}

    def available(self, name: str) -> bool:
        """Whether the package of this type is installed, with its type support."""
        try:
            self.type(name)
        except (ImportError, AttributeError):
            return False
        return True

    def type(self, name: str) -> type:
        """The class of "package/msg/Name". Raises ImportError where the package is not installed."""
        return self._known(name)[0]

    def service(self, name: str) -> type:
        """The class of "package/srv/Name". Raises ImportError where it is not installed."""
        package, _, leaf = name.split("/")
        return getattr(importlib.import_module(f"{package}.srv"), leaf)

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of type "package/msg/Name". A numpy array becomes what rclpy's setters take without walking over
        its elements: an `array.array` for a sequence. Fields not given have their defaults, shared by all such messages:
        do not write into them.

        A constructor makes the defaults of all fields, and of their fields, only to drop those that are given; a copy of
        one message does not.
        """
        cls, codes = self._known(name)
        if name not in self._zeros:
            self._zeros[name] = cls()
        message = copy.copy(self._zeros[name])
        for key, value in fields.items():
            if key in codes and isinstance(value, np.ndarray):
                _set(message, key, _array(codes[key], value))
            else:
                setattr(message, key, value)
        return message

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A std_msgs/Header; `stamp_ns` in nanoseconds."""
        return _header(self, stamp_ns, frame_id)

    def _known(self, name: str) -> tuple[type, dict[str, str]]:
        if name not in self._classes:
            package, _, leaf = name.split("/")
            cls = getattr(importlib.import_module(f"{package}.msg"), leaf)
            codes = {}
            for key, kind in cls.get_fields_and_field_types().items():
                sequence = re.fullmatch(r"sequence<(\w+)(, \d+)?>", kind)
                if sequence and sequence.group(1) in _ARRAY_CODES:
                    codes[key] = _ARRAY_CODES[sequence.group(1)]
            self._classes[name] = cls, codes
        return self._classes[name]


class RosbagsTypes:
    """Messages of `rosbags`, from `typestore` (default: a new Jazzy one). The types that rosbags does not know are
    registered in it unless the store, filled from a bag for example, has them already."""

    def __init__(self, typestore: Any = None) -> None:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        self.typestore = get_typestore(Stores.ROS2_JAZZY) if typestore is None else typestore
        for name, text in DEFINITIONS.items():
            if name not in self.typestore.types:
                self.typestore.register(get_types_from_msg(text, name))
        self._defaults: dict[str, dict[str, Any]] = {}

    def available(self, name: str) -> bool:
        return name in self.typestore.types

    def type(self, name: str) -> type:
        """The class of "package/msg/Name". Raises KeyError for a type that is not in the store."""
        return self.typestore.types[name]

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of type "package/msg/Name"; fields not given take the zero of their type. Arrays of numbers must
        be numpy arrays of the field's dtype."""
        return self.type(name)(**{**self._zeros(name), **fields})

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A std_msgs/Header; `stamp_ns` in nanoseconds."""
        return _header(self, stamp_ns, frame_id)

    def serialize(self, message: Any) -> memoryview:
        """CDR bytes, little endian. They are those that rclpy writes except that alignment padding is zero here and
        uninitialised memory there, and that rclpy appends up to 7 such bytes after an empty sequence of 8-byte
        elements."""
        return self.typestore.serialize_cdr(message, message.__msgtype__, little_endian=True)

    def deserialize(self, raw: Any, name: str) -> Any:
        """The message of type "package/msg/Name" in CDR bytes of either library. Arrays may be read-only views of
        `raw`. Raises rosbags' SerdeError when the bytes are no such message."""
        from rosbags.serde import SerdeError

        try:
            return self.typestore.deserialize_cdr(raw, name)
        except SerdeError:
            return self.typestore.deserialize_cdr(
                raw[:-4], name
            )  # rosbags forgives 3 trailing bytes, rclpy adds up to 7

    def _zeros(self, name: str) -> dict[str, Any]:
        if name not in self._defaults:
            self._defaults[name] = {key: _zero(self, kind) for key, kind in self.typestore.fielddefs[name][1]}
        return self._defaults[name]


def _header(types: RclpyTypes | RosbagsTypes, stamp_ns: int, frame_id: str) -> Any:
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    stamp = types.make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return types.make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def _set(message: Any, key: str, values: array.array) -> None:
    """Sets a field to this very array. Since Jazzy, a setter copies an array unless it is asked to check its type: for a
    cloud of 1.5 MB that was most of the time that a message took."""
    checks = getattr(message, "_check_fields", None)
    if checks is not None:
        message._check_fields = True
    setattr(message, key, values)
    if checks is not None:
        message._check_fields = checks


def _array(code: str, values: np.ndarray) -> array.array:
    filled = array.array(code)
    if values.size:
        wanted = np.dtype(code)
        if values.dtype != wanted and code != "B":
            raise TypeError(f"an array of {values.dtype} was given for a field of {wanted}")
        filled.frombytes(memoryview(np.ascontiguousarray(values)).cast("B"))
    return filled


def _zero(types: RosbagsTypes, kind: Any) -> Any:
    """The zero value of a rosbags field description: (node, detail)."""
    from rosbags.interfaces import Nodetype

    node, detail = kind
    if node is Nodetype.BASE:
        return {"string": "", "bool": False, "float32": 0.0, "float64": 0.0}.get(detail[0], 0)
    if node is Nodetype.NAME:
        return types.make(detail)
    element, length = detail
    number = element[0] is Nodetype.BASE and element[1][0] != "string"
    count = length if node is Nodetype.ARRAY else 0
    if number:
        return np.zeros(count, dtype=element[1][0])
    return [_zero(types, element) for _ in range(count)]
