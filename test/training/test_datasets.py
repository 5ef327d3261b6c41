"""Every layout of data is read as its makers wrote it, and what is wrong with it is said with the file's name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from small_data import SIZE, picture, striped

from dino_perception.models.heads import LABELS
from dino_perception.perception.frame import IGNORE
from dino_perception.training.datasets import DataError, joined, open_dataset
from dino_perception.training.datasets.terrain import parse_seeds
from dino_perception.training.evaluation.baselines import lucas_kanade_matches
from dino_perception.training.evaluation.reprojection import end_point_errors
from dino_perception.training.splitting import with_truth


def opened(path, tmp_path, **options):
    return open_dataset(path, cache=tmp_path / "cache", **options)


def test_a_folder_of_pictures_masks_and_depth(labelled, tmp_path):
    data = opened(labelled, tmp_path)
    assert len(data.samples) == 10 and [label.name for label in data.labels] == ["sky", "ground"]
    image, mask = striped(3)
    sample = data.samples[3]
    np.testing.assert_array_equal(sample.read_image(), image)
    np.testing.assert_array_equal(sample.truth("segmentation", image), mask)
    depth = sample.truth("depth", image)
    assert np.isnan(depth[0]).all() and depth[-1, 0] == pytest.approx(0.4)


def test_without_labels_yaml_ids_mean_what_the_bundled_head_says(labelled, tmp_path):
    (labelled / "labels.yaml").unlink()
    assert opened(labelled, tmp_path).labels == LABELS


def test_a_mask_with_a_palette_gives_its_indices(labelled, tmp_path):
    ids = striped(0)[1]
    file = Image.fromarray(ids, "P")
    file.putpalette([0, 0, 0, 250, 20, 20])
    file.save(labelled / "masks" / "000.png")
    np.testing.assert_array_equal(opened(labelled, tmp_path).samples[0].read_classes(), ids)


def test_a_coloured_mask_is_read_by_the_labels_colours_and_black_is_unlabelled(labelled, tmp_path):
    (labelled / "labels.yaml").write_text(
        "labels: [{name: sky, colour: [10, 20, 200]}, {name: ground, colour: [180, 110, 60]}]\n"
    )
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[:20], mask[30:] = (10, 20, 200), (180, 110, 60)
    picture(labelled / "masks" / "000.png", mask)
    found = opened(labelled, tmp_path).samples[0].read_classes()
    assert [found[0, 0], found[25, 0], found[40, 0]] == [0, IGNORE, 1]
    mask[0, 0] = 1, 2, 3
    picture(labelled / "masks" / "000.png", mask)
    with pytest.raises(DataError, match=r"000.png holds the colour \(1, 2, 3\)"):
        opened(labelled, tmp_path).samples[0].read_classes()


def test_several_mask_values_may_mean_one_class(labelled, tmp_path):
    (labelled / "labels.yaml").write_text(
        "labels: [{name: a, values: [0, 7]}, {name: b, values: [1, 300]}]\nignore: [9]\n"
    )
    mask = np.zeros(SIZE, np.uint16)
    mask[0, :5] = 7, 1, 300, 9, 255
    picture(labelled / "masks" / "000.png", mask)
    assert opened(labelled, tmp_path).samples[0].read_classes()[0, :6].tolist() == [0, 1, 1, IGNORE, IGNORE, 0]


def test_depth_as_npy_is_in_metres_and_what_is_no_distance_is_unknown(labelled, tmp_path):
    for path in (labelled / "depth").iterdir():
        path.unlink()
        np.save(path.with_suffix(".npy"), np.full(SIZE, 2.5, np.float64))
    strange = np.full(SIZE, 2.5)
    strange[0, :4] = 0, -1, np.inf, np.nan
    np.save(labelled / "depth" / "000.npy", strange)
    depth = opened(labelled, tmp_path).samples[0].read_depth()
    assert np.isnan(depth[0, :4]).all() and depth[1, 0] == 2.5 and depth.dtype == np.float32


@pytest.mark.parametrize(
    "spoil, says",
    [
        (
            lambda f: (f / "masks" / "004.png").unlink(),
            r"images/004.png has no mask in .*masks; add it, or give --partial",
        ),
        (lambda f: (f / "images" / "004.png").unlink(), r"masks/004.png is a mask without a picture"),
        (lambda f: [p.unlink() for p in (f / "images").iterdir()], r"images holds no pictures"),
        (lambda f: picture(f / "images" / "004.jpg", striped(0)[0]), r"004.jpg and .*004.png have the same name"),
        (
            lambda f: (f / "labels.yaml").write_text("labels: [{name: a, id: 0}, {name: b, id: 2}]"),
            r"labels.yaml: the label ids are \[0, 2\]",
        ),
        (lambda f: (f / "labels.yaml").write_text("names: [a]"), r"labels.yaml needs a list 'labels'"),
        (lambda f: (f / "labels.yaml").write_text("labels: [{name: a, hue: 3}, {name: b}]"), r"label 'a' has 'hue'"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_when_opened(labelled, tmp_path, spoil, says):
    spoil(labelled)
    with pytest.raises(DataError, match=says):
        opened(labelled, tmp_path)


def test_pictures_without_truth_can_be_left_out(labelled, tmp_path):
    (labelled / "masks" / "004.png").unlink()
    (labelled / "depth" / "007.png").unlink()
    data = opened(labelled, tmp_path, partial_labels=True)
    assert [len(with_truth(data, kind).samples) for kind in ("segmentation", "depth")] == [9, 9]


def test_an_id_outside_the_labels_is_named_with_its_file(labelled, tmp_path):
    mask = np.full(SIZE, 6, np.uint8)
    picture(labelled / "masks" / "005.png", mask)
    with pytest.raises(DataError, match=r"005.png holds 6; its labels are 0 sky, 1 ground, and 255 for unlabelled"):
        opened(labelled, tmp_path).samples[5].read_classes()


def test_a_mask_of_another_aspect_is_named_and_one_of_half_the_size_is_fine(labelled, tmp_path):
    picture(labelled / "masks" / "005.png", np.zeros((48, 48), np.uint8))
    picture(labelled / "masks" / "006.png", np.zeros((24, 32), np.uint8))
    data = opened(labelled, tmp_path)
    with pytest.raises(DataError, match=r"the mask of .*005.png is 48x48 pixels and its image 64x48"):
        data.samples[5].truth("segmentation", data.samples[5].read_image())
    assert data.samples[6].truth("segmentation", data.samples[6].read_image()).shape == (24, 32)


@pytest.mark.parametrize(
    "where, content, says",
    [
        ("masks/000.png", b"no picture", "masks/000.png cannot be read as a mask"),
        ("images/000.png", b"no picture", "images/000.png cannot be read as a picture"),
        ("depth/000.png", b"no picture", "depth/000.png cannot be read as a picture"),
    ],
)
def test_damaged_files_are_named(labelled, tmp_path, where, content, says):
    (labelled / where).write_bytes(content)
    sample = opened(labelled, tmp_path).samples[0]
    with pytest.raises(DataError, match=says):
        {"masks": sample.read_classes, "images": sample.read_image, "depth": sample.read_depth}[where.split("/")[0]]()


def test_eight_bit_depth_is_refused(labelled, tmp_path):
    picture(labelled / "depth" / "000.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="depth/000.png is a picture of uint8 .* 16-bit PNG of millimetres"):
        opened(labelled, tmp_path).samples[0].read_depth()


def test_what_is_no_data_says_what_would_be(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist; accepted are a bag, .*RELLIS-3D.*terrain:SEEDS"):
        opened(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is no data that can be read"):
        opened(tmp_path / "empty", tmp_path)


def test_datasets_of_the_same_classes_can_be_joined_and_others_not(labelled, tmp_path):
    data = opened(labelled, tmp_path)
    both = joined([data, data])
    assert len(both.samples) == 20 and len(both.scenes()) == 2
    (labelled / "labels.yaml").unlink()
    with pytest.raises(DataError, match="have different classes"):
        joined([data, opened(labelled, tmp_path)])


def test_ai4mars_as_released(tmp_path):
    root = tmp_path / "ai4mars-dataset-merged-0.1" / "msl"
    names = ["NLA_397681455EDR_F0020000AUT_04096M1", "NLA_397681339EDR_F0020000AUT_04096M1"]
    ids = np.full(SIZE, 3, np.uint8)
    ids[:10] = 255
    for name in names:
        picture(root / "images" / "edr" / f"{name}.JPG", striped(0)[0])
    rover, far = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    rover[40:], far[10:20] = 1, 1
    picture(root / "images" / "mxy" / f"{names[0].replace('EDR', 'MXY')}.png", rover)
    picture(root / "images" / "rng-30m" / f"{names[0].replace('EDR', 'RNG')}.png", far)
    picture(root / "labels" / "train" / f"{names[0]}.png", ids)
    picture(root / "labels" / "test" / "masked-gold-min1-100agree" / f"{names[1]}_merged.png", ids)
    for place in (tmp_path / "ai4mars-dataset-merged-0.1", root):
        data = opened(place, tmp_path)
        assert [label.name for label in data.labels] == ["soil", "bedrock", "sand", "big_rock"]
        assert {part: len(i) for part, i in data.splits.items()} == {"train": 1, "test": 1}
        mask = data.part("train").samples[0].read_classes()
        assert [mask[r, 0] for r in (0, 15, 30, 45)] == [IGNORE, IGNORE, 3, IGNORE]
        assert data.part("test").samples[0].read_classes()[45, 0] == 3
    (root / "images" / "edr" / f"{names[1]}.JPG").unlink()
    with pytest.raises(DataError, match=f"{names[1]}_merged.png is a mask without a picture"):
        opened(root, tmp_path)


def test_rellis_as_released(tmp_path):
    root = tmp_path / "Rellis-3D"
    for drive in ("00000", "00004"):
        for frame in ("frame000000-1581624652_750", "frame000001-1581624652_949"):
            picture(root / drive / "pylon_camera_node" / f"{frame}.jpg", striped(0)[0])
            ids = np.zeros(SIZE, np.uint8)
            ids[0, :5] = 3, 29, 34, 1, 0
            picture(root / drive / "pylon_camera_node_label_id" / f"{frame}.png", ids)
    name = "frame000000-1581624652_750"
    line = f"{{0}}/pylon_camera_node/{name}.jpg {{0}}/pylon_camera_node_label_id/{name}.png\n"
    (root / "train.lst").write_text(line.format("00000"))
    (root / "test.lst").write_text(line.format("00004"))
    data = opened(tmp_path, tmp_path)
    name = dict(enumerate(label.name for label in data.labels))
    mask = data.samples[0].read_classes()
    assert len(data.labels) == 19 and len(data.samples) == 4
    assert [name.get(int(i)) for i in mask[0, :5]] == ["grass", "grass", "rubble", "dirt", None]
    assert data.part("test").samples[0].scene == "00004"
    (root / "val.lst").write_text(line.format("00003"))
    with pytest.raises(DataError, match="val.lst names 00003/.*unpack all five"):
        opened(tmp_path, tmp_path)


def test_rugd_as_released(tmp_path):
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[0, :3] = (108, 64, 20), (114, 85, 47), (0, 0, 0)
    for video in ("creek", "park-8", "trail"):
        picture(tmp_path / "RUGD_frames-with-annotations" / video / f"{video}_00001.png", striped(0)[0])
        picture(tmp_path / "RUGD_annotations" / video / f"{video}_00001.png", colours)
    (tmp_path / "RUGD_annotations" / "RUGD_annotation-colormap.txt").write_text("0 void 0 0 0\n")
    data = opened(tmp_path, tmp_path)
    assert data.samples[0].read_classes()[0, :3].tolist() == [0, 23, IGNORE]
    assert {part: data.samples[i[0]].scene for part, i in data.splits.items()} == {
        "train": "trail",
        "val": "park-8",
        "test": "creek",
    }


def test_rendered_drives(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (3, *SIZE, 3), dtype=np.uint8)
    pose = np.tile(np.eye(4), (3, 1, 1))
    arrays = dict(
        rgb=rgb,
        depth=np.full((3, *SIZE), np.nan, np.float16),
        classes=np.full((3, *SIZE), 4, np.uint8),
        pose=pose,
        intrinsics=np.array([50.0, 51, 31.5, 23.5]),
    )
    folder = tmp_path / "scenes"
    folder.mkdir()
    np.savez(folder / "mars-1-0.npz", **arrays)
    np.savez(folder / "mars-2-0.npz", **arrays, number=np.array([0, 3, 10]))
    data = opened(folder, tmp_path)
    assert [s.number for s in data.samples] == [0, 1, 2, 0, 3, 10] and data.continuous
    np.testing.assert_array_equal(data.samples[4].read_image(), rgb[1])
    assert data.samples[0].camera.k[1, 1] == 51 and (data.samples[0].camera.width, data.samples[0].camera.height) == (
        64,
        48,
    )
    del arrays["pose"]
    np.savez(folder / "mars-3-0.npz", **arrays)
    with pytest.raises(DataError, match="mars-3-0.npz has no array 'pose'"):
        opened(folder, tmp_path)
    (folder / "mars-3-0.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="mars-3-0.npz cannot be read as a rendered drive"):
        opened(folder, tmp_path)


def test_terrain_seeds_and_styles(tmp_path):
    assert parse_seeds("3,7-9") == [3, 7, 8, 9]
    for text in ("", "a", "3-", "9-7", "3,3"):
        with pytest.raises(DataError, match="terrain seeds"):
            parse_seeds(text)
    with pytest.raises(DataError, match="no terrain style 'mud'; accepted are mars"):
        opened("terrain:1", tmp_path, styles=["mud"])


def test_a_world_is_rendered_once_and_its_truth_fits_its_pictures(tmp_path):
    said = []
    options = dict(styles=["desert"], size=(120, 160), frames=(0, 2), progress=said.append)
    first, second = opened("terrain:77", tmp_path, **options).samples
    assert len(said) == 1 and (first.number, second.number) == (0, 2) and first.scene == second.scene
    ends = lucas_kanade_matches(first.read_image(), second.read_image())
    errors = end_point_errors(*ends, first.read_depth(), first.camera, first.pose, second.camera, second.pose)
    assert len(errors) > 50 and np.nanmedian(errors) < 0.5
    assert set(np.unique(first.read_classes())) <= {0, 1, 2, 3, 4}
    opened("terrain:77", tmp_path, **options)
    assert len(said) == 1
