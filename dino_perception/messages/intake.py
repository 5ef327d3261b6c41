"""What is asked of each frame, and what is told of it: one class for the live node and for a replay, so that the same
frames give the same messages through either."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dino_perception.messages.demand import Demand
from dino_perception.messages.odometry import TF, transform
from dino_perception.messages.topics import ON_GROUND, latched, need_pose, outputs
from dino_perception.perception.depth_scale import DepthScale
from dino_perception.perception.feature_colours import FeatureColours
from dino_perception.perception.frame import Percept
from dino_perception.perception.obstacles import Obstacles, obstacles
from dino_perception.perception.odometry.cameras import Odometry
from dino_perception.perception.settings import Settings
from dino_perception.perception.stage_clock import spent
from dino_perception.perception.traversability import Maps

Height = Callable[[str, str], float | None]


@dataclass(frozen=True)
class Order:
    """What a frame is to give: the `topics` (relative names) to publish and the `heads` to run for them. `back_s` is how
    far its stamp lies before that of the camera's frame before, 0 where time goes on."""

    topics: set[str]
    heads: set[str]
    back_s: float = 0.0


class Intake:
    """Follows the frames of all cameras. `perceiver` is a Perceiver, or what stands in for one; `settings` hold until
    `change`; `height` gives metres of a camera's frame over another one by fixed transforms, None where they do not say.
    One thread calls `order`, `change` and `reset`; another one may call `messages` and `once`."""

    def __init__(self, perceiver: Any, settings: Settings, types: Any, height: Height = lambda frame, ground: None):
        self.settings = settings
        self.told: set[str] = set()
        """The cameras whose latched messages were given."""
        self._perceiver, self._types = perceiver, types
        self._demand = Demand()
        self.depth_scale = DepthScale()
        """By what each camera's depth is multiplied."""
        self._height = height
        self.odometry = Odometry()
        """Where each camera is."""
        self._colours = FeatureColours(settings, perceiver)
        self._ground: dict[str, Obstacles | None] = {}
        """What each camera saw of the ground in its last frame, where somebody asked for it."""
        self._maps = Maps()
        self.transforms_of: str | None = None
        """The one camera whose odometry is the robot's, with `odometry.tf`; None where any may be."""
        self._last_stamp: dict[str, int] = {}

    def order(self, camera: str, stamp_ns: int, listened: Collection[str]) -> Order:
        """What the camera's next frame is to give to those who listen. A stamp that goes back starts new tracks."""
        back_ns = self._last_stamp.get(camera, stamp_ns) - stamp_ns
        if back_ns > 0:
            self._perceiver.reset_tracks(camera)
        self._last_stamp[camera] = stamp_ns
        if self._turns(camera):
            listened = {*listened, "odometry"}
        heads = {name: self.settings.head[name] for name in self.settings.heads}
        topics, wanted = self._demand.decide(camera, stamp_ns, listened, heads)
        if "depth" in wanted and heads["depth"].camera_height_scaling:
            wanted = {*wanted, "segmentation"}  # it tells what is ground
        if self.settings.camera_height and "segmentation" in heads and need_pose(topics):
            wanted = {*wanted, "segmentation"}  # the same, for how long the odometry's metres are
        return Order(topics, wanted, max(0, back_ns) / 1e9)

    def scaled(self, percept: Percept) -> Percept:
        """The percept as it is to be told. Once a frame, in order, by the thread that calls `order`."""
        by_tf = None
        if self.depth_scale.asks(self.settings):
            by_tf = self._height(percept.frame.frame_id, self.settings.ground_frame)
        scaled = self.depth_scale.scaled(percept, self.settings, by_tf)
        return self._colours.coloured(scaled, self.settings)

    def followed(self, percept: Percept, topics: Collection[str]) -> Percept:
        """The whole percept, once all its heads have answered, with what `topics` need of the frames before. Once a frame,
        in order, by one thread."""
        if need_pose(topics):
            percept = self.odometry.placed(percept, self.settings)
        if not ON_GROUND & set(topics):
            self._ground.pop(percept.frame.camera, None)
            return percept
        found = spent(percept, "obstacles", obstacles, percept, self.settings)
        self._ground[percept.frame.camera] = found
        grid = None
        if "traversability" in topics:
            grid = spent(percept, "traversability", self._maps.see, percept, found, self.settings)
        return dataclasses.replace(percept, obstacles=found, traversability=grid)

    def ground(self, camera: str) -> dict[str, Any]:
        """The ground in a camera's last frame, for diagnostics; empty where nobody asked for it. Any thread may call it."""
        if (found := self._ground.get(camera, False)) is False:
            return {}
        if found is None:
            return {"ground": "not seen"}
        plane = found.ground.plane
        return {
            "ground": "seen",
            "ground normal (optical)": " ".join(f"{value:.3f}" for value in plane.normal),
            "ground slope [deg]": found.ground.slope,
            "ground below camera [m]": plane.height,
            "pixels in the way": int(found.mask.sum()),
        }

    def goes_back(self, camera: str, stamp_ns: int) -> bool:
        """Whether `order` will find that the camera's time went back, and reset its tracks."""
        return stamp_ns < self._last_stamp.get(camera, stamp_ns)

    def messages(self, percept: Percept, topics: Collection[str]) -> dict[str, Any]:
        """The messages of a percept, by relative topic name, for those of `topics` that it can fill; and with the odometry,
        where it is asked for, its transform under the name of TF."""
        messages = outputs(self._types, percept, self.settings, topics)
        if "odometry" in messages and self._turns(percept.frame.camera):
            turned = transform(self._types, percept, self.settings)
            if turned is not None:
                messages[TF] = turned
        return messages

    def once(self, camera: str, topics: Collection[str]) -> dict[str, Any]:
        """The latched messages of a camera, for those of `topics`; nothing when they were given before."""
        if camera in self.told:
            return {}
        self.told.add(camera)
        return latched(self._types, self._perceiver.specs, topics)

    def change(self, settings: Settings) -> None:
        """Take changed settings. Raises SettingError for one that needs a new perceiver."""
        self._perceiver.update(settings)
        self.settings = settings

    def reset(self) -> None:
        """Time starts anew: forget tracks, rates and stamps."""
        self._demand.reset()
        self.depth_scale.reset()
        self.odometry.reset()
        self._maps.reset()
        self._ground.clear()
        self._last_stamp.clear()
        self._perceiver.reset_tracks()

    def memory(self) -> dict[str, Any]:
        """What rates and stamps remember, as plain data."""
        return {
            "stamps": dict(self._last_stamp),
            "depth_scale": self.depth_scale.memory(),
            "odometry": self.odometry.memory(),
            "colours": self._colours.memory(),
            "maps": self._maps.memory(),
            **self._demand.memory(),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        self._last_stamp = dict(memory.get("stamps", {}))
        self._demand.recall(memory)
        self.depth_scale.recall(memory.get("depth_scale", {}))
        self.odometry.recall(memory.get("odometry", {}))
        self._colours.recall(memory.get("colours", {}))
        self._maps.recall(memory.get("maps", {}))

    def _turns(self, camera: str) -> bool:
        """Whether this camera's odometry goes to /tf."""
        return self.settings.odometry.tf and self.transforms_of in (None, camera)
