"""What the engine tests share: small graphs of real backbones, and engines that go wrong on purpose."""

from __future__ import annotations

import os

import pytest
import torch

from dino_perception.engines.base import Engine
from dino_perception.engines.eager import Eager
from dino_perception.models.checkpoints import load_backbone

SIZE = (64, 96)

# Inductor compiles torch's headers ahead, 10 s, which pays for a hundred kernels and not for the few of these tests.
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tensorrt: needs an NVIDIA GPU, torch_tensorrt and tensorrt")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vit():
    """rover-tiny with random weights, two taps: a ViT whose blocks all count."""
    return drawn("rover-tiny", (3, 7))


@pytest.fixture(scope="session")
def convnext():
    return drawn("dinov3-convnext-tiny", (1, 3))


def drawn(backbone_id: str, taps: tuple[int, ...]):
    backbone = load_backbone(backbone_id)
    backbone.draw()
    return backbone.at(*SIZE, taps)


@pytest.fixture
def frame():
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8, generator=generator)


class Crooked(Engine):
    """A runtime whose `bad` precisions give wrong outputs, and whose `broken` ones do not build."""

    name = "crooked"
    precisions = ("bfloat16", "float16", "float32")
    saves = True

    def __init__(self, bad=(), broken=(), module=None):
        self.bad, self.broken, self.module = bad, broken, module
        self.built: list[str] = []

    def unavailable(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cpu")

    def identity(self) -> dict[str, str]:
        return {"crooked": "1"}

    def build(self, program, precision, threads) -> bytes:
        self.built.append(precision)
        self.module = program.module
        if precision in self.broken:
            raise RuntimeError(f"no kernel for {precision}\nand a page of trace")
        return b"an engine for " + precision.encode()

    def load(self, blob, example, precision, threads):
        assert bytes(blob) == b"an engine for " + precision.encode()
        compiled = Eager().compile(_Given(self.module, example), "float32", 0)
        compiled.info = type(compiled.info)("crooked", precision, "bench")
        right = compiled.run
        if precision in self.bad:
            compiled.run = lambda *inputs: tuple(torch.where(t == t.flatten()[0], torch.nan, t) for t in right(*inputs))
        return compiled


class _Given:
    def __init__(self, module, example):
        self.module, self.example = module, tuple(example)


@pytest.fixture
def crooked(monkeypatch):
    """Puts a crooked engine, and after it the float32 reference, in place of the real ones."""
    from dino_perception.engines import ladder

    def put(**faults) -> Crooked:
        engine = Crooked(**faults)
        monkeypatch.setattr(ladder, "ENGINES", {"crooked": engine, "torch": Eager()})
        return engine

    return put
