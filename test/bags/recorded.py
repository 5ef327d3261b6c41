"""Small bags, made with rosbags, and a small perception for the tests of this room."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from dino_perception.bags.job import Job, run
from dino_perception.perception.settings import Settings

STORE = get_typestore(Stores.ROS2_JAZZY)
START = 1_700_000_000_000_000_000
PERIOD = 100_000_000
HEIGHT, WIDTH = 96, 128
SMALL = {
    "engine": "torch",
    "precision": "float32",
    "threads": 1,
    "input_height": 64,
    "input_width": 96,
    "output_height": 32,
    "output_width": 48,
    "points.max_range": 1000.0,
}
SETTINGS = Settings.from_flat(SMALL)


def message(kind, **fields):
    return STORE.types[kind](**fields)


def header(stamp_ns, frame_id="camera_optical"):
    sec, nanosec = divmod(int(stamp_ns), 10**9)
    return message(
        "std_msgs/msg/Header", stamp=message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec), frame_id=frame_id
    )


def picture(number, camera=0):
    """A texture that moves with the frame number, (H, W, 3) uint8 RGB."""
    rng = np.random.default_rng(100 + camera)
    coarse = rng.integers(0, 256, (40, 80, 3), np.uint8)
    large = cv2.resize(coarse, (WIDTH * 2, HEIGHT * 2), interpolation=cv2.INTER_CUBIC)
    x, y = 2 * number % WIDTH, number % HEIGHT
    return np.ascontiguousarray(large[y : y + HEIGHT, x : x + WIDTH])


def image(stamp_ns, pixels, encoding="rgb8"):
    data = np.ascontiguousarray(pixels if encoding == "rgb8" else pixels[..., ::-1]).reshape(-1)
    return message(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=3 * pixels.shape[1],
        data=data,
    )


def jpeg(stamp_ns, pixels):
    data = cv2.imencode(".jpg", pixels[..., ::-1])[1].reshape(-1)
    return message(
        "sensor_msgs/msg/CompressedImage", header=header(stamp_ns), format="rgb8; jpeg compressed bgr8", data=data
    )


def camera_info(stamp_ns, focal=100.0, width=WIDTH, height=HEIGHT):
    k = np.array([focal, 0, width / 2 - 0.5, 0, focal, height / 2 - 0.5, 0, 0, 1])
    p = np.insert(k.reshape(3, 3), 3, 0, axis=1).reshape(-1)
    roi = message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return message(
        "sensor_msgs/msg/CameraInfo",
        header=header(stamp_ns),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k,
        r=np.eye(3).reshape(-1),
        p=p,
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def text(words):
    return message("std_msgs/msg/String", data=words)


def drive(count=12, cameras=("/camera",), compressed=False, gap=PERIOD):
    """(topic, record time, message) of a drive: an image and its camera_info a frame, and a note now and then. Images
    are recorded 5 ms after their stamps."""
    for number in range(count):
        stamp = START + number * gap
        for index, camera in enumerate(cameras):
            stamp_c = stamp + index * 7_000_000
            pixels = picture(number, index)
            yield f"{camera}/camera_info", stamp_c + 4_000_000, camera_info(stamp_c)
            yield (
                (f"{camera}/image_raw/compressed", stamp_c + 5_000_000, jpeg(stamp_c, pixels))
                if compressed
                else (f"{camera}/image_raw", stamp_c + 5_000_000, image(stamp_c, pixels))
            )
        if number % 4 == 0:
            yield "/notes", stamp + 20_000_000, text(f"note {number}")


def record(path: Path, messages, plugin=StoragePlugin.MCAP, latched=()) -> Path:
    """A bag of these messages, written by rosbags."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    profile = Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        QosTime(0, 0),
        QosTime(0, 0),
        QosLiveliness.AUTOMATIC,
        QosTime(0, 0),
        False,
    )
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        topics = {}
        for topic, time, content in messages:
            kind = content.__msgtype__
            if topic not in topics:
                topics[topic] = writer.add_connection(
                    topic, kind, typestore=STORE, offered_qos_profiles=[profile] if topic in latched else []
                )
            writer.write(topics[topic], time, STORE.serialize_cdr(content, kind))
    return path


@functools.cache
def perceiver():
    """One perceiver of `SETTINGS` for all tests, with the built-in weights or, where there are none, untrained ones."""
    from dino_perception.perception.perceiver import Perceiver

    return Perceiver(SETTINGS, report=lambda line: None)


def replay(source, output, **options):
    """The result of a job in this process."""
    return run(Job(source, output, SETTINGS, **options), perceiver)


def contents(path):
    """(topic, record time, bytes) of every message of a bag, as rosbags reads them."""
    from rosbags.highlevel import AnyReader

    with AnyReader([path]) as reader:
        return [(c.topic, time, bytes(raw)) for c, time, raw in reader.messages()]


def decoded(path, topic):
    """The messages of one topic."""
    from rosbags.highlevel import AnyReader

    with AnyReader([path]) as reader:
        chosen = [c for c in reader.connections if c.topic == topic]
        return [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(chosen)] if chosen else []
