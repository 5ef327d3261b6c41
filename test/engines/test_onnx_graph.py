"""The ONNX of every graph that ships computes what float32 torch does; onnxruntime is the independent reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from build_with_tensorrt import BACKBONES, backbone_graph, head_graphs

from dino_perception.engines import Gate, onnx_graph, parity_inputs
from dino_perception.engines.base import Compiled, EngineError, EngineInfo, Program
from dino_perception.engines.parity import Reference, summary
from dino_perception.models.checkpoints import load_backbone

onnx = pytest.importorskip("onnx", reason="onnx is not installed (requirements/test.txt)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/test.txt)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (requirements/test.txt)")

EXACT = Gate(cosine_mean=0.999999, cosine_worst=0.99999, label_agreement=0.9999, level_difference=0.01,
             depth_abs_rel=1e-5)  # fmt: skip
"""What float32 in another order of summation may differ by."""


class OnnxRuntime(Compiled):
    """An ONNX file run on the CPU; 8-bit inputs and outputs are cast outside, as the engine does."""

    def __init__(self, path: Path, program: Program):
        super().__init__(program.example)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # roundings must stay
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.info, self.device = EngineInfo("onnxruntime", "float32", "CPU"), torch.device("cpu")
        nodes = program.exported.graph_module.graph.output_node().args[0]
        self.types = [node.meta["val"].dtype for node in nodes]

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fed = {f"input{i}": t.float().numpy() for i, t in enumerate(inputs)}
        outputs = self.session.run([f"output{i}" for i in range(len(self.types))], fed)
        return tuple(torch.from_numpy(np.asarray(o)).to(dtype) for o, dtype in zip(outputs, self.types))


def rounded(path: Path) -> Path:
    """The file with bfloat16 as float32 that is rounded after every operation: onnxruntime computes no bfloat16, and this
    is bfloat16 where no kernel is fused, the most rounding there can be."""
    model = onnx.load(path)
    bfloat16, float32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    low = {name for name, kind in types.items() if kind == bfloat16}
    for tensor in graph.initializer:
        if tensor.data_type == bfloat16:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    nodes = []
    for node in graph.node:
        exact = {name: f"{name} exact" for name in node.output if name in low}
        node.output[:] = [exact.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == bfloat16:
                attribute.i = float32
        nodes.append(node)
        for name, before in exact.items():
            nodes.append(onnx.helper.make_node("Cast", [before], [f"{name} low"], to=bfloat16))
            nodes.append(onnx.helper.make_node("Cast", [f"{name} low"], [name], to=float32))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    out = path.with_name("rounded.onnx")
    onnx.save(model, out)
    return out


SIZE = (224, 320)
"""Smaller than what runs, to be quick: the operations are the same."""


def difference(program: Program, precision: str, folder: Path, inputs=None) -> dict:
    """The parity record of the graph's ONNX against float32 torch."""
    path = folder / "graph.onnx"
    onnx_graph.write(program, precision, path)
    path = rounded(path) if precision == "bfloat16" else path
    reference = Reference(program.module, inputs or parity_inputs(program.example)[:1], torch.device("cpu"))
    return reference.compare(OnnxRuntime(path, program))


def programs():
    for name in BACKBONES:
        yield pytest.param(lambda name=name: backbone_graph(name, 2, SIZE)[0], id=f"{name}, 2 blocks")
    for kind in ("segmentation", "depth", "correspondences"):
        yield pytest.param(lambda kind=kind: head(kind), id=f"rover-tiny {kind}")


def head(kind: str) -> Program:
    graphs = head_graphs(load_backbone("rover-tiny", ""), every_arch=False)
    return next(program for program in graphs if f" {kind} " in program.name)


def report(capsys, program: Program, precision: str, record: dict) -> None:
    with capsys.disabled():
        print(f"\n| {program.name} | onnx | {precision} | {summary(record)} |", end="")


@pytest.mark.parametrize("make", programs())
def test_the_onnx_of_a_graph_is_float32_torch(make, tmp_path, capsys):
    program = make()
    record = difference(program, "float32", tmp_path)
    report(capsys, program, "float32", record)
    assert EXACT.failures(record) == []


@pytest.fixture(scope="module")
def shipped():
    """The bundled backbone's graph, a frame, and the maps of the default heads on it."""
    program, backbone = backbone_graph("rover-tiny", size=(480, 640))
    frame = parity_inputs(program.example)[0]
    with torch.inference_mode():
        return program, frame, program.module(*frame), backbone


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_as_onnx_passes_the_gate_that_it_must_pass_on_a_robot(shipped, precision, tmp_path, capsys):
    """The trained model, whole, on a real frame, each bfloat16 operation rounded by itself."""
    program, frame, maps, backbone = shipped
    record = difference(program, precision, tmp_path, [frame])
    report(capsys, program, precision, record)
    assert Gate().failures(record) == []
    for each in head_graphs(backbone, every_arch=False):
        if " detection " in each.name:
            continue  # no detector ships, and the scores of an untrained one all but tie: rounding swaps its boxes
        read = [t for t in each.example if t.ndim == 4]  # the others say which cells count, not what they show
        features = (*(t.clone() for t in maps[-len(read) :]), *each.example[len(read) :])
        record = difference(each, precision, tmp_path, [features])
        report(capsys, each, precision, record)
        assert Gate().failures(record) == []


def test_the_file_is_one_that_older_parsers_read(tmp_path):
    """TensorRT 10.3 of JetPack 6 reads operator sets 9 to 20, and knows no domain but ONNX's own."""
    program = head("segmentation")
    onnx_graph.write(program, "bfloat16", tmp_path / "graph.onnx")
    model = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    assert [(found.domain, found.version) for found in model.opset_import] == [("", onnx_graph.OPSET)]
    assert 9 <= onnx_graph.OPSET <= 20 and not model.functions
    assert not {"ConvTranspose", "If", "Loop", "Shape"} & {node.op_type for node in model.graph.node}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in weights for node in model.graph.node if node.op_type == "Conv")
    kinds = {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert kinds == {onnx.TensorProto.FLOAT}


def test_without_its_packages_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(EngineError, match="^onnxscript is not installed, which .* needs; pip install onnxscript$"):
        onnx_graph.write(head("depth"), "float32", tmp_path / "graph.onnx")
