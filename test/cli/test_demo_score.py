"""The demo's measures on messages whose scores are known without measuring."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")

from dino_perception.measuring.demo_run import NODE, Run, output_topics  # noqa: E402
from dino_perception.measuring.demo_score import latencies, rate, resampled, score, size_mismatches, stamp_mismatches  # noqa: E402
from dino_perception.messages.percepts import label_info  # noqa: E402
from dino_perception.messages.types import RosbagsTypes  # noqa: E402
from dino_perception.models.label_sets import GROUP_LABELS, LABEL_SETS, LABELS  # noqa: E402
from dino_perception.perception.frame import CameraModel  # noqa: E402
from dino_perception.ros.rig.watcher import Heard  # noqa: E402
from dino_perception.training.datasets.base import Dataset, Sample  # noqa: E402

TYPES = RosbagsTypes()
STAMPS = [1_000_000_000 + 100_000_000 * i for i in range(3)]
SENT = 5_000_000_000
"""Where the system clock is ahead of the stamps."""
IMAGES = {stamp: "camera_optical" for stamp in STAMPS}
H, W = 12, 16
CAMERA = CameraModel(4 * W, 4 * H, np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]]))


def heard(name: str, stamp: int, after_ms: float, frame_id: str = "camera_optical", **fields) -> Heard:
    kind = output_topics()[f"{NODE}/{name}"]
    message = TYPES.make(kind, header=TYPES.header(stamp, frame_id), **fields)
    return Heard(f"{NODE}/{name}", kind, SENT + stamp + int(after_ms * 1e6), bytes(TYPES.serialize(message)))


def image(pixels: np.ndarray) -> dict:
    height, width = pixels.shape
    return dict(
        height=height, width=width, step=pixels.nbytes // height, encoding="any", data=pixels.reshape(-1).view(np.uint8)
    )


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Left half class 0, right half class 1, everywhere at 4 m."""
    classes = np.zeros((H, W), np.uint8)
    classes[:, W // 2 :] = 1
    return classes, np.full((H, W), 4.0, np.float32)


def data() -> Dataset:
    """The camera moves 0.4 m to the right a frame, over ground 4 m away: everything moves 4 px to the left."""
    classes, metres = truth()
    found = []
    for i, stamp in enumerate(STAMPS):
        pose = np.eye(4)
        pose[0, 3] = 0.4 * i
        found.append(
            Sample(str(i), "drive", str(i), lambda: None, lambda: classes, lambda: metres, CAMERA, pose, stamp)
        )
    return Dataset("the drive", tuple(found), LABELS[:2])


def run(**changes) -> Run:
    """Three frames, all right, published 30, 40 and 50 ms after the image; `changes` by topic replace messages."""
    classes, metres = truth()
    topics: dict[str, list[Heard]] = {topic: [] for topic in output_topics()}
    for i, stamp in enumerate(STAMPS):
        after = 30 + 10 * i
        made = {
            "segmentation/mask": image(classes),
            "segmentation/confidence": image(classes),
            "depth/image": image(metres),
            "depth/camera_info": dict(height=H, width=W, d=np.zeros(0), k=np.zeros(9), r=np.zeros(9), p=np.zeros(12)),
            "points": dict(height=H, width=W, point_step=4, row_step=4 * W, data=np.zeros(4 * H * W, np.uint8)),
        }
        for name, fields in made.items():
            topics[f"{NODE}/{name}"].append(heard(name, stamp, after if name == "points" else after - 5, **fields))
        if i:
            x = np.array([20.0, 30.0, 40.0, 50.0], np.float32)
            y = np.full(4, 20.0, np.float32)
            moved = x - 4 + np.array([0.0, 3.9, 4.1, 50.0], np.float32)
            topics[f"{NODE}/correspondences"].append(
                heard(
                    "correspondences",
                    stamp,
                    after - 1,
                    reference_header=TYPES.header(STAMPS[i - 1], "camera_optical"),
                    width=64,
                    height=48,
                    track_id=np.arange(4, dtype=np.uint64),
                    x=moved,
                    y=y,
                    reference_x=x,
                    reference_y=y,
                    score=np.ones(4, np.float32),
                )
            )
    for name, messages in changes.items():
        topics[f"{NODE}/{name.replace('__', '/')}"] = messages
    status = {"dino_perception: perception": ("", {"engine": "torch", "trained": "no"})}
    return Run({"/image": 3}, topics, {stamp: SENT + stamp for stamp in STAMPS}, status)


def test_a_right_run_has_the_scores_it_was_made_with():
    found = score(run(), "/image", IMAGES, data(), TYPES).report
    assert (found["miou"], found["abs_rel"]) == (1.0, 0.0)
    assert found["pck4"] == 0.5  # 0 and 3.9 px off are within 4 px, 4.1 and 50 are not
    assert (found["frames_in"], found["frames_out"], found["stamp_mismatches"], found["size_mismatches"]) == (
        3,
        3,
        0,
        0,
    )
    assert (found["engine"], found["weights_trained"]) == ("torch", False)


def test_the_report_has_the_keys_that_others_read():
    found = score(run(), "/image", IMAGES, data(), TYPES).report
    assert list(found) == [
        "topics",
        "frames_in",
        "frames_out",
        "stamp_mismatches",
        "size_mismatches",
        "latency_ms",
        "miou",
        "abs_rel",
        "pck4",
        "engine",
        "weights_trained",
        "notes",
    ]
    assert set(found["topics"]) == set(output_topics()) and set(found["latency_ms"]) == {"p50", "p95", "p99"}
    assert found["topics"][f"{NODE}/segmentation/mask"]["count"] == 3


def test_half_the_ground_in_the_wrong_class_and_depth_10_percent_long():
    classes, metres = truth()
    masks = [heard("segmentation/mask", stamp, 25, **image(np.zeros_like(classes))) for stamp in STAMPS]
    depths = [heard("depth/image", stamp, 25, **image(metres * np.float32(1.1))) for stamp in STAMPS]
    found = score(run(segmentation__mask=masks, depth__image=depths), "/image", IMAGES, data(), TYPES).report
    assert found["miou"] == 0.25  # class 0: 1/2, class 1: 0
    assert found["abs_rel"] == pytest.approx(0.1, abs=1e-4)


def named(labels) -> list[Heard]:
    """The node's latched names of the masks' classes."""
    kind = output_topics()[f"{NODE}/segmentation/label_info"]
    return [Heard("", kind, SENT, bytes(TYPES.serialize(label_info(TYPES, labels))))]


def test_masks_of_groups_are_judged_by_the_group_of_each_true_class():
    """Soil and bedrock are both traversable: half of them as an obstacle is half wrong."""
    classes, _ = truth()
    masks = [heard("segmentation/mask", stamp, 25, **image(1 + classes)) for stamp in STAMPS]
    found = score(
        run(segmentation__mask=masks, segmentation__label_info=named(GROUP_LABELS)), "/image", IMAGES, data(), TYPES
    )
    assert (found.report["miou"], found.labels) == (0.5, GROUP_LABELS)


def test_masks_of_classes_that_the_truth_does_not_know_are_not_judged_and_a_note_says_so():
    found = score(run(segmentation__label_info=named(LABEL_SETS["ade20k"])), "/image", IMAGES, data(), TYPES)
    note = found.report["notes"][0]
    assert found.report["miou"] is None and not found.problems[len(run().heard) :]
    assert note.startswith("the masks are not judged: ") and "have no name in common" in note
    assert found.labels == LABEL_SETS["ade20k"]


def test_what_was_not_offered_is_no_problem_and_what_was_offered_and_never_came_is():
    """A DPT head gives no depth confidence; a node may run without segmentation at all."""
    whole = run()
    silent = {f"{NODE}/depth/confidence", f"{NODE}/segmentation/mask", f"{NODE}/segmentation/confidence"}
    less = dataclasses.replace(
        whole,
        heard={topic: heard for topic, heard in whole.heard.items() if topic not in silent},
        status={**whole.status, "dino_perception: camera": ("", {"ground": "not seen"})},
    )
    found = score(less, "/image", IMAGES, data(), TYPES)
    assert (found.report["frames_out"], found.report["miou"], found.report["stamp_mismatches"]) == (3, None, 0)
    assert not any(topic in problem for topic in silent for problem in found.problems)
    assert f"nothing came on {NODE}/segmentation/overlay" in found.problems
    assert any(note.startswith(f"nothing came on {NODE}/obstacles: no ground") for note in found.report["notes"])
    assert f"nothing came on {NODE}/obstacles" in score(whole, "/image", IMAGES, data(), TYPES).problems


def test_latency_is_from_the_image_to_the_last_of_its_outputs():
    assert sorted(latencies(run())) == pytest.approx([30, 40, 50])


def test_rate_counts_intervals_not_messages():
    assert rate(run().heard[f"{NODE}/points"]) == pytest.approx(2 / 0.22, abs=1e-3)  # 3 messages over 0.2 s + 20 ms
    assert rate([]) == 0


def test_a_stamp_that_no_image_has_is_found():
    foreign = [
        heard(
            "correspondences",
            STAMPS[0] + 1,
            10,
            reference_header=TYPES.header(STAMPS[0], ""),
            track_id=np.zeros(0, np.uint64),
            **{name: np.zeros(0, np.float32) for name in ("x", "y", "reference_x", "reference_y", "score")},
        )
    ]
    assert stamp_mismatches(run(correspondences=foreign), IMAGES) == 1


def test_a_frame_id_that_is_not_the_images_is_found():
    classes, _ = truth()
    masks = [heard("segmentation/mask", stamp, 25, frame_id="map", **image(classes)) for stamp in STAMPS]
    assert stamp_mismatches(run(segmentation__mask=masks), IMAGES) == 3


def test_a_frame_without_its_cloud_is_found():
    right = run()
    assert (
        stamp_mismatches(run(points=right.heard[f"{NODE}/points"][:2]), IMAGES) == 4
    )  # its mask, confidence, depth and camera_info


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("segmentation/mask", np.zeros((H, W + 1), np.uint8)),
        ("segmentation/confidence", np.zeros((H - 1, W), np.uint8)),
        ("depth/image", np.zeros((H, 2 * W), np.float32)),
    ],
)
def test_one_message_of_another_size_is_found(name, wrong):
    messages = run().heard[f"{NODE}/{name}"]
    changed = [*messages[:2], heard(name, STAMPS[2], 25, **image(wrong))]
    assert size_mismatches(run(), TYPES) == 0
    assert size_mismatches(run(**{name.replace("/", "__"): changed}), TYPES) == 1


def test_padded_rows_are_found():
    messages = run().heard[f"{NODE}/segmentation/mask"]
    padded = dict(height=H, width=W, step=W + 2, data=np.zeros(H * (W + 2), np.uint8))
    assert (
        size_mismatches(
            run(segmentation__mask=[*messages[:2], heard("segmentation/mask", STAMPS[2], 25, **padded)]), TYPES
        )
        == 1
    )


def test_a_missing_topic_is_a_problem_with_its_name():
    found = score(run(segmentation__overlay=[]), "/image", IMAGES, data(), TYPES)
    assert f"nothing came on {NODE}/segmentation/overlay" in found.problems


def test_truth_is_resampled_at_pixel_centres():
    assert resampled(np.arange(8).reshape(1, 8), (1, 4)).tolist() == [[1, 3, 5, 7]]
    assert resampled(np.arange(3).reshape(1, 3), (1, 6)).tolist() == [[0, 0, 1, 1, 2, 2]]
