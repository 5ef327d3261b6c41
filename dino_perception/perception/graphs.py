"""The compiled graphs of a configuration: the backbone's and every head's, for each batch size, on one device."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from dino_perception import engines
from dino_perception.engines import Compiled
from dino_perception.engines.parity_pictures import parity_inputs
from dino_perception.models import taps
from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head
from dino_perception.perception.geometry import Letterbox, image_shares
from dino_perception.perception.settings import SettingError, Settings

log = logging.getLogger(__name__)
Item = TypeVar("Item")
_KEPT_SHARES = 64


class Graphs:
    """Builds them, or loads them from `cache` (slow); after that nothing is built any more.

    `batch_sizes` are the batches that get an engine of their own: by default one frame, and on a GPU one frame of every
    camera. `pictures` are files to check the engines on instead of the bundled ones. `rebuild`
    builds what the cache has. Raises SettingError or EngineError.
    """

    def __init__(
        self,
        settings: Settings,
        backbone: Backbone,
        heads: Mapping[str, Head],
        *,
        cache: Path,
        report: Callable[[str], None] = log.info,
        batch_sizes: Collection[int] | None = None,
        pictures: Sequence[str | Path] | None = None,
        rebuild: bool = False,
    ):
        self._settings, self._spec = settings, backbone.spec
        self._taps = taps.union(tap for head in heads.values() for tap in head.spec.taps)
        self.head_taps = {kind: taps.places(self._taps, head.spec.taps) for kind, head in heads.items()}
        """Which of the backbone graph's outputs go into each head's graph, in order."""
        self._state: dict[str, tuple[torch.Tensor, ...]] = {}
        """What each head's graph takes after the features (`Head.state`)."""
        self._sharing = frozenset(kind for kind, head in heads.items() if head.shares)
        self._known_shares: dict[tuple[Letterbox, tuple[int, ...]], torch.Tensor] = {}
        self._backbone: dict[int, Compiled] = {}
        self._heads: dict[str, dict[int, Compiled]] = {kind: {} for kind in heads}
        self._build(backbone, heads, cache, report, batch_sizes, pictures, rebuild)

    @property
    def batch_sizes(self) -> list[int]:
        return sorted(self._backbone)

    def chunks(self, frames: Sequence[Item]) -> list[tuple[Sequence[Item], int]]:
        """Which frames run together, and in the graph of which batch size.

        A batch between two sizes runs padded in the larger one on a GPU, where an empty place costs little. A CPU gains
        nothing by batching (three frames of the bundled model: 250 ms one by one, 270 ms in one batch).
        """
        chunks, start = [], 0
        while start < len(frames):
            left = len(frames) - start
            fits = [size for size in self.batch_sizes if size <= left]
            larger = [size for size in self.batch_sizes if size > left]
            padded = larger[0] if larger and self.device.type == "cuda" else (fits or larger)[-1]
            size = left if left in fits else padded
            chunks.append((frames[start : start + size], size))
            start += size
        return chunks

    def maps(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The backbone's feature maps and CLS tokens (see `taps.outputs`), valid until it runs again at this batch size."""
        return self._backbone[len(pixels)](pixels)

    def head(
        self, kind: str, maps: Sequence[torch.Tensor], chosen: Sequence[int], boxes: Sequence[Letterbox]
    ) -> list[list[torch.Tensor]]:
        """For each chosen slot of the batch the head's arrays, valid until the head runs again. `boxes` say how the frames
        lie in the batch's slots.

        Where one frame wants the head, the single-frame graph runs on its part of the maps; else that of the batch.
        """
        graphs = self._heads[kind]
        if len(chosen) == 1 and 1 in graphs:
            slot = chosen[0]
            alone = self.inputs(kind, [m[slot : slot + 1] for m in maps], boxes[slot : slot + 1])
            return [[t[0] for t in graphs[1](*alone)]]
        out = graphs[len(maps[0])](*self.inputs(kind, maps, boxes))
        return [[t[i] for t in out] for i in chosen]

    def inputs(self, kind: str, maps: Sequence[torch.Tensor], boxes: Sequence[Letterbox] = ()) -> list[torch.Tensor]:
        """What a head's graph takes: its features of the backbone's `maps`, its state, and how much of the patches is image;
        all of it in slots without a box."""
        features = [maps[i] for i in self.head_taps[kind]]
        return [*features, *self._state[kind], *self._shares(kind, features[0], boxes)]

    def _shares(self, kind: str, features: torch.Tensor, boxes: Sequence[Letterbox]) -> list[torch.Tensor]:
        """What a head that asks for it takes last: (B, h, w), 1 for slots without a frame."""
        if kind not in self._sharing:
            return []
        size = tuple(features.shape[2:])
        every = [self._share(box, size) for box in boxes]
        every += [torch.ones(size, device=self.device)] * (len(features) - len(boxes))
        return [torch.stack(every)]

    def _share(self, box: Letterbox, size: tuple[int, ...]) -> torch.Tensor:
        if (box, size) not in self._known_shares:
            if len(self._known_shares) >= _KEPT_SHARES:
                self._known_shares.clear()
            self._known_shares[box, size] = torch.from_numpy(image_shares(box, *size)).to(self.device)
        return self._known_shares[box, size]

    def change(self, kind: str, head: Head) -> None:
        """From the next run on, answer as `head` does: one that differs from the head that was built in its state alone."""
        self._state[kind] = tuple(t.detach().to(self.device, copy=True) for t in head.state)

    def graph(self, name: str = "backbone", batch: int = 1) -> Compiled:
        """The compiled graph of the backbone or of a head. Raises KeyError."""
        return self._all()[name][batch]

    def describe(self) -> dict[str, Any]:
        """What runs, as plain data."""
        one, graphs = self._first().info, self._all()
        return {
            "engine": one.engine, "precision": one.precision, "device": one.device, "reason": one.reason,
            "overridden": [name for name, sizes in graphs.items() if any(g.info.overridden for g in sizes.values())],
            "parity": {name: next(iter(sizes.values())).info.parity for name, sizes in graphs.items()},
            "graphs": [{"name": name, "batch": batch, **dataclasses.asdict(graph.info)}
                       for name, sizes in graphs.items() for batch, graph in sizes.items()],
            "from_cache": all(g.info.from_cache for sizes in graphs.values() for g in sizes.values()),
            "batch_sizes": self.batch_sizes,
            "device_memory_mb": torch.cuda.memory_reserved() / 2**20 if self.device.type == "cuda" else 0.0,
        }  # fmt: skip

    def close(self) -> None:
        """Free the engines and their memory."""
        for graphs in self._all().values():
            for graph in graphs.values():
                graph.close()
            graphs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _all(self) -> dict[str, dict[int, Compiled]]:
        return {"backbone": self._backbone, **self._heads}

    def _first(self) -> Compiled:
        return next(iter(self._backbone.values()))

    def _build(
        self, backbone: Backbone, heads: Mapping[str, Head], cache, report, batch_sizes, pictures, rebuild
    ) -> None:
        s = self._settings
        try:
            module = backbone.at(s.input_height, s.input_width, self._taps)
        except ValueError as error:
            raise SettingError(f"'input_height' and 'input_width' cannot be used: {error}") from None
        options = dict(
            precision=s.precision, threads=s.threads, cache=cache, override=s.parity_override, rebuild=rebuild,
        )  # fmt: skip
        beside = None
        sizes = sorted(batch_sizes or {1})
        count = itertools.count(1)
        # Which of how many a line is about: a start that builds takes minutes, and somebody waits.
        numbered = lambda: functools.partial(_numbered, report, next(count), lambda: len(sizes) * (1 + len(heads)))  # noqa: E731
        for size in sizes:
            example = module.example(size)
            graph = self._backbone[size] = engines.build(
                module, (example,), engine=s.engine, name="backbone", beside=beside, report=numbered(),
                parity_inputs=parity_inputs((example,), pictures) if pictures else None, **options,
            )  # fmt: skip
            self.device = graph.device
            if batch_sizes is None and size == 1 and self.device.type == "cuda" and len(s.cameras) > 1:
                sizes.append(len(s.cameras))
            beside = beside or graph  # the heads and other sizes belong on the same device
            inputs = functools.cache(functools.partial(_head_inputs, graph, example, pictures))
            for kind, head in heads.items():
                self.change(kind, head)
                features = tuple(self._feature_zeros(size, *output) for output in taps.outputs(head.spec.taps))
                # Asked for only when the head must be built; given at once when the user's own pictures are to judge it.
                rest = (*head.state, *self._shares(kind, features[0], ()))
                maps = lambda kind=kind, rest=rest: [  # noqa: E731
                    (*(f[i] for i in self.head_taps[kind]), *rest) for f in inputs()
                ]
                self._heads[kind][size] = engines.build(
                    head.at(s.output_height, s.output_width), (*features, *rest), engine=s.engine, name=kind,
                    beside=beside, report=numbered(), parity_inputs=maps() if pictures else maps, **options,
                )  # fmt: skip

    def _feature_zeros(self, size: int, what: str, layer: int, norm: bool) -> torch.Tensor:
        """Such a map or CLS token, on the CPU: only an engine places what it runs."""
        stride, s = self._spec.tap_stride(layer), self._settings
        sides = (s.input_height // stride, s.input_width // stride) if what == "map" else ()
        return torch.zeros(size, self._spec.channels(layer), *sides)


def _numbered(report: Callable[[str], None], number: int, total: Callable[[], int], line: str) -> None:
    report(f"{line} (graph {number} of {total()})" if total() > 1 else line)


def _head_inputs(graph: Compiled, example: torch.Tensor, pictures) -> list[tuple[torch.Tensor, ...]]:
    """What the heads see on the parity pictures: the backbone's maps, copied to the CPU."""
    return [tuple(t.to("cpu", copy=True) for t in graph(*inputs)) for inputs in parity_inputs((example,), pictures)]
