"""The two doors to the perception: the node over DDS, and the same core in this process. Both answer a view and its
picture with the node's messages, by relative topic name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception.measuring.driving.messages import IMAGE, INFO, SENT, TF_STATIC, RoverMessages
from dino_perception.measuring.driving.senses import View
from dino_perception.messages.camera_info import camera_model
from dino_perception.messages.images import decode_image
from dino_perception.messages.intake import Intake
from dino_perception.messages.topics import TOPICS
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

Ask = Callable[[View, np.ndarray], dict[str, Any]]


class DirectDoor:
    """One drive's answers by the core itself, as a replay asks it."""

    def __init__(self, perceiver: Perceiver, settings: Settings, topics: Collection[str]):
        self._perceiver, self._topics, self._types = perceiver, topics, RosbagsTypes()
        self._messages = RoverMessages()
        self._intake = Intake(perceiver, settings, self._types)
        self._intake.reset()
        self._latched: dict[str, Any] = {}

    def __call__(self, view: View, picture: np.ndarray) -> dict[str, Any]:
        sent = self._messages(view, picture)
        camera = self._intake.settings.cameras[0]
        order = self._intake.order(camera, view.stamp_ns, self._topics)
        image = sent[IMAGE]
        frame = Frame(camera, view.stamp_ns, image.header.frame_id, decode_image(image), camera_model(sent[INFO]))
        percept = self._intake.scaled(self._perceiver.perceive([frame], [order.heads])[0])
        percept = self._intake.followed(percept, order.topics)
        self._latched.update(self._intake.once(camera, self._topics))
        return {**self._latched, **self._intake.messages(percept, order.topics)}


@contextmanager
def node_door(
    topics: Collection[str], arguments: Sequence[str], log: Path, say: Callable[[str], None] = lambda line: None
) -> Iterator[Ask]:
    """One drive's answers by a node of its own, in a ROS domain of its own; `arguments` are for its `--ros-args`. Raises
    NodeError."""
    import os

    from dino_perception.ros.large_messages import large_message_profile
    from dino_perception.ros.rig.asker import Asker
    from dino_perception.ros.rig.isolation import isolated
    from dino_perception.ros.rig.node_process import NodeProcess

    os.environ.update(large_message_profile())  # this process sends the pictures
    messages, types = RoverMessages(), RosbagsTypes()
    given = [word for name, value in Asker.PARAMETERS.items() for word in ("-p", f"{name}:={value}")]
    wanted: Mapping[str, str] = {name: TOPICS[name].type for name in topics}
    latched = [name for name in topics if TOPICS[name].latched]

    def ask(view: View, picture: np.ndarray) -> dict[str, Any]:
        sent = messages(view, picture)
        data = {name: bytes(types.typestore.serialize_cdr(sent[name], kind)) for name, kind in SENT.items()}
        heard = asker.ask(view.stamp_ns, data, IMAGE)
        return {name: types.deserialize(one.data, one.type) for name, one in heard.items()}

    with isolated(), NodeProcess([*arguments, *given], log) as node:
        with Asker(node, SENT, wanted, latched, [TF_STATIC]) as asker:
            asker.start(say)
            yield ask
