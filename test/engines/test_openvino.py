"""OpenVINO computes what float32 torch computes, for every family of backbone, and shares memory instead of copying."""

from __future__ import annotations

import itertools
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_perception import engines
from dino_perception.engines import cpu_bfloat16
from dino_perception.engines.openvino import OpenVino
from dino_perception.engines.parity import Gate
from dino_perception.engines.parity_pictures import parity_inputs

pytestmark = pytest.mark.skipif(bool(OpenVino().unavailable()), reason=OpenVino().unavailable() or "-")

needs_bf16 = pytest.mark.skipif("bfloat16" not in OpenVino().ladder(), reason="this CPU has no bfloat16")


@pytest.fixture(scope="module", params=["vit", "convnext"])
def graph(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain(vit):
    """A ViT in float32."""
    return engines.build(vit, (vit.example(),), engine="openvino", precision="float32")


@pytest.mark.parametrize(
    "capabilities, pays, order",
    [
        (("FP32", "BF16"), True, ("bfloat16", "float32")),
        (("FP32", "BF16"), False, ("float32", "bfloat16")),
        (("FP32",), True, ("float32",)),
    ],
)
def test_auto_tries_first_the_precision_that_is_faster_here(monkeypatch, capabilities, pays, order):
    monkeypatch.setattr(OpenVino, "_capabilities", staticmethod(lambda: capabilities))
    monkeypatch.setattr("dino_perception.engines.openvino.bfloat16_pays", lambda: pays)
    assert OpenVino().ladder() == order


@pytest.mark.parametrize("float32, bfloat16, pays", [(1.0, 0.5, True), (1.0, 0.95, False), (0.6, 1.0, False)])
def test_bfloat16_pays_where_its_products_take_clearly_less_time(monkeypatch, float32, bfloat16, pays):
    now = itertools.accumulate(itertools.cycle([0.0, float32, 0.0, bfloat16]))
    monkeypatch.setattr(
        "dino_perception.engines.cpu_bfloat16.time", types.SimpleNamespace(perf_counter=lambda: next(now))
    )
    assert cpu_bfloat16.bfloat16_pays.__wrapped__() is pays


@needs_bf16
def test_bfloat16_stays_within_the_gate_for_vit_and_convnext(graph):
    compiled = engines.build(graph, (graph.example(),), engine="openvino", precision="bfloat16")
    parity = compiled.info.parity
    assert parity["frames"] >= 3
    for output in parity["outputs"]:
        assert output["cosine_mean"] >= 0.999 and output["cosine_worst"] >= 0.99 and output["nonfinite"] == 0
    assert not Gate().failures(parity)


def test_float32_agrees_to_rounding(graph, frame, plain, vit):
    compiled = plain if graph is vit else engines.build(graph, (frame,), engine="openvino", precision="float32")
    with torch.inference_mode():
        wanted = graph(frame)
    for got, w in zip(compiled(frame), wanted):
        assert got.dtype == torch.float32 and got.shape == w.shape
        assert (got - w).abs().max() <= 2e-4 * w.abs().max()


def test_a_batch_gives_what_its_frames_give_alone(vit, frame, plain):
    other = 255 - frame
    singles = [[t.clone() for t in plain(f)] for f in (frame, other)]
    together = engines.build(vit, (frame.repeat(2, 1, 1, 1),), engine="openvino", precision="float32")
    for i, maps in enumerate(zip(*singles)):
        batch = together(torch.cat([frame, other]))[i]
        assert torch.allclose(batch, torch.cat(maps), atol=1e-3)


def test_outputs_are_the_engines_own_memory_and_inputs_are_read_in_place(plain, frame):
    first = plain(frame)
    before = first[0].clone()
    second = plain(255 - frame)
    assert [t.data_ptr() for t in first] == [t.data_ptr() for t in second]
    assert not torch.equal(before, first[0]), "an output is valid until the next call, which overwrites it"
    picture = np.ascontiguousarray(frame.numpy())
    plain(torch.from_numpy(picture))
    assert plain.request.get_input_tensor(0).data.ctypes.data == picture.ctypes.data


def test_a_view_of_a_larger_image_is_accepted(plain, frame):
    wanted = [t.clone() for t in plain(frame)]
    wide = torch.zeros(1, frame.shape[1], frame.shape[2] + 5, 3, dtype=torch.uint8)
    wide[:, :, 2:-3] = frame
    for got, w in zip(plain(wide[:, :, 2:-3]), wanted):
        assert torch.equal(got, w)


def test_a_wrong_shape_is_one_sentence(plain, frame):
    with pytest.raises(
        engines.EngineError, match=r"was given uint8 \(1, 64, 64, 3\); it was built for uint8 \(1, 64, 96, 3\)"
    ):
        plain(frame[:, :, :64])


def test_the_torch_copy_of_the_weights_is_let_go(frame):
    import gc
    import weakref

    from dino_perception.models.checkpoints import load_backbone

    graph = load_backbone("rover-tiny").at(64, 96, (3,))
    kept = [weakref.ref(p) for p in graph.parameters()]
    compiled = engines.build(graph, (frame,), engine="openvino", precision="float32")
    del graph
    gc.collect()
    assert not any(ref() is not None for ref in kept), "the engine keeps the weights twice"
    assert compiled(frame)


def test_openvino_reports_to_nobody():
    """Its import forks a process that reports its use over the network, unless its telemetry cannot be found."""
    code = (
        "import sys; from dino_perception.engines.openvino import OpenVino; OpenVino().unavailable(); "
        "import openvino; openvino.convert_model; "
        "print(sys.modules['openvino_telemetry'], 'multiprocessing.popen_fork' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(engines.__file__).parents[2]
    )
    assert answer.stdout.split() == ["None", "False"], answer.stderr


@pytest.mark.parametrize("kind", ["segmentation", "depth", "correspondences"])
def test_heads_take_the_backbones_own_output(vit, frame, plain, kind):
    from dino_perception.models.heads.base import create_head

    features = plain(frame)
    head = create_head(kind, vit.backbone, taps=vit.taps[-1:] if kind == "correspondences" else None)
    taps = [vit.taps.index(tap) if tap in vit.taps else 0 for tap in head.spec.taps]
    given = tuple(features[i] for i in taps)
    graph = head.at(32, 48)
    top = engines.build(
        graph, tuple(torch.zeros_like(t) for t in given), engine="openvino", precision="float32", name=kind
    )
    with torch.inference_mode():
        maps = vit(frame)
        wanted = graph(*(maps[i] for i in taps))
    got = top(*given)
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in wanted]
    for what, g, w in zip(graph.meanings, got, wanted):
        if what == "labels":
            assert (g == w).float().mean() >= 0.995
        elif what == "levels":
            assert (g.int() - w.int()).abs().max() <= 2
        else:
            assert torch.allclose(g, w, rtol=1e-2, atol=1e-3, equal_nan=True)


@needs_bf16
def test_depth_comes_without_steps_in_bfloat16():
    """Enlarged in bfloat16, the ground would be a staircase of at most 256 levels an octave."""
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads.base import load_head

    backbone = load_backbone("rover-tiny")
    head = load_head("depth", backbone)
    net = backbone.at(192, 256, head.spec.taps)  # a picture's features: to noise the head may answer with one depth
    with torch.inference_mode():
        features = tuple(f.contiguous() for f in net(*parity_inputs((net.example(),))[0]))
    compiled = engines.build(
        head.at(96, 128), features, engine="openvino", precision="bfloat16", name="depth", parity_inputs=[features]
    )
    metres, *_ = compiled(*features)
    assert len(torch.unique(metres)) > 0.9 * metres.numel()


def test_enlarging_by_hand_is_torchs_own_interpolation():
    from dino_perception.engines.exact_upsampling import bilinear

    x = torch.randn(2, 3, 7, 9)
    for size in ((28, 36), (13, 40), (7, 9), (5, 4), (1, 1)):
        wanted = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        assert torch.allclose(bilinear(x, *size), wanted, atol=1e-5)


def test_only_the_last_enlargement_is_written_out():
    from dino_perception.engines.base import Program
    from dino_perception.engines.exact_upsampling import with_exact_tail

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x = self.conv(torch.nn.functional.interpolate(x, size=(8, 8), mode="bilinear"))
            return (torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear"), x)

    x = torch.randn(1, 3, 4, 4)
    net = Net().eval()
    exported = Program(net, (x,)).exported
    rewritten = with_exact_tail(exported)
    count = [sum("upsample" in str(node.target) for node in program.graph.nodes) for program in (exported, rewritten)]
    assert count == [2, 1]
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(rewritten.module()(x), net(x)))
