"""Recordings as the recorders of the field make them: what holds pictures is read, what does not is kept as it is."""

import base64
import io
import json
import logging
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import recorded
from mcap.reader import make_reader
from mcap.writer import Writer
from recorded import PERIOD, START, STORE, camera_info, decoded, drive, header, image, message, picture, record, replay
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dino_perception.bags.cameras import choose_cameras
from dino_perception.bags.compare import compare
from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.problems import NO_IMAGES, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.messages import images
from dino_perception.messages.images import ImageError, decode_image

MASK = "/dino_perception/segmentation/mask"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real" / "bags"


def compressed(number, form, data):
    octets = np.frombuffer(bytes(data), np.uint8)
    return message("sensor_msgs/msg/CompressedImage", header=header(START + number * PERIOD), format=form, data=octets)


def encoded(suffix, pixels):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def grey(number):
    return cv2.cvtColor(picture(number), cv2.COLOR_RGB2GRAY)


def found(path):
    with BagReader(path) as bag:
        return [camera.image for camera in choose_cameras(bag, [], ["camera"])]


def percepts(path):
    return [(m.header.stamp.sec * 10**9 + m.header.stamp.nanosec - START) // PERIOD for m in decoded(path, MASK)]


@pytest.mark.parametrize(
    "form, data",
    [
        ("mono8; jpeg compressed ", lambda n: encoded(".jpg", grey(n))),
        ("mono16; png compressed ", lambda n: encoded(".png", grey(n).astype(np.uint16) * 257)),
        ("bgr8; jpeg compressed bgr8", lambda n: encoded(".jpg", picture(n))),
        ("bayer_rggb8; png compressed ", lambda n: encoded(".png", grey(n))),
        ("jpeg", lambda n: encoded(".jpg", picture(n))),
        ("tiff", lambda n: encoded(".tiff", picture(n))),
        ("webp", lambda n: encoded(".webp", picture(n))),
    ],
)
def test_what_image_transport_calls_a_picture_is_a_camera(tmp_path, form, data):
    topic = "/cam/image_raw/compressed"
    source = record(tmp_path / "in", [(topic, START + n * PERIOD, compressed(n, form, data(n))) for n in range(2)])
    assert found(source) == [topic]
    result = replay(source, tmp_path / "out.mcap", outputs=("segmentation/mask",))
    assert result.code == 0 and percepts(tmp_path / "out.mcap") == [0, 1]


def test_a_cut_tiff_or_webp_is_refused(tmp_path):
    for suffix in (".tiff", ".webp"):
        data = encoded(suffix, picture(0))
        with pytest.raises(ImageError):
            images.decode_compressed(compressed(0, suffix[1:], data[: len(data) // 2]))


def test_a_refused_topic_is_named_with_its_encoding_and_reason(tmp_path):
    odd = image(START, picture(0))
    odd.encoding = "bayer_rccc12"
    topics = [("/odd", START, odd), ("/gif", START, compressed(0, "gif", b"GIF89a..."))]
    source = record(tmp_path / "in", topics)
    with pytest.raises(
        BagError, match="/odd .* with encoding 'bayer_rccc12' .*accepted are.* with encoding 'gif'"
    ) as e:
        found(source)
    assert e.value.code == NO_IMAGES
    source = record(tmp_path / "beside", [*topics, *drive(2)])
    with BagReader(source) as bag:
        assert len(choose_cameras(bag, [], ["camera"])) == 1
        said = [problem.sentence for problem in bag.problems]
    assert any("/odd (bayer_rccc12) is not looked at: " in sentence for sentence in said)


def test_the_first_picture_that_decodes_decides_within_a_bound(tmp_path):
    good = encoded(".jpg", picture(0))

    def bag(name, damaged):
        pictures = [compressed(n, "jpeg", good[:300] if n < damaged else good) for n in range(damaged + 1)]
        return record(tmp_path / name, [("/a/compressed", START + n * PERIOD, m) for n, m in enumerate(pictures)])

    assert found(bag("some", 4)) == ["/a/compressed"]
    result = replay(bag("again", 4), tmp_path / "out.mcap", outputs=("segmentation/mask",))
    assert result.code == 12 and percepts(tmp_path / "out.mcap") == [4]
    with pytest.raises(BagError, match="'jpeg' \\(the JPEG of 300 bytes is damaged"):
        found(bag("many", 20))


def test_a_twelve_bit_camera_in_mono16_is_warned_of_once_and_stretched_when_asked(tmp_path, caplog):
    dark = image(START, picture(0))
    shown = (grey(0).astype(np.uint16) << 4) | (grey(0) >> 4)
    dark.encoding, dark.step, dark.data = "mono16", 2 * dark.width, shown.view(np.uint8).reshape(-1)
    images._WARNED.clear()
    with caplog.at_level(logging.WARNING):
        assert decode_image(dark).max() <= 16 and decode_image(dark).max() <= 16
    assert len(caplog.records) == 1 and "set image_bits" in caplog.text and "12 bits" in caplog.text
    np.testing.assert_array_equal(decode_image(dark, bits=12)[..., 1], grey(0))
    assert (decode_image(dark, bits=8) == 255).any()  # beyond the range is white, not dark again
    source = record(tmp_path / "in", [("/a", START, dark)])
    settings = recorded.SETTINGS.changed({"image_bits": 12})
    bright = tmp_path / "bright.mcap"
    job = Job(source, bright, settings, outputs=("segmentation/overlay",), copy=("none",))
    assert run(job, recorded.perceiver).code == 0
    assert decoded(bright, "/dino_perception/segmentation/overlay")[0].data.mean() > 40


# Video. The encoder is FFmpeg's own; the receiver gets one packet a message, as ffmpeg_image_transport sends them.

FFMPEG = "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
FFMPEG += "bool is_bigendian\nuint8[] data\n"
VIDEO = "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"


def video(codec, count, gop=6):
    from fractions import Fraction

    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = recorded.WIDTH, recorded.HEIGHT, "yuv420p"
    encoder.framerate, encoder.time_base, encoder.gop_size = Fraction(10), Fraction(1, 10), gop
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "crf": "12"}
    if "265" in codec:
        encoder.options = {**encoder.options, "x265-params": "log-level=none:keyint=6"}
    made = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
        frame.pts = number
        made += encoder.encode(frame)
    made += encoder.encode(None)
    return [(bytes(packet), packet.is_keyframe) for packet in made]


def video_bag(path, kind, codec, count=16, name="h264"):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(FFMPEG, "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"))
    store.register(get_types_from_msg(VIDEO, "foxglove_msgs/msg/CompressedVideo"))
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as BagWriter2

    with BagWriter2(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topic = bag.add_connection("/cam/image_raw/ffmpeg" if "ffmpeg" in kind else "/cam/video", kind, typestore=store)
        info = bag.add_connection("/cam/camera_info", "sensor_msgs/msg/CameraInfo", typestore=store)
        for number, (data, key) in enumerate(video(codec, count)):
            stamp = START + number * PERIOD
            octets = np.frombuffer(data, np.uint8)
            made = (
                store.types[kind](header(stamp), recorded.WIDTH, recorded.HEIGHT, name, number, int(key), False, octets)
                if "ffmpeg" in kind
                else store.types[kind](header(stamp).stamp, "camera_optical", octets, name)
            )
            bag.write(info, stamp, STORE.serialize_cdr(camera_info(stamp), "sensor_msgs/msg/CameraInfo"))
            bag.write(topic, stamp, store.serialize_cdr(made, kind))
    return path


VIDEOS = [
    ("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "libx264", "libx264;yuv420p;bgr8;bgr8"),
    ("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "libx265", "hevc"),
    ("foxglove_msgs/msg/CompressedVideo", "libx264", "h264"),
    ("foxglove_msgs/msg/CompressedVideo", "libx265", "h265"),
]


@pytest.mark.parametrize("kind, codec, name", VIDEOS)
def test_every_packet_of_a_video_is_its_picture(tmp_path, kind, codec, name):
    source = video_bag(tmp_path / "in", kind, codec, name=name)
    result = replay(source, tmp_path / "out.mcap", outputs=("segmentation/mask",))
    assert result.code == 0 and percepts(tmp_path / "out.mcap") == list(range(16))
    assert result.figures["cameras"][0]["info"] == "/cam/camera_info"
    from dino_perception.bags.pictures import Pictures

    with BagReader(source) as bag:
        topic = next(t for t in bag.topics.values() if t.type == kind)
        pictures = Pictures(topic, 64.0)
        for number, entry in enumerate(bag.messages([topic.name])):
            pixels = pictures.decode(bag.decode(entry))
            off = [np.abs(pixels.astype(int) - picture(other)).mean() for other in range(16)]
            assert np.argmin(off) == number and off[number] < 15  # 4:2:0 costs that much of this texture
    part = replay(source, tmp_path / "part.mcap", outputs=("segmentation/mask",), start=0.8, every=3)
    assert part.code == 0 and percepts(tmp_path / "part.mcap") == [8, 11, 14]
    whole = {m.header.stamp.nanosec: m.data.tobytes() for m in decoded(tmp_path / "out.mcap", MASK)}
    for mask in decoded(tmp_path / "part.mcap", MASK):  # the pictures before the start, which are not looked at, count
        assert mask.data.tobytes() == whole[mask.header.stamp.nanosec]


def test_a_stopped_replay_of_a_video_goes_on(tmp_path, monkeypatch):
    import os
    import signal

    source = video_bag(tmp_path / "in", *VIDEOS[0][:2])
    whole = replay(source, tmp_path / "whole.mcap")
    original, calls = type(recorded.perceiver()).perceive, []

    def perceive(self, frames, wanted=None):
        calls.append(0)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, frames, wanted)

    with monkeypatch.context() as patched:
        patched.setattr(type(recorded.perceiver()), "perceive", perceive)
        assert replay(source, tmp_path / "out.mcap").figures["frames_out"] == 9
    again = replay(source, tmp_path / "out.mcap", resume=True)
    assert again.figures["resumed_at"] == 9 and again.figures["output_sha256"] == whole.figures["output_sha256"]


def test_without_pyav_a_video_is_one_sentence(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "av" else find(name, *a))
    source = video_bag(tmp_path / "in", *VIDEOS[0][:2])
    with pytest.raises(BagError, match="needs PyAV; install it with: pip install av"):
        found(source)


def test_a_damaged_or_foreign_video_is_refused(tmp_path):
    from types import SimpleNamespace

    from dino_perception.messages.video import VideoDecoder

    with pytest.raises(ImageError, match="encoding is 'theora'; accepted are"):
        VideoDecoder().decode(SimpleNamespace(encoding="theora", data=b"x"))
    decoder, made = VideoDecoder(), video("libx264", 4)
    with pytest.raises(ImageError, match="no key frame came before it|cannot be decoded"):
        decoder.decode(SimpleNamespace(format="h264", data=made[1][0]))
    assert decoder.decode(SimpleNamespace(format="h264", data=made[0][0])).shape == (96, 128, 3)
    with pytest.raises(ImageError):
        decoder.decode(SimpleNamespace(format="h264", data=b"nonsense"))
    with pytest.raises(ImageError, match="max_megapixels"):
        VideoDecoder(0.001).decode(SimpleNamespace(format="h264", data=made[0][0]))


# MCAP with other encodings, written by MCAP's own library.


def mcap_file(path, topics):
    """`topics`: (name, schema or None = (name, encoding, bytes), encoding of messages, metadata, [bytes])."""
    with open(path, "wb") as file:
        writer = Writer(file)
        writer.start("", "a test")
        channels = []
        for name, schema, coding, notes, _ in topics:
            number = writer.register_schema(schema[0], schema[1], schema[2]) if schema else 0
            channels.append(writer.register_channel(name, coding, number, notes))
        for step in range(max(len(entry[4]) for entry in topics)):
            for channel, entry in zip(channels, topics):
                if step < len(entry[4]):
                    writer.add_message(channel, START + step * PERIOD, entry[4][step], START + step * PERIOD)
        writer.finish()
    return path


def test_a_schema_name_without_msg_is_the_same_type(tmp_path):
    text = STORE.generate_msgdef("sensor_msgs/msg/Image", ros_version=2)[0].encode()
    frames = [bytes(STORE.serialize_cdr(image(START + n, picture(n)), "sensor_msgs/msg/Image")) for n in range(2)]
    source = mcap_file(tmp_path / "in.mcap", [("/a", ("sensor_msgs/Image", "ros2msg", text), "cdr", {}, frames)])
    assert found(source) == ["/a"]
    assert replay(source, tmp_path / "out.mcap").figures["frames_out"] == 2


def ros1_topics(count):
    store = get_typestore(Stores.ROS1_NOETIC)
    kinds = {"/cam/image_raw": "sensor_msgs/msg/Image", "/cam/camera_info": "sensor_msgs/msg/CameraInfo"}
    kinds["/notes"] = "std_msgs/msg/String"
    made = {name: [] for name in kinds}
    for number in range(count):
        stamp = store.types["builtin_interfaces/msg/Time"](START // 10**9, number * PERIOD)
        head = store.types["std_msgs/msg/Header"](number, stamp, "camera_optical")
        pixels = picture(number)
        shape = (recorded.HEIGHT, recorded.WIDTH)
        k = np.array([100.0, 0, 64, 0, 100, 48, 0, 0, 1])
        roi = store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        values = {
            "/cam/image_raw": (head, *shape, "rgb8", 0, 3 * recorded.WIDTH, pixels.reshape(-1)),
            "/cam/camera_info": (
                head,
                *shape,
                "plumb_bob",
                np.zeros(5),
                k,
                np.eye(3).reshape(-1),
                np.zeros(12),
                0,
                0,
                roi,
            ),
            "/notes": (f"note {number}",),
        }
        for name, fields in values.items():
            made[name].append(bytes(store.serialize_ros1(store.types[kinds[name]](*fields), kinds[name])))
    for name, kind in kinds.items():
        text = store.generate_msgdef(kind, ros_version=1)[0].encode()
        notes = {"md5sum": "x", "latching": "1" if name == "/notes" else "0"}
        yield name, (kind.replace("/msg/", "/"), "ros1msg", text), "ros1", notes, made[name]


def test_ros1_messages_in_mcap_are_read_like_a_ros1_bag(tmp_path):
    source = mcap_file(tmp_path / "in.mcap", list(ros1_topics(3)))
    with BagReader(source) as bag:
        assert bag.problems == [] and {t.type for t in bag.topics.values()} == {
            "sensor_msgs/msg/Image",
            "sensor_msgs/msg/CameraInfo",
            "std_msgs/msg/String",
        }
        assert bag.topics["/notes"].latched
    result = replay(source, tmp_path / "out.mcap")
    assert result.code == 0 and percepts(tmp_path / "out.mcap")[0] == 0 and result.figures["frames_out"] == 3
    assert [m.data for m in decoded(tmp_path / "out.mcap", "/notes")] == ["note 0", "note 1", "note 2"]
    np.testing.assert_array_equal(decoded(tmp_path / "out.mcap", "/cam/camera_info")[1].k[:3], [100, 0, 64])
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(source.read_bytes()[:-400])
    with BagReader(cut) as bag:
        assert [problem.kind for problem in bag.problems] == ["truncated"] and bag.message_count


def foxglove_topics(count, coding):
    """A camera and its calibration as Foxglove's own protobuf classes write them, or as JSON."""
    from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
    from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    def definition(kind):
        files, todo, done = FileDescriptorSet(), [kind.DESCRIPTOR.file], set()
        while todo:
            file = todo.pop()
            if file.name not in done:
                done.add(file.name)
                file.CopyToProto(files.file.add())
                todo += file.dependencies
        return files.SerializeToString()

    def stamped(made, number):
        made.timestamp.seconds, made.timestamp.nanos = START // 10**9, number * PERIOD
        made.frame_id = "camera_optical"
        return made

    sent = {"/CAM/image": [], "/CAM/camera_info": [], "/RAW/image": []}
    for number in range(count):
        sent["/CAM/image"].append(
            stamped(CompressedImage(format="jpeg", data=encoded(".jpg", picture(number)[..., ::-1])), number)
        )
        calibration = CameraCalibration(width=recorded.WIDTH, height=recorded.HEIGHT, distortion_model="plumb_bob")
        calibration.D.extend([0.0] * 5)
        calibration.K.extend([100, 0, 64, 0, 100, 48, 0, 0, 1])
        calibration.R.extend(np.eye(3).reshape(-1))
        calibration.P.extend([0] * 12)
        sent["/CAM/camera_info"].append(stamped(calibration, number))
        raw = RawImage(width=recorded.WIDTH, height=recorded.HEIGHT, encoding="rgb8", step=3 * recorded.WIDTH)
        raw.data = picture(number).tobytes()
        sent["/RAW/image"].append(stamped(raw, number))
    for name, messages in sent.items():
        kind = messages[0].DESCRIPTOR.full_name
        if coding == "protobuf":
            yield (
                name,
                (kind, coding, definition(type(messages[0]))),
                coding,
                {},
                [m.SerializeToString() for m in messages],
            )
        else:
            yield name, (kind, "jsonschema", b'{"type": "object"}'), coding, {}, [as_json(m) for m in messages]


def as_json(made):
    fields = {}
    for field in made.DESCRIPTOR.fields:
        value = getattr(made, field.name)
        if field.name == "timestamp":
            value = {"sec": value.seconds, "nsec": value.nanos}
        elif isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        elif not isinstance(value, (str, int, float)):
            value = list(value)
        fields[field.name] = value
    return json.dumps(fields).encode()


def copied_to_mcap(source, target):
    writer = BagWriter(target)
    with BagReader(source) as bag:
        for entry in bag.messages():
            writer.write([entry])
    writer.close()
    return writer


@pytest.mark.parametrize("coding", ["protobuf", "json"])
def test_foxgloves_pictures_are_looked_at_and_everything_is_kept_as_it_is(tmp_path, coding):
    others = [
        (
            "/lidar",
            ("foxglove.PointCloud", coding, b"\x0a\xff\x00"),
            coding,
            {},
            [bytes([n, 255, 0]) for n in range(5)],
        ),
        ("/bare", None, "cbor", {}, [b"\xa1", b"\xa2"]),
    ]
    topics = [*foxglove_topics(3, coding), *others]
    source = mcap_file(tmp_path / "in.mcap", topics)
    result = replay(source, tmp_path / "out.mcap", cameras=("cam=/CAM/image", "raw=/RAW/image"))
    assert result.code == 0 and result.figures["frames_out"] == 6
    assert result.figures["cameras"][0]["info"] == "/CAM/camera_info"
    with open(tmp_path / "out.mcap", "rb") as file:
        kept = {name: [] for name, *_ in topics}
        for schema, channel, entry in make_reader(file, validate_crcs=True).iter_messages():
            if channel.topic in kept:
                kept[channel.topic].append((schema, channel.message_encoding, entry.data))
    for name, schema, encoding, _, sent in topics:
        assert [data for _, _, data in kept[name]] == sent
        assert {coded for _, coded, _ in kept[name]} == {encoding}
        there = kept[name][0][0]
        assert (there is None) == (schema is None)
        assert schema is None or (there.name, there.encoding, there.data) == schema
    # The same pictures through ROS messages give the same masks.
    plain = record(
        tmp_path / "plain", [("/a", START + n * PERIOD, image(START + n * PERIOD, picture(n))) for n in range(3)]
    )
    replay(plain, tmp_path / "plain.mcap", outputs=("segmentation/mask",))
    masks = [m.data.tobytes() for m in decoded(tmp_path / "plain.mcap", MASK)]
    with BagReader(tmp_path / "out.mcap") as bag:
        name = "/dino_perception/raw/segmentation/mask"
        assert [bag.decode(entry).data.tobytes() for entry in bag.messages([name])] == masks
    assert found(source) == ["/CAM/image"]  # the one with a calibration
    compared = compare(tmp_path / "out.mcap", source, {})
    assert all(r.passes for r in compared if r.topic in kept)
    assert replay(source, tmp_path / "out.db3", cameras=("cam=/CAM/image",)).code == 0
    with BagReader(tmp_path / "out.db3") as bag:
        for name, schema, encoding, _, sent in topics:
            assert [bytes(entry.data) for entry in bag.messages([name])] == sent
            assert (bag.topics[name].coding, bag.topics[name].type) == (encoding, schema[0] if schema else "")
    again = copied_to_mcap(tmp_path / "out.db3", tmp_path / "again.mcap")
    with BagReader(tmp_path / "out.db3") as bag:
        assert again.count == bag.message_count


def test_other_encodings_alone_are_named(tmp_path):
    source = mcap_file(
        tmp_path / "in.mcap",
        [("/a", ("drake.Image", "protobuf", b""), "protobuf", {}, [b"1"]), ("/b", None, "json", {}, [b"{}"])],
    )
    with pytest.raises(
        BagError, match="no camera images; its topics are /a \\(drake.Image as protobuf, 1\\), /b"
    ) as caught:
        found(source)
    assert caught.value.code == NO_IMAGES


def test_damaged_foxglove_messages_cost_a_picture_and_no_more(tmp_path):
    for coding in ("protobuf", "json"):
        topics = list(foxglove_topics(6, coding))
        sent = topics[0][4]
        rng = np.random.default_rng(1)
        for number in range(1, 5):
            broken = bytearray(sent[number])
            broken[: 12 * number] = rng.integers(0, 256, 12 * number, np.uint8).tobytes()
            sent[number] = bytes(broken)
        source = mcap_file(tmp_path / f"{coding}.mcap", topics[:1])
        result = replay(source, tmp_path / f"{coding}_out.mcap")
        assert result.code in (0, 12) and result.figures["frames_out"] >= 2 and result.figures["stopped"] is None


# Depth for training.


def rvl(depth):
    """Wilson's encoder (2017, figure 3), bit by bit, as the paper writes it down."""
    nibbles = []

    def number(value):
        while True:
            three, value = value & 7, value >> 3
            nibbles.append(three | (8 if value else 0))
            if not value:
                return

    flat, at, last = [int(v) for v in depth.reshape(-1)], 0, 0
    while at < len(flat):
        zeros = 0
        while at + zeros < len(flat) and flat[at + zeros] == 0:
            zeros += 1
        at += zeros
        some = 0
        while at + some < len(flat) and flat[at + some] != 0:
            some += 1
        number(zeros), number(some)
        for value in flat[at : at + some]:
            delta, last = value - last, value
            number((delta << 1) ^ (delta >> 31))
        at += some
    nibbles += [0] * (-len(nibbles) % 8)
    words = [int("".join(f"{n:x}" for n in nibbles[i : i + 8]), 16) for i in range(0, len(nibbles), 8)]
    return struct.pack(f"<ii{len(words)}I", depth.shape[1], depth.shape[0], *words)


def depth_pictures():
    rng = np.random.default_rng(3)
    smooth = (2000 + 40 * np.arange(24)[:, None] + np.arange(32)[None] * 3).astype(np.uint16)
    holes = np.where(rng.random((24, 32)) < 0.3, 0, smooth).astype(np.uint16)
    noise = rng.integers(0, 65536, (24, 32)).astype(np.uint16)
    return [smooth, holes, noise, np.zeros((24, 32), np.uint16), np.full((1, 1), 65535, np.uint16)]


@pytest.mark.parametrize("how", ["png", "rvl"])
def test_compressed_depth_is_what_was_measured(how):
    from dino_perception.messages.compressed_depth import decode_compressed_depth

    for depth in depth_pictures():
        data = struct.pack("<iff", 0, 0, 0) + (rvl(depth) if how == "rvl" else encoded(".png", depth))
        metres = decode_compressed_depth(compressed(0, f"16UC1; compressedDepth {how}", data))
        np.testing.assert_allclose(metres, depth / 1000, rtol=1e-6)
        assert metres.dtype == np.float32
    steps = depth_pictures()[0]
    a, b = 100.0, 2.5
    data = struct.pack("<iff", 0, a, b) + (rvl(steps) if how == "rvl" else encoded(".png", steps))
    metres = decode_compressed_depth(compressed(0, f"32FC1; compressedDepth {how}", data))
    np.testing.assert_allclose(metres, a / (steps.astype(float) - b), rtol=1e-5)


def test_a_damaged_rvl_is_refused():
    from dino_perception.messages.compressed_depth import decode_compressed_depth

    good = struct.pack("<iff", 0, 0, 0) + rvl(depth_pictures()[1])
    form, rng = "16UC1; compressedDepth rvl", np.random.default_rng(5)
    for cut in (0, 5, 12, 16, 20, 60, len(good) // 2, len(good) - 8):
        with pytest.raises(ImageError):
            decode_compressed_depth(compressed(0, form, good[:cut]))
    for _ in range(300):
        broken = bytearray(good)
        broken[rng.integers(12, len(good))] ^= int(rng.integers(1, 256))
        try:
            decode_compressed_depth(compressed(0, form, broken))
        except ImageError:
            pass
    with pytest.raises(ImageError, match="max_megapixels"):
        decode_compressed_depth(compressed(0, form, good[:12] + struct.pack("<ii", 30000, 30000) + bytes(64)))


@pytest.mark.parametrize("how", ["png", "rvl"])
def test_train_depth_takes_compressed_depth_as_truth(tmp_path, how):
    from dino_perception.training.datasets.bag import read

    depth = depth_pictures()[1]
    data = struct.pack("<iff", 0, 0, 0) + (rvl(depth) if how == "rvl" else encoded(".png", depth))
    messages = []
    for number in range(2):
        stamp = START + number * PERIOD
        messages.append(("/cam/image_raw", stamp, image(stamp, picture(number))))
        messages.append(
            ("/depth/image_raw/compressedDepth", stamp, compressed(number, f"16UC1; compressedDepth {how}", data))
        )
    dataset = read(record(tmp_path / "in", messages))
    assert len(dataset.samples) == 2
    np.testing.assert_allclose(np.nan_to_num(dataset.samples[1].read_depth()), depth / 1000, rtol=1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="the recordings of others are not part of the repository")
@pytest.mark.parametrize(
    "name, count",
    [("made_cmp32", 3), ("made_cmp34", 3), ("made_raw11", 3), ("short_type_name.mcap", 2)],
)
def test_recordings_of_others_with_pictures(tmp_path, name, count):
    result = replay(REAL / name, tmp_path / "out.mcap")
    assert result.code == 0 and result.figures["frames_out"] == count and result.figures["stopped"] is None


@pytest.mark.skipif(not REAL.is_dir(), reason="the recordings of others are not part of the repository")
@pytest.mark.parametrize(
    "name", ["ros1_bz2.bag", "ros1_lz4.bag", "ros1_no_messages.bag", "service_events.mcap", "wrong_rmw.mcap"]
)
def test_recordings_of_others_without(tmp_path, name):
    with pytest.raises(BagError, match="holds no camera images; its topics are|holds no message$") as caught:
        replay(REAL / name, tmp_path / "out.mcap")
    assert "no index" not in str(caught.value) and not io.StringIO(str(caught.value)).readlines()[1:]
