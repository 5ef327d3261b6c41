"""Is a compiled engine right? Its outputs are held against float32 torch on real frames, and gated.

DINO under fast runtimes is known to go wrong without a word: NaN from float16 attention, a graph compiled wrongly even
in float32. Cosine similarity per patch finds both: the mean tells of lost precision, the worst patch of local damage.
What a head returns is compared in its own terms, because that is what a planner consumes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn

from dino_perception.engines.base import Compiled, EngineError

SURE, ALIKE = 0.3, 0.9
"""Score from which a box must be found again, and the IoU with its partner."""


@dataclass(frozen=True)
class Gate:
    """What an engine must reach. A number outside its bound, or NaN or Inf where the reference has none, fails it."""

    cosine_mean: float = 0.999
    """Least mean cosine similarity of feature vectors."""
    cosine_worst: float = 0.99
    """Least cosine similarity of any one feature vector."""
    label_agreement: float = 0.98
    """Least share of pixels with the same class."""
    level_difference: float = 4.0
    """Largest mean difference of 8-bit confidences."""
    depth_abs_rel: float = 0.02
    """Largest mean of |d - d_ref| / d_ref, the field's AbsRel, between the engines; the best monocular depth errs by
    three times as much."""
    unknown_difference: float = 0.005
    """Largest share of pixels whose depth only one of the two calls unknown (NaN)."""

    box_agreement: float = 0.98
    """Least share of boxes of either that the other has, too: same class, overlapping by `ALIKE`."""

    AT_LEAST: ClassVar = ("cosine_mean", "cosine_worst", "label_agreement", "box_agreement")

    def failures(self, record: Mapping[str, Any]) -> list[str]:
        """One phrase for each number of a record that is out of bounds; empty when the engine may be used."""
        found = []
        for index, output in enumerate(record["outputs"]):
            what = f"output {index} ({output['kind']})"
            if output["nonfinite"]:
                found.append(f"{what} has {output['nonfinite']} NaN or Inf")
            for name in (f.name for f in fields(self)):
                value, bound, at_least = output.get(name), getattr(self, name), name in self.AT_LEAST
                if value is not None and not (value >= bound if at_least else value <= bound):
                    found.append(f"{what} {name} {value:.5f}, {'at least' if at_least else 'at most'} {bound}")
        return found


class Reference:
    """The module in eager float32 on some inputs: the truth, computed once for all engines that are checked."""

    def __init__(self, module: nn.Module, inputs: Sequence[tuple[torch.Tensor, ...]], device: torch.device):
        self.inputs = [tuple(t.to(device) for t in tensors) for tensors in inputs]
        placed = (module if device.type == "cpu" else copy.deepcopy(module).to(device)).eval()
        with torch.inference_mode(), _plain_float32():
            self.outputs = [tuple(t.to("cpu", copy=True) for t in placed(*tensors)) for tensors in self.inputs]
        self.meanings = meanings_of(module, len(self.outputs[0]))

    def compare(self, compiled: Compiled) -> dict[str, Any]:
        """The record of an engine: {"frames", "outputs": [{"kind", "nonfinite", and the numbers of its kind}]}."""
        frames = []
        for tensors, wanted in zip(self.inputs, self.outputs):
            got = compiled(*tensors)
            frames.append([compare(meaning, w, g.cpu()) for meaning, w, g in zip(self.meanings, wanted, got)])
        return {"frames": len(frames), "outputs": [_merged(outputs) for outputs in zip(*frames)]}


def meanings_of(module: nn.Module, count: int) -> tuple[str, ...]:
    """What each of a graph's `count` outputs means, as it says itself. Raises EngineError when it does not."""
    meanings = tuple(getattr(module, "meanings", ()))
    if len(meanings) != count or not set(meanings) <= set(RULES):
        raise EngineError(
            f"{type(module).__name__} gives {count} outputs and says of {len(meanings)} what they mean "
            f"({', '.join(meanings)}); its `meanings` must name one of {', '.join(RULES)} for each"
        )
    return meanings


def compare(meaning: str, wanted: torch.Tensor, got: torch.Tensor) -> dict[str, Any]:
    """Numbers of one output on one frame, by the rule of its meaning (models/outputs.py)."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise ValueError(
            f"the engine gave {got.dtype} {tuple(got.shape)}, the reference {wanted.dtype} {tuple(wanted.shape)}"
        )
    nonfinite = int((torch.isfinite(wanted) & ~torch.isfinite(got)).sum())
    return {"kind": meaning, "nonfinite": nonfinite, **RULES[meaning].measure(wanted, got)}


def _cosine(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    """Along the channels of (B, C, h, w), or along the last axis."""
    cosine = torch.nn.functional.cosine_similarity(wanted.double(), got.double(), dim=1 if wanted.ndim == 4 else -1)
    cosine = torch.nan_to_num(cosine, nan=-1.0)
    return {"cosine_mean": float(cosine.mean()), "cosine_worst": float(cosine.min())}


def _agreement(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    """Share of equal ids."""
    return {"label_agreement": float((wanted == got).double().mean())}


def _levels(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    """Mean absolute difference."""
    return {"level_difference": float((wanted.double() - got.double()).abs().mean())}


def _abs_rel(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    """AbsRel where both are known, and how often only one is; NaN is a word for unknown and no fault in itself."""
    both = torch.isfinite(wanted) & torch.isfinite(got) & (wanted != 0)
    error = ((got - wanted).abs() / wanted.abs())[both].double()
    return {
        "nonfinite": int((torch.isfinite(wanted) & torch.isinf(got)).sum()),
        "depth_abs_rel": float(error.mean()) if len(error) else 0.0,
        "unknown_difference": float((torch.isnan(wanted) != torch.isnan(got)).double().mean()),
    }


def _boxes(wanted: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    """Of the boxes scored `SURE` and more by either, the share with a partner in the other, whatever its score there."""
    found, total = 0, 0
    for first, second in zip((*wanted, *got), (*got, *wanted)):
        sure = first[first[:, 4] >= SURE]
        found += int(_partnered(sure, second[second[:, 4] > 0]).sum())
        total += len(sure)
    return {"box_agreement": found / total if total else 1.0}


def _partnered(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which of `boxes` (N, 6) have one of `others` (M, 6) of their class that overlaps them by `ALIKE` (IoU)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:4], others[None, :, 2:4])
    common = (high - low).clamp_min(0).prod(dim=-1)
    areas = [(b[:, 2:4] - b[:, :2]).clamp_min(0).prod(dim=-1) for b in (boxes, others)]
    iou = common / (areas[0][:, None] + areas[1][None] - common).clamp_min(1e-9)
    return ((iou >= ALIKE) & (boxes[:, None, 5] == others[None, :, 5])).any(dim=1)


@dataclass(frozen=True)
class Rule:
    """How outputs of one meaning are compared, and how the numbers read in a log."""

    measure: Callable[[torch.Tensor, torch.Tensor], dict[str, float]]
    words: str


_COSINE = Rule(_cosine, "cosine {cosine_mean:.5f} (worst {cosine_worst:.5f})")
RULES = {
    "features": _COSINE,
    "descriptors": _COSINE,
    "vector": _COSINE,
    "labels": Rule(_agreement, "mask agreement {label_agreement:.2%}"),
    "levels": Rule(_levels, "confidence within {level_difference:.2f} levels"),
    "boxes": Rule(_boxes, "boxes agree to {box_agreement:.2%}"),
    "metres": Rule(_abs_rel, "depth AbsRel {depth_abs_rel:.5f}"),
}


def _merged(frames: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One output over all frames: the worst of the worst, the mean of the means, the sum of the counts."""
    merged: dict[str, Any] = dict(frames[0])
    for name in merged:
        values = [frame[name] for frame in frames]
        if name == "nonfinite":
            merged[name] = sum(values)
        elif name == "cosine_worst":
            merged[name] = min(values)
        elif name != "kind":
            merged[name] = sum(values) / len(values)
    return merged


@contextlib.contextmanager
def _plain_float32() -> Iterator[None]:
    """Float32 that means it: on NVIDIA GPUs torch rounds convolutions to TF32 unless told otherwise."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def summary(record: Mapping[str, Any] | None) -> str:
    """A record in one line, for logs and diagnostics."""
    if record is None:
        return "float32 torch, the reference itself"
    parts = [RULES[output["kind"]].words.format(**output) for output in record["outputs"]]
    return "; ".join(parts) + f" on {record['frames']} frames"
