"""The cache gives back the same engine or builds a new one; damage, change, races and kills never show in an output."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dino_perception import engines
from dino_perception.engines import cache, cache_folder, identity
from dino_perception.engines.base import Program
from dino_perception.engines.openvino import OpenVino
from dino_perception.models.checkpoints import load_backbone

pytestmark = pytest.mark.skipif(bool(OpenVino().unavailable()), reason=OpenVino().unavailable() or "-")


@pytest.fixture(scope="module")
def head():
    """A small real graph (a depth head), so that a build takes a second."""
    from dino_perception.models.heads.base import load_head

    backbone = load_backbone("rover-tiny")
    head = load_head("depth", backbone)
    example = tuple(torch.zeros(1, c, 4, 6) for c in head.spec.channels)
    return head, head.at(32, 48), example


@pytest.fixture(scope="module")
def inputs(head):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(t.shape, generator=generator) for t in head[2])


@pytest.fixture(scope="module")
def filled(tmp_path_factory, head, inputs):
    """A cache with one engine in it, and what that engine gives."""
    folder = tmp_path_factory.mktemp("cache")
    compiled = start(head, folder, [])
    return folder, [t.clone() for t in compiled(*inputs)]


@pytest.fixture
def folder(filled, tmp_path):
    """A copy of that cache to damage."""
    for path in filled[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def start(head, folder, said, **options):
    _, graph, example = head
    return engines.build(
        graph,
        example,
        engine="openvino",
        precision="float32",
        cache=folder,
        name="depth",
        report=said.append,
        **options,
    )


def test_a_second_start_loads_without_exporting_and_gives_the_same_bits(filled, head, inputs, monkeypatch):
    monkeypatch.setattr(Program, "exported", property(lambda self: pytest.fail("a warm start exported the graph")))
    said = []
    compiled = start(head, filled[0], said)
    assert compiled.info.from_cache and compiled.info.parity["outputs"]
    assert all(torch.equal(a, b) for a, b in zip(compiled(*inputs), filled[1]))
    assert len(said) == 1 and "loaded" in said[0]


def test_the_record_beside_the_engine_holds_the_numbers(filled):
    (record,) = cache.records(filled[0])
    assert record["description"]["engine"] == "openvino" and record["description"]["precision"] == "float32"
    assert record["parity"]["outputs"][0]["depth_abs_rel"] < 1e-3
    assert record["bytes"] == (filled[0] / record["blob"]).stat().st_size > 10_000


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": (".engine", flip, "damaged"),
    "a truncated engine": (".engine", lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged"),
    "an empty engine": (".engine", lambda p: p.write_bytes(b""), "cannot be read"),
    "a lost engine": (".engine", Path.unlink, "cannot be read"),
    "a record cut short": (".json", lambda p: p.write_text(p.read_text()[:40]), "record cannot be read"),
    "a record that is no object": (".json", lambda p: p.write_text("[]"), "describes another engine"),
    "a foreign record": (
        ".json",
        lambda p: p.write_text(p.read_text().replace('"threads": 0', '"threads": 9')),
        "describes another engine",
    ),
    "a record without its parity": (
        ".json",
        lambda p: p.write_text(p.read_text().replace('"parity"', '"party"')),
        "parity",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_leads_to_one_line_a_rebuild_and_right_outputs(what, folder, filled, head, inputs):
    suffix, damage, line = DAMAGE[what]
    damage(next(folder.glob(f"*{suffix}")))
    said = []
    compiled = start(head, folder, said)
    assert not compiled.info.from_cache
    assert all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(compiled(*inputs), filled[1]))
    rebuilt = [text for text in said if "rebuilt" in text]
    assert len(rebuilt) == 1 and line in rebuilt[0]
    assert start(head, folder, []).info.from_cache, "the rebuilt engine is whole again"


def key_of(program: Program, engine=None, precision="float32", threads=0) -> str:
    return identity.key(identity.describe(program, engine or OpenVino(), precision, threads))


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("rover-tiny")


def pixels(height=64, width=96, batch=1):
    return (torch.zeros(batch, height, width, 3, dtype=torch.uint8),)


def test_the_key_is_the_same_for_the_same_graph_loaded_again(tiny):
    again = load_backbone("rover-tiny")
    _ = again.weights_hash  # a memoised value is no difference
    assert key_of(Program(tiny.at(64, 96, (3,)), pixels())) == key_of(Program(again.at(64, 96, (3,)), pixels()))


def test_everything_that_makes_an_engine_wrong_changes_the_key(tiny, monkeypatch):
    program = Program(tiny.at(64, 96, (3,)), pixels())
    keys = {"itself": key_of(program)}
    keys["tap"] = key_of(Program(tiny.at(64, 96, (4,)), pixels()))
    keys["size"] = key_of(Program(tiny.at(64, 112, (3,)), pixels(width=112)))
    keys["batch"] = key_of(Program(program.module, pixels(batch=2)))
    keys["norm"] = key_of(Program(tiny.at(64, 96, (3,), norm=False), pixels()))
    keys["precision"] = key_of(program, precision="bfloat16")
    keys["threads"] = key_of(program, threads=1)
    keys["name"] = key_of(Program(program.module, program.example, "other"))

    other = load_backbone("rover-tiny")
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if n.endswith("norm.bias"))[0] += 1e-6
    keys["weight"] = key_of(Program(other.at(64, 96, (3,)), pixels()))

    spec = dataclasses.replace(
        tiny.spec, normalisation=dataclasses.replace(tiny.spec.normalisation, mean=(0.5, 0.5, 0.5))
    )
    monkeypatch.setattr(tiny, "spec", spec)
    keys["normalisation"] = key_of(Program(tiny.at(64, 96, (3,)), pixels()))
    monkeypatch.undo()

    class NewRuntime(OpenVino):
        def identity(self):
            return {**super().identity(), "openvino": "2099.1"}

    keys["runtime"] = key_of(program, NewRuntime())
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_source_hash", lambda package: "another source")
        keys["source"] = key_of(program)
    assert len(set(keys.values())) == len(keys), keys


def test_the_source_hash_sees_every_file_of_the_models(monkeypatch):
    seen = []
    monkeypatch.setattr(identity, "_files_hash", lambda files: seen.extend(files) or "x")
    identity._source_hash.__wrapped__("dino_perception.models")
    names = {path.name for path in seen}
    assert {"vit.py", "convnext.py", "backbone.py", "base.py", "segmentation.py"} <= names


def test_models_import_nothing_that_the_source_hash_misses():
    """The key covers the models' folder; so nothing in it may use code of another room."""
    folder = Path(identity.__file__).parents[1] / "models"
    for path in folder.rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and len(words) > 1:
                own = words[1].startswith("dino_perception")
                assert not own or words[1].startswith("dino_perception.models"), (path, line)
                assert not words[1].startswith("..."), (path, line)


@pytest.mark.parametrize(
    "backbone_id", ["rover-tiny", "dinov3-vits16plus", "dinov2-vits14-reg", "dinov3-convnext-tiny"]
)
def test_every_graph_of_the_models_is_known_without_an_export(backbone_id):
    from dino_perception.models.heads.base import load_head

    backbone = load_backbone(backbone_id)
    side = 4 * backbone.spec.stride
    identity.structure_hash(backbone.at(side, side, backbone.spec.taps))
    for kind in ("segmentation", "depth", "correspondences"):
        identity.structure_hash(load_head(kind, backbone).at(32, 32))


def test_a_module_from_elsewhere_is_known_by_its_exported_graph():
    class Scaled(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.function = lambda x: x * by  # nothing but the graph tells what this does

        def forward(self, x):
            return (self.function(x),)

    example = (torch.zeros(1, 3, 4, 4),)
    descriptions = [identity.describe(Program(Scaled(by), example), OpenVino(), "float32", 0) for by in (2.0, 2.0, 3.0)]
    keys = [identity.key(d) for d in descriptions]
    assert "exported" in descriptions[0]["graph"]
    assert keys[0] == keys[1] != keys[2]


def test_a_hook_on_a_model_is_no_secret(tiny):
    graph = tiny.at(64, 96, (3,))
    handle = graph.register_forward_hook(lambda module, given, out: tuple(2 * t for t in out))
    try:
        with pytest.raises(identity.Undescribable):
            identity.structure_hash(graph)
    finally:
        handle.remove()


BUILDER = """
import sys, time, torch
from pathlib import Path
from dino_perception import engines
from dino_perception.engines import ladder
from dino_perception.engines.eager import Eager
from dino_perception.engines.base import Engine

class Net(torch.nn.Module):
    meanings = ("features",)
    def forward(self, x):
        return (2 * x + 1,)

class Slow(Engine):
    name, precisions, saves = "slow", ("float32",), True
    unavailable = lambda self: ""
    device = lambda self: torch.device("cpu")
    identity = lambda self: {{}}
    def build(self, program, precision, threads):
        print("building", flush=True)
        time.sleep({seconds})
        return bytes(4_000_000)
    def load(self, blob, example, precision, threads):
        class P: module, example = Net(), (torch.zeros(1, 1, 2, 2),)
        compiled = Eager().compile(P, "float32", 0)
        compiled.info = type(compiled.info)("slow", "float32", "bench")
        return compiled

ladder.ENGINES["slow"] = Slow()
torch.set_num_threads(1)
print("ready", flush=True)
sys.stdin.readline()
c = engines.build(Net(), (torch.zeros(1, 1, 2, 2),), engine="slow", cache=Path({folder!r}),
                  report=lambda line: print("said", line, flush=True))
assert float(c(torch.ones(1, 1, 2, 2))[0][0, 0, 0, 0]) == 3.0
print("done", c.info.from_cache, flush=True)
"""


def builder(folder, seconds) -> subprocess.Popen:
    script = folder.with_name(f"{folder.name}-{seconds}.py")
    script.write_text(BUILDER.format(folder=str(folder), seconds=seconds))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(identity.__file__).parents[2])},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_start_together_build_once(tmp_path):
    processes = [builder(tmp_path, 2) for _ in range(2)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert sum(out.count("building\n") for out in outputs) == 1
    assert sorted("done True" in out for out in outputs) == [False, True]
    assert sum("another process is building" in out for out in outputs) == 1


def test_a_killed_builder_leaves_no_lock(tmp_path):
    process = builder(tmp_path, 60)
    go(process)
    assert "building" in process.stdout.readline() + process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    successor = builder(tmp_path, 0)
    go(successor)
    out = successor.communicate(timeout=120)[0]
    assert "done False" in out and "waiting" not in out


def test_what_a_kill_while_writing_leaves_is_swept_up(folder, head, inputs, filled):
    """The moments of a store are: part of the engine, the engine without a record, part of a record."""
    record, engine = next(folder.glob("*.json")), next(folder.glob("*.engine"))
    (folder / f"{engine.name}.part").write_bytes(engine.read_bytes()[:1000])
    (folder / f"{record.name}.part").write_bytes(record.read_bytes()[:40])
    record.unlink()
    compiled = start(head, folder, [])
    assert not compiled.info.from_cache
    assert all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(compiled(*inputs), filled[1]))
    assert not list(folder.glob("*.part")) and len(list(folder.glob("*.engine"))) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, head, inputs, filled):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    said = []
    compiled = start(head, blocked, said)
    assert not compiled.info.from_cache and any("cannot be kept" in line for line in said)
    assert all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(compiled(*inputs), filled[1]))


def test_clean_removes_engines_and_nothing_else(folder):
    (folder / "notes.txt").write_text("mine")
    files, freed = cache.clean(folder)
    assert files == 2 and freed > 10_000
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_the_default_folder_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder.default_folder() == Path("/somewhere/dino_perception")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/rover")
    assert cache_folder.default_folder() == Path("/home/rover/.cache/dino_perception")
