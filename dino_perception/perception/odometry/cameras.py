"""The odometry of every camera, and what it says of its health."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_perception.perception.frame import CameraModel, Percept
from dino_perception.perception.odometry.keyframe import Keyframe, View
from dino_perception.perception.odometry.motion import Rays
from dino_perception.perception.odometry.odometer import Odometer, Step
from dino_perception.perception.odometry.scale import Scale
from dino_perception.perception.odometry.wheels import Wheels
from dino_perception.perception.pose import LOST, Pose
from dino_perception.perception.settings import Settings
from dino_perception.perception.stage_clock import spent
from dino_perception.perception.transforms import TransformTree


class Odometry:
    """Places the frames of all cameras, in the order in which they come. One thread calls it, but for `reset`."""

    def __init__(self) -> None:
        self.frames = TransformTree()
        """The fixed frames of the robot, as far as they are known."""
        self._odometers: dict[str, Odometer] = {}
        self.wheels = Wheels()
        """The robot's own odometry, where there is one."""
        self._poses: dict[str, Pose] = {}
        self._anew = False

    def placed(self, percept: Percept, settings: Settings) -> Percept:
        """The percept with the pose of its camera, where its matches were asked for."""
        if percept.correspondences is None:
            return percept
        if self._anew:
            self._anew = False
            for odometer in self._odometers.values():
                odometer.anew()
        camera = percept.frame.camera
        odometer = self._odometers.setdefault(camera, Odometer())
        odometer.camera_height = settings.camera_height
        odometer.mount = self._mount(percept.frame.frame_id, settings.odometry.child_frame)
        odometer.wheels = self.wheels if len(self.wheels) else None
        depth = settings.head.get("depth")
        if depth is not None and depth.camera_height_scaling:  # then depth is scaled already, once for all
            odometer.camera_height = 0.0
        pose = spent(percept, "odometry", odometer.follow, percept)
        self._poses[camera] = pose
        return dataclasses.replace(percept, pose=pose)

    def reset(self) -> None:
        """Time starts anew: the next frame of each camera begins a new era. Any thread may call it."""
        self._anew = True

    def health(self, camera: str) -> dict[str, Any]:
        """What diagnostics tell of a camera's odometry; empty where there is none."""
        pose, odometer = self._poses.get(camera), self._odometers.get(camera)
        if pose is None or odometer is None:
            return {}
        away = float(np.linalg.norm(pose.position - odometer.origin))
        return {
            "odometry": f"{pose.health}: {pose.reason}" if pose.reason else pose.health,
            "odometry era": pose.era,
            "odometry scale": odometer.scale.source,
            "odometry scale error": f"{odometer.scale.error:.1%}",
            "odometry levelled": odometer.levelled,
            "distance from the start [m]": away,
        }

    def lost(self, camera: str) -> str:
        """Why the camera's odometry is lost now; empty where it is not."""
        pose = self._poses.get(camera)
        return pose.reason if pose is not None and pose.health == LOST else ""

    def memory(self) -> dict[str, Any]:
        """What it remembers, as plain data that JSON takes."""
        return {
            "odometers": {
                camera: _packed({name: value for name, value in vars(odometer).items() if name != "wheels"})
                for camera, odometer in self._odometers.items()
            }
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        self._odometers = {}
        for camera, plain in memory.get("odometers", {}).items():
            odometer = self._odometers[camera] = Odometer()
            vars(odometer).update({name: _unpacked(value) for name, value in plain.items()})

    def _mount(self, camera: str, child: str) -> np.ndarray | None:
        """(4, 4): the camera's optical frame in `child`, by the fixed frames; None where they do not say."""
        if not child or child == camera:
            return None if not child else np.eye(4)
        if not self.frames.knows(camera) or self.frames.moving(camera):
            return None
        poses = [self.frames.pose(name, 0) for name in (child, camera)]
        if any(pose is None for pose in poses) or self.frames.root(child) != self.frames.root(camera):
            return None
        return np.linalg.inv(poses[0]) @ poses[1]


_KINDS = {kind.__name__: kind for kind in (View, Keyframe, Rays, Step, Scale, CameraModel)}


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value)
        return {"array": base64.b64encode(raw.tobytes()).decode(), "dtype": raw.dtype.str, "shape": list(raw.shape)}
    if type(value).__name__ in _KINDS:
        return {"kind": type(value).__name__, "fields": _packed(vars(value))}
    if isinstance(value, dict):
        return {name: _packed(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item) for item in value]}
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "array" in value:
        raw = base64.b64decode(value["array"])
        return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    if "kind" in value:
        return _KINDS[value["kind"]](**_unpacked(value["fields"]))
    if "tuple" in value:
        return tuple(_unpacked(item) for item in value["tuple"])
    return {name: _unpacked(item) for name, item in value.items()}
