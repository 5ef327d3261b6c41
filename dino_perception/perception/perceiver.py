"""Frames in, percepts out: one backbone pass a batch, and of the heads those that somebody wants."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dino_perception import engines
from dino_perception.models import label_sets, weights_folder
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads.base import Head, HeadSpec, load_head
from dino_perception.models.outputs import Output
from dino_perception.perception.depth_scale import check_scaling
from dino_perception.perception.doubt import Doubt, doubted
from dino_perception.perception.feature_colours import FeatureColours
from dino_perception.perception.frame import Frame, Label, Percept
from dino_perception.perception.geometry import Letterbox, letterbox, usable_camera, whole_patches
from dino_perception.perception.graphs import Graphs
from dino_perception.perception.head_answers import answer, labels_of
from dino_perception.perception.lens import GeometryError
from dino_perception.perception.match_thread import MatchThread
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.perception.settings import SettingError, Settings
from dino_perception.perception.sight import Asked, Pass, Queued, Sight
from dino_perception.perception.stage_clock import StageClock
from dino_perception.perception.teacher import Region, TeachError, can_learn, learnt
from dino_perception.perception.transfers import Home
from dino_perception.perception.untrained import refuse_untrained

log = logging.getLogger(__name__)


class FrameError(ValueError):
    """A frame that cannot be looked at; the message names its camera and says why."""


class Perceiver:
    """The perception core: construct it once (slow: it loads weights and builds or loads engines), then `look` at frames
    and `complete` what was seen, or `perceive`, which does both.

    `cache` is the folder of built engines, by default the one of the settings. `report` is given one line a step of
    the start. `batch_sizes`, `frames` (pictures to check engines on) and `rebuild` are those of `Graphs`.

    Raises SettingError, CheckpointError, HeadError or EngineError, each with one sentence.

    Matching runs on the CPU in a thread of its own: beside the other heads where these run on a GPU, and else after
    them, beside what the caller does with a `Sight`; for the same cores they would hold one another up.
    `stage_ms["matching"]` is what it takes there. One caller at a time.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        cache: str | Path | None = None,
        report: Callable[[str], None] = log.info,
        batch_sizes: Collection[int] | None = None,
        frames: Sequence[str | Path] | None = None,
        rebuild: bool = False,
    ):
        start = time.perf_counter()
        self.settings = settings
        check_scaling(settings)
        backbone = load_backbone(settings.backbone, settings.weights)
        heads = {
            kind: load_head(kind, backbone, settings.head[kind].weights, untrained=settings.allow_untrained)
            for kind in settings.heads
        }
        if not heads:
            raise SettingError("'heads' is empty; name at least one of segmentation, depth, correspondences")
        self._heads, self._loaded = tuple(heads), frozenset(heads)
        self._parts = _describe_parts(backbone, heads)
        self.trained: bool = all(part["trained"] for part in self._parts.values())
        """Whether the backbone and every head have weights from a file; if not, outputs mean nothing."""
        if not settings.allow_untrained:
            refuse_untrained(backbone.spec, {name: part["trained"] for name, part in self._parts.items()})
        if not self.trained:
            untrained = ", ".join(name for name, part in self._parts.items() if not part["trained"])
            fetch = "" if backbone.trained else f"; its weights: {weights_folder.command(backbone.spec.id)}"
            report(f"untrained, for trying things out only: {untrained}{fetch}")
        self.specs: dict[str, HeadSpec] = {kind: head.spec for kind, head in heads.items()}
        """What each head says of itself: its classes, its range, what it was trained on."""
        FeatureColours(settings, self)  # refuses a basis that does not fit before engines are built
        self.learner: Head | None = heads.get("segmentation") if can_learn(heads.get("segmentation")) else None
        """The segmentation head, where classes can be shown to it."""
        self._group_ids = self._grouped()
        self.outputs: Mapping[str, tuple[Output, ...]] = {kind: head.OUTPUTS for kind, head in heads.items()}
        """What each head's arrays are called and mean."""
        self._matched = next((kind for kind, outputs in self.outputs.items() if _matched(outputs)), "")
        self.graphs = Graphs(
            settings,
            backbone,
            heads,
            cache=Path(cache or settings.engine_cache or engines.default_folder()),
            report=report,
            batch_sizes=batch_sizes,
            pictures=frames,
            rebuild=rebuild,
        )
        """The compiled graphs; `look` shares their buffers."""
        self.device: torch.device = self.graphs.device
        self._off_cpu = self.device.type != "cpu"
        self._doubt = Doubt(heads, self.graphs.head_taps, self.device)
        if not self._off_cpu:
            # OpenCV's and torch's threads would fight with the engine's for the cores; their small jobs here are quicker
            # without (torch's wait busily after each: they cost the head that comes next 2.5 ms of two cores).
            cv2.setNumThreads(1)
            if self.graphs.describe()["engine"] != "torch":
                torch.set_num_threads(1)
        mean = [255 * m for m in backbone.spec.normalisation.mean]
        self._preprocess = Preprocessor(settings.input_height, settings.input_width, mean, self.device)
        self._home = Home(self.device)
        self._matching = MatchThread(
            backbone.spec.tap_stride(self.specs[self._matched].taps[0].layer) if self._matched else 0, self.device
        )
        self.trackers = self._matching.trackers
        self._under_way = False
        self.start_s = time.perf_counter() - start

    @property
    def labels(self) -> tuple[Label, ...]:
        """The classes of the segmentation head."""
        return labels_of(self.specs.get("segmentation"))

    def look(self, frames: Sequence[Frame], wanted: Sequence[Collection[str]] | None = None) -> list[Sight]:
        """`queue`, then `collect`: one sight a frame."""
        return self.collect(self.queue(frames, wanted))

    def queue(self, frames: Sequence[Frame], wanted: Sequence[Collection[str]] | None = None) -> Pass:
        """Give the device all that is to do for the frames, and wait for nothing: what the caller does until `collect` goes
        on beside it. (On a CPU the engines have run when this returns.) `wanted[i]` names the heads that run for
        `frames[i]`; by default every enabled one. A frame whose heads are all unwanted costs nothing.

        One pass at a time: the next one uses the same memory, so the one before has to be collected.
        Raises FrameError, before anything has run, for an image that is not (H, W, 3) uint8 or too thin to fit.
        """
        if self._under_way:
            raise RuntimeError("a pass is under way; collect it before the next is queued")
        enabled = {kind for kind in self._loaded if self.settings.head[kind].enabled}
        asked = [
            Asked(frame, self._box(frame), enabled if wanted is None else self._loaded & set(wanted[i]))
            for i, frame in enumerate(frames)
        ]
        under_way = Pass(asked, StageClock(self.device))
        for chunk, size in self.graphs.chunks([one for one in asked if one.wanted]):
            self._settle(under_way)  # more frames than fit into one batch take the same memory one after another
            self._queue(chunk, size, under_way)
        self._under_way = True
        return under_way

    def collect(self, under_way: Pass) -> list[Sight]:
        """Wait for a pass. One sight a frame, in the same order, with all but the matches."""
        try:
            self._settle(under_way)
        finally:
            self._under_way = False
        for one in under_way.asked:
            if one.descriptors is not None and one.matches is None:
                self._match(one)
        return [Sight(self._percept(one, under_way.clock.ms), one.matches) for one in under_way.asked]

    def complete(self, sight: Sight) -> Percept:
        """The percept with everything that was wanted of its frame; waits for the matches. Once a sight."""
        if sight.matches is None:
            return sight.percept
        correspondences, ms = sight.matches.result()
        spent = sight.percept.stage_ms
        spent["matching"] = spent.get("matching", 0.0) + ms
        return dataclasses.replace(sight.percept, correspondences=correspondences)

    def perceive(self, frames: Sequence[Frame], wanted: Sequence[Collection[str]] | None = None) -> list[Percept]:
        """`look`, then `complete` every sight."""
        return [self.complete(sight) for sight in self.look(frames, wanted)]

    def teach(self, frame: Frame, region: Region, name: str) -> None:
        """Look at a frame once more, alone, and have the segmentation head know what is shown there from the next pass on.
        Raises TeachError or FrameError; then nothing has changed."""
        if self.learner is None:
            raise TeachError("the segmentation head is none that `dino-perception teach` wrote; load such a one")
        box = self._box(frame)
        region.check(box.image_height, box.image_width)
        with torch.inference_mode():
            maps = self.graphs.maps(self._preprocess([frame.image], [box], self.graphs.batch_sizes[0]))
            features = maps[self.graphs.head_taps["segmentation"][0]][0].to("cpu", torch.float32, copy=True)
        inside = whole_patches(box, *features.shape[1:])
        self.learner = learnt(self.learner, features, region.patches(features, box), name, inside)
        self.graphs.change("segmentation", self.learner)
        self.specs["segmentation"] = self.learner.spec
        self._group_ids = self._grouped()

    def prepare(self) -> None:
        """Make ready for the next frames what need not wait for them: for when the outputs are on their way. What is left
        undone, the next `look` does."""
        self._matching.prepare()

    def update(self, settings: Settings) -> None:
        """Take changed settings. Raises SettingError for one that needs a new perceiver."""
        now = {p.name: p.value for p in self.settings.parameters()}
        changed = {p.name: p.value for p in settings.parameters() if now.get(p.name) != p.value}
        self.settings = self.settings.changed(changed, live_only=True)

    def reset_tracks(self, camera: str | None = None) -> None:
        """Forget the reference frame and the tracks of one camera or of all; ids are never given out again."""
        self._matching.reset(camera)

    @property
    def most_at_once(self) -> int:
        """How many frames are worth looking at together. Where it is one, frames of several cameras had better come one by
        one, so that each is done as soon as it can be."""
        return max(self.graphs.batch_sizes, default=1)

    def alive(self) -> bool:
        """Whether the device still answers. After some errors (an illegal access, a GPU that fell off the bus) CUDA fails
        every later call of the process, and only a new process helps."""
        try:
            return torch.ones(1, device=self.device).add_(1).item() == 2
        except RuntimeError:
            return False

    def close(self) -> None:
        """Free the engines and their memory; the perceiver cannot be used afterwards."""
        self._matching.close()
        self.graphs.close()

    def describe(self) -> dict[str, Any]:
        """What runs: plain data for diagnostics, reports and logs."""
        s = self.settings
        return {
            **self.graphs.describe(),
            "start_s": self.start_s,
            "trained": self.trained,
            "parts": self._parts,
            "backbone": s.backbone,
            "heads": list(self._heads),
            "input": [s.input_height, s.input_width],
            "output": [s.output_height, s.output_width],
        }

    def _queue(self, chunk: Sequence[Asked], size: int, under_way: Pass) -> None:
        """Queue the graphs for the frames of one batch, and the way home of what they give."""
        clock = under_way.clock
        chosen = {
            kind: slots for kind in self._heads if (slots := [i for i, a in enumerate(chunk) if kind in a.wanted])
        }
        with torch.inference_mode():
            pixels = self._preprocess([one.frame.image for one in chunk], [one.box for one in chunk], size)
            clock.stage("preprocess")
            if self._off_cpu:
                for slot in chosen.get(self._matched, ()):
                    chunk[slot].picture = self._matching.picture(chunk[slot].frame, chunk[slot].box)
            maps = self.graphs.maps(pixels)
            clock.stage("backbone")
            unlike = {}
            if self.settings.domain.check:
                unlike = self._doubt.strangeness(maps, chosen, [one.box for one in chunk])
            # All heads are queued before the first answer is read, so that a GPU is waited for once. Where points are
            # matched on the cores that the engine uses, their descriptors come last.
            for kind in sorted(chosen, key=lambda kind: kind == self._matched):
                arrays = self.graphs.head(kind, maps, chosen[kind], [one.box for one in chunk])
                clock.stage(kind)
                for slot, own in zip(chosen[kind], arrays):
                    one = chunk[slot]
                    strange = [unlike[kind][slot]] if slot in unlike.get(kind, {}) else []
                    if self._off_cpu and kind == self._matched:
                        own = [own[0].clone()]  # matched where it is
                        back = [*own, *self._home.bring(f"{kind} {slot}", strange)]
                    else:
                        back = self._home.bring(f"{kind} {slot}", [*own, *strange])
                    under_way.queued.append(Queued(kind, one, back[: len(own)], back[len(own) :]))
            clock.stage("copy")

    def _settle(self, under_way: Pass) -> None:
        """Wait for what was queued, and keep what came."""
        if not under_way.queued:
            return
        queued, under_way.queued = under_way.queued, []
        clock = under_way.clock
        with torch.inference_mode():
            self._home.arrive()
            clock.settle()
            for each in sorted(queued, key=lambda each: each.kind != self._matched):
                if each.strange:
                    each.one.strangeness[each.kind] = float(each.strange[0])
                self._keep(each.kind, each.one, each.arrays)
            clock.on_host("copy")

    def _keep(self, kind: str, one: Asked, arrays: Sequence[torch.Tensor]) -> None:
        """Copy a head's arrays out of memory that is used again."""
        if kind == self._matched:
            one.descriptors = arrays[0] if self._off_cpu else arrays[0].clone()
            if self._off_cpu:
                self._match(one)  # on its way beside what follows
        else:
            said = answer(self.specs[kind], self.outputs[kind], arrays, one.box, self.settings.head[kind])
            if kind == "segmentation" and self._group_ids is not None:
                said = dataclasses.replace(said, mask=self._group_ids[said.mask])
            strange = one.strangeness.get(kind, 0.0)
            one.answers[kind] = doubted(said, strange, self.settings.domain.ignore)

    def _grouped(self) -> np.ndarray | None:
        """What each mask value becomes where groups are told instead of classes, which the head's spec then names."""
        spec = self.specs.get("segmentation")
        if spec is None or not self.settings.head["segmentation"].groups:
            return None
        self.specs["segmentation"] = dataclasses.replace(spec, labels=label_sets.GROUP_LABELS)
        return np.array(label_sets.group_ids(spec.labels), np.uint8)

    def _match(self, one: Asked) -> None:
        settings = self.settings.head[self._matched]
        one.matches = self._matching.match(one.frame, one.box, one.descriptors, settings, one.picture)

    def _box(self, frame: Frame) -> Letterbox:
        image = frame.image
        if not self.graphs.batch_sizes:
            raise FrameError(f"camera '{frame.camera}': the perceiver is closed; make a new one")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise FrameError(
                f"camera '{frame.camera}' gave an image of {image.dtype} {image.shape}; (H, W, 3) uint8 is needed"
            )
        s = self.settings
        try:
            return _letterbox(*image.shape[:2], s.input_height, s.input_width, s.output_height, s.output_width)
        except GeometryError as error:
            raise FrameError(f"camera '{frame.camera}': {error}") from None

    def _percept(self, one: Asked, ms: dict[str, float]) -> Percept:
        camera, problem = usable_camera(one.frame, self.settings.rectified)
        box = one.box
        percept = Percept(
            one.frame, box.output_height, box.output_width, box.output_camera(camera) if camera else None,
            stage_ms=ms, output_scale=box.output_scale, camera_problem=problem,
            strangeness=one.strangeness,
        )  # fmt: skip
        return percept.with_answers(one.answers)


_letterbox = functools.lru_cache(maxsize=64)(letterbox)


def _matched(outputs: Sequence[Output]) -> bool:
    """Whether this head's answer is matched with a reference frame's before it is told."""
    return any(output.meaning == "descriptors" for output in outputs)


def _describe_parts(backbone: Backbone, heads: Mapping[str, Head]) -> dict[str, dict[str, Any]]:
    parts = {"backbone": {"id": backbone.spec.id, "hash": backbone.weights_hash, "trained": backbone.trained}}
    for kind, head in heads.items():
        parts[kind] = {"id": head.spec.arch, "trained": head.trained, "metrics": dict(head.spec.metrics)}
    return parts
