"""A replay keeps the input, adds what the live node would publish, and is the same every time."""

import itertools

import numpy as np
import pytest
import recorded
from recorded import PERIOD, SETTINGS, START, contents, decoded, drive, record, replay
from rosbags.rosbag2 import StoragePlugin

from dino_perception.bags.storage.problems import NO_IMAGES, UNWRITABLE, USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.perception.frame import Frame

NODE = "/dino_perception/"
FRAMEWISE = [
    "segmentation/mask",
    "segmentation/confidence",
    "depth/image",
    "depth/confidence",
    "depth/camera_info",
    "points",
    "correspondences",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(input, output, result) of a plain replay of 12 frames."""
    folder = tmp_path_factory.mktemp("plain")
    source = record(folder / "in", drive())
    return source, folder / "out.mcap", replay(source, folder / "out.mcap")


def test_every_frame_has_every_output_with_its_stamp_and_its_time(plain):
    _, output, result = plain
    assert (result.code, result.figures["frames_in"], result.figures["frames_out"], result.figures["stopped"]) == (
        0,
        12,
        12,
        None,
    )
    stamps = [START + n * PERIOD for n in range(12)]
    times = {}
    for topic, time, _ in contents(output):
        times.setdefault(topic, []).append(time)
    for name in FRAMEWISE:
        messages = decoded(output, NODE + name)
        assert [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in messages] == stamps, name
        assert {m.header.frame_id for m in messages} == {"camera_optical"}
        assert times[NODE + name] == [stamp + 5_000_000 for stamp in stamps]


def test_frames_of_one_stamp_have_one_size_and_labels_come_first(plain):
    _, output, _ = plain
    sizes = {(m.height, m.width) for name in FRAMEWISE[:5] for m in decoded(output, NODE + name)}
    assert len(sizes) == 1
    (info,) = decoded(output, NODE + "segmentation/label_info")
    known = {c.class_id for c in info.class_map} | {255}
    assert all(set(np.unique(m.data)) <= known for m in decoded(output, NODE + "segmentation/mask"))
    own = [topic for topic, _, _ in contents(output) if topic.startswith(NODE)]
    assert own.count(NODE + "segmentation/label_info") == 1 and NODE + "segmentation/label_info" in own[:7]


def test_the_input_is_kept_byte_for_byte(plain):
    source, output, _ = plain
    kept = [entry for entry in contents(output) if not entry[0].startswith(NODE)]
    assert kept == contents(source)


def test_the_percepts_are_the_perceivers(plain):
    """Frame by frame the same arrays as asking the perceiver directly."""
    _, output, _ = plain
    perceiver = recorded.perceiver()
    perceiver.reset_tracks()
    masks, depths = (decoded(output, NODE + name) for name in ("segmentation/mask", "depth/image"))
    for number in (0, 5, 11):
        percept = perceiver.perceive(
            [Frame("camera", START + number * PERIOD, "camera_optical", recorded.picture(number))]
        )[0]
        np.testing.assert_array_equal(
            masks[number].data.reshape(percept.segmentation.mask.shape), percept.segmentation.mask
        )
        np.testing.assert_array_equal(depths[number].data.view(np.float32), percept.depth.metres.reshape(-1))


def test_two_replays_are_the_same_file(plain, tmp_path):
    source, output, result = plain
    again = replay(source, tmp_path / "again.mcap")
    assert again.figures["output_sha256"] == result.figures["output_sha256"]
    assert (tmp_path / "again.mcap").read_bytes() == output.read_bytes()


@pytest.mark.parametrize("name", ["out.db3", "out"])
def test_other_storages_hold_the_same_messages(plain, tmp_path, name):
    source, output, result = plain
    other = replay(source, tmp_path / name)
    assert contents(tmp_path / name) == contents(output)
    assert other.figures["output_sha256"] == result.figures["output_sha256"]


def test_sqlite_input_and_jpeg_images(tmp_path):
    source = record(tmp_path / "in", drive(4, compressed=True), StoragePlugin.SQLITE3)
    result = replay(source, tmp_path / "out.mcap")
    assert (result.code, result.figures["frames_out"]) == (0, 4)
    assert result.figures["cameras"][0]["image"] == "/camera/image_raw/compressed"


def test_of_a_raw_and_a_compressed_topic_of_one_image_the_raw_one_is_taken(tmp_path):
    messages = sorted([*drive(3), *drive(3, compressed=True)], key=lambda entry: entry[1])
    source = record(tmp_path / "in", messages)
    result = replay(source, tmp_path / "out.mcap")
    assert [c["image"] for c in result.figures["cameras"]] == ["/camera/image_raw"]


def test_several_cameras_have_topics_of_their_own(tmp_path):
    source = record(tmp_path / "in", drive(4, cameras=("/front", "/rear")))
    result = replay(source, tmp_path / "out.mcap")
    assert [c["name"] for c in result.figures["cameras"]] == ["front", "rear"] and result.figures["frames_out"] == 8
    for number, camera in enumerate(("front", "rear")):
        masks = decoded(tmp_path / "out.mcap", f"{NODE}{camera}/segmentation/mask")
        assert [m.header.stamp.nanosec % PERIOD for m in masks] == [number * 7_000_000] * 4
        assert len(decoded(tmp_path / "out.mcap", f"{NODE}{camera}/segmentation/label_info")) == 1


def test_one_named_camera_of_several(tmp_path):
    source = record(tmp_path / "in", drive(3, cameras=("/front", "/rear")))
    result = replay(source, tmp_path / "out.mcap", cameras=("/rear/image_raw",))
    assert result.figures["cameras"] == [
        {"name": "camera", "image": "/rear/image_raw", "info": "/rear/camera_info", "compressed": False}
    ]
    assert len(decoded(tmp_path / "out.mcap", NODE + "segmentation/mask")) == 3
    replay(
        source, tmp_path / "named.mcap", cameras=("left=/rear/image_raw", "right=/front/image_raw,/rear/camera_info")
    )
    assert len(decoded(tmp_path / "named.mcap", NODE + "left/segmentation/mask")) == 3


def test_a_part_of_the_bag_and_every_second_image(tmp_path):
    source = record(tmp_path / "in", drive(12))
    result = replay(source, tmp_path / "out.mcap", start=0.25, duration=0.6, every=2)
    stamps = [(m.header.stamp.nanosec // PERIOD) for m in decoded(tmp_path / "out.mcap", NODE + "segmentation/mask")]
    assert stamps == [3, 5, 7] and result.figures["frames_in"] == 3
    first = decoded(source, "/camera/camera_info")[0]
    begin = first.header.stamp.sec * 10**9 + first.header.stamp.nanosec + 4_000_000
    assert all(begin + 250_000_000 <= time < begin + 850_000_000 for _, time, _ in contents(tmp_path / "out.mcap"))


def test_what_a_latched_topic_said_before_the_start_is_not_lost(tmp_path):
    from recorded import text

    early = [
        ("/tf_static", START + 1, text("base to camera")),
        ("/tf_static", START + 2, text("base to wheel")),
        ("/map", START + 3, text("old")),
        ("/map", START + 4, text("new")),
        ("/notes", START + 5, text("passing")),
    ]
    source = record(tmp_path / "in", [*early, *drive(6)], latched=("/map",))
    replay(source, tmp_path / "out.mcap", start=0.3)
    said = {
        topic: [m.data for m in decoded(tmp_path / "out.mcap", topic)] for topic in ("/tf_static", "/map", "/notes")
    }
    assert said == {"/tf_static": ["base to camera", "base to wheel"], "/map": ["new"], "/notes": ["note 4"]}


def test_what_is_copied_and_written_can_be_chosen(tmp_path):
    source = record(tmp_path / "in", drive(3))
    replay(source, tmp_path / "out.mcap", copy=("none",), outputs=("depth/image",))
    assert {topic for topic, _, _ in contents(tmp_path / "out.mcap")} == {NODE + "depth/image"}
    replay(source, tmp_path / "some.mcap", copy=("/notes",), outputs=("segmentation/mask",), overlays=True)
    assert {topic for topic, _, _ in contents(tmp_path / "some.mcap")} == {
        "/notes",
        *(
            NODE + name
            for name in ("segmentation/mask", "segmentation/overlay", "depth/overlay", "correspondences/overlay")
        ),
    }
    (overlay, *_) = decoded(tmp_path / "some.mcap", NODE + "segmentation/overlay")
    assert overlay.encoding == "rgb8"


def test_outputs_of_an_earlier_run_are_replaced_not_doubled(plain, tmp_path):
    source, output, result = plain
    again = replay(output, tmp_path / "again.mcap")
    assert again.figures["topics"] == result.figures["topics"] and contents(tmp_path / "again.mcap") == contents(output)


def test_an_image_before_the_first_camera_info_has_points_too(tmp_path):
    messages = list(drive(3))
    late = [entry for entry in messages if not entry[0].endswith("camera_info")]
    info = next(entry for entry in messages if entry[0].endswith("camera_info"))
    source = record(tmp_path / "in", [*late, (info[0], late[-1][1] + 1, info[2])])
    replay(source, tmp_path / "out.mcap")
    assert len(decoded(tmp_path / "out.mcap", NODE + "points")) == 3


def test_without_a_camera_info_everything_but_points_is_there(tmp_path):
    source = record(tmp_path / "in", [entry for entry in drive(3) if not entry[0].endswith("camera_info")])
    result = replay(source, tmp_path / "out.mcap")
    assert result.figures["topics"][NODE + "depth/image"] == 3 and NODE + "points" not in result.figures["topics"]


def test_the_calibration_of_the_moment_is_used(tmp_path):
    messages = list(drive(4))
    for index, (topic, time, _) in enumerate(messages):
        if topic.endswith("camera_info") and time > START + 2 * PERIOD:
            messages[index] = (topic, time, recorded.camera_info(time, focal=200.0))
    source = record(tmp_path / "in", messages)
    replay(source, tmp_path / "out.mcap")
    focal = [m.k[0] for m in decoded(tmp_path / "out.mcap", NODE + "depth/camera_info")]
    assert focal[0] == focal[1] and focal[2] == focal[3] == pytest.approx(2 * focal[0])


def test_rates_of_heads_hold_in_bag_time(tmp_path):
    source = record(tmp_path / "in", drive(12))
    settings = SETTINGS.changed({"depth.rate": 5.0, "correspondences.enabled": False})
    from dino_perception.bags.job import Job, run

    result = run(Job(source, tmp_path / "out.mcap", settings), recorded.perceiver)
    stamps = [m.header.stamp.nanosec // PERIOD for m in decoded(tmp_path / "out.mcap", NODE + "depth/image")]
    assert stamps == [0, 2, 4, 6, 8, 0]  # the last one is a second later
    assert (
        result.figures["topics"][NODE + "segmentation/mask"] == 12
        and NODE + "correspondences" not in result.figures["topics"]
    )


@pytest.mark.parametrize(
    "options, code, sentence",
    [
        (
            dict(cameras=("/nowhere",)),
            NO_IMAGES,
            "topic /nowhere is not in the bag.*image topics are /camera/image_raw",
        ),
        (dict(cameras=("/notes",)), NO_IMAGES, "topic /notes is of type std_msgs/msg/String"),
        (dict(cameras=("/camera/image_raw,/notes",)), NO_IMAGES, "/notes is no CameraInfo"),
        (dict(outputs=("segmentation",)), USAGE, "no output segmentation; they are segmentation/mask"),
        (dict(copy=("/nowhere",)), USAGE, "--copy names /nowhere.*its topics are"),
        (dict(start=99.0), USAGE, "--start 99 lies behind the end of in, which is 0.2 s long"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, options, code, sentence):
    source = record(tmp_path / "in", drive(3))
    with pytest.raises(BagError, match=sentence) as caught:
        replay(source, tmp_path / "out.mcap", **options)
    assert caught.value.code == code and not (tmp_path / "out.mcap").exists()


def test_an_existing_output_is_replaced_only_when_asked(tmp_path):
    source = record(tmp_path / "in", drive(2))
    (tmp_path / "out.mcap").write_text("precious")
    with pytest.raises(BagError, match="--force replaces it") as caught:
        replay(source, tmp_path / "out.mcap")
    assert caught.value.code == UNWRITABLE and (tmp_path / "out.mcap").read_text() == "precious"
    assert replay(source, tmp_path / "out.mcap", force=True).code == 0


def test_types_and_offers_are_the_live_nodes(plain):
    """Names, types and QoS of what the node creates; the live node itself is compared in test/ros."""
    from dino_perception.messages.topics import TOPICS

    with BagReader(plain[1]) as bag:
        for name in [*FRAMEWISE, "segmentation/label_info"]:
            topic = bag.topics[NODE + name]
            assert topic.type == TOPICS[name].type and topic.definition and topic.hash.startswith("RIHS01_")
            assert topic.latched == (name == "segmentation/label_info") and "reliable" in topic.qos


def test_the_figures_hold_together(plain):
    figures = plain[2].figures
    assert {
        "frames_in",
        "frames_out",
        "fps",
        "perceiver_fps",
        "throughput_ratio",
        "rss_peak_mb",
        "output_sha256",
        "stopped",
    } <= set(figures)
    assert figures["throughput_ratio"] == pytest.approx(figures["fps"] / figures["perceiver_fps"], rel=1e-3)
    assert figures["rss_peak_mb"] > 50 and len(figures["output_sha256"]) == 64


def test_the_perceiver_alone_is_measured_when_asked(tmp_path):
    result = replay(record(tmp_path / "in", drive(4)), tmp_path / "out.mcap", alone=3)
    assert result.figures["perceiver_measured"] == "alone" and result.figures["perceiver_fps"] > 0


def test_memory_does_not_grow_with_the_bag(tmp_path):
    """Frames wait in queues of bounded size: a slow writer holds the reader back."""
    from dino_perception.bags.replay_threads import BoundedQueue, Closed, started

    queue, errors, put = BoundedQueue(1000), [], []

    def fill():
        for number in itertools.count():
            queue.put(number, 100)
            put.append(number)

    thread = started("fill", fill, errors, lambda: None)
    for expected in range(50):
        assert queue.get() == expected
        assert len(put) <= expected + 12
    queue.close(drop=True)
    thread.join(5)
    with pytest.raises(Closed):
        queue.get()
    assert not errors and not thread.is_alive()
