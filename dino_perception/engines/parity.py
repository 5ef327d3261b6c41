"""Is a compiled engine right? Its outputs are held against float32 torch on real frames, and gated.

DINO under fast runtimes is known to go wrong without a word: NaN from float16 attention, a graph compiled wrongly even
in float32. Cosine similarity per patch finds both: the mean tells of lost precision, the worst patch of local damage.
What a head returns is compared in its own terms, because that is what a planner consumes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dino_perception.engines.base import Compiled


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

    def failures(self, record: Mapping[str, Any]) -> list[str]:
        """One phrase for each number of a record that is out of bounds; empty when the engine may be used."""
        found = []
        for index, output in enumerate(record["outputs"]):
            what = f"output {index} ({output['kind']})"
            if output["nonfinite"]:
                found.append(f"{what} has {output['nonfinite']} NaN or Inf")
            for name, bound, at_least in (
                ("cosine_mean", self.cosine_mean, True),
                ("cosine_worst", self.cosine_worst, True),
                ("label_agreement", self.label_agreement, True),
                ("level_difference", self.level_difference, False),
                ("depth_abs_rel", self.depth_abs_rel, False),
                ("unknown_difference", self.unknown_difference, False),
            ):
                value = output.get(name)
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
        self.kinds = kinds(self.outputs[0])

    def compare(self, compiled: Compiled) -> dict[str, Any]:
        """The record of an engine: {"frames", "outputs": [{"kind", "nonfinite", and the numbers of its kind}]}."""
        frames = []
        for tensors, wanted in zip(self.inputs, self.outputs):
            got = compiled(*tensors)
            frames.append([compare(kind, w, g.cpu()) for kind, w, g in zip(self.kinds, wanted, got)])
        return {"frames": len(frames), "outputs": [_merged(outputs) for outputs in zip(*frames)]}


def kinds(outputs: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """What each output is, told from what `models/` promises: maps (B, C, h, w), vectors (B, C) and unit vectors
    (B, N, D) are features, other floats are depth in metres; of 8-bit arrays the first is a mask, the rest levels."""
    found: list[str] = []
    for output in outputs:
        if output.dtype.is_floating_point:
            norms = output.norm(dim=-1)
            unit = output.ndim == 3 and torch.allclose(norms, torch.ones_like(norms), atol=1e-3)
            found.append("features" if output.ndim in (2, 4) or unit else "depth")
        else:
            found.append("levels" if "labels" in found else "labels")
    return tuple(found)


def compare(kind: str, wanted: torch.Tensor, got: torch.Tensor) -> dict[str, Any]:
    """Numbers of one output on one frame. `features`: cosine along the channels of (B, C, h, w), or along the last
    axis. `labels`: share of equal ids. `levels`: mean absolute difference. `depth`: AbsRel where both are known, and
    how often only one is; NaN is a depth head's word for unknown and no fault in itself."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise ValueError(
            f"the engine gave {got.dtype} {tuple(got.shape)}, the reference {wanted.dtype} {tuple(wanted.shape)}"
        )
    numbers: dict[str, Any] = {"kind": kind, "nonfinite": int((torch.isfinite(wanted) & ~torch.isfinite(got)).sum())}
    if kind == "features":
        cosine = torch.nn.functional.cosine_similarity(wanted.double(), got.double(), dim=1 if wanted.ndim == 4 else -1)
        cosine = torch.nan_to_num(cosine, nan=-1.0)
        return {**numbers, "cosine_mean": float(cosine.mean()), "cosine_worst": float(cosine.min())}
    if kind == "labels":
        return {**numbers, "label_agreement": float((wanted == got).double().mean())}
    if kind == "levels":
        return {**numbers, "level_difference": float((wanted.double() - got.double()).abs().mean())}
    both = torch.isfinite(wanted) & torch.isfinite(got) & (wanted != 0)
    error = ((got - wanted).abs() / wanted.abs())[both].double()
    return {
        **numbers,
        "nonfinite": int((torch.isfinite(wanted) & torch.isinf(got)).sum()),
        "depth_abs_rel": float(error.mean()) if len(error) else 0.0,
        "unknown_difference": float((torch.isnan(wanted) != torch.isnan(got)).double().mean()),
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
    parts = []
    for output in record["outputs"]:
        if output["kind"] == "features":
            parts.append(f"cosine {output['cosine_mean']:.5f} (worst {output['cosine_worst']:.5f})")
        elif output["kind"] == "labels":
            parts.append(f"mask agreement {output['label_agreement']:.2%}")
        elif output["kind"] == "levels":
            parts.append(f"confidence within {output['level_difference']:.2f} levels")
        else:
            parts.append(f"depth AbsRel {output['depth_abs_rel']:.5f}")
    return "; ".join(parts) + f" on {record['frames']} frames"
