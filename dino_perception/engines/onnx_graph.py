"""A typed graph as an ONNX file, for runtimes that read nothing of torch: the way into TensorRT that a Jetson has.

Operator set 18 is what torch's exporter writes without converting anything, and what the parsers of TensorRT 10.0 to 11
read (those of 10.0 to 10.4 end at 20). It is older than ONNX's bfloat16 convolutions (22); TensorRT's parser takes the
type from the tensors, so that the file is right for it, although a strict checker of ONNX would object.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch

from dino_perception.engines import retype
from dino_perception.engines.base import EngineError, Program

OPSET = 18
NEEDED = ("onnx", "onnxscript")


def missing() -> str:
    """One sentence on what torch's exporter lacks here, or an empty string."""
    lacking = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if not lacking:
        return ""
    return (
        f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed, "
        f"which writing a graph as ONNX needs; pip install {' '.join(lacking)}"
    )


def write(program: Program, precision: str, path: Path) -> None:
    """Writes the program with `precision` in it (see `retype`), its weights in a file beside `path`, because one message
    of protobuf ends at 2 GB. Inputs are named input0, input1, ..., outputs output0, ...; an 8-bit input or output is
    float32 here. Raises EngineError."""
    if lack := missing():
        raise EngineError(lack)
    exported = retype.retyped(program, precision, wide_outputs=True)
    signature = exported.graph_signature
    with _quiet(), torch.no_grad():
        written = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"input{i}" for i in range(len(signature.user_inputs))],
            output_names=[f"output{i}" for i in range(len(signature.user_outputs))],
            verbose=False,
        )
        written.save(str(path), external_data=True)


class _quiet(warnings.catch_warnings):
    """The exporter warns of packages that it does not need and of its own future."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        self.logger = logging.getLogger("torch.onnx")
        self.before, _ = self.logger.level, self.logger.setLevel(logging.ERROR)

    def __exit__(self, *error):
        self.logger.setLevel(self.before)
        super().__exit__(*error)
