"""Linear heads trained with DINOv3's own evaluation code: what its checkpoints hold, under this package's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

OUT = {"segmentation": "conv", "depth": "conv_depth"}  # the 1x1 convolution's name in each task


def linear_state(kind: str, content: Any) -> dict[str, Tensor] | None:
    """The state of a `decoders.Linear` in a head ("net." before every name), or None when `content` is no such file.

    The file is {"model": ...}; segmentation puts "segmentation_model.1." before its names, data-parallel training
    "module.". A head trained without BatchNorm gets one that changes nothing.
    """
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if kind not in OUT or not isinstance(state, Mapping):
        return None
    state = {
        str(name).removeprefix("module.").removeprefix("segmentation_model.1."): t
        for name, t in state.items()
        if isinstance(t, Tensor)
    }
    weight = state.get(f"{OUT[kind]}.weight")
    if weight is None or weight.dim() != 4:
        return None
    out = {}
    for name, tensor in state.items():
        name = name.replace("batchnorm_layer.", "norm.").replace(f"{OUT[kind]}.", "out.")
        out[f"net.{name}"] = tensor if name.endswith("num_batches_tracked") else tensor.float()
    if "net.norm.weight" not in out:
        channels = weight.shape[1]
        out.update(
            {
                "net.norm.weight": torch.ones(channels),
                "net.norm.bias": torch.zeros(channels),
                "net.norm.running_mean": torch.zeros(channels),
                "net.norm.running_var": torch.ones(channels) - 1e-5,
                "net.norm.num_batches_tracked": torch.tensor(0),
            }
        )
    return out
