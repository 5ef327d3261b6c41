"""The ladder steps down only when it must, says so every time, and never hands out an engine that failed."""

from __future__ import annotations

import json

import pytest
import torch

from dino_perception import engines
from dino_perception.engines import ladder
from dino_perception.engines.parity import Gate


@pytest.fixture
def said():
    return []


def start(vit, frame, said, **options):
    options = {"engine": "crooked", **options}
    return engines.build(vit, (frame,), report=said.append, **options)


def test_the_first_precision_that_passes_is_taken(crooked, vit, frame, said):
    engine = crooked()
    compiled = start(vit, frame, said)
    assert (compiled.info.precision, engine.built) == ("bfloat16", ["bfloat16"])
    assert compiled.info.parity and not compiled.info.overridden


def test_it_steps_down_and_says_why(crooked, vit, frame, said):
    engine = crooked(bad=("bfloat16",), broken=("float16",))
    compiled = start(vit, frame, said)
    assert (compiled.info.precision, engine.built) == ("float32", ["bfloat16", "float16", "float32"])
    assert any("crooked bfloat16 failed parity" in line and "NaN" in line for line in said)
    assert any("crooked float16: no kernel for float16" in line and "\n" not in line for line in said)
    assert "bfloat16 failed parity" in compiled.info.reason and "no kernel for float16" in compiled.info.reason
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(compiled(frame), vit(frame)))


def test_a_named_precision_that_fails_is_an_error(crooked, vit, frame, said):
    crooked(bad=("bfloat16",))
    with pytest.raises(engines.EngineError, match="bfloat16 failed parity.*NaN.*parity_override"):
        start(vit, frame, said, precision="bfloat16")


def test_override_uses_the_failing_engine_and_says_so(crooked, vit, frame, said):
    crooked(bad=("bfloat16",))
    compiled = start(vit, frame, said, precision="bfloat16", override=True)
    assert compiled.info.overridden and "NaN" in compiled.info.reason
    assert any("parity override" in line for line in said)


def test_override_needs_the_engines_name(crooked, vit, frame, said):
    crooked(bad=("bfloat16",))
    compiled = start(vit, frame, said, engine="auto", override=True)
    assert compiled.info.precision == "float16" and not compiled.info.overridden


def test_auto_falls_through_to_the_reference(crooked, vit, frame, said):
    crooked(bad=("bfloat16", "float16", "float32"))
    compiled = start(vit, frame, said, engine="auto")
    assert (compiled.info.engine, compiled.info.precision, compiled.info.parity) == ("torch", "float32", None)
    assert compiled.info.reason.count("failed parity") == 3


def test_auto_names_what_it_passed_over(crooked, vit, frame, said, monkeypatch):
    engine = crooked()
    monkeypatch.setattr(engine, "unavailable", lambda: "no such GPU")
    compiled = start(vit, frame, said, engine="auto")
    assert compiled.info.engine == "torch" and "crooked (no such GPU)" in compiled.info.reason


def test_a_failure_is_remembered_and_not_built_again(crooked, vit, frame, said, tmp_path):
    first = crooked(bad=("bfloat16",))
    assert start(vit, frame, said, cache=tmp_path).info.precision == "float16"
    assert first.built == ["bfloat16", "float16"]
    record = json.loads(next(tmp_path.glob("*bfloat16*.json")).read_text())
    assert record["blob"] is None and record["parity"]["outputs"][0]["nonfinite"] > 0

    second = crooked(bad=("bfloat16",), module=vit)
    compiled = start(vit, frame, said, cache=tmp_path)
    assert compiled.info.precision == "float16" and compiled.info.from_cache and second.built == []


def test_a_looser_gate_builds_what_a_stricter_one_refused(crooked, vit, frame, said, tmp_path):
    crooked()
    impossible = Gate(cosine_mean=2.0)
    with pytest.raises(engines.EngineError, match="cosine_mean"):
        start(vit, frame, said, cache=tmp_path, gate=impossible)
    assert start(vit, frame, said, cache=tmp_path).info.precision == "bfloat16"


def test_a_stricter_gate_judges_a_cached_engine_again(crooked, vit, frame, said, tmp_path):
    crooked()
    start(vit, frame, said, cache=tmp_path)
    with pytest.raises(engines.EngineError, match="cosine_mean"):
        start(vit, frame, said, cache=tmp_path, gate=Gate(cosine_mean=2.0))


def test_other_frames_are_compared_again_without_a_rebuild(crooked, vit, frame, said, tmp_path):
    crooked()
    first = start(vit, frame, said, cache=tmp_path)
    engine = crooked(module=vit)
    again = start(vit, frame, said, cache=tmp_path, parity_inputs=[(frame,)])
    assert engine.built == [] and again.info.from_cache
    assert (first.info.parity["frames"], again.info.parity["frames"]) == (3, 1)


def test_a_function_of_frames_is_called_only_for_a_build(crooked, vit, frame, said, tmp_path):
    calls = []
    crooked()
    start(vit, frame, said, cache=tmp_path, parity_inputs=lambda: calls.append(1) or [(frame,)])
    start(vit, frame, said, cache=tmp_path, parity_inputs=lambda: calls.append(1) or [(frame,)])
    assert calls == [1]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"engine": "tpu"}, "there is no engine 'tpu'; accepted are auto, crooked, torch"),
        (
            {"precision": "int8"},
            "engine 'crooked' does not compute in int8; accepted are auto, bfloat16, float16, float32",
        ),
        ({"engine": "auto", "precision": "int8"}, "no engine that works here computes in int8"),
    ],
)
def test_a_wrong_choice_is_one_sentence(crooked, vit, frame, said, options, sentence):
    crooked()
    with pytest.raises(engines.EngineError, match=sentence):
        start(vit, frame, said, **options)


def test_a_graph_that_cannot_be_exported_is_one_sentence(frame):
    class Branch(torch.nn.Module):
        def forward(self, pixels):
            return (pixels.float() if pixels.float().mean() > 3 else -pixels.float(),)

    with pytest.raises(engines.EngineError) as error:
        engines.build(Branch(), (frame,), engine="openvino", precision="float32", report=lambda line: None)
    assert "cannot be exported" in str(error.value) and "\n" not in str(error.value)


def test_the_order_of_auto_is_the_designs():
    assert list(ladder.ENGINES) == ["tensorrt", "cuda", "openvino", "torch"]
