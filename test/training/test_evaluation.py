"""What is reported is what the node publishes, measured on the truth, in the keys that are promised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import SIZE, striped

from dino_perception.cli.__main__ import main
from dino_perception.models.label_sets import GROUP_LABELS, LABELS, Label
from dino_perception.perception.frame import IGNORE, Percept
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.training.datasets import DataError, Dataset, open_dataset
from dino_perception.training.evaluation import plots, report
from dino_perception.training.evaluation.evaluate import (
    Evaluation,
    covering,
    evaluate,
    label_table,
    pairs_at,
    spread,
)

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
SMALL = dict(input_height=96, input_width=128, output_height=48, output_width=64, engine="torch", threads=1)


@pytest.fixture(scope="module")
def perceiver(tmp_path_factory):
    perceiver = Perceiver(Settings.from_flat(SMALL), cache=tmp_path_factory.mktemp("engines"))
    yield perceiver
    perceiver.close()


@pytest.fixture(scope="module")
def evaluation(perceiver, tmp_path_factory) -> Evaluation:
    if not SAMPLE.exists():
        pytest.skip("the sample drive is not in data/")
    data = open_dataset(SAMPLE, cache=tmp_path_factory.mktemp("cache"))
    return evaluate(perceiver, data, gaps=(1, 10), pairs=2, limit=6)


def test_the_report_has_the_promised_keys_and_is_json(evaluation):
    data = json.loads(json.dumps(report.as_data(evaluation), allow_nan=False))
    assert {"miou", "iou", "ece", "baseline_miou", "pixel_accuracy"} <= data["segmentation"].keys()
    assert set(data["segmentation"]["iou"]) == {"soil", "bedrock", "sand", "big_rock", "sky"}
    assert {"abs_rel", "rmse", "delta1", "delta2", "delta3", "baseline_abs_rel", "aligned"} <= data["depth"].keys()
    assert set(data["correspondences"]) == {"1", "10"}
    for gap in data["correspondences"].values():
        for row in (gap, gap["baseline_orb"], gap["baseline_lk"]):
            assert {"pck1", "pck2", "pck4", "pck8", "pck16", "median_px", "matches"} <= row.keys()
    assert data["frames"] == 6 and data["notes"] == []


def test_the_baselines_are_what_they_are_known_to_reach_on_the_sample_drive(evaluation):
    data = report.as_data(evaluation)
    assert 0.35 < data["segmentation"]["baseline_miou"] < 0.8 and data["segmentation"]["baseline_iou"]["sky"] > 0.9
    assert data["depth"]["baseline_abs_rel"] < 0.25
    assert (
        data["correspondences"]["1"]["baseline_lk"]["pck1"] > 0.9 > data["correspondences"]["1"]["baseline_orb"]["pck1"]
    )


def test_segmentation_and_depth_are_those_of_the_percepts(perceiver, evaluation, tmp_path):
    """The truth is 320x240 and 160x120 here, what is published 64x48: judged at both sizes."""
    data = open_dataset(SAMPLE, cache=tmp_path)
    hits, totals, errors = np.zeros(2), np.zeros(2), []
    for sample in (data.samples[i] for i in (0, 20, 40, 59, 79, 99)):
        percept = perceiver.perceive([sample.frame()])[0]
        truth, mask, metres = sample.read_classes(), percept.segmentation.mask, sample.read_depth()
        large = cv2.resize(mask, truth.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        small = cv2.resize(truth, mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        hits += (small == mask).sum(), (large == truth).sum()
        totals += small.size, truth.size
        metres = cv2.resize(metres, mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        known = metres <= 30
        errors.append(np.mean(np.abs(percept.depth.metres[known] - metres[known]) / metres[known]))
    np.testing.assert_allclose(
        [evaluation.segmentation.accuracy, evaluation.segmentation_full.accuracy], hits / totals, atol=1e-3
    )
    assert evaluation.depth.numbers()["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert report.as_data(evaluation)["segmentation"]["full_size"]["pixel_accuracy"] == pytest.approx(
        hits[1] / totals[1], abs=1e-3
    )


def test_every_plot_is_a_picture(evaluation, tmp_path):
    paths = plots.write(evaluation, tmp_path)
    assert [p.name for p in paths] == [
        "confusion.png",
        "reliability.png",
        "depth_by_range.png",
        "pck.png",
        "gallery_segmentation.png",
        "gallery_depth.png",
    ]
    for path in paths:
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10


def test_tables_show_every_head(evaluation):
    assert [table.title.split()[0] for table in report.tables(report.as_data(evaluation))] == [
        "Segmentation,",
        "Depth",
        "Depth",
        "Matches:",
    ]


def test_data_without_poses_or_depth_says_so(perceiver, labelled, tmp_path):
    for path in (labelled / "depth").iterdir():
        path.unlink()
    (labelled / "labels.yaml").write_text("labels: [{name: sky}, {name: lawn}]\n")
    result = evaluate(perceiver, open_dataset(labelled, cache=tmp_path))
    data = report.as_data(result)
    assert "depth" not in data and "correspondences" not in data
    assert sorted(note.split(" has ")[-1] for note in data["notes"] if " has " in note) == [
        "no poses with depth and camera model, so matches cannot be judged",
        "no truth for depth",
    ]
    assert any("pixels of lawn are not judged" in note for note in data["notes"])
    assert [name for name, value in data["segmentation"]["iou"].items() if value is not None] == ["sky"]
    sky = sum(int((striped(i)[1] == 0).sum()) for i in range(10))
    assert result.segmentation.confusion.sum(axis=1).tolist() == [0, 0, 0, 0, sky]  # id 0 here, 4 of the head


def test_classes_are_matched_by_name(labelled, tmp_path):
    data = open_dataset(labelled, cache=tmp_path)
    labels = (Label(0, "ground", (0, 0, 0)), Label(1, "tree", (0, 0, 0)), Label(2, "sky", (0, 0, 0)))
    notes: list[str] = []
    table, judged = label_table(data, labels, notes)
    assert table[[0, 1, 255]].tolist() == [2, 0, IGNORE] and judged == [0, 2] and not notes
    with pytest.raises(
        DataError, match=r"\(sky, ground\) and those of the segmentation head \(water\) have no name in common"
    ):
        label_table(data, (Label(0, "water", (0, 0, 0)),), notes)


def test_true_classes_are_judged_by_their_group_where_the_head_tells_groups():
    """Big rocks are obstacles; a class that no group knows is not judged."""
    ids = {label.name: label.id for label in GROUP_LABELS}
    labels = (*LABELS, Label(5, "lander", (1, 2, 3)))
    table, judged = label_table(Dataset("mine", (), labels), GROUP_LABELS, notes := [])
    assert table[:6].tolist() == [ids["traversable"]] * 3 + [ids["obstacle"], ids["sky"], IGNORE]
    assert judged == sorted({ids["traversable"], ids["obstacle"], ids["sky"]})
    assert notes == ["pixels of lander are not judged: the segmentation head does not know them"]


def test_pairs_are_frames_of_one_drive_so_far_apart():
    from dino_perception.training.datasets import Sample

    samples = [Sample(f"{scene}{n}", scene, "", lambda: None, number=n) for scene in "ab" for n in (0, 1, 3, 4)]
    assert [(a.name, b.name) for a, b in pairs_at(samples, 3)] == [
        ("a0", "a3"),
        ("a1", "a4"),
        ("b0", "b3"),
        ("b1", "b4"),
    ]
    assert spread(range(10), 3) == [0, 4, 9] and spread(range(2), 5) == [0, 1]


@pytest.mark.parametrize(
    "image, truth, grid",
    [
        ((480, 640), (480, 640), (240, 320)),
        ((480, 640), (120, 160), (240, 320)),
        ((1024, 1024), (512, 512), (240, 320)),
        ((301, 1000), (301, 1000), (230, 310)),  # the last broken row of the output is left out
    ],
)
def test_each_pixel_of_the_truth_gets_the_value_published_where_it_lies(image, truth, grid):
    box = letterbox(*image, 480, 640, *grid)
    published = np.arange(box.output_height * box.output_width).reshape(box.output_height, box.output_width)
    frame = dataclasses.make_dataclass("F", ["image"])(np.zeros((*image, 3), np.uint8))
    percept = Percept(frame, box.output_height, box.output_width, output_scale=box.output_scale)
    found = covering(published, percept, truth)
    v, u = np.mgrid[: truth[0], : truth[1]]
    pixels = np.stack([(u + 0.5) * image[1] / truth[1] - 0.5, (v + 0.5) * image[0] / truth[0] - 0.5], axis=-1)
    x, y = np.floor(np.moveaxis(box.to_output(pixels), -1, 0) + 0.5).astype(int)
    wanted = published[np.minimum(y, box.output_height - 1), np.minimum(x, box.output_width - 1)]
    assert (found != wanted).mean() < 1e-3  # a centre on an edge may round either way


def test_a_percept_that_is_the_truth_scores_one(labelled, tmp_path):
    """The whole way from percept to number, without a network: masks at half size, judged at full size."""
    from dino_perception.training.evaluation.metrics import SegmentationScore

    box = letterbox(*SIZE, 96, 128, 48, 64)
    score = SegmentationScore(2)
    for seed in range(3):
        image, mask = striped(seed)
        frame = dataclasses.make_dataclass("F", ["image"])(image)
        score.add(mask, covering(mask, Percept(frame, *SIZE, output_scale=box.output_scale), mask.shape))
    assert score.miou == 1.0


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")
def test_a_preset_without_its_weights_says_which_command_fetches_them(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DINO_PERCEPTION_WEIGHTS", str(tmp_path))
    assert main(["evaluate", "--bag", str(SAMPLE), "--preset", "outdoor", "--limit", "1"]) == 1
    assert "fetch it: dino-perception models --download dinov2-vits14/ade20k" in capsys.readouterr().err
