"""Every architecture computes what transformers computes from the same weights, at every layer.

Set DINO_PERCEPTION_PARITY=all to compare every backbone at every size; it takes minutes and 8 GB.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dino_perception.models import catalog, dinov2, layouts, reference, vit
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import load_backbone, untrained

pytest.importorskip("transformers")

WHOLE, SMALL, ALL = 99, ((96, 160),), reference.SIZES
QUICK = {
    "rover-tiny": (WHOLE, ALL),
    "dinov3-vits16": (WHOLE, ALL),
    "dinov3-vits16plus": (WHOLE, ((224, 224), (96, 160))),
    "dinov3-vitb16": (WHOLE, SMALL),
    "dinov3-vitl16": (2, SMALL),
    "dinov3-vitl16plus": (2, SMALL),
    "dinov3-vith16plus": (2, SMALL),
    "dinov3-vit7b16": (1, SMALL),
    "dinov3-convnext-tiny": (WHOLE, ((224, 224), (96, 160))),
    "dinov3-convnext-small": (2, SMALL),
    "dinov3-convnext-base": (2, SMALL),
    "dinov3-convnext-large": (2, SMALL),
    "lingbot-vitg16": (2, SMALL),
    "dinov2-vits14": (WHOLE, SMALL),
    "dinov2-vitb14": (2, SMALL),
    "dinov2-vitl14": (2, SMALL),
    "dinov2-vitg14": (2, SMALL),
    "dinov2-vits14-reg": (WHOLE, SMALL),
    "dinov2-vitg14-reg": (2, SMALL),
}
EVERYTHING = os.environ.get("DINO_PERCEPTION_PARITY") == "all"


@pytest.mark.parametrize("backbone_id", catalog.all_ids() if EVERYTHING else QUICK)
def test_every_layer_equals_transformers(backbone_id: str) -> None:
    spec = catalog.get(backbone_id)
    depth, sizes = (reference.affordable_depth(spec), ALL) if EVERYTHING else QUICK[backbone_id]
    for parity in reference.compare(reference.shortened(spec, depth), sizes):
        assert parity.normed < reference.TOLERANCE and parity.plain < reference.TOLERANCE, parity


@pytest.fixture(scope="module")
def tiny() -> tuple[catalog.BackboneSpec, torch.nn.Module]:
    spec = reference.shortened(catalog.get("rover-tiny"), 3)
    return spec, reference.reference_model(spec)


def difference(spec: catalog.BackboneSpec, model: torch.nn.Module, backbone: Backbone | None = None) -> float:
    return reference.compare(spec, SMALL, backbone=backbone, model=model)[0].normed


def test_the_comparison_sees_rotary_halves_swapped(tiny, monkeypatch) -> None:
    right = vit.rotate
    monkeypatch.setattr(vit, "rotate", lambda x, cos, sin: right(x, cos, -sin))
    assert difference(*tiny) > 100 * reference.TOLERANCE


def test_the_comparison_sees_x_and_y_swapped(tiny, monkeypatch) -> None:
    right = vit.rotary_table

    def transposed(periods, rows, columns, prefix):
        return [
            t[
                torch.cat(
                    [torch.arange(prefix), prefix + torch.arange(rows * columns).reshape(columns, rows).T.flatten()]
                )
            ]
            for t in right(periods, columns, rows, prefix)
        ]

    monkeypatch.setattr(vit, "rotary_table", transposed)
    assert difference(*tiny) > 100 * reference.TOLERANCE


@pytest.mark.parametrize("drop", ["block", "LayerScale", "registers", "gate and up"])
def test_the_comparison_sees_a_part_that_is_wrong(tiny, drop: str) -> None:
    spec, model = tiny
    backbone = reference.converted(model, spec)
    if drop == "block":
        backbone.blocks[1].forward = lambda x, cos, sin: x
    elif drop == "LayerScale":
        backbone.blocks[1].scale1 = torch.nn.Parameter(torch.ones(spec.dim))
    elif drop == "registers":
        backbone.registers = torch.nn.Parameter(torch.zeros(1, spec.registers, spec.dim))
    else:
        mlp = backbone.blocks[1].mlp
        mlp.gate, mlp.up = mlp.up, mlp.gate
    assert difference(spec, model, backbone) > 100 * reference.TOLERANCE


def test_layer_scale_at_its_usual_start_would_hide_a_wrong_attention(tiny, monkeypatch) -> None:
    spec, _ = tiny
    model = reference.reference_model(spec)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lambda1"):
                p.fill_(1e-5)
    right = vit.rotate
    monkeypatch.setattr(vit, "rotate", lambda x, cos, sin: right(x, cos, -sin))
    assert difference(spec, model) < reference.TOLERANCE


def test_the_comparison_sees_a_position_table_scaled_the_original_way(monkeypatch) -> None:
    spec = reference.shortened(catalog.get("dinov2-vits14"), 2)
    model = reference.reference_model(spec)
    right = dinov2.scale_table
    monkeypatch.setattr(
        dinov2,
        "scale_table",
        lambda table, rows, columns, offset, antialias: right(table, rows, columns, 0.1, antialias),
    )
    assert difference(spec, model) > reference.TOLERANCE


def test_the_original_position_table_is_sampled_where_its_offset_puts_it() -> None:
    """Sample i of n lies at (i + 0.5) * grid / (n + 0.1) - 0.5; Keys' cubic kernel with a = -0.75 is torch's."""
    grid, n, a = 37, 30, -0.75
    values = np.sin(np.arange(grid) / 3)
    at = (np.arange(n) + 0.5) * grid / (n + 0.1) - 0.5
    distance = np.abs(at[:, None] - np.arange(grid))
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    wanted = (np.where(distance <= 1, near, np.where(distance < 2, far, 0)) * values).sum(1)
    table = torch.from_numpy(np.tile(values, (grid, 1))).float().reshape(1, -1, 1)
    scaled = dinov2.scale_table(table, n, n, 0.1, False).view(n, n)
    inside = (at >= 1) & (at <= grid - 3)  # at the border torch repeats the edge
    assert np.allclose(scaled[5].numpy()[inside], wanted[inside], atol=1e-5) and inside.sum() > 25


@pytest.mark.parametrize(
    "backbone_id", ["rover-tiny", "dinov3-vits16", "dinov3-convnext-tiny", "dinov2-vitg14", "dinov2-vits14-reg"]
)
def test_our_weights_run_in_transformers(backbone_id: str, tmp_path) -> None:
    """The other direction: our random weights in a folder as the hub holds them, opened by transformers itself."""
    spec = reference.shortened(catalog.get(backbone_id), 2)
    backbone = untrained(spec)
    empty = reference.reference_model(spec)
    empty.config.save_pretrained(tmp_path)
    save_file(
        layouts.to_layout(backbone.state_dict(), spec, "huggingface"), tmp_path / "model.safetensors", {"format": "pt"}
    )
    model, info = type(empty).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) <= {"embeddings.mask_token"} and not info["unexpected_keys"]
    if spec.family == "dinov2-vit":
        backbone.spec = replace(spec, offset=0.0)
    assert difference(spec, model.eval(), backbone) < reference.TOLERANCE


def test_raw_pixels_are_normalised_as_the_catalogue_says() -> None:
    backbone = load_backbone("rover-tiny")
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = ((image / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    raw = backbone.at(64, 96, [7])(torch.from_numpy(image))
    wanted = backbone.at(64, 96, [7], pixels="float")(torch.from_numpy(normalised).float())
    assert raw[0].shape == (2, 256, 4, 6) and torch.allclose(raw[0], wanted[0], atol=1e-5)


def test_an_image_in_a_batch_gives_what_it_gives_alone() -> None:
    graph = load_backbone("rover-tiny").at(64, 96, [3, 7])
    images = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    together, alone = graph(images), graph(images[1:2])
    assert all(torch.allclose(a[1:2], b, atol=1e-5) for a, b in zip(together, alone))


def test_graphs_share_the_parameters_and_differ_in_nothing_but_size() -> None:
    backbone = load_backbone("rover-tiny")
    graphs = [backbone.at(64, 96, [7]), backbone.at(96, 64, [7])]
    assert all(a is b for a, b in zip(*(g.parameters() for g in graphs)))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((480, 650, [7]), "480x650 pixels do not fit rover-tiny, whose sides must be multiples of 16; 480x656 does"),
        ((480, 640, [8]), "taps [8] do not fit rover-tiny; accepted are layers 0 to 7"),
        ((480, 640, []), "taps [] do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(arguments, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_backbone("rover-tiny").at(*arguments)
    assert said in str(refused.value)
