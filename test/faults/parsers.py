"""Every parser of files that this package did not write, each with good input to damage and the one error it may raise."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from mutations import damaged, lying

from dino_perception.models import files
from dino_perception.models.checkpoints import BUNDLED, CheckpointError, load_backbone
from dino_perception.models.heads.base import HeadError, load_head
from dino_perception.models.yaml_text import YamlError, load
from dino_perception.perception.settings import SettingError, Settings
from dino_perception.training.datasets.base import DataError
from dino_perception.training.datasets.labels import read_labels


class Parser(NamedTuple):
    """`bad(random)` makes the bytes of a damaged file, `read(path)` parses them, `error` is what that may raise."""

    bad: Callable
    read: Callable
    error: type[Exception]
    name: str = "file"
    share: float = 1.0
    """Of the usual number of tries, where each takes long."""


def parsers() -> dict[str, Parser]:
    """By name. Takes a second: a backbone is loaded, against which heads are checked."""
    backbone = load_backbone("rover-tiny")
    segmentation, depth, plain = (
        (BUNDLED / f"rover-tiny{part}.safetensors").read_bytes() for part in ("-segmentation", "-depth", "")
    )
    new, old = torch_files()
    index = json.dumps({"metadata": {"total_size": 9}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    labels = {"labels": [{"name": "soil", "id": 0, "colour": [1, 2, 3]}, {"name": "rock", "id": 1, "values": [1, 9]}],
              "ignore": [255, 7]}  # fmt: skip
    settings = {"/**": {"ros__parameters": {"engine": "torch", "points": {"max_range": 9.0}, "cameras": ["a", "b"],
                                            "max_age": 1, "heads": ["depth"], "depth": {"rate": 3.0}}}}  # fmt: skip
    return {
        "safetensors head, bytes": Parser(
            lambda r: damaged(segmentation, r, 2500), lambda p: load_head("segmentation", backbone, p), HeadError
        ),
        "safetensors head, metadata": Parser(
            lambda r: _relabelled(depth, r), lambda p: load_head("depth", backbone, p), HeadError
        ),
        "safetensors backbone, bytes": Parser(
            lambda r: damaged(plain, r, 9000), lambda p: load_backbone("rover-tiny", p), CheckpointError, share=0.2
        ),
        "safetensors backbone, metadata": Parser(
            lambda r: _relabelled(plain, r), lambda p: load_backbone("auto", p), CheckpointError, share=0.1
        ),
        "torch file": Parser(lambda r: damaged(new, r), lambda p: load_backbone("auto", p), CheckpointError),
        "torch file, old format": Parser(lambda r: damaged(old, r), lambda p: load_backbone("auto", p), CheckpointError),
        "torch file of lies": Parser(_torch_of_lies, lambda p: load_backbone("auto", p), CheckpointError),
        "shard index": Parser(
            lambda r: (damaged(index.encode(), r) if r.random() < 0.5 else _json(lying(json.loads(index), r))),
            lambda p: files.read(p.parent), files.FileError, "model.safetensors.index.json",
        ),
        "labels.yaml": Parser(lambda r: _yaml(labels, r), read_labels, DataError),
        "parameter file": Parser(lambda r: _yaml(settings, r), Settings.from_yaml, SettingError),
        "YAML": Parser(_hostile_yaml, lambda p: load(p.read_bytes()), YamlError),
    }  # fmt: skip


def torch_files() -> tuple[bytes, bytes]:
    """A small checkpoint in torch's two formats."""
    tensors = {name: torch.randn(4, 4) for name in ("a", "patch_embed.proj.weight", "blocks.0.x", "norm.weight")}
    made = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": tensors, "args": {"x": 1}}, buffer, _use_new_zipfile_serialization=zipped)
        made.append(buffer.getvalue())
    return made[0], made[1]


def _torch_of_lies(random_) -> bytes:
    """A whole torch file whose tensors are of any shape and kind under a backbone's names."""
    names = ("patch_embed.proj.weight", "pos_embed", "storage_tokens", "blocks.0.attn.qkv.weight", "norm.weight", 7, "",
             "stem.0.weight", "stages.0.blocks.0.gamma", "embeddings.patch_embeddings.weight", "patch.weight")  # fmt: skip
    shapes = ((), (0,), (3,), (4, 3, 16, 16), (1, 5, 4), (0, 0), (1, 1, 1, 1), (2, 3, 4, 5, 6))
    kinds = (torch.float32, torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16)
    content: dict = {}
    for _ in range(random_.randrange(1, 7)):
        tensor = torch.zeros(random_.choice(shapes), dtype=random_.choice(kinds))
        content[random_.choice(names)] = random_.choice((tensor, tensor.to_sparse(), [tensor], None, content))
    buffer = io.BytesIO()
    torch.save(random_.choice((content, {"model": content}, {"teacher": content, "student": 5})), buffer)
    return buffer.getvalue()


def _relabelled(file: bytes, random_) -> bytes:
    """A safetensors file whose metadata lie, with its tensors as they were."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    own = json.loads(header["__metadata__"][files.KEY])
    if "spec" in own and random_.random() < 0.9:
        own["spec"] = lying(own["spec"], random_)
    else:
        own = lying(own, random_)
    header["__metadata__"][files.KEY] = json.dumps(own)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def _json(plain) -> bytes:
    return json.dumps(plain).encode()


def _yaml(plain, random_) -> bytes:
    if random_.random() < 0.15:
        return _hostile_yaml(random_)
    if random_.random() < 0.5:
        return damaged(yaml.safe_dump(plain).encode(), random_)
    return yaml.safe_dump(lying(plain, random_)).encode()


def _hostile_yaml(random_) -> bytes:
    """What YAML is known to be hung and broken by."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    return random_.choice((
        b"[" * 5000, b"{" * 5000, b"- " * 5000, b"a: " * 3000, b"? " * 3000, laughs.encode(),
        b"labels: &l [*l]\n", b"a: &a {b: *a}\n/**: *a\n", b"date: 2024-13-45\n", b"date: 2024-02-30T99:99:99Z\n",
        b"b: !!binary '====='\n", b"n: 0o9\nx: 0x\n", b"n: " + b"9" * 5000, b"n: 1:99:99:99:99:99:99:99e9\n",
        b"? [a, b]\n: 1\n", b"? {a: b}\n: 1\n", b"<<: 5\n", b"<<: [1, {a: 2}]\n", b"!!python/object/apply:os.system [id]\n",
        b"!!set {a, [b]}\n", b"!!omap [a, b]\n", b"!!timestamp x\n", b"!!float x\n", b"!!int ''\n", b"!!bool maybe\n",
        b"\xff\xfe\x00a", b"\x00", b"a: \x07\n", b"%YAML 9.9\n---\n", b"--- a\n--- b\n", b"*nowhere\n", b"a: *b\nb: &b 1\n",
        b"labels: 2024-01-01\n", b"labels: {name: x}\n", b"labels: [{name: [1]}, {name: {a: 1}}]\n",
        b"labels: [{name: a, colour: red}, {name: b}]\n", b"labels: [{name: a, id: .inf}, {name: b, id: .nan}]\n",
        b"labels: [{name: a, values: {b: c}}, {name: b}]\nignore: 5\n", b"/**: {ros__parameters: {max_age: .nan}}\n",
        b"/**: {ros__parameters: {max_age: " + b"9" * 400 + b"}}\n", b"/**: {ros__parameters: {cameras: [[a]]}}\n",
        b"/**: {ros__parameters: {heads: {a: 1}, 5: 6, ~: 7, 2024-01-01: 8}}\n", b"5: {ros__parameters: 6}\n", b"[]", b"",
    ))  # fmt: skip


def folder_of(parser: Parser, folder: Path, data: bytes) -> Path:
    """The file with these bytes."""
    path = folder / parser.name
    path.write_bytes(data)
    return path
