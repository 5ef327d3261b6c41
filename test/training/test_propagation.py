"""One mask carried through a recording: by the features, near its place, and without what is doubtful."""

import json

import cv2
import numpy as np
import torch
from small_data import SIZE, picture, striped
from test_commands import run
from test_teaching import SMALL, drive  # noqa: F401

from dino_perception.training.datasets import open_dataset
from dino_perception.training.propagation import BEST, RADIUS, TEMPERATURE, Propagation, believed, carried


def dense(x, known):
    """The same without bands: every patch with every other."""
    channels, rows, columns = x.shape
    y, xs = np.divmod(np.arange(rows * columns), columns)
    far = (y[:, None] - y) ** 2 + (xs[:, None] - xs) ** 2 > RADIUS**2
    cosines, shares = [], []
    for features, share in known:
        cosine = x.reshape(channels, -1).T @ features.reshape(channels, -1)
        cosines.append(np.where(far, -2, cosine))
        shares.append(share.reshape(len(share), -1))
    cosine, share = np.concatenate(cosines, axis=1), np.concatenate(shares, axis=1)
    best = np.argsort(-cosine, axis=1)[:, :BEST]
    weights = np.exp(np.take_along_axis(cosine, best, axis=1) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    return (share[:, best] * weights).sum(axis=2).reshape(-1, rows, columns)


def test_bands_give_what_the_whole_comparison_gives():
    random = np.random.default_rng(0)
    frames = random.normal(size=(3, 8, 30, 16))
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    shares = random.dirichlet(np.ones(3), size=(2, 30, 16)).transpose(0, 3, 1, 2)
    known = list(zip(frames[1:], shares))
    got = carried(torch.from_numpy(frames[0]), [(torch.from_numpy(f), torch.from_numpy(s)) for f, s in known])
    assert np.allclose(got.numpy(), dense(frames[0], known), atol=1e-9)


def test_a_moving_patch_keeps_its_class_and_the_same_look_far_away_does_not_take_it():
    torch.manual_seed(0)
    ground, object_ = torch.randn(16), torch.randn(16)
    frames = torch.randn(6, 16, 6, 40) * 0.2 + ground[:, None, None]
    for t in range(6):
        frames[t, :, 2:4, 4 + t : 7 + t] += object_[:, None, None] - ground[:, None, None]
        frames[t, :, 2:4, 34:37] += object_[:, None, None] - ground[:, None, None]  # a twin that is not shown
    shares = torch.zeros(2, 6, 40)
    shares[1, 2:4, 4:7] = 1
    shares[0] = 1 - shares[1]
    propagation = Propagation(frames[0], shares)
    for t in range(1, 6):
        said = propagation.follow(frames[t])
    ids, sure = believed(said, torch.full((2, 6, 40), 0.5))
    assert (ids[2:4, 9:12] == 1).all() and not ids[:, 34:].any() and float(sure.max()) <= 0.5 + 1e-6


def test_one_mask_makes_a_training_set_that_train_reads(drive, tmp_path, capsys):  # noqa: F811
    mask = picture(tmp_path / "mask.png", striped(0)[1] * 255)
    out = tmp_path / "set"
    arguments = ("--mask", mask, "--name", "ground", "--out", out, "--cache", tmp_path / "cache", *SMALL)
    assert run("label", drive, *arguments, "--json", tmp_path / "l.json") == 0
    assert "4 frames" in capsys.readouterr().out and json.loads((tmp_path / "l.json").read_text())["frames"] == 4
    data = open_dataset(out, cache=tmp_path)
    assert [label.name for label in data.labels] == ["background", "ground"] and len(data.samples) == 4
    for number, sample in enumerate(data.samples):
        said = sample.truth("segmentation", sample.read_image())
        truth = cv2.resize(striped(number)[1], said.shape[::-1], interpolation=cv2.INTER_NEAREST)
        assert (said == truth)[said != 255].mean() > 0.85 and (said != 255).mean() > 0.3
        assert sample.read_image().shape[:2] == SIZE
    assert run("label", drive, "--out", tmp_path / "x", *SMALL) == 1
    assert "no mask of the frame" in capsys.readouterr().err
