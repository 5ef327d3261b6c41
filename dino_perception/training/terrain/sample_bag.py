"""The sample drive: a short rover recording with ground truth, rendered and written as a ROS 2 bag.

    python -m dino_perception.training.terrain.sample_bag --out data/sample_drive

writes a rosbag2 folder (metadata.yaml and one mcap file) that any ROS 2 tool opens. Nothing in it was recorded: the
terrain is rendered, so depth, classes and poses are exact. The same arguments give the same pictures.

| topic | type | what |
|---|---|---|
| /camera/image_raw/compressed | sensor_msgs/CompressedImage | 640x480 JPEG |
| /camera/camera_info | sensor_msgs/CameraInfo | its intrinsics, no distortion |
| /tf, /tf_static | tf2_msgs/TFMessage | odom -> base_link; base_link -> camera_link -> camera_optical_frame |
| /odom | nav_msgs/Odometry | the same motion with velocities |
| /ground_truth/depth | sensor_msgs/CompressedImage | PNG 16UC1: millimetres along the optical axis, 0 is no depth |
| /ground_truth/mask | sensor_msgs/CompressedImage | PNG mono8, ids: 0 soil, 1 bedrock, 2 sand, 3 big_rock, 4 sky |
| /ground_truth/camera_info | sensor_msgs/CameraInfo | intrinsics of the depth picture (a quarter of the size) |

The mask has half the camera's size. Depth is 0 in the sky and beyond 65.5 m. All messages of a frame carry its stamp.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from dino_perception import results
from dino_perception.training.terrain.world import Drive, PinholeCamera, World

SEED, STYLE, DRIVE = 103, "mars_gale", 1
"""A style and a seed that no training uses."""

START_NS = 1_767_225_600_000_000_000
"""2026-01-01 00:00:00 UTC; a fixed time, so that two bags of the same arguments are equal."""

WIDTH, HEIGHT, FIELD_OF_VIEW_DEG = 640, 480, 66.0
OPTICAL_FRAME = "camera_optical_frame"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dino_perception.training.terrain.sample_bag", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=results.folder, default=Path("data/sample_drive"), help="folder of the bag")
    parser.add_argument("--force", action="store_true", help="replace a folder that is there")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second")
    parser.add_argument("--seed", type=int, default=SEED, help="which world")
    parser.add_argument("--style", default=STYLE, help="which kind of terrain")
    parser.add_argument("--drive", type=int, default=DRIVE, help="which drive through it")
    parser.add_argument("--quality", type=int, default=72, help="JPEG quality, 1..100")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(arguments)
    if given.out.exists() and not given.force:
        parser.error(f"{given.out} is there already; give another --out, or --force to replace it")
    if given.frames < 1 or given.rate <= 0 or not 1 <= given.quality <= 100:
        parser.error(
            f"--frames {given.frames}, --rate {given.rate}, --quality {given.quality}: wanted at least 1, "
            "more than 0, and 1..100"
        )
    world = World(given.seed, given.style, given.device)
    # A well-exposed picture with little noise: grain would eat most of the bytes.
    world.relight(given.seed, sensor=replace(world.sensor, exposure=-0.05, noise=0.005, blur=0.5, contrast=1.1))
    drive = world.rover_drive(given.frames, given.rate, seed=given.drive, camera_height=1.1, camera_pitch=0.26)
    if given.out.exists():
        shutil.rmtree(given.out)
    write(given.out, world, drive, given.quality)
    size = sum(path.stat().st_size for path in given.out.iterdir())
    print(f"{given.out}: {given.frames} frames, {size / 1e6:.2f} MB")
    return 0


def write(out: Path, world: World, drive: Drive, quality: int) -> None:
    """Renders the drive frame by frame into a new rosbag2 folder `out`."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    camera = PinholeCamera.of(WIDTH, HEIGHT, FIELD_OF_VIEW_DEG)
    messages = Messages()
    base = _from_start(drive.base)
    with Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topics = {
            topic: bag.add_connection(topic, kind, typestore=messages.store, offered_qos_profiles=[_qos(topic)])
            for topic, kind in TOPICS.items()
        }

        def put(topic: str, stamp: int, message) -> None:
            bag.write(topics[topic], stamp, messages.store.serialize_cdr(message, TOPICS[topic]))

        put("/tf_static", START_NS, messages.transforms(START_NS, mounting(drive.mount)))
        for i, pose in enumerate(drive.camera):
            stamp = START_NS + round(float(drive.seconds[i]) * 1e9)
            rgb = world.render(pose[None], camera, first_frame=i).rgb[0]
            depth = world.render(pose[None], scaled(camera, 4), colour=False).depth[0]
            classes = world.render(pose[None], scaled(camera, 2), colour=False).classes[0]
            put("/tf", stamp, messages.transforms(stamp, [("odom", "base_link", base[i])]))
            put("/odom", stamp, messages.odometry(stamp, base, drive.seconds, i))
            put("/camera/camera_info", stamp, messages.camera_info(stamp, camera))
            put("/ground_truth/camera_info", stamp, messages.camera_info(stamp, scaled(camera, 4)))
            for topic, encoding, data in (
                ("/camera/image_raw/compressed", "rgb8; jpeg compressed bgr8", _jpeg(rgb, quality)),
                ("/ground_truth/depth", "16UC1; png compressed", _png(_millimetres(depth))),
                ("/ground_truth/mask", "mono8; png compressed", _png(classes)),
            ):
                put(topic, stamp, messages.picture(stamp, encoding, data))


def scaled(camera: PinholeCamera, factor: int) -> PinholeCamera:
    """The camera whose pixels are blocks of `factor` x `factor` pixels of `camera` (half-pixel centres)."""
    k = camera.k.copy()
    k[:2] /= factor
    k[:2, 2] = (camera.k[:2, 2] + 0.5) / factor - 0.5
    return PinholeCamera(camera.width // factor, camera.height // factor, k)


def _millimetres(depth: np.ndarray) -> np.ndarray:
    millimetres = np.nan_to_num(np.round(depth * 1000.0), nan=0.0)
    return np.where(millimetres <= 65535, millimetres, 0).astype(np.uint16)


def _png(image: np.ndarray) -> np.ndarray:
    packed = [
        cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, strategy])[1]
        for strategy in (cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_FILTERED)
    ]
    return min(packed, key=len).ravel()


def _jpeg(rgb: np.ndarray, quality: int) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1].ravel()


def _from_start(base: np.ndarray) -> np.ndarray:
    """Poses in an odom frame: level, its origin and heading those of the first pose."""
    start = np.eye(4)
    yaw = np.arctan2(base[0, 1, 0], base[0, 0, 0])
    start[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    start[:3, 3] = base[0, :3, 3]
    return np.linalg.inv(start) @ base


def mounting(mount: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """base_link -> camera_link (x forward) -> camera_optical_frame (z forward), as REP 103 has it."""
    optical = np.eye(4)
    optical[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return [("base_link", "camera_link", mount @ np.linalg.inv(optical)), ("camera_link", OPTICAL_FRAME, optical)]


TOPICS = {
    "/tf_static": "tf2_msgs/msg/TFMessage",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/odom": "nav_msgs/msg/Odometry",
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    "/ground_truth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/ground_truth/depth": "sensor_msgs/msg/CompressedImage",
    "/ground_truth/mask": "sensor_msgs/msg/CompressedImage",
}


def _qos(topic: str):
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    durability = QosDurability.TRANSIENT_LOCAL if topic == "/tf_static" else QosDurability.VOLATILE
    # rosbag2 writes "no limit" as the largest signed 64-bit time.
    never = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability.RELIABLE,
        durability,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        False,
    )


class Messages:
    """Builds the messages of the bag with rosbags' classes."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.types = self.store.types

    def header(self, stamp: int, frame: str):
        time = self.types["builtin_interfaces/msg/Time"](sec=stamp // 1_000_000_000, nanosec=stamp % 1_000_000_000)
        return self.types["std_msgs/msg/Header"](stamp=time, frame_id=frame)

    def picture(self, stamp: int, encoding: str, data: np.ndarray):
        return self.types["sensor_msgs/msg/CompressedImage"](
            header=self.header(stamp, OPTICAL_FRAME), format=encoding, data=np.ascontiguousarray(data, np.uint8)
        )

    def camera_info(self, stamp: int, camera: PinholeCamera):
        roi = self.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self.types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp, OPTICAL_FRAME),
            height=camera.height,
            width=camera.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=camera.k.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([camera.k, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )

    def transforms(self, stamp: int, chain: list[tuple[str, str, np.ndarray]]):
        types, made = self.types, []
        for parent, child, pose in chain:
            x, y, z = pose[:3, 3]
            move = types["geometry_msgs/msg/Transform"](
                translation=types["geometry_msgs/msg/Vector3"](x=x, y=y, z=z), rotation=self.quaternion(pose[:3, :3])
            )
            made.append(
                types["geometry_msgs/msg/TransformStamped"](
                    header=self.header(stamp, parent), child_frame_id=child, transform=move
                )
            )
        return types["tf2_msgs/msg/TFMessage"](transforms=made)

    def odometry(self, stamp: int, base: np.ndarray, seconds: np.ndarray, i: int):
        """Pose in odom and velocity in base_link (REP 105, nav_msgs/Odometry), by central differences."""
        types, vector = self.types, self.types["geometry_msgs/msg/Vector3"]
        before, after = max(i - 1, 0), min(i + 1, len(base) - 1)
        linear = angular = np.zeros(3)
        if after > before:
            span = float(seconds[after] - seconds[before])
            linear = base[i, :3, :3].T @ (base[after, :3, 3] - base[before, :3, 3]) / span
            turn, _ = cv2.Rodrigues(base[before, :3, :3].T @ base[after, :3, :3])
            angular = turn.ravel() / span
        x, y, z = base[i, :3, 3]
        pose = types["geometry_msgs/msg/Pose"](
            position=types["geometry_msgs/msg/Point"](x=x, y=y, z=z), orientation=self.quaternion(base[i, :3, :3])
        )
        twist = types["geometry_msgs/msg/Twist"](linear=vector(*linear), angular=vector(*angular))
        covariance = np.diag([1e-4] * 6).ravel()
        return types["nav_msgs/msg/Odometry"](
            header=self.header(stamp, "odom"),
            child_frame_id="base_link",
            pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=covariance),
            twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=covariance),
        )

    def quaternion(self, matrix: np.ndarray):
        axis, _ = cv2.Rodrigues(matrix)
        angle = float(np.linalg.norm(axis))
        x, y, z = axis.ravel() * (np.sin(angle / 2) / angle if angle > 1e-12 else 0.5)
        return self.types["geometry_msgs/msg/Quaternion"](x=x, y=y, z=z, w=float(np.cos(angle / 2)))


if __name__ == "__main__":
    raise SystemExit(main())
