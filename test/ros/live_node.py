"""The node in a process of its own, and a client that talks to it over real ROS 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from dino_perception.messages.types import RclpyTypes
from dino_perception.ros.large_messages import VARIABLES

TIMEOUT_S = 60.0
ASK_AGAIN_S = 10.0
"""How long anything may take before a test gives up: generous, for loaded machines."""
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
TYPES = RclpyTypes()

SMALL = {
    "engine": "torch",
    "threads": 1,
    "input_height": 96,
    "input_width": 128,
    "output_height": 48,
    "output_width": 64,
    "max_age": 60.0,
    "domain.check": False,
}
"""Parameters of a node that starts and looks quickly, at noise, of which the bundled heads would say that it is none of
theirs (test_unlike_the_training.py)."""


def wait_for(condition, what: str, timeout: float = TIMEOUT_S):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:.0f} s"
        time.sleep(0.02)
    return value


class LiveNode:
    """`python -m dino_perception.ros` with parameters and remappings, until `stop`."""

    def __init__(
        self,
        parameters: dict,
        *arguments: str,
        name: str = "dino_perception",
        program: Sequence[str] = ("-m", "dino_perception.ros"),
    ):
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        given = [part for key, value in parameters.items() for part in ("-p", f"{key}:={_yaml(value)}")]
        with self._log.open("wb") as log:
            # Without the profile for large messages, whatever the shell says: the node shall notice.
            bare = {key: value for key, value in os.environ.items() if key not in VARIABLES}
            command = [sys.executable, *program, "--ros-args", "-r", f"__node:={name}"]
            self._process = subprocess.Popen(
                [*command, *given, *arguments], stdout=log, stderr=subprocess.STDOUT, env=bare
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def stop(self, by: signal.Signals = signal.SIGINT) -> int:
        """The exit code."""
        if self.alive():
            self._process.send_signal(by)
        try:
            return self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


class Client:
    """A node of the test's that calls the live node, sends it images and keeps what it publishes."""

    def __init__(self, target: str = "dino_perception"):
        self.target = target
        self.node = Node(f"client_of_{target}")
        self.diagnostics: dict[str, object] = {}
        self._received: dict[str, list] = {}
        self._endings: list = []
        self._publishers: dict[str, object] = {}
        self._clients: dict[str, object] = {}
        self._lock = threading.Lock()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(TIMEOUT_S)
        self.node.destroy_node()

    # Services

    def call(self, kind: type, service: str, **request):
        """The response of a service of the target (a name without a leading slash lies below it)."""
        name = service if service.startswith("/") else f"/{self.target}/{service}"
        client = self._client(kind, name)
        answered = threading.Event()
        future = client.call_async(kind.Request(**request))
        future.add_done_callback(lambda _: answered.set())
        assert answered.wait(TIMEOUT_S), f"{name} did not answer"
        return future.result()

    def _client(self, kind: type, name: str):
        client = self._clients.get(name) or self.node.create_client(kind, name)
        self._clients[name] = client
        assert client.wait_for_service(TIMEOUT_S), f"{name} is not there"
        return client

    def state(self) -> str:
        """Asked anew after a while: a server that has not discovered this client yet waits 0.1 s for it (rmw_fastrtps), and
        then its first answer is lost."""
        client = self._client(GetState, f"/{self.target}/get_state")
        answers = []

        def answered() -> bool:
            event, future = threading.Event(), client.call_async(GetState.Request())
            future.add_done_callback(lambda done: (answers.append(done.result()), event.set()))
            return event.wait(ASK_AGAIN_S)

        wait_for(answered, f"an answer of /{self.target}/get_state")
        return answers[0].current_state.label

    def wait_for_state(self, label: str) -> None:
        wait_for(lambda: self.state() == label, f"state {label}")

    def transition(self, label: str) -> bool:
        from lifecycle_msgs.msg import Transition

        return self.call(ChangeState, "change_state", transition=Transition(label=label)).success

    def set(self, **values):
        """Set parameters in one atomic request (dots as two underscores), as `ros2 param set` does."""
        given = [Parameter(name=name.replace("__", "."), value=value) for name, value in values.items()]
        return self.call(
            SetParametersAtomically,
            "set_parameters_atomically",
            parameters=[parameter.to_parameter_msg() for parameter in given],
        ).result

    def get(self, name: str):
        from rclpy.parameter import parameter_value_to_python

        return parameter_value_to_python(self.call(GetParameters, "get_parameters", names=[name]).values[0])

    # Topics

    def topic(self, name: str) -> str:
        return name if name.startswith("/") else f"/{self.target}/{name}"

    def listen(self, name: str, kind: str, qos=10) -> list:
        """The list that this topic's messages are put into from now on; returns once the publisher is matched."""
        received: list = []
        subscription = self.node.create_subscription(TYPES.type(kind), self.topic(name), received.append, qos)
        self._endings.append(subscription)
        wait_for(lambda: self.node.count_publishers(self.topic(name)), f"a publisher of {name}")
        return received

    def deafen(self) -> None:
        """Stop listening to everything but diagnostics."""
        for subscription in self._endings:
            self.node.destroy_subscription(subscription)
        self._endings = []

    def send(
        self, image, camera_info=None, topic: str = "/image", info_topic: str = "/camera_info", qos=BEST_EFFORT
    ) -> None:
        """Publish an image, and first its camera_info."""
        for message, name in ((camera_info, info_topic), (image, topic)):
            if message is not None:
                publisher = self._publishers.get(name)
                if publisher is None:
                    publisher = self._publishers[name] = self.node.create_publisher(type(message), name, qos)
                    wait_for(lambda: publisher.get_subscription_count(), f"a subscriber of {name}")
                publisher.publish(message)

    def now_ns(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def found(self, status: str):
        """The latest diagnostic status of this name; an empty one before the first."""
        with self._lock:
            return self.diagnostics.get(f"{self.target}: {status}", DiagnosticStatus(level=DiagnosticStatus.STALE))

    def values(self, status: str) -> dict[str, str]:
        return {item.key: item.value for item in self.found(status).values}

    def count(self, camera: str, what: str) -> int:
        """A counter of a camera's status; 0 before the first diagnostics."""
        return int(self.values(f"camera {camera}").get(what, 0))

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        with self._lock:
            self.diagnostics.update({status.name: status for status in array.status})

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException, ShutdownException

        try:
            self._executor.spin()
        except (ExternalShutdownException, ShutdownException):
            pass


def image(
    stamp_ns: int,
    height: int = 96,
    width: int = 128,
    encoding: str = "rgb8",
    frame_id: str = "camera_optical",
    seed: int = 0,
) -> Image:
    """A picture with some structure."""
    channels = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4}.get(encoding, 3)
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, channels), np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)
    return TYPES.make(
        "sensor_msgs/msg/Image",
        header=TYPES.header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        step=width * channels,
        data=pixels.reshape(-1),
    )


def info(
    stamp_ns: int, height: int = 96, width: int = 128, frame_id: str = "camera_optical", focal: float = 100.0
) -> CameraInfo:
    """A calibrated pinhole camera without distortion."""
    k = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0])
    p = np.insert(k, [3, 6, 9], 0.0)
    return TYPES.make(
        "sensor_msgs/msg/CameraInfo",
        header=TYPES.header(stamp_ns, frame_id),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k,
        r=np.eye(3).reshape(-1),
        p=p,
    )


def stamp_ns(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _yaml(value) -> str:
    import json

    return json.dumps(value)


def picture_of(sample, stamp_ns: int, pixels: np.ndarray | None = None) -> tuple:
    """A data set's picture (480, 640), or `pixels` in its place, and its camera_info."""
    header, size = TYPES.header(stamp_ns, "camera_optical_frame"), {"height": 480, "width": 640}
    k = sample.camera.k
    lens = dict(distortion_model="plumb_bob", d=np.zeros(5), k=k.ravel(), r=np.eye(3).ravel())
    lens["p"] = np.insert(k, 3, 0, axis=1).ravel()
    picture = dict(encoding="rgb8", step=1920, data=sample.read_image() if pixels is None else pixels)
    return (
        TYPES.make("sensor_msgs/msg/Image", header=header, **size, **picture),
        TYPES.make("sensor_msgs/msg/CameraInfo", header=header, **size, **lens),
    )
