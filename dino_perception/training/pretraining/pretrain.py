"""Trains the small bundled backbone on rendered scenes: classes, depth and matches at once, from one pass.

    python -m dino_perception.training.terrain.scenes --out SCENES --worlds 400 --size 480x640
    python -m dino_perception.training.pretraining.pretrain --scenes SCENES --crop 480x256 --out part.safetensors
    python -m dino_perception.training.pretraining.pretrain --scenes SCENES --resume part.safetensors --out rover-tiny.safetensors

A crop costs far less than a frame and still knows where in the frame it lies: its rotary table is the frame's. A tall one
holds the horizon and the ground before the wheels, which is what depth is read from. With `--parts`, two of three steps see
many small crops instead, each of another frame: more kinds of ground a step, and hardly any attention to pay for.

Several processes share a step when torchrun starts them, one a GPU or one a CPU core
(`torchrun --nproc-per-node 2 -m dino_perception.training.pretraining.pretrain ...`).

The heads used here only shape the backbone and are thrown away; the heads that ship are trained on the frozen
backbone with `dino-perception train`, like anyone's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as processes
import torch.distributed.nn  # before there is a group, which its default arguments would keep: see `train`
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_perception import results
from dino_perception.engines.cpu_bfloat16 import bfloat16_pays
from dino_perception.models.backbone import Backbone
from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.checkpoints import load_backbone, save_backbone
from dino_perception.models.heads import Head, create_head, load_head
from dino_perception.training.losses import overlap_loss
from dino_perception.training.pretraining.freed_memory import keep_freed_memory
from dino_perception.training.pretraining.muon import Muon
from dino_perception.training.pretraining.pairs import Pairs
from dino_perception.training.terrain.styles import BIG_ROCK, CLASSES

TEMPERATURE = 0.07
FAR = 80.0  # metres; farther depth is not asked for
RARE = 3.0  # weight of big_rock, a few percent of all pixels
SHORT = 600  # tokens; for fewer, on a CPU, plain matrices are faster than torch's fused attention and its backward pass


def match_loss(first: Tensor, second: Tensor, target: Tensor, columns: int) -> Tensor:
    """Cross entropy of finding each patch of `first` in `second`, InfoNCE (van den Oord et al. 2018) with the positive
    spread bilinearly over the four patches around the true place.

    `first`, `second` (P, N, D) unit descriptors; `target` (P, N, 2) patch-grid x, y, NaN where there is none.
    """
    rows = second.shape[1] // columns
    valid = torch.isfinite(target).all(dim=-1)
    x, y = (torch.nan_to_num(target[..., i]) for i in (0, 1))
    log_p = F.log_softmax(first @ second.transpose(1, 2) / TEMPERATURE, dim=-1)
    loss = torch.zeros_like(x)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            cell = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
            loss = loss - weight * log_p.gather(2, cell.long()[..., None])[..., 0]
    return mean_where(valid, loss)


def depth_loss(metres: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of log depth over pixels whose truth is finite and nearer than FAR. (B, H, W) both."""
    valid = torch.isfinite(truth) & (truth < FAR)
    return mean_where(valid, (metres.clamp_min(1e-3).log() - torch.where(valid, truth, 1.0).log()).abs())


def mean_where(valid: Tensor, values: Tensor) -> Tensor:
    """The mean of the valid ones, 0 of none: without their number, which a GPU would have to be waited for."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp_min(1)


class Pretraining:
    """One process's share of a run: the backbone, the heads that shape it, and all that a step needs."""

    def __init__(self, arguments: argparse.Namespace, rank: int, count: int):
        self.arguments, self.rank, self.count = arguments, rank, count
        self.device = (
            torch.device(arguments.device, rank) if arguments.device == "cuda" else torch.device(arguments.device)
        )
        self.bfloat16 = self.device.type != "cpu" or bfloat16_pays()
        self.backbone = load_backbone(arguments.backbone, arguments.resume).to(self.device).requires_grad_(True)
        if not arguments.resume:
            begin_near_the_identity(self.backbone)
        self.heads = {
            kind: head.to(self.device).requires_grad_(True).train()
            for kind, head in heads_of(self.backbone, arguments.resume).items()
        }
        self.parameters = [*self.backbone.parameters(), *(p for head in self.heads.values() for p in head.parameters())]
        self.optimisers = optimisers_of(
            self.backbone, self.parameters, arguments.rate, torch.bfloat16 if self.bfloat16 else torch.float32
        )
        self.average = {k: v.detach().clone() for k, v in self.backbone.state_dict().items()}
        self.weights = torch.ones(len(CLASSES), device=self.device)
        self.weights[BIG_ROCK] = RARE
        self.pairs = Pairs(
            arguments.scenes,
            self.backbone.spec.patch,
            sides(arguments.size),
            arguments.seed + rank,
            sides(arguments.crop),
            self.device,
        )
        self.graphs: dict[tuple[int, int], torch.nn.Module] = {}
        self.frame_size = self.pairs.whole()
        if arguments.crop or arguments.parts:
            frame = self.backbone.at(*self.frame_size, self.backbone.spec.taps)
            if not hasattr(frame, "cos"):
                raise SystemExit(f"--crop and --parts need rotary positions, which {arguments.backbone} has not")
            self.rotary = frame.cos.to(self.device), frame.sin.to(self.device)
        self.steps = 0

    def step(self, progress: float) -> dict[str, Tensor | None]:
        """One step of a run that is done to `progress`, 0 to 1. Its losses by name; None for what it did not ask. Nothing in
        here waits for the device, but for a scene's first reading."""
        warm = min(1.0, (self.steps + 1) / 100)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = self.arguments.rate * warm * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        losses = self.losses(self.draw())
        for p in self.parameters:
            p.grad = None
        losses["loss"].backward()
        if self.count > 1:
            average_gradients(self.parameters, self.count)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 20))
        for key, value in self.backbone.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)
        return {name: None if value is None else value.detach() for name, value in losses.items()}

    def draw(self) -> dict[str, Tensor]:
        """A batch of `Pairs`: small parts in two of three steps where they are asked for, else pairs."""
        parts = self.arguments.parts and self.steps % 3 != 2
        return (
            self.pairs.parts(self.arguments.parts, sides(self.arguments.part))
            if parts
            else self.pairs.batch(self.arguments.pairs)
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """What is wrong with each task, and "loss", which a step makes smaller."""
        size = tuple(batch["rgb"].shape[1:3])
        graph = self.graph(size, batch["corner"])
        attention = attention_for(size, self.backbone.spec, self.device)
        with attention, torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = graph(batch["rgb"])
            logits, metres = (self.heads[kind](*features) for kind in ("segmentation", "depth"))
        # Every fourth pixel of the truth, each time others: the losses on all of them would be a fifth of the step.
        row, column = torch.randint(2, (2,)).tolist()
        classes, distance = (batch[key][:, row::2, column::2] for key in ("classes", "depth"))
        logits, metres = resized(logits, classes.shape[1:]), resized(metres, classes.shape[1:])[:, 0]
        segmentation = F.cross_entropy(logits, classes, self.weights, ignore_index=255, label_smoothing=0.02)
        overlap, depth, match = overlap_loss(logits, classes), depth_loss(metres, distance), None
        loss = segmentation + 0.5 * overlap + depth
        if "target" in batch:
            descriptors = F.normalize(features[-1].float().flatten(2).transpose(1, 2), dim=-1)
            match = match_loss(descriptors[0::2], descriptors[1::2], batch["target"], features[-1].shape[3])
            loss = loss + 0.15 * match
        return dict(segmentation=segmentation, overlap=overlap, depth=depth, match=match, loss=loss)

    def graph(self, size: tuple[int, int], corner: Tensor) -> torch.nn.Module:
        """The graph for pictures of `size` pixels whose first patches are at `corner` (B, 2) in the frame's patch grid."""
        if size not in self.graphs:
            self.graphs[size] = self.backbone.at(*size, self.backbone.spec.taps).to(self.device).train()
            if self.arguments.compile:
                self.graphs[size].compile()
        graph = self.graphs[size]
        if size != self.frame_size:
            graph.cos, graph.sin = (
                in_the_frame(t, corner, size, self.frame_size, self.backbone.spec) for t in self.rotary
            )
        return graph

    def save(self) -> None:
        """The mean of the last weights as the backbone, and the heads beside it for the next run."""
        present = {k: v.detach().clone() for k, v in self.backbone.state_dict().items()}
        self.backbone.load_state_dict(self.average)
        save_backbone(
            self.backbone,
            self.arguments.out,
            dtype=torch.float16 if self.arguments.half else torch.float32,
            trained_on="rendered terrain",
            steps=self.steps,
            resumed_from=Path(self.arguments.resume).name,
        )
        self.backbone.load_state_dict(present)
        save_file(
            {
                f"{kind}.{k}": v.detach().cpu().contiguous()
                for kind, head in self.heads.items()
                for k, v in head.state_dict().items()
            },
            f"{self.arguments.out}.heads",
        )


def train(arguments: argparse.Namespace) -> None:
    """A whole run, or this process's share of it where torchrun started several."""
    many = "WORLD_SIZE" in os.environ
    if many:
        processes.init_process_group("nccl" if arguments.device == "cuda" else "gloo")
    torch.manual_seed(arguments.seed)
    if arguments.device == "cuda":
        torch.set_float32_matmul_precision("high")  # of what is not bfloat16 anyway: the matches
    keep_freed_memory()
    run = Pretraining(arguments, *((processes.get_rank(), processes.get_world_size()) if many else (0, 1)))
    log = Path(f"{arguments.out}.log.jsonl").open("a")
    start = time.monotonic()
    while True:
        progress = max((time.monotonic() - start) / (60 * arguments.minutes), run.steps / arguments.steps)
        if many:  # one clock for all
            shared = torch.tensor([progress], device=run.device)
            processes.broadcast(shared, 0)
            progress = shared.item()
        if progress >= 1:
            break
        losses = run.step(progress)
        if run.steps % 20 == 0:
            run.pairs.refresh()
            if run.rank == 0:
                rounded = {name: value if value is None else round(value.item(), 4) for name, value in losses.items()}
                minutes = round((time.monotonic() - start) / 60, 2)
                print(json.dumps(dict(step=run.steps, minutes=minutes, **rounded)), file=log, flush=True)
        if run.steps % 500 == 0 and run.rank == 0:
            run.save()
    if run.rank == 0:
        run.save()
    if many:
        # Joins the group's threads. One that outlives it may want the interpreter when that is gone, and aborts the process.
        processes.destroy_process_group()


def begin_near_the_identity(backbone: Backbone) -> None:
    """Blocks that do so train faster than the random ones of the tests."""
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if name.endswith(("scale1", "scale2")):
                p.fill_(0.2)


def heads_of(backbone: Backbone, resume: str) -> dict[str, Head]:
    """New heads, or those of the run that wrote `resume`, or those that ship with it where they lie beside it."""
    heads = {kind: create_head(kind, backbone, arch="fine") for kind in ("segmentation", "depth")}
    if not resume:
        return heads
    state = Path(f"{resume}.heads")
    saved = load_file(state) if state.exists() else {}
    for kind, head in heads.items():
        beside = Path(resume).with_name(f"{Path(resume).stem}-{kind}.safetensors")
        if saved:
            head.load_state_dict(
                {k[len(kind) + 1 :]: v for k, v in saved.items() if k.startswith(kind + ".")}, strict=False
            )
        elif beside.exists():
            heads[kind] = load_head(kind, backbone, beside)
    return heads


def optimisers_of(
    backbone: Backbone, parameters: list[Tensor], rate: float, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon, which multiplies in `dtype`, for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for p in backbone.blocks.parameters() if p.dim() == 2]
    rest = [p for p in parameters if not any(p is m for m in matrices)]
    adam = torch.optim.AdamW(
        [
            dict(params=[p for p in rest if p.dim() >= 2], weight_decay=0.03),
            dict(params=[p for p in rest if p.dim() < 2], weight_decay=0.0),
        ],
        lr=rate,
        betas=(0.9, 0.98),
        fused=rest[0].is_cuda,
    )
    return [Muon(matrices, rate, weight_decay=0.03, dtype=dtype), adam]


def in_the_frame(
    table: Tensor, corner: Tensor, size: tuple[int, int], whole: tuple[int, int], spec: BackboneSpec
) -> Tensor:
    """The rotary table (B, 1, T, d) of crops of `size` pixels whose first patches are at `corner` (B, 2) in the patch grid of
    frames of `whole` pixels, from these frames' own `table`; the CLS and register tokens come first."""
    prefix = len(table) - (whole[0] // spec.patch) * (whole[1] // spec.patch)
    rows, columns = (torch.arange(side // spec.patch, device=table.device) for side in size)
    index = (corner[:, :1, None] + rows[:, None]) * (whole[1] // spec.patch) + corner[:, 1:, None] + columns
    first = torch.arange(prefix, device=table.device).expand(len(corner), -1)
    return table[torch.cat([first, prefix + index.flatten(1)], dim=1)][:, None]


def attention_for(size: tuple[int, int], spec: BackboneSpec, device: torch.device) -> AbstractContextManager:
    """Which of torch's attentions the graph of `size` pixels trains with: its own choice but for few tokens on a CPU."""
    few = device.type == "cpu" and size[0] // spec.patch * (size[1] // spec.patch) < SHORT
    return sdpa_kernel(SDPBackend.MATH) if few else contextlib.nullcontext()


def average_gradients(parameters: list[Tensor], count: int) -> None:
    """Every process's gradients become the mean over all `count` processes."""
    given = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in given])
    processes.all_reduce(flat)
    for p, mean in zip(given, (flat / count).split([p.numel() for p in given])):
        p.grad.copy_(mean.view_as(p))


def sides(text: str) -> tuple[int, int] | None:
    """ "480x640" -> (480, 640); None for none."""
    return tuple(int(side) for side in text.split("x")) if text else None


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenes", type=Path, required=True, help="folder made by dino_perception.training.terrain.scenes"
    )
    parser.add_argument("--out", type=results.file, required=True, help="backbone file to write (.safetensors)")
    parser.add_argument("--half", action="store_true", help="write float16: half the size; train heads on the file")
    parser.add_argument("--size", default="", help="height x width to shrink the scenes to, such as 240x320")
    parser.add_argument(
        "--crop",
        default="",
        help="height x width of the parts of frames to train on, such as 480x256; whole frames where it is left out",
    )
    parser.add_argument("--backbone", default="rover-tiny", help="catalogue id whose architecture is trained")
    parser.add_argument(
        "--resume", default="", help="start from this backbone file, for a second phase at a larger size"
    )
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time")
    parser.add_argument("--steps", type=int, default=20000, help="stop after so many steps")
    parser.add_argument("--pairs", type=int, default=6, help="frame pairs a step and process")
    parser.add_argument(
        "--parts", type=int, default=0, help="in two of three steps, so many small crops a process instead"
    )
    parser.add_argument("--part", default="160x160", help="height x width of these")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the backbone first: some minutes for the first step of "
        "each size, and a half more steps an hour on a CPU (needs a C++ compiler)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
