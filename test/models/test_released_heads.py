"""Heads that others released load strictly from their own files and compute what independent code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dino_perception.models import catalog, head_catalog, head_reference, layouts
from dino_perception.models.checkpoints import load_backbone, untrained
from dino_perception.models.head_reference import CASES
from dino_perception.models.heads import HeadError, create_head, load_head
from dino_perception.models.taps import Tap
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

REAL = Path(__file__).parents[3] / "shared" / "data" / "released_heads" / "dinov3_ros_depth_head.pth"
CASE = {case.file: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_released_head_computes_what_independent_code_computes(case) -> None:
    """At an even and an odd patch grid, 8 x 16 and 9 x 5; `models --parity --heads` does the same at full sizes."""
    if case.against == "transformers":
        pytest.importorskip("transformers")
    for parity in head_reference.compare(case, [(112, 224), (126, 70)]):
        assert parity.difference < head_reference.TOLERANCE, f"{parity.height}x{parity.width}"
        assert parity.largest > 0.5


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_where_a_released_file_is_not_here_a_random_head_of_its_layout_can_stand_in(
    case, tmp_path, monkeypatch
) -> None:
    if case.against == "transformers":
        pytest.importorskip("transformers")
    monkeypatch.setenv("DINO_PERCEPTION_WEIGHTS", str(tmp_path / "empty"))
    backbone, path = saved(case, tmp_path)
    name = head_catalog.by_file(case.file).name
    with pytest.raises(HeadError, match="models --download"):
        load_head(case.kind, backbone, name)
    head, released = load_head(case.kind, backbone, name, untrained=True), load_head(case.kind, backbone, path)
    assert not head.trained and released.trained
    assert {n: t.shape for n, t in head.state_dict().items()} == {n: t.shape for n, t in released.state_dict().items()}
    for field in ("arch", "taps", "labels", "depth_range", "options"):
        assert getattr(head.spec, field) == getattr(released.spec, field)


def saved(case, folder: Path):
    backbone, state, _ = case.prepare(case)
    torch.save(state, folder / case.file)
    return backbone, folder / case.file


def test_the_catalogue_says_what_a_file_does_not(tmp_path) -> None:
    backbone, path = saved(CASE["dinov2_vits14_ade20k_linear_head.pth"], tmp_path)
    head = load_head("segmentation", backbone, path)
    assert [head.spec.labels[i].name for i in (0, 2, 149)] == ["wall", "sky", "flag"]
    assert head.spec.training == {"by": "DINOv2", "data": "ADE20k"} and head.spec.taps == (Tap(11),)
    nyu, nyu_path = saved(CASE["dinov2_vits14_nyu_linear_head.pth"], tmp_path)
    assert load_head("depth", nyu, nyu_path).spec.depth_range == (0.001, 10.0)
    kitti, kitti_path = saved(CASE["dinov2_vits14_kitti_linear4_head.pth"], tmp_path)
    head = load_head("depth", kitti, kitti_path)
    assert head.spec.depth_range == (0.001, 80.0)
    assert head.spec.taps == tuple(Tap(layer, norm=False, cls=True) for layer in (2, 5, 8, 11))
    nameless = kitti_path.rename(tmp_path / "head.pth")
    with pytest.raises(HeadError, match="does not say how far its depth reaches; give it the name"):
        load_head("depth", kitti, nameless)
    assert load_head("depth", kitti, nameless, depth_range=(0.001, 80.0)).trained


def test_a_released_head_is_refused_where_it_does_not_belong(tmp_path) -> None:
    small, path = saved(CASE["dinov2_vits14_ade20k_linear_head.pth"], tmp_path)
    with pytest.raises(HeadError, match="holds no depth head but a segmentation head"):
        load_head("depth", small, path)
    with pytest.raises(HeadError, match="reads 384 channels; dinov3-vitb16 gives 768 a layer"):
        load_head("segmentation", untrained(catalog.get("dinov3-vitb16")), path)
    with pytest.raises(HeadError, match="was trained on dinov2-vits14, not on dinov3-vits16"):
        load_head("segmentation", untrained(catalog.get("dinov3-vits16")), path)
    state = torch.load(path)["state_dict"]
    torch.save({"state_dict": {**state, "decode_head.conv_seg.extra": torch.zeros(2)}}, path)
    with pytest.raises(HeadError, match="does not fit a linear segmentation head: unexpected net.out.extra"):
        load_head("segmentation", small, path)


def test_a_backbone_beside_a_frozen_head_is_not_looked_at(tmp_path) -> None:
    backbone, path = saved(CASE["dinov2_vits14_nyu_linear_head.pth"], tmp_path)
    state = torch.load(path)["state_dict"]
    torch.save({"state_dict": {**state, "backbone.cls_token": torch.zeros(1, 1, 384)}}, path)
    assert load_head("depth", backbone, path).trained


def test_depth_anything_is_backbone_and_head_in_one_file(tmp_path) -> None:
    pytest.importorskip("transformers")
    case = CASE["depth_anything_v2_metric_vkitti_vits.pth"]
    backbone, head_state, _ = case.prepare(case)
    own = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    whole = {f"pretrained.{n}": t for n, t in own.items()} | {"pretrained.mask_token": torch.zeros(1, 384)} | head_state
    path = tmp_path / case.file
    torch.save(whole, path)
    loaded = load_backbone("auto", path)
    assert loaded.spec.id == "depth-anything-v2-small-vkitti" and loaded.trained
    head = load_head("depth", loaded, path)
    assert head.spec.depth_range == (0.001, 80.0) and head.spec.backbone_hash == loaded.weights_hash
    other = untrained(catalog.get("depth-anything-v2-small-vkitti"))
    with pytest.raises(HeadError, match="holds the backbone that it was trained with"):
        load_head("depth", other, path)


@pytest.mark.skipif(not REAL.exists(), reason="the released head file is not here")
def test_a_real_released_file_loads_strictly_and_gives_metres() -> None:
    """Random features stand for the gated backbone's: what is checked is the file, not the depth."""
    backbone = untrained(catalog.get("dinov3-vits16plus"))
    head = load_head("depth", backbone, REAL)
    assert head.trained and head_catalog.by_file(REAL.name).sha256
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        (metres,) = head.at(120, 160)(torch.randn(1, 384, 40, 40, generator=generator))[:1]
    assert metres.isfinite().all() and 0 < metres.min() and metres.max() < 100 and metres.std() > 0


def test_one_pass_serves_heads_that_read_normed_maps_and_raw_ones_with_their_cls_tokens(tmp_path) -> None:
    backbone, segmentation = saved(CASE["dinov2_vits14_ade20k_linear_head.pth"], tmp_path)
    _, depth = saved(CASE["dinov2_vits14_kitti_linear4_head.pth"], tmp_path)
    size = {"input_height": 112, "input_width": 168, "output_height": 56, "output_width": 84}
    settings = {
        "backbone": "dinov2-vits14", "heads": ["segmentation", "depth"], "engine": "torch",
        "segmentation.weights": str(segmentation), "depth.weights": str(depth), "allow_untrained": True, **size,
    }  # fmt: skip
    perceiver = Perceiver(Settings.from_flat(settings), cache=tmp_path / "cache", report=lambda line: None)
    assert perceiver.graphs.head_taps == {"segmentation": [3], "depth": [0, 1, 2, 4, 5, 6, 7, 8]}
    pixels = torch.randint(0, 256, (1, 112, 168, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        maps = perceiver.graphs.graph()(pixels)
        for kind, path in (("segmentation", segmentation), ("depth", depth)):
            head = load_head(kind, backbone, path)
            wanted = head.at(56, 84)(*backbone.at(112, 168, head.spec.taps)(pixels))
            got = perceiver.graphs.graph(kind)(*(maps[i] for i in perceiver.graphs.head_taps[kind]))
            assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    perceiver.close()


@pytest.mark.parametrize("arch", ["linear-cls", "dpt", "pyramid"])
def test_a_new_head_of_a_released_architecture_can_be_trained(arch: str) -> None:
    backbone = untrained(catalog.get("dinov2-vits14"))
    head = create_head("depth", backbone, arch)
    features = backbone.at(56, 84, head.spec.taps)(torch.zeros(1, 56, 84, 3, dtype=torch.uint8))
    head(*features).sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    near, far = head.spec.depth_range
    assert near <= head(*features).min() and head(*features).max() <= far
