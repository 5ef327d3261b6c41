"""Every file people have loads to the same weights, and what cannot be loaded is refused with a sentence."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dino_perception.models import catalog, files, layouts, reference
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import CheckpointError, load_backbone, save_backbone, untrained

SHORT = {
    name: reference.shortened(catalog.get(name), 1 if "vitl" in name else 2)
    for name in (
        "dinov3-vits16",
        "dinov3-vits16plus",
        "dinov3-vitb16",
        "dinov3-vitl16",
        "dinov3-vitl16-sat",
        "dinov3-vit7b16-sat",
        "dinov3-convnext-tiny",
        "dinov2-vits14",
        "dinov2-vits14-reg",
        "dinov2-vitg14",
    )
}
SHORT["dinov3-vit7b16-sat"] = replace(
    SHORT["dinov3-vit7b16-sat"], dims=(1024,), heads=8, hidden=2048, depths=(1,), taps=(0,)
)
SHORT["dinov2-vitg14"] = replace(SHORT["dinov2-vitg14"], depths=(1,), taps=(0,))
FORMATS = [(name, layout) for name in SHORT for layout in layouts.LAYOUTS]


@pytest.fixture(autouse=True)
def two_layers(monkeypatch) -> None:
    """The catalogue with two layers a backbone, so that each test takes milliseconds; nothing else changes."""
    monkeypatch.setattr(catalog, "_CATALOG", {"rover-tiny": catalog.get("rover-tiny"), **SHORT})


def drawn(name: str) -> Backbone:
    return untrained(SHORT[name])


def features(backbone: Backbone) -> torch.Tensor:
    graph = backbone.at(4 * backbone.spec.stride, 3 * backbone.spec.stride, [backbone.spec.depth - 1])
    return graph(torch.full_like(graph.example(), 100) + torch.arange(3, dtype=torch.uint8))[0]


def refused(backbone_id: str, path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_backbone(backbone_id, path)
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 500, sentence
    return sentence


@pytest.mark.parametrize("name, layout", FORMATS)
def test_each_format_gives_the_same_weights(name: str, layout: str, tmp_path) -> None:
    backbone = drawn(name)
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, layout)
    if layout == "original":  # as released: with what only training needs
        tensors["mask_token"] = torch.zeros(1, backbone.spec.dim)
        path = tmp_path / "weights.pth"
        torch.save(tensors, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
    loaded = load_backbone(name, path)
    assert loaded.weights_hash == backbone.weights_hash and loaded.trained
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    if backbone.spec.family != "dinov2-vit":  # the libraries scale DINOv2's position table differently
        assert torch.equal(features(loaded), features(backbone))


@pytest.mark.parametrize(
    "name, keys",
    [
        ("dinov3-vits16", 188),
        ("dinov3-vits16plus", 212),
        ("dinov3-vitl16", 368),
        ("dinov3-vith16plus", 552),
        ("dinov3-convnext-tiny", 182),
        ("dinov3-convnext-large", 344),
    ],
)
def test_original_files_have_as_many_tensors_as_the_released_ones(name: str, keys: int, monkeypatch) -> None:
    monkeypatch.undo()
    spec = catalog.get(name)
    pieces = {piece.name for row in layouts.table(spec, "original").values() for piece in row}
    masks = {p + "_mask" for p in pieces if p.endswith("qkv.bias")}
    training = {"norms.3.weight", "norms.3.bias"} if spec.convolutional else {"mask_token"}
    assert len(pieces | masks | training) == keys


@pytest.mark.parametrize(
    "name",
    [
        "dinov3-vits16",
        "dinov3-vits16plus",
        "dinov3-convnext-tiny",
        "dinov2-vits14",
        "dinov2-vits14-reg",
        "dinov2-vitg14",
    ],
)
def test_a_folder_that_transformers_wrote_gives_what_transformers_computes(name: str, tmp_path) -> None:
    pytest.importorskip("transformers")
    spec = SHORT[name]
    model = reference.reference_model(spec)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("whole", "shards"):
        backbone = load_backbone(name, tmp_path / folder)
        assert reference.compare(spec, [(96, 160)], backbone=backbone, model=model)[0].normed < reference.TOLERANCE


def test_a_timm_file_gives_what_timm_computes(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    for name, made in (
        ("dinov3-vits16plus", "vit_small_plus_patch16_dinov3_qkvb"),
        ("dinov3-convnext-tiny", "convnext_tiny"),
        ("dinov2-vits14-reg", "vit_small_patch14_reg4_dinov2"),
    ):
        spec = SHORT[name]
        more = dict(depths=spec.depths, norm_eps=1e-6) if spec.convolutional else dict(depth=2, dynamic_img_size=True)
        model = timm.create_model(made, num_classes=0, **more).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.rand(p.shape, generator=generator) * 0.2 - 0.08)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        backbone = load_backbone(name, tmp_path / "model.safetensors")
        height, width = 4 * spec.stride, 6 * spec.stride
        image = torch.randn(1, 3, height, width, generator=generator)
        with torch.no_grad():
            wanted = model.forward_features(image)
            got = backbone.at(height, width, [spec.depth - 1], pixels="float", norm=not spec.convolutional)(image)[0]
        if not spec.convolutional:
            wanted = wanted[:, 5:].transpose(1, 2).unflatten(2, got.shape[2:])
        assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t},
        lambda t: {
            "teacher": {f"backbone.{n}": v for n, v in t.items()} | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
        },
        lambda t: {
            "state_dict": {f"module.teacher.backbone.{n}": v for n, v in t.items()}
            | {f"module.student.backbone.{n}": v + 1 for n, v in t.items()},
            "epoch": 3,
        },
        lambda t: {
            "model": {f"_orig_mod.module.{n}": v for n, v in t.items()},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        },
    ],
)
def test_training_checkpoints_load_whatever_wraps_the_weights(wrap, tmp_path) -> None:
    backbone = drawn("dinov3-vits16plus")
    torch.save(wrap(layouts.to_layout(backbone.state_dict(), backbone.spec, "original")), tmp_path / "checkpoint.pth")
    assert load_backbone("dinov3-vits16plus", tmp_path / "checkpoint.pth").weights_hash == backbone.weights_hash


def test_our_own_file_keeps_weights_metadata_and_narrow_types(tmp_path) -> None:
    backbone = drawn("dinov3-vits16plus")
    save_backbone(backbone, tmp_path / "own.safetensors", trained_on="nothing")
    assert load_backbone("dinov3-vits16plus", tmp_path / "own.safetensors").weights_hash == backbone.weights_hash
    save_backbone(backbone, tmp_path / "half.safetensors", dtype=torch.float16)
    half = load_backbone("auto", tmp_path / "half.safetensors")
    assert half.spec.id == "dinov3-vits16plus" and half.weights_hash != backbone.weights_hash
    assert torch.allclose(features(half), features(backbone), atol=0.02)
    assert torch.equal(half.periods, backbone.periods)  # rounding is for weights
    assert os.path.getsize(tmp_path / "half.safetensors") < 0.51 * os.path.getsize(tmp_path / "own.safetensors")


def test_the_hash_follows_the_weights() -> None:
    backbone = drawn("dinov3-vits16")
    before = backbone.weights_hash
    backbone.blocks[0].proj.weight[0, 0] += 1
    assert backbone.weights_hash != before and re.fullmatch("[0-9a-f]{16}", before)


def test_bias_masks_of_zero_or_nan_switch_the_bias_off(tmp_path) -> None:
    """All released distilled files hold a mask of zeros; a known initialisation fault left NaN in others."""
    backbone = drawn("dinov3-vits16")
    silent = drawn("dinov3-vits16")
    for block in silent.blocks:
        block.qkv.bias.zero_()
    for fill in (0.0, float("nan")):
        tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
        for name in tensors:
            if name.endswith("bias_mask"):
                tensors[name].fill_(fill)
        torch.save(tensors, tmp_path / "masked.pth")
        assert load_backbone("dinov3-vits16", tmp_path / "masked.pth").weights_hash == silent.weights_hash


def test_a_mask_that_spares_the_keys_alone_keeps_the_other_biases(tmp_path) -> None:
    backbone = drawn("dinov3-vits16")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    tensors["blocks.0.attn.qkv.bias"][384:768] = float("nan")  # what the mask hides never counts
    torch.save(tensors, tmp_path / "weights.pth")
    assert load_backbone("dinov3-vits16", tmp_path / "weights.pth").weights_hash == backbone.weights_hash


def test_rounded_periods_come_from_the_file(tmp_path) -> None:
    backbone = drawn("dinov3-vits16")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    tensors["rope_embed.periods"] = tensors["rope_embed.periods"].to(torch.bfloat16)
    torch.save(tensors, tmp_path / "weights.pth")
    loaded = load_backbone("dinov3-vits16", tmp_path / "weights.pth")
    released = [
        1,
        1.3359375,
        1.78125,
        2.375,
        3.15625,
        4.21875,
        5.625,
        7.5,
        10,
        13.3125,
        17.75,
        23.75,
        31.625,
        42.25,
        56.25,
        75,
    ]
    assert loaded.periods.tolist() == released
    assert loaded.weights_hash == backbone.weights_hash
    assert 0 < (features(loaded) - features(backbone)).abs().max() < 0.1


def satellite_file(path: Path) -> Path:
    backbone = drawn("dinov3-vitl16-sat")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    torch.save(tensors | {"local_cls_norm.weight": torch.ones(1024), "local_cls_norm.bias": torch.zeros(1024)}, path)
    return path


def test_satellite_files_with_their_second_norm_load_under_any_name(tmp_path) -> None:
    loaded = load_backbone("auto", satellite_file(tmp_path / "renamed.pth"))
    assert loaded.spec.id == "dinov3-vitl16-sat" and loaded.spec.normalisation == catalog.SATELLITE
    assert loaded.weights_hash == drawn("dinov3-vitl16-sat").weights_hash


def test_satellite_weights_are_not_taken_for_web_weights(tmp_path) -> None:
    said = refused("dinov3-vitl16", satellite_file(tmp_path / "renamed.pth"))
    assert "belongs to dinov3-vitl16-sat, whose pixels are normalised differently" in said
    backbone = drawn("dinov3-vitl16")
    save_file(layouts.to_layout(backbone.state_dict(), backbone.spec, "huggingface"), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]})
    )
    (tmp_path / "renamed.pth").unlink()
    assert "belongs to dinov3-vitl16-sat" in refused("dinov3-vitl16", tmp_path)


def test_a_released_name_tells_which_of_two_equal_shapes_it_is(tmp_path) -> None:
    backbone = drawn("dinov3-vit7b16-sat")
    path = tmp_path / "dinov3_vit7b16_pretrain_sat493m-a6675841.pth"
    torch.save(layouts.to_layout(backbone.state_dict(), backbone.spec, "original"), path)
    assert load_backbone("auto", path).spec.id == "dinov3-vit7b16-sat"


def test_without_weights_it_is_a_fixed_random_start() -> None:
    one, other = load_backbone("dinov3-vits16"), load_backbone("dinov3-vits16")
    assert one.weights_hash == other.weights_hash and not one.trained
    torch.manual_seed(1)
    state = torch.get_rng_state()
    load_backbone("dinov3-vits16plus")
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers move
    maps = features(one)
    assert maps.std(dim=(2, 3)).mean() > 0.01 and 0.1 <= one.blocks[0].scale1.min() < one.blocks[0].scale1.max() <= 1


def test_the_wrong_model_is_named(tmp_path) -> None:
    backbone = drawn("dinov3-vitb16")
    torch.save(layouts.to_layout(backbone.state_dict(), backbone.spec, "original"), tmp_path / "b.pth")
    assert refused("dinov3-vits16", tmp_path / "b.pth").endswith(
        "b.pth holds a DINOv3 ViT with 2 layers of 768 channels, patch 16, 4 registers (dinov3-vitb16), not "
        "dinov3-vits16"
    )


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path) -> None:
    backbone = drawn("dinov3-vits16")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "huggingface")
    save_file(
        {n: t for n, t in tensors.items() if n != "layer.1.norm2.bias"} | {"layer.1.extra": torch.ones(1)},
        tmp_path / "a.safetensors",
    )
    assert refused("dinov3-vits16", tmp_path / "a.safetensors").endswith(
        "does not fit dinov3-vits16: missing layer.1.norm2.bias; unexpected layer.1.extra"
    )
    save_file(tensors | {"layer.0.mlp.up_proj.weight": torch.ones(1500, 384)}, tmp_path / "b.safetensors")
    said = refused("dinov3-vits16", tmp_path / "b.safetensors")
    assert "blocks.0.mlp.up.weight is [1500, 384] instead of [1536, 384]" in said
    save_file({"conv.weight": torch.ones(3)}, tmp_path / "c.safetensors")
    said = refused("dinov3-vits16", tmp_path / "c.safetensors")
    assert "holds no backbone that this package knows; its first tensors are: conv.weight" in said
    save_file(tensors | {"norm.weight": torch.full((384,), float("inf"))}, tmp_path / "d.safetensors")
    assert "holds values that are not finite in norm.weight" in refused("dinov3-vits16", tmp_path / "d.safetensors")


def test_tensors_cut_as_nobody_cuts_them_are_refused(tmp_path) -> None:
    backbone = drawn("dinov3-vits16")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    for name, odd in (
        ("storage_tokens", torch.ones(4)),
        ("patch_embed.proj.weight", torch.tensor(1.0)),
        ("blocks.0.attn.qkv.bias_mask", torch.ones(7)),
        ("blocks.0.attn.qkv.weight", torch.ones(3)),
    ):
        torch.save(tensors | {name: odd}, tmp_path / "odd.pth")
        refused("dinov3-vits16", tmp_path / "odd.pth")
    files.write(tmp_path / "own.safetensors", backbone.state_dict(), {"content": "backbone"})
    said = refused("dinov3-vits16", tmp_path / "own.safetensors")
    assert "does not describe its backbone completely: 'backbone' is missing" in said
    save_file({"a": torch.ones(1)}, tmp_path / "list.safetensors", {"dino_perception": "[1]"})
    said = refused("dinov3-vits16", tmp_path / "list.safetensors")
    assert "metadata under 'dino_perception' that this package did not write" in said


class Malicious:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Malicious()}))
    torch.save({"args": argparse.Namespace(lr=1), "model": {"w": torch.ones(1)}}, tmp_path / "namespace.pth")
    for name, asked in (("zip.pth", "posix.system"), ("plain.pth", ""), ("namespace.pth", "argparse.Namespace")):
        said = refused("dinov3-vits16", tmp_path / name)
        assert "is refused" in said and asked in said
    assert not (tmp_path / "it_ran").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert (tmp_path / "it_ran").exists()  # so the file was dangerous


def test_damaged_and_foreign_files_are_refused(tmp_path) -> None:
    backbone = drawn("dinov3-vits16")
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    torch.save(tensors, tmp_path / "whole.pth")
    save_file(tensors, tmp_path / "whole.safetensors")
    for name, said in (
        ("whole.pth", "is not a whole torch file"),
        ("whole.safetensors", "is not a whole safetensors file"),
    ):
        content = (tmp_path / name).read_bytes()
        for keep in (0.9, 0.5, 0.001):
            cut = tmp_path / f"cut{Path(name).suffix}"
            cut.write_bytes(content[: int(len(content) * keep)])
            assert said in refused("dinov3-vits16", cut)
    for content, said in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page, not weights"),
        (b"nonsense, but long enough to be something", "damaged"),
    ):
        (tmp_path / "odd.pth").write_bytes(content)
        assert said in refused("dinov3-vits16", tmp_path / "odd.pth")
    assert "cannot be read: No such file or directory" in refused("dinov3-vits16", tmp_path / "absent.pth")
    (tmp_path / "empty").mkdir()
    said = refused("dinov3-vits16", tmp_path / "empty")
    assert "should hold model.safetensors or one weights file; it holds none" in said
    assert "there is no backbone 'dinov4'; the ids are rover-tiny, " in refused("dinov4", "")


def test_one_flipped_bit_in_our_own_file_is_noticed(tmp_path) -> None:
    path = tmp_path / "own.safetensors"
    save_backbone(drawn("dinov3-vits16"), path)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert "is damaged: its weights do not have the hash" in refused("dinov3-vits16", path)


def test_an_index_cannot_point_outside_its_folder(tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "names '../../etc/passwd', which is outside its folder" in refused("dinov3-vits16", tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "own.safetensors"
    save_backbone(drawn("dinov3-vits16"), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_backbone(drawn("dinov3-vits16plus"), path, notes={1, 2})  # a set is not JSON
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["own.safetensors"]
    assert load_file(path)


def test_loading_does_not_start_torchs_compiler() -> None:
    """A node that comes back after a crash waits for its imports; the compiler's alone take longer than all the rest."""
    code = (
        "import sys; from dino_perception.models.checkpoints import load_backbone; load_backbone('rover-tiny'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
