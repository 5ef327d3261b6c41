"""A camera's way in: its image and camera_info subscriptions, and a frame from the newest of both."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dino_perception.messages.camera_info import CameraInfoError, camera_model
from dino_perception.messages.images import MAX_MEGAPIXELS, decode_compressed, decode_image
from dino_perception.perception.frame import CameraModel, Frame
from dino_perception.ros.frame_statistics import CameraAccount, Rate
from dino_perception.ros.mailbox import Letter, Mailbox

NEWEST = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
"""Matches every camera driver; what is not taken in time is replaced by what is newer."""
SIZES_KEPT = 4
"""CameraInfos of this many different sizes are remembered, so that a change of resolution finds its own at once."""


class CameraInput:
    """Subscribes between `open` and `close`. The executor's thread only stores messages; `frame` is for the worker."""

    def __init__(self, node: Node, camera: str, prefix: str, transport: str, account: CameraAccount):
        self.camera = camera
        self.image_topic, self.info_topic = input_topics(node, prefix, transport)
        self.image_type = CompressedImage if transport == "compressed" else Image
        self.infos_seen = Rate()
        self.opened_s = 0.0
        self.max_megapixels = MAX_MEGAPIXELS
        self.image_bits = 16
        """Larger images are refused; may change at any time."""
        self._node, self._account = node, account
        self._mailbox = Mailbox()
        self._decode = decode_compressed if transport == "compressed" else decode_image
        self._infos: dict[tuple, CameraInfo] = {}
        self._model: tuple[Any, CameraModel | None, str] = (None, None, "")
        self._subscriptions: list[Any] = []

    def open(self, mailbox: Mailbox) -> None:
        """Subscribe; images go into this mailbox."""
        self._mailbox = mailbox
        self.opened_s = time.monotonic()
        self._subscriptions = [
            self._subscribe(self.image_type, self.image_topic, self._image),
            self._subscribe(CameraInfo, self.info_topic, self._info),
        ]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def frame(self, letter: Letter) -> Frame:
        """The frame of a waiting image, with the newest camera model of its size. Raises ImageError."""
        message = letter.message
        image = self._decode(message, self.max_megapixels, self.image_bits)
        height, width = image.shape[:2]
        kind = getattr(message, "encoding", None) or message.format
        self._account.image = f"{width}x{height} {kind}"
        model, self._account.no_points = self._model_for(width, height)
        return Frame(self.camera, letter.stamp_ns, message.header.frame_id, image, model)

    def wish(self) -> QoSProfile:
        """The QoS with which images are subscribed to, after the user's overrides."""
        return self._subscriptions[0].qos_profile if self._subscriptions else NEWEST

    def _subscribe(self, kind: type, topic: str, callback) -> Any:
        # The overrides let a user ask for reliable images where a camera's process cannot be given the profile for
        # large messages: qos_overrides.<topic>.subscription.reliability.
        return self._node.create_subscription(
            kind, topic, callback, NEWEST, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )

    def _image(self, message: Any) -> None:
        now = time.monotonic()
        stamp = message.header.stamp
        self._account.received.tick(now)
        if self._mailbox.put(self.camera, Letter(message, stamp.sec * 1_000_000_000 + stamp.nanosec, now)):
            self._account.replaced.tick(now)

    def _info(self, message: CameraInfo) -> None:
        self.infos_seen.tick(time.monotonic())
        roi = message.roi
        size = (message.width, message.height, message.binning_x, message.binning_y, roi.width, roi.height)
        infos = {key: value for key, value in self._infos.items() if key != size}
        infos[size] = message  # the newest last
        while len(infos) > SIZES_KEPT:
            del infos[next(iter(infos))]
        self._infos = infos  # replaced as a whole: the worker reads it from its own thread

    def _model_for(self, width: int, height: int) -> tuple[CameraModel | None, str]:
        """The camera model for an image of this size, or None and why there is none."""
        newest = None
        for message in reversed(list(self._infos.values())):
            model, reason = self._converted(message)
            if model is not None and (model.width, model.height) == (width, height):
                return model, ""
            # An older one does not stand in for the newest when that cannot be used: it may be the camera's truth.
            if model is None and (newest is None or (message.width, message.height) == (width, height)):
                return None, reason
            newest = newest or (model, reason)
        if newest is None:
            return None, f"no camera_info has come on {self.info_topic}"
        model, _ = newest
        return None, (
            f"{self.info_topic} is for images of {model.width}x{model.height}, "
            f"but those on {self.image_topic} are {width}x{height}"
        )

    def _converted(self, message: CameraInfo) -> tuple[CameraModel | None, str]:
        """The model and, when there is none, why. One and the same object while the calibration stays the same, so
        that what is computed from it once stays valid."""
        roi = message.roi
        key = (
            message.width,
            message.height,
            message.distortion_model,
            tuple(message.d),
            tuple(message.k),
            tuple(message.r),
            tuple(message.p),
            message.binning_x,
            message.binning_y,
            roi.x_offset,
            roi.y_offset,
            roi.width,
            roi.height,
        )
        if key != self._model[0]:
            try:
                model = camera_model(message)
                reason = f"the camera_info on {self.info_topic} says that the camera is not calibrated (K is zero)"
            except CameraInfoError as error:
                model, reason = None, f"{self.info_topic}: {error}"
            self._model = (key, model, "" if model else reason)
        return self._model[1:]


def input_topics(node: Node, prefix: str, transport: str) -> tuple[str, str]:
    """Full names of a camera's image and camera_info topics after remapping.

    As image_transport has it: remapping `image` is enough. The compressed topic lies below the image's name and
    camera_info beside it, unless they are remapped themselves.
    """
    image = node.resolve_topic_name(f"{prefix}image")
    remapped = image != node.resolve_topic_name(f"{prefix}image", only_expand=True)
    info = _remapped(node, f"{prefix}camera_info")
    if info is None:
        base = image.removesuffix("/compressed")
        info = base.rpartition("/")[0] + "/camera_info" if remapped else node.resolve_topic_name(f"{prefix}camera_info")
    if transport == "compressed":
        below = image if image.endswith("/compressed") else f"{image}/compressed"
        image = _remapped(node, f"{prefix}image/compressed") or below
    return image, info


def _remapped(node: Node, topic: str) -> str | None:
    """The name that the user gave this topic, None when there was no rule for it."""
    name = node.resolve_topic_name(topic)
    return name if name != node.resolve_topic_name(topic, only_expand=True) else None
