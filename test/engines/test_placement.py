"""Everything is exported on the CPU and only an engine places it: proven without a GPU, on fake and empty tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_perception import engines
from dino_perception.engines import placement, retype
from dino_perception.engines.base import EngineError, Program
from dino_perception.engines.cuda import typed_on
from dino_perception.engines.parity import Reference
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads.base import load_head

HEADS = ("segmentation", "depth", "correspondences")
META = torch.device("meta")


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("rover-tiny")


def features_on(kind: str, tiny, device: str):
    """What a backbone on that device would hand to a head; "cuda" without a GPU is a fake tensor's device."""
    head = load_head(kind, tiny)
    with FakeTensorMode() if device == "cuda" else torch.device(device):
        return head, tuple(torch.zeros(1, c, 4, 6, device=device) for c in head.spec.channels)


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_handed_features_of_another_device_is_exported_on_the_cpu(kind, device, tiny):
    head, features = features_on(kind, tiny, device)
    assert {t.device.type for t in features} == {device}
    program = Program(head.at(32, 48), features, kind)
    assert {found.type for _, found in placement.parts(program.exported)} == {"cpu"}
    assert [t.shape for t in program.example] == [t.shape for t in features]


def test_a_module_that_was_moved_before_is_one_sentence(frame):
    module = nn.Linear(3, 8).to(META)
    with pytest.raises(EngineError, match=r"its weight 'weight' is on meta; give engines a module on the CPU"):
        _ = Program(module, (torch.zeros(1, 3),), "backbone").exported


def graphs(tiny):
    frame = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
    yield "rover-tiny", drawn("rover-tiny"), (frame,)
    yield "convnext", drawn("dinov3-convnext-tiny"), (frame,)
    for kind in HEADS:
        head, features = features_on(kind, tiny, "cpu")
        yield kind, head.at(32, 48), features


def drawn(backbone_id: str):
    backbone = load_backbone(backbone_id)
    backbone.draw()
    return backbone.at(64, 96, backbone.spec.taps)


def test_after_placement_every_part_of_every_graph_names_the_one_device(tiny):
    for name, module, example in graphs(tiny):
        for precision in ("bfloat16", "float16", "float32"):
            typed = typed_on(Program(module, example, name), precision, META)
            found = list(placement.parts(typed))
            assert len(found) > 5 and {device.type for _, device in found} == {"meta"}, (name, precision)
        assert {t.device.type for t in [*module.parameters(), *module.buffers()]} <= {"cpu"}, "the caller's stays"


class Lookup(nn.Module):
    """A graph with all that has a device: a weight, a buffer, a lifted tensor, a `device=` and a cast."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        written = torch.tensor([1.0, 2.0, 3.0, 4.0])
        ramp = torch.arange(4, device=x.device)
        return (x * self.weight + self.table + written + ramp.to("cpu"),)


def moved():
    return placement.placed(retype.retyped(Program(Lookup().eval(), (torch.zeros(2, 4),)), "bfloat16"), META)


def test_lifted_tensors_and_device_arguments_move_too():
    what = " ".join(part for part, device in placement.parts(moved()) if device == META)
    for kind in ("weight '", "constant '", "example input 0", "an argument of node 'arange'", "the value of node 'add"):
        assert kind in what, what


def left_behind_constant(exported):
    key = next(iter(exported.constants))
    exported.constants[key] = torch.zeros(4)
    return f"constant '{key}' is on cpu"


def left_behind_weight(exported):
    key = next(iter(exported.state_dict))
    exported.state_dict[key] = torch.zeros(4)
    return f"weight '{key}' is on cpu"


def left_behind_argument(exported):
    node = next(n for n in exported.graph.nodes if "device" in n.kwargs)
    node.kwargs = {**node.kwargs, "device": torch.device("cpu")}
    return f"an argument of node '{node.name}' is on cpu"


def left_behind_name(exported):
    node = next(n for n in exported.graph.nodes if "device" in n.kwargs)
    node.kwargs = {**node.kwargs, "device": "cpu"}
    return f"an argument of node '{node.name}' is on cpu"


def left_behind_value(exported):
    node = next(n for n in reversed(exported.graph.nodes) if n.op == "call_function")
    node.meta["val"] = torch.zeros(4)
    return f"the value of node '{node.name}' is on cpu"


@pytest.mark.parametrize(
    "leave", [left_behind_constant, left_behind_weight, left_behind_argument, left_behind_name, left_behind_value]
)
def test_a_part_that_stayed_behind_is_an_error_that_names_it(leave):
    exported = moved()
    placement.check_placed(exported, META)
    words = leave(exported)
    with pytest.raises(EngineError) as error:
        placement.check_placed(exported, META, "backbone")
    assert f"backbone: {words} and the engine runs on meta" in str(error.value) and "\n" not in str(error.value)


def test_the_cuda_engine_looks_before_it_compiles(monkeypatch):
    """A torch whose own pass forgets a constant is found out before anything is built from the graph."""
    from torch.export import passes

    def forgetful(exported, location, real=passes.move_to_device_pass):
        exported = real(exported, location)
        exported.constants[next(iter(exported.constants))] = torch.zeros(4)
        return exported

    monkeypatch.setattr(passes, "move_to_device_pass", forgetful)
    with pytest.raises(EngineError, match="head: constant '.*' is on cpu and the engine runs on meta"):
        typed_on(Program(Lookup().eval(), (torch.zeros(2, 4),), "head"), "bfloat16", META)


def test_a_device_without_its_number_is_the_one_in_use():
    assert placement._same(torch.device("cuda"), torch.device("cuda:0"))
    assert not placement._same(torch.device("cuda:1"), torch.device("cuda:0"))


def test_engines_leave_the_callers_module_where_it_is(vit, frame):
    engines.build(vit, (frame,), engine="torch", report=lambda line: None)
    Reference(vit, [(frame,)], torch.device("cpu"))
    assert {t.device.type for t in [*vit.parameters(), *vit.buffers()]} == {"cpu"}
