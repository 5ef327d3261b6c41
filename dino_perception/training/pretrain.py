"""Trains the small bundled backbone on rendered scenes: classes, depth and matches at once, from one pass.

    python -m dino_perception.training.scenes --out SCENES --worlds 400 --size 480x640
    python -m dino_perception.training.pretrain --scenes SCENES --crop 480x256 --out part.safetensors
    python -m dino_perception.training.pretrain --scenes SCENES --resume part.safetensors --out rover-tiny.safetensors

A crop costs far less than a frame and still knows where in the frame it lies: its rotary table is the frame's. A tall one
holds the horizon and the ground before the wheels, which is what depth is read from. With `--parts`, two of three steps see
many small crops instead, each of another frame: more kinds of ground a step, and hardly any attention to pay for.

Several processes share a step when torchrun starts them, one a GPU or one a CPU core
(`torchrun --nproc-per-node 2 -m dino_perception.training.pretrain ...`).

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
from pathlib import Path
from typing import ContextManager

import torch
import torch.distributed as processes
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_perception.engines.arithmetic import bfloat16_pays
from dino_perception.models.backbone import Backbone
from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.checkpoints import load_backbone, save_backbone
from dino_perception.models.heads import create_head, load_head
from dino_perception.training.losses import overlap_loss
from dino_perception.training.memory import keep_freed_memory
from dino_perception.training.muon import Muon
from dino_perception.training.pairs import Pairs
from dino_perception.training.terrain_styles import BIG_ROCK, CLASSES

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
    return loss[valid].mean() if valid.any() else log_p.sum() * 0


def depth_loss(metres: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of log depth over pixels whose truth is finite and nearer than FAR. (B, H, W) both."""
    valid = torch.isfinite(truth) & (truth < FAR)
    return (metres.clamp_min(1e-3).log() - torch.nan_to_num(truth, nan=1.0).log()).abs()[valid].mean()


def train(arguments: argparse.Namespace) -> None:
    many = "WORLD_SIZE" in os.environ  # torchrun says so
    if many:
        processes.init_process_group("nccl" if arguments.device == "cuda" else "gloo")
    rank, count = (processes.get_rank(), processes.get_world_size()) if many else (0, 1)
    torch.manual_seed(arguments.seed)
    keep_freed_memory()
    device = torch.device(arguments.device, rank) if arguments.device == "cuda" else torch.device(arguments.device)
    backbone = load_backbone(arguments.backbone, arguments.resume).to(device).requires_grad_(True)
    if not arguments.resume:
        with torch.no_grad():  # blocks that start near the identity train faster than the random ones of the tests
            for name, p in backbone.named_parameters():
                if name.endswith(("scale1", "scale2")):
                    p.fill_(0.2)
    bfloat16 = device.type != "cpu" or bfloat16_pays()
    heads = {kind: create_head(kind, backbone, arch="fine").to(device).train() for kind in ("segmentation", "depth")}
    resumed, state = Path(arguments.resume), Path(f"{arguments.resume}.heads")
    if arguments.resume and not state.exists():  # the heads that ship with it, where they lie beside it
        for kind in heads:
            if (file := resumed.with_name(f"{resumed.stem}-{kind}.safetensors")).exists():
                heads[kind] = load_head(kind, backbone, file).to(device).requires_grad_(True).train()
    elif arguments.resume:
        saved = load_file(state)
        for kind, head in heads.items():
            head.load_state_dict({k[len(kind) + 1:]: v for k, v in saved.items() if k.startswith(kind + ".")}, strict=False)
    parameters = [*backbone.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimisers = optimisers_of(backbone, parameters, arguments.rate, torch.bfloat16 if bfloat16 else torch.float32)
    pairs = Pairs(arguments.scenes, backbone.spec.patch, sides(arguments.size), arguments.seed + rank, sides(arguments.crop))
    weights = torch.ones(len(CLASSES), device=device)
    weights[BIG_ROCK] = RARE
    average = {k: v.detach().clone() for k, v in backbone.state_dict().items()}
    graphs: dict[tuple[int, int], torch.nn.Module] = {}
    frame_size = pairs.whole()
    if arguments.crop or arguments.parts:
        frame = backbone.at(*frame_size, backbone.spec.taps)
        if not hasattr(frame, "cos"):
            raise SystemExit(f"--crop and --parts need rotary positions, which {arguments.backbone} has not")
        whole = frame.cos.to(device), frame.sin.to(device)
    log = Path(f"{arguments.out}.log.jsonl").open("a")
    start, step = time.monotonic(), 0
    while True:
        progress = max((time.monotonic() - start) / (60 * arguments.minutes), step / arguments.steps)
        if many:  # one clock for all
            shared = torch.tensor([progress], device=device)
            processes.broadcast(shared, 0)
            progress = shared.item()
        if progress >= 1:
            break
        warm = min(1.0, (step + 1) / 100)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = arguments.rate * warm * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        few = not arguments.parts or step % 3 == 2
        drawn = pairs.batch(arguments.pairs) if few else pairs.parts(arguments.parts, sides(arguments.part))
        batch = {key: value.to(device) for key, value in drawn.items()}
        size = tuple(batch["rgb"].shape[1:3])
        taps = backbone.spec.taps
        if size not in graphs:
            graphs[size] = backbone.at(*size, taps).to(device).train()
            if arguments.compile:
                graphs[size].compile()
        graph = graphs[size]
        if size != frame_size:
            graph.cos, graph.sin = (in_the_frame(t, batch["corner"], size, frame_size, backbone.spec) for t in whole)
        with attention_for(size, backbone.spec, device), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            features = graph(batch["rgb"])
            logits = heads["segmentation"](*features)
            metres = heads["depth"](*features)
        # Every fourth pixel of the truth, each time others: the losses on all of them would be a fifth of the step.
        row, column = torch.randint(2, (2,)).tolist()
        classes, distance = (batch[key][:, row::2, column::2] for key in ("classes", "depth"))
        logits, metres = resized(logits, classes.shape[1:]), resized(metres, classes.shape[1:])[:, 0]
        segmentation = F.cross_entropy(logits, classes, weights, ignore_index=255, label_smoothing=0.02)
        overlap = overlap_loss(logits, classes)
        depth = depth_loss(metres, distance)
        loss = segmentation + 0.5 * overlap + depth
        if few:
            descriptors = F.normalize(features[-1].float().flatten(2).transpose(1, 2), dim=-1)
            match = match_loss(descriptors[0::2], descriptors[1::2], batch["target"], features[-1].shape[3])
            loss = loss + 0.15 * match
        backbone.zero_grad(set_to_none=True)
        for head in heads.values():
            head.zero_grad(set_to_none=True)
        loss.backward()
        if many:
            average_gradients(parameters, count)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        decay = min(0.998, step / (step + 20))
        for key, value in backbone.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if step % 20 == 0 and rank == 0:
            line = dict(step=step, minutes=round((time.monotonic() - start) / 60, 2), segmentation=round(segmentation.item(), 4),
                        overlap=round(overlap.item(), 4), depth=round(depth.item(), 4),
                        match=round(match.item(), 4) if few else None, loss=round(loss.item(), 4))
            print(json.dumps(line), file=log, flush=True)
        if step % 20 == 0:
            pairs.refresh()
        if step % 500 == 0 and rank == 0:
            save(backbone, average, heads, arguments, step)
    if rank == 0:
        save(backbone, average, heads, arguments, step)
    if many:
        processes.destroy_process_group()


def optimisers_of(backbone: Backbone, parameters: list[Tensor], rate: float,
                  dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon, which multiplies in `dtype`, for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for p in backbone.blocks.parameters() if p.dim() == 2]
    rest = [p for p in parameters if not any(p is m for m in matrices)]
    adam = torch.optim.AdamW([
        dict(params=[p for p in rest if p.dim() >= 2], weight_decay=0.03),
        dict(params=[p for p in rest if p.dim() < 2], weight_decay=0.0)], lr=rate, betas=(0.9, 0.98))
    return [Muon(matrices, rate, weight_decay=0.03, dtype=dtype), adam]


def in_the_frame(table: Tensor, corner: Tensor, size: tuple[int, int], whole: tuple[int, int], spec: BackboneSpec) -> Tensor:
    """The rotary table (B, 1, T, d) of crops of `size` pixels whose first patches are at `corner` (B, 2) in the patch grid of
    frames of `whole` pixels, from these frames' own `table`; the CLS and register tokens come first."""
    prefix = len(table) - (whole[0] // spec.patch) * (whole[1] // spec.patch)
    rows, columns = (torch.arange(side // spec.patch, device=table.device) for side in size)
    index = (corner[:, :1, None] + rows[:, None]) * (whole[1] // spec.patch) + corner[:, 1:, None] + columns
    first = torch.arange(prefix, device=table.device).expand(len(corner), -1)
    return table[torch.cat([first, prefix + index.flatten(1)], dim=1)][:, None]


def attention_for(size: tuple[int, int], spec: BackboneSpec, device: torch.device) -> ContextManager:
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
    """"480x640" -> (480, 640); None for none."""
    return tuple(int(side) for side in text.split("x")) if text else None


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False)


def save(backbone, average: dict[str, Tensor], heads, arguments: argparse.Namespace, step: int) -> None:
    present = {k: v.detach().clone() for k, v in backbone.state_dict().items()}
    backbone.load_state_dict(average)
    save_backbone(backbone, arguments.out, dtype=torch.float16 if arguments.half else torch.float32,
                  trained_on="rendered terrain", steps=step, resumed_from=Path(arguments.resume).name)
    backbone.load_state_dict(present)
    save_file({f"{kind}.{k}": v.detach().cpu().contiguous() for kind, head in heads.items()
               for k, v in head.state_dict().items()}, f"{arguments.out}.heads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder made by dino_perception.training.scenes")
    parser.add_argument("--out", type=Path, required=True, help="backbone file to write (.safetensors)")
    parser.add_argument("--half", action="store_true", help="write float16: half the size; train heads on the file")
    parser.add_argument("--size", default="", help="height x width to shrink the scenes to, such as 240x320")
    parser.add_argument("--crop", default="", help="height x width of the parts of frames to train on, such as 480x256; "
                        "whole frames where it is left out")
    parser.add_argument("--backbone", default="rover-tiny", help="catalogue id whose architecture is trained")
    parser.add_argument("--resume", default="", help="start from this backbone file, for a second phase at a larger size")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time")
    parser.add_argument("--steps", type=int, default=20000, help="stop after so many steps")
    parser.add_argument("--pairs", type=int, default=6, help="frame pairs a step and process")
    parser.add_argument("--parts", type=int, default=0, help="in two of three steps, so many small crops a process instead")
    parser.add_argument("--part", default="160x160", help="height x width of these")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--compile", action="store_true", help="compile the backbone first: some minutes for the first step of "
                        "each size, and a half more steps an hour on a CPU (needs a C++ compiler)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
