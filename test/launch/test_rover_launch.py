"""The launch files, started by the launch system itself: what they start publishes, under the names asked for.

Run where ROS 2's launch_pytest is installed, in a sourced workspace: `python -m pytest test/launch`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

launch_pytest = pytest.importorskip("launch_pytest", reason="launch and launch_pytest are not installed")
psutil = pytest.importorskip("psutil", reason="psutil is not installed")
rclpy = pytest.importorskip("rclpy")

from ament_index_python.packages import get_package_share_directory  # noqa: E402
from launch.actions import IncludeLaunchDescription  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402

from dino_perception.messages.types import RclpyTypes  # noqa: E402
from dino_perception.share import share  # noqa: E402
from launch import LaunchDescription  # noqa: E402

READY_S = 300.0
"""A first start builds the engines, and the machine may be busy."""
SMALL = {
    "engine": "torch",
    "threads": 1,
    "input_height": 96,
    "input_width": 128,
    "output_height": 48,
    "output_width": 64,
    "max_age": 60.0,
}


def launched(file: str, **arguments: str) -> LaunchDescription:
    path = Path(get_package_share_directory("dino_perception"), "launch", file)
    return LaunchDescription(
        [IncludeLaunchDescription(PythonLaunchDescriptionSource(str(path)), launch_arguments=arguments.items())]
    )


@pytest.fixture(scope="module")
def params_file(tmp_path_factory) -> str:
    """rover.yaml with a small input, so that a test takes seconds."""
    path = tmp_path_factory.mktemp("launch") / "small.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": SMALL}}))
    return str(path)


@launch_pytest.fixture
def one_camera(params_file):
    return launched("rover.launch.py", namespace="rover", image="/front/image_raw", params_file=params_file)


@launch_pytest.fixture
def two_cameras(params_file, tmp_path_factory):
    cameras = tmp_path_factory.mktemp("cameras") / "cameras.yaml"
    cameras.write_text(
        yaml.safe_dump(
            {
                "cameras": {
                    "front": {"image": "/a/image_raw"},
                    "rear": {"image": "/b/image_raw", "camera_info": "/elsewhere/info"},
                }
            }
        )
    )
    return launched("rover.launch.py", cameras=str(cameras), params_file=params_file)


@launch_pytest.fixture
def one_that_comes_back(params_file):
    return launched(
        "rover.launch.py", name="phoenix", image="/front/image_raw", params_file=params_file, respawn="true"
    )


@launch_pytest.fixture
def sample_drive(params_file):
    return launched("replay.launch.py", params_file=params_file, loop="true")  # does not end while the test looks


@launch_pytest.fixture
def sample_drive_again(params_file, number):
    return launched("replay.launch.py", params_file=params_file, loop="true", name=f"again_{number}")


@launch_pytest.fixture
def sample_drive_of_a_managed_node(params_file):
    return launched("replay.launch.py", params_file=params_file, loop="true", name="managed", autostart="false")


@launch_pytest.fixture
def sample_drive_that_comes_back(params_file):
    return launched("replay.launch.py", params_file=params_file, loop="true", name="lazarus", respawn="true")


@pytest.fixture
def listener():
    """A node that collects messages and feeds images."""
    with Listener() as node:
        yield node


@pytest.mark.launch(fixture=one_camera)
def test_one_camera_is_remapped_and_everything_carries_its_stamp(listener):
    listener.hear("/rover/dino_perception/segmentation/mask", Image)
    listener.hear("/rover/dino_perception/depth/image", Image)
    listener.hear("/rover/dino_perception/points", PointCloud2)
    listener.feed({"/front/image_raw": "/front/camera_info"}, until=lambda: listener.all_heard())
    for topic, message in listener.newest.items():
        assert (message.header.frame_id, message.height, message.width) == ("front_optical", 48, 64), topic
        assert stamp(message) in listener.fed, topic


@pytest.mark.launch(fixture=two_cameras)
def test_several_cameras_come_from_one_file(listener):
    for camera in ("front", "rear"):
        listener.hear(f"/dino_perception/{camera}/segmentation/mask", Image)
        listener.hear(f"/dino_perception/{camera}/points", PointCloud2)  # needs the camera_info, so both are remapped
    listener.feed(
        {"/a/image_raw": "/a/camera_info", "/b/image_raw": "/elsewhere/info"}, until=lambda: listener.all_heard()
    )
    assert listener.newest["/dino_perception/front/points"].header.frame_id == "a_optical"
    assert listener.newest["/dino_perception/rear/points"].header.frame_id == "b_optical"


@pytest.mark.launch(fixture=sample_drive)
def test_a_bag_is_played_through_the_node_in_its_own_time(listener):
    listener.hear("/dino_perception/segmentation/mask", Image)
    listener.hear("/dino_perception/points", PointCloud2)
    listener.feed({}, until=lambda: listener.all_heard())
    recorded = yaml.safe_load((share("data", "sample_drive") / "metadata.yaml").read_text())[
        "rosbag2_bagfile_information"
    ]
    start = recorded["starting_time"]["nanoseconds_since_epoch"]
    assert (
        start
        <= stamp(listener.newest["/dino_perception/segmentation/mask"])
        <= start + recorded["duration"]["nanoseconds"]
    )


@pytest.mark.launch(fixture=one_that_comes_back)
def test_a_node_that_dies_is_started_again_and_goes_on(listener):
    listener.hear("/phoenix/segmentation/mask", Image)
    listener.feed({"/front/image_raw": "/front/camera_info"}, until=lambda: listener.all_heard())
    (first,) = processes_named("phoenix")
    os.kill(first, signal.SIGKILL)
    died = listener.now()
    listener.newest.clear()
    listener.feed(
        {"/front/image_raw": "/front/camera_info"},
        until=lambda: listener.all_heard() and stamp(listener.newest["/phoenix/segmentation/mask"]) > died,
    )
    assert first not in processes_named("phoenix")


@pytest.mark.parametrize("number", range(20))
@pytest.mark.launch(fixture=sample_drive_again)
def test_the_bag_plays_at_every_start(listener, number):
    listener.hear(f"/again_{number}/segmentation/mask", Image)
    listener.feed({}, until=lambda: listener.all_heard())


@pytest.mark.launch(fixture=sample_drive_of_a_managed_node)
def test_the_bag_waits_for_the_node_and_plays_on_through_its_pauses(listener):
    """Deactivated, the node has no subscription; the bag goes on, once, and what comes back hears it."""
    mask = "/managed/segmentation/mask"
    listener.hear(mask, Image)
    for label in ("configure", "activate"):
        listener.transition("managed", label)
    listener.feed({}, until=lambda: listener.all_heard())
    players = processes_that_play()
    assert len(players) == 1
    for steps in (("deactivate", "activate"), ("deactivate", "cleanup", "configure", "activate")):
        for label in steps:
            listener.transition("managed", label)
        listener.newest.clear()
        listener.feed({}, until=lambda: listener.all_heard())
        assert processes_that_play() == players


@pytest.mark.launch(fixture=sample_drive_that_comes_back)
def test_the_bag_plays_on_when_the_node_dies_and_comes_back(listener):
    listener.hear("/lazarus/segmentation/mask", Image)
    listener.feed({}, until=lambda: listener.all_heard())
    players, (first,) = processes_that_play(), processes_named("lazarus")
    os.kill(first, signal.SIGKILL)
    listener.feed({}, until=lambda: [p for p in processes_named("lazarus") if p != first])
    listener.newest.clear()
    listener.feed({}, until=lambda: listener.all_heard())
    assert processes_that_play() == players


def processes_that_play() -> list[int]:
    """Ids of the processes that play the sample drive for one of this process's launches."""
    return [pid for pid, command in commands() if "play" in command and any("sample_drive" in word for word in command)]


def processes_named(node: str) -> list[int]:
    """Ids of the processes that run a node of this name."""
    return [pid for pid, command in commands() if f"__node:={node}" in command]


def commands() -> list[tuple[int, list[str]]]:
    """Every process below this one, with its command line."""
    return [(process.pid, process.cmdline()) for process in psutil.Process().children(recursive=True)]


def stamp(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


class Listener:
    def __enter__(self) -> Listener:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("launch_test", context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._types = RclpyTypes()
        self.newest: dict[str, object] = {}
        self._wanted: set[str] = set()
        self.fed: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def hear(self, topic: str, kind: type) -> None:
        self._wanted.add(topic)
        self._node.create_subscription(
            kind, topic, lambda message: self.newest.__setitem__(topic, message), qos_profile_sensor_data
        )

    def transition(self, node: str, label: str) -> None:
        client = self._node.create_client(ChangeState, f"/{node}/change_state")
        assert client.wait_for_service(READY_S)
        future = client.call_async(ChangeState.Request(transition=Transition(label=label)))
        self._executor.spin_until_future_complete(future, READY_S)
        assert future.result().success, label

    def now(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def all_heard(self) -> bool:
        return self._wanted <= set(self.newest)

    def feed(self, cameras: dict[str, str], until, seconds: float = READY_S) -> None:
        """Publishes an image and its CameraInfo on each camera's topics, 5 times a second."""
        images = {topic: self._node.create_publisher(Image, topic, 1) for topic in cameras}
        infos = {topic: self._node.create_publisher(CameraInfo, info, 1) for topic, info in cameras.items()}
        picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
        k = np.array([100.0, 0, 63.5, 0, 100, 47.5, 0, 0, 1])
        p = np.array([100.0, 0, 63.5, 0, 0, 100, 47.5, 0, 0, 0, 1, 0])
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"nothing came on {sorted(self._wanted - set(self.newest))}"
            now = self._node.get_clock().now().nanoseconds
            self.fed.add(now)
            for topic in cameras:
                header = self._types.header(now, f"{topic.split('/')[1]}_optical")
                infos[topic].publish(
                    self._types.make(
                        "sensor_msgs/msg/CameraInfo",
                        header=header,
                        height=96,
                        width=128,
                        distortion_model="plumb_bob",
                        d=[0.0] * 5,
                        k=k,
                        r=np.eye(3).ravel(),
                        p=p,
                    )
                )
                images[topic].publish(
                    self._types.make(
                        "sensor_msgs/msg/Image",
                        header=header,
                        height=96,
                        width=128,
                        encoding="rgb8",
                        step=384,
                        data=picture,
                    )
                )
            pause = time.monotonic() + 0.2
            while time.monotonic() < pause:
                self._executor.spin_once(timeout_sec=0.05)
