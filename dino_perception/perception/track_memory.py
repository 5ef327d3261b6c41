"""What trackers remember as plain arrays, so that a run can be stopped and gone on with to the same bits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dino_perception.perception.device.tracks import tracker_on
from dino_perception.perception.matching import Field, View
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.tracks import Tracker

_KINDS = {"View": View, "Field": Field}
_SCRATCH = ("_refiner", "_ahead")


def remember(perceiver: Perceiver) -> dict[str, dict[str, np.ndarray]]:
    """Camera -> name -> a copy of what its tracker holds, on the host."""
    return {camera: memory(tracker) for camera, tracker in perceiver.trackers.items()}


def recall(perceiver: Perceiver, memories: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Give a perceiver the trackers that `remember` copied, instead of its own."""
    perceiver.trackers.clear()
    perceiver.trackers.update({camera: tracker(memory, perceiver.device) for camera, memory in memories.items()})


def memory(tracker: Tracker) -> dict[str, np.ndarray]:
    """A tracker as named arrays."""
    tracker.prepare()
    arrays: dict[str, np.ndarray] = {}
    plain = {name: _packed(value, name, arrays) for name, value in vars(tracker).items() if name not in _SCRATCH}
    # Two names for one view stay one view: whether the reference is the frame before makes a difference.
    plain["_previous"] = "=_reference" if tracker._previous is tracker._reference else plain["_previous"]
    return {"about": np.array(json.dumps(plain)), **arrays}


def tracker(arrays: Mapping[str, np.ndarray], device: torch.device) -> Tracker:
    """The tracker of which `memory` gave these arrays, its descriptors on `device`."""
    made = tracker_on(device)
    plain = json.loads(str(arrays["about"]))
    device = torch.device("cpu") if plain.get("_given_up") else device  # a device's tracker that went on on the CPU
    for name, value in plain.items():
        if value != "=_reference":
            setattr(made, name, _unpacked(value, arrays, device))
    if plain["_previous"] == "=_reference":
        made._previous = made._reference
    return made


def _packed(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[name] = value.copy()
        return {"array": name}
    if isinstance(value, torch.Tensor):
        whole = (
            value.float() if value.dtype == torch.bfloat16 else value
        )  # numpy has no bfloat16; float32 holds it exactly
        arrays[name] = whole.detach().cpu().numpy().copy()
        return {"tensor": name, "dtype": str(value.dtype).removeprefix("torch."), "host": value.device.type == "cpu"}
    if type(value).__name__ in _KINDS:
        return {
            "kind": type(value).__name__,
            "fields": {
                f.name: _packed(getattr(value, f.name), f"{name}.{f.name}", arrays) for f in dataclasses.fields(value)
            },
        }
    if isinstance(value, (list, tuple)):
        return {
            "items": [_packed(item, f"{name}.{i}", arrays) for i, item in enumerate(value)],
            "tuple": isinstance(value, tuple),
        }
    if value is None or isinstance(value, (int, float, str)):
        return value
    raise TypeError(f"a tracker holds {name}, a {type(value).__name__}, which cannot be remembered")


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(arrays[value["array"]])
    if "tensor" in value:
        whole = torch.from_numpy(np.array(arrays[value["tensor"]])).to(getattr(torch, value["dtype"]))
        return whole if value["host"] and device.type == "cpu" else whole.to(device)
    if "kind" in value:
        return _KINDS[value["kind"]](
            **{name: _unpacked(field, arrays, device) for name, field in value["fields"].items()}
        )
    items = [_unpacked(item, arrays, device) for item in value["items"]]
    return tuple(items) if value["tuple"] else items
