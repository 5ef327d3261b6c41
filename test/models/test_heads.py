"""Heads give final arrays of the right size and meaning, and their files cannot be used for what they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from dino_perception.models import catalog, cost, files, palette
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import load_backbone, untrained
from dino_perception.models.heads import LABELS, Head, HeadError, Label, create_head, kinds, load_head, save_head
from dino_perception.models.heads.depth import bin_mean, depth_bins
from dino_perception.models.taps import Tap

ARCHES = [
    *((kind, arch) for kind in ("segmentation", "depth") for arch in ("light", "fine", "linear")),
    ("correspondences", "cosine"),
    ("detection", "fcos"),
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return untrained(catalog.get("rover-tiny"))


def maps(backbone: Backbone, head: Head, height: int = 96, width: int = 160) -> tuple[torch.Tensor, ...]:
    graph = backbone.at(height, width, head.spec.taps)
    pixels = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return graph(pixels)


def refused(act, *arguments, **named) -> str:
    with pytest.raises(HeadError) as error:
        act(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind, arch", ARCHES)
@pytest.mark.parametrize("backbone_id", ["rover-tiny", "dinov3-convnext-tiny"])
def test_final_arrays_have_the_promised_shapes_and_types(backbone_id: str, kind: str, arch: str) -> None:
    backbone = untrained(catalog.get(backbone_id))
    head = create_head(kind, backbone, arch)
    with torch.no_grad():
        out = head.at(50, 70)(*maps(backbone, head))
    if kind == "segmentation":
        assert [(t.shape, t.dtype) for t in out] == [((2, 50, 70), torch.uint8)] * 2
        assert set(out[0].unique().tolist()) <= {label.id for label in LABELS} and out[1].min() >= 255 // len(LABELS)
    elif kind == "depth":
        assert [(t.shape, t.dtype) for t in out] == [((2, 50, 70), torch.float32), ((2, 50, 70), torch.uint8)]
        near, far = head.spec.depth_range
        assert near <= out[0].min() and out[0].max() <= far
    elif kind == "detection":
        assert [(t.shape, t.dtype) for t in out] == [((2, 200, 6), torch.float32)]
        assert 0 <= out[0][..., 4].min() and out[0][..., 4].max() <= 1 and (out[0][..., 5].frac() == 0).all()
    else:
        channels = backbone.spec.channels(head.spec.taps[0].layer)
        assert [(t.shape, t.dtype) for t in out] == [((2, 6 * 10, channels), torch.float32)]


def test_the_kinds_are_the_files_of_the_folder() -> None:
    assert kinds() == ["correspondences", "depth", "descriptor", "detection", "features", "place", "segmentation"]


def test_mask_and_confidence_are_the_softmax_of_the_upsampled_logits(backbone) -> None:
    head = create_head("segmentation", backbone)
    features = maps(backbone, head)
    with torch.no_grad():
        mask, confidence = head.at(48, 80)(*features)
        logits = F.interpolate(head(*features), (48, 80), mode="bilinear").numpy().astype(np.float64)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    assert (mask.numpy() == share.argmax(1)).all()
    assert np.abs(confidence.numpy() - share.max(1) * 255).max() <= 0.501


@pytest.mark.parametrize("spacing, weighting", [("linear", "relu"), ("log", "softmax"), ("linear", "sigmoid")])
def test_depth_is_the_weighted_mean_of_the_bins(spacing: str, weighting: str) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, 256, 2, 3))
    bins = np.linspace(0.001, 10, 256) if spacing == "linear" else np.geomspace(0.001, 10, 256)
    weights = {"relu": np.maximum(logits, 0) + 0.1, "softmax": np.exp(logits), "sigmoid": 1 / (1 + np.exp(-logits))}[
        weighting
    ]
    wanted = (weights * bins[:, None, None]).sum(1) / weights.sum(1)
    got = bin_mean(torch.from_numpy(logits).float(), depth_bins(0.001, 10, 256, spacing), weighting)
    assert np.allclose(got[:, 0].numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("weighting", ["relu", "softmax", "sigmoid"])
def test_the_confidence_of_depth_is_the_relative_spread_of_its_bins(backbone, weighting: str) -> None:
    head = create_head("depth", backbone, "linear", bins=32, weighting=weighting)
    torch.nn.init.normal_(head.net.out.weight, std=1.0)
    features = maps(backbone, head)
    with torch.no_grad():
        metres, confidence = head.at(6, 10)(*features)
        logits = head.net(*features).double()
        plain = head.reduce(head(*features), 6, 10)[0]
    if weighting == "softmax":
        weights = logits.softmax(1)
    else:
        weights = logits.relu() + 0.1 if weighting == "relu" else logits.sigmoid()
        weights = weights / weights.sum(1, keepdim=True)
    bins = head.bins.double()[:, None, None]
    mean = (weights * bins).sum(1, keepdim=True)
    spread = (weights * (torch.minimum(bins, 2 * mean) - mean) ** 2).sum(1, keepdim=True).sqrt() / mean
    wanted = F.interpolate(255 * (1 - spread), (6, 10), mode="bilinear")[:, 0]
    assert confidence.dtype == torch.uint8 and (confidence.double() - wanted).abs().max() <= 0.501
    assert confidence.double().std() > 1 and torch.equal(metres, plain)


def test_a_depth_head_without_bins_does_not_say_how_sure_it_is(backbone) -> None:
    head = create_head("depth", backbone, "pyramid", bins=0, weighting="softplus", taps=[7])
    assert [output.name for output in head.OUTPUTS] == ["metres"]
    assert len(head.at(48, 80)(*maps(backbone, head))) == 1


def test_descriptors_are_unit_vectors_row_by_row(backbone) -> None:
    head = create_head("correspondences", backbone)
    features = maps(backbone, head)
    (descriptors,) = head.at(1, 1)(*features)
    wanted = features[0].permute(0, 2, 3, 1).reshape(2, 60, 256).numpy()
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert np.allclose(descriptors.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("backbone_id, tap", [("rover-tiny", 7), ("dinov3-convnext-tiny", 2), ("dinov2-vits14", 11)])
def test_descriptors_come_from_the_deepest_layer_with_one_for_every_sixteen_pixels(backbone_id: str, tap: int) -> None:
    backbone = untrained(catalog.get(backbone_id))
    head = create_head("correspondences", backbone)
    assert head.spec.taps == (Tap(tap),) and backbone.spec.tap_stride(tap) <= 16
    assert tap == backbone.spec.depth - 1 or backbone.spec.tap_stride(tap + 1) > 16


def test_three_heads_cost_less_than_a_tenth_of_the_backbone(backbone) -> None:
    total = 0
    for kind in kinds():
        if kind == "detection":
            continue  # it is none of the three; test_detection.py holds it to a bound of its own
        head = create_head(kind, backbone)
        assert sum(p.numel() for p in head.parameters()) < 0.7e6
        features = [torch.zeros(1, 256, 30, 40) for _ in head.spec.taps]
        with FlopCounterMode(display=False) as counter:
            head.at(240, 320)(*features)
        total += counter.get_total_flops()
    assert total < 0.06 * cost.flops(backbone.spec, 480, 640)


@pytest.mark.parametrize("kind, arch", ARCHES)
def test_a_head_file_gives_back_the_head(backbone, kind: str, arch: str, tmp_path) -> None:
    head = create_head(
        kind,
        backbone,
        arch,
        labels=[Label(0, "go", (0, 255, 0)), Label(1, "stop", (255, 0, 0))],
        depth_range=(0.5, 40.0) if kind == "depth" else None,
    )
    head.spec = replace(head.spec, metrics={"miou": 0.5}, training={"frames": 3})
    save_head(head, tmp_path / "head.safetensors")
    loaded = load_head(kind, backbone, tmp_path / "head.safetensors")
    assert loaded.spec == head.spec and loaded.trained and not loaded.training
    features = maps(backbone, head)
    assert all(torch.equal(a, b) for a, b in zip(head.at(48, 80)(*features), loaded.at(48, 80)(*features)))
    with safe_open(tmp_path / "head.safetensors", "pt") as file:  # readable without this package
        spec = json.loads(file.metadata()["dino_perception"])["spec"]
    assert spec["backbone"] == "rover-tiny" and spec["backbone_hash"] == backbone.weights_hash and spec["taps"]


def test_untrained_heads_are_the_same_each_time_and_say_so() -> None:
    backbone = untrained(catalog.get("eupe-vitt16"))  # one without bundled heads
    state = torch.get_rng_state()
    one, other = load_head("segmentation", backbone), load_head("segmentation", backbone)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert not any(p.requires_grad for p in one.parameters()) and not one.trained
    assert load_head("correspondences", backbone).trained  # it has nothing to train


def test_a_head_is_refused_where_it_does_not_belong(backbone, tmp_path) -> None:
    path = tmp_path / "head.safetensors"
    head = create_head("segmentation", backbone)
    save_head(head, path)
    assert refused(load_head, "depth", backbone, path).endswith("is a segmentation head, not a depth head")
    small = untrained(catalog.get("dinov3-vits16"))
    assert refused(load_head, "segmentation", small, path).endswith("was trained on rover-tiny, not on dinov3-vits16")
    other = untrained(catalog.get("rover-tiny"))
    other.norm.bias[0] += 1
    said = refused(load_head, "segmentation", other, path)
    assert backbone.weights_hash in said and other.weights_hash in said and "train it again" in said
    assert "cannot be read" in refused(load_head, "segmentation", backbone, tmp_path / "absent.safetensors")
    broken = create_head("segmentation", backbone)
    with torch.no_grad():
        broken.net.out.bias[2] = float("nan")
    save_head(broken, tmp_path / "nan.safetensors")
    assert "holds values that are not finite in net.out.bias" in refused(
        load_head, "segmentation", backbone, tmp_path / "nan.safetensors"
    )
    path.write_bytes(path.read_bytes()[:2000])
    assert "is not a whole safetensors file" in refused(load_head, "segmentation", backbone, path)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(version=2), "has version 2 of the head format; this package reads version 1"),
        (dict(taps=(1, 9)), "taps [1, 9] do not fit rover-tiny; accepted are layers 0 to 7"),
        (dict(taps=(1, 3)), "expects taps with [256, 256, 256, 256] channels"),
        (dict(labels=LABELS[:4]), "does not fit a light segmentation head: net.out.bias is [5] instead of [4]"),
        (dict(labels=LABELS[1:]), "the label ids are [1, 2, 3, 4]; accepted are 0, 1, 2, ... without gaps"),
        (dict(arch="heavy"), "there is no segmentation head 'heavy'; accepted are light, fine, linear"),
        (dict(options={"depth": 3}), "the options {'width': 64, 'depth': 3} do not fit a light segmentation head"),
        (dict(normalisation=catalog.SATELLITE), "expects pixels normalised with"),
    ],
)
def test_a_head_file_whose_metadata_does_not_fit_is_refused(backbone, change: dict, said: str, tmp_path) -> None:
    head = create_head("segmentation", backbone)
    head.spec = replace(head.spec, **change)
    save_head(head, tmp_path / "head.safetensors")
    assert said in refused(load_head, "segmentation", backbone, tmp_path / "head.safetensors")


def test_what_is_no_head_file_is_refused(backbone, tmp_path) -> None:
    files.write(tmp_path / "other.safetensors", {"a": torch.ones(1)}, {"content": "backbone"})
    assert "holds no depth head" in refused(load_head, "depth", backbone, tmp_path / "other.safetensors")
    files.write(tmp_path / "half.safetensors", {"a": torch.ones(1)}, {"content": "head", "spec": {"kind": "depth"}})
    assert "does not describe its head completely" in refused(
        load_head, "depth", backbone, tmp_path / "half.safetensors"
    )
    said = refused(load_head, "lidar", backbone)
    assert (
        "there is no head 'lidar'; accepted are correspondences, depth, descriptor, detection, features, place, segmentation"
        in said
    )
    assert "the depth range is 5 to 1 m" in refused(create_head, "depth", backbone, depth_range=(5, 1))
    assert "'weighting' of the depth bins is 'max'" in refused(create_head, "depth", backbone, weighting="max")


@pytest.mark.parametrize("data_parallel", ["", "module."])
def test_linear_heads_of_dinov3s_evaluation_load(backbone, data_parallel: str, tmp_path) -> None:
    """Built here with torch alone, as that code builds and saves them; the result is computed with torch alone too."""
    generator = torch.Generator().manual_seed(0)

    def head(name: str, outputs: int) -> dict[str, torch.Tensor]:
        return {
            "batchnorm_layer.weight": torch.rand(256, generator=generator) + 0.5,
            "batchnorm_layer.bias": torch.randn(256, generator=generator),
            "batchnorm_layer.running_mean": torch.randn(256, generator=generator),
            "batchnorm_layer.running_var": torch.rand(256, generator=generator) + 0.5,
            "batchnorm_layer.num_batches_tracked": torch.tensor(40000),
            f"{name}.weight": torch.randn(outputs, 256, 1, 1, generator=generator) * 0.1,
            f"{name}.bias": torch.randn(outputs, generator=generator),
        }

    def logits(state, name, x):
        x = F.batch_norm(x, *(state[f"batchnorm_layer.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    state = head("conv", 150)
    torch.save(
        {"model": {f"{data_parallel}segmentation_model.1.{n}": t for n, t in state.items()}, "optimizer": {}},
        tmp_path / "s.pth",
    )
    loaded = load_head("segmentation", backbone, tmp_path / "s.pth")
    features = maps(backbone, loaded)
    wanted = F.interpolate(logits(state, "conv", features[0]), (48, 80), mode="bilinear").argmax(1)
    assert loaded.spec.taps == (Tap(7),) and loaded.spec.labels[149].name == "class_149"
    assert torch.equal(loaded.at(48, 80)(*features)[0].long(), wanted)
    assert "tells 150 classes apart; 5 labels were given" in refused(
        load_head, "segmentation", backbone, tmp_path / "s.pth", labels=LABELS
    )

    state = head("conv_depth", 256)
    torch.save(
        {"model": {data_parallel + n: t for n, t in state.items()}, "optimizer": {}, "iteration": 38400},
        tmp_path / "d.pth",
    )
    loaded = load_head("depth", backbone, tmp_path / "d.pth")
    weights = logits(state, "conv_depth", features[0]).relu() + 0.1
    bins = torch.linspace(0.001, 10, 256).view(1, -1, 1, 1)
    wanted = (weights / weights.sum(1, keepdim=True) * bins).sum(1, keepdim=True)
    wanted = F.interpolate(wanted, (48, 80), mode="bilinear")[:, 0]
    assert loaded.spec.depth_range == (0.001, 10.0) and torch.allclose(
        loaded.at(48, 80)(*features)[0], wanted, rtol=1e-5
    )

    without = {n: t for n, t in state.items() if not n.startswith("batchnorm")}
    torch.save({"model": without}, tmp_path / "n.pth")
    plain = load_head("depth", backbone, tmp_path / "n.pth", depth_range=(0.1, 80))
    assert torch.allclose(
        plain.net(features[0]),
        F.conv2d(features[0], without["conv_depth.weight"], without["conv_depth.bias"]),
        atol=1e-5,
    )
    torch.save(
        {"model": {"conv_depth.weight": torch.zeros(256, 512, 1, 1), "conv_depth.bias": torch.zeros(256)}},
        tmp_path / "c.pth",
    )
    assert "reads 512 channels; rover-tiny gives 256 for its last layer" in refused(
        load_head, "depth", backbone, tmp_path / "c.pth"
    )


def test_a_head_learns() -> None:
    """Ten steps of plain gradient descent on one image bring the loss down: nothing on the way blocks the gradient."""
    backbone = load_backbone("rover-tiny")
    for kind in ("segmentation", "depth"):
        head = create_head(kind, backbone).train()
        features = [f.detach() for f in maps(backbone, head)]
        classes = torch.arange(5).repeat(48).view(1, 12, 20).expand(2, -1, -1)
        target = classes if kind == "segmentation" else torch.full((2, 1, 12, 20), 7.0)
        optimiser = torch.optim.AdamW(head.parameters(), 1e-3)
        losses = []
        for _ in range(10):
            raw = head(*features)
            loss = F.cross_entropy(raw, target) if kind == "segmentation" else (raw.log() - target.log()).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0] and all(p.grad is not None for p in head.parameters())


def test_the_shipped_classes_take_their_colours_from_the_palette(tmp_path, monkeypatch):
    """No weights file stands in the way of another palette; a colour of somebody's own travels with the file."""
    backbone = load_backbone("rover-tiny")
    monkeypatch.setitem(palette.CLASSES, "soil", (1, 2, 3))
    head = load_head("segmentation", backbone)
    assert head.spec.labels[0].colour == (1, 2, 3) and head.spec.labels[1].colour == palette.GREEN
    own = replace(head.spec.labels[1], colour=(9, 8, 7))
    head.spec = replace(head.spec, labels=(head.spec.labels[0], own, *head.spec.labels[2:]))
    save_head(head, tmp_path / "own.safetensors")
    monkeypatch.setitem(palette.CLASSES, "soil", (4, 5, 6))
    loaded = load_head("segmentation", backbone, tmp_path / "own.safetensors")
    assert [label.colour for label in loaded.spec.labels[:2]] == [(4, 5, 6), (9, 8, 7)]


@pytest.mark.parametrize("kind", ["descriptor", "place"])
def test_padding_has_no_part_in_what_a_whole_frame_looks_like(backbone, kind: str) -> None:
    """Where only the first columns are image, the vector is that of the map cut off there; a patch counts by its share."""
    head = create_head(kind, backbone)
    features = torch.randn(1, head.spec.channels[0], 4, 6, generator=torch.Generator().manual_seed(0))
    share = torch.zeros(1, 4, 6)
    share[:, :, :3] = 1
    (cut,), (got,) = head.at(8, 8)(features[..., :3]), head.at(8, 8)(features, share)
    assert torch.allclose(got, cut, atol=1e-6) and not torch.allclose(got, head.at(8, 8)(features)[0], atol=1e-2)
    share[:, :, 3] = 0.5
    doubled = torch.cat([features[..., :3], features[..., :4]], dim=3)  # the first three twice, the fourth once
    assert torch.allclose(head.at(8, 8)(features, share)[0], head.at(8, 8)(doubled)[0], atol=1e-6)


def test_vlad_is_the_sum_of_residuals_by_word(backbone) -> None:
    head = create_head("place", backbone, "vlad", words=3, size=4)
    random, channels = np.random.default_rng(0), head.spec.channels[0]
    words = random.normal(size=(3, channels))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    components, mean = random.normal(size=(4, 3 * channels)), 0.01 * random.normal(size=3 * channels)
    for buffer, values in ((head.net.words, words), (head.net.components, components), (head.net.mean, mean)):
        buffer.copy_(torch.from_numpy(values))
    features = random.normal(size=(channels, 4, 6))
    share = np.ones((4, 6))
    share[3] = 0
    sums = np.zeros((3, channels))
    for x, s in zip(features.reshape(channels, -1).T, share.ravel()):
        x = x / np.linalg.norm(x)
        sums[(words @ x).argmax()] += s * (x - words[(words @ x).argmax()])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    wanted = components @ (sums.ravel() / np.linalg.norm(sums) - mean)
    got = head.at(8, 8)(torch.from_numpy(features)[None].float(), torch.from_numpy(share)[None].float())[0][0].numpy()
    assert np.allclose(got, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_the_generalised_mean_is_cubic_and_keeps_its_sign(backbone) -> None:
    head = create_head("place", backbone)
    features = torch.randn(1, head.spec.channels[0], 4, 6, generator=torch.Generator().manual_seed(2))
    cubic = np.cbrt((features.numpy().astype(np.float64) ** 3).mean(axis=(2, 3)))
    assert np.allclose(head.at(8, 8)(features)[0].numpy(), cubic / np.linalg.norm(cubic), atol=1e-5)
