"""Trains the small bundled backbone on rendered scenes: classes, depth and matches at once, from one pass.

    python -m dino_perception.training.scenes --out SCENES --worlds 400 --size 480x640
    python -m dino_perception.training.pretrain --scenes SCENES --size 240x320 --out small.safetensors
    python -m dino_perception.training.pretrain --scenes SCENES --resume small.safetensors --out rover-tiny.safetensors

Several processes share a step when torchrun starts them, one a GPU or one a CPU core
(`torchrun --nproc-per-node 2 -m dino_perception.training.pretrain ...`).

The heads used here only shape the backbone and are thrown away; the heads that ship are trained on the frozen
backbone with `dino-perception train`, like anyone's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as processes
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dino_perception.models.checkpoints import load_backbone, save_backbone
from dino_perception.models.heads import create_head
from dino_perception.training.terrain_styles import BIG_ROCK, CLASSES, SKY

GAPS = (1, 2, 3, 5, 8)
TEMPERATURE = 0.07
FAR = 80.0  # metres; farther depth is not asked for
RARE = 2.0  # weight of big_rock, a few percent of all pixels


class Pairs:
    """Two frames of one drive, and where each patch centre of the first is seen in the second.

    Reads the folders of `training.scenes`; every scene is one world seen by one camera.
    """

    def __init__(self, folder: Path, patch: int, size: tuple[int, int] | None, seed: int):
        """`size` (height, width) to shrink the scenes to, None leaves them."""
        self.folder, self.patch, self.size = folder, patch, size
        self.random = np.random.default_rng(seed)
        cv2.setRNGSeed(seed)
        self.cache: dict[Path, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the scenes that were rendered since."""
        self.scenes = sorted(self.folder.glob("*.npz"))
        if not self.scenes:
            raise SystemExit(f"{self.folder} holds no scenes; make some with python -m dino_perception.training.scenes")

    def batch(self, pairs: int) -> dict[str, Tensor]:
        """rgb (2P, H, W, 3) uint8, classes (2P, H, W) int64, depth (2P, H, W) float32 with NaN, target (P, N, 2)
        float32 patch-grid x, y of the second frame with NaN where the first's patch centre is not seen in it. Frames
        2p and 2p + 1 are pair p."""
        drawn = [self._pair() for _ in range(pairs)]
        return {key: torch.from_numpy(np.concatenate([d[key] for d in drawn])) for key in drawn[0]}

    def _scene(self) -> dict[str, np.ndarray]:
        path = self.scenes[self.random.integers(len(self.scenes))]
        if path not in self.cache:
            with np.load(path) as file:
                scene = {key: file[key] for key in file.files}
            self.cache[path] = shrunk(scene, self.size) if self.size else scene
        return self.cache[path]

    def _pair(self) -> dict[str, np.ndarray]:
        scene = self._scene()
        count = len(scene["rgb"])
        gap = min(int(self.random.choice(GAPS)), count - 1)
        first = int(self.random.integers(count - gap))
        order = [first, first + gap] if self.random.random() < 0.7 else [first + gap, first]
        depth = scene["depth"][order].astype(np.float32)
        x, y = seen(depth, scene["pose"][order], scene["intrinsics"], self.patch)
        classes = scene["classes"][order]
        tints = self._tints()
        rgb = np.stack([self._photographed(recoloured(scene["rgb"][i], scene["classes"][i], tints)) for i in order])
        if self.random.random() < 0.5:
            rgb, depth, classes = (np.ascontiguousarray(a[:, :, ::-1]) for a in (rgb, depth, classes))
            columns = rgb.shape[2] // self.patch
            x = (columns - 1 - x)[:, ::-1]
            y = y[:, ::-1]
        target = np.stack([x, y], axis=-1).reshape(1, -1, 2).astype(np.float32)
        return dict(rgb=rgb, depth=depth, classes=classes.astype(np.int64), target=target)

    def _tints(self) -> np.ndarray:
        """(256, 3) float32: what each class's colour is multiplied by. Ground of another colour is still that ground: what
        is learned shall be its texture and shape, so that a style of terrain never seen is no riddle."""
        tints = np.ones((256, 3), np.float32)
        if self.random.random() < 0.7:
            ground = slice(0, SKY)  # the classes before it
            tints[ground] = np.exp(self.random.normal(0, 0.2, (SKY, 1)) + self.random.normal(0, 0.06, (SKY, 3)))
        return tints

    def _photographed(self, rgb: np.ndarray) -> np.ndarray:
        """Another exposure, white balance, contrast, gamma and noise."""
        r = self.random
        level = (np.arange(256) / 255) ** np.exp(r.normal(0, 0.15))
        gain = np.exp(r.normal(0, 0.2)) * np.exp(r.normal(0, 0.06, (3, 1)))
        level = (level * gain - 0.45) * np.exp(r.normal(0, 0.15)) + 0.45
        table = (np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8).T.reshape(1, 256, 3)
        rgb = cv2.LUT(rgb, np.ascontiguousarray(table))
        if r.random() < 0.15:
            rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        noise = cv2.randn(np.empty(rgb.shape, np.int16), 0, 255 * r.uniform(0, 0.02))
        return cv2.add(rgb, noise, dtype=cv2.CV_8U)


def recoloured(rgb: np.ndarray, classes: np.ndarray, tints: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 with each class's pixels multiplied by its tint (256, 3), softly across borders."""
    if (tints == 1).all():
        return rgb
    factor = cv2.blur(tints[classes], (5, 5))
    return cv2.multiply(rgb, factor, dtype=cv2.CV_8U)


def shrunk(scene: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The scene as a camera of fewer pixels sees it: colours averaged, depth and classes of the nearest pixel."""
    height, width = scene["rgb"].shape[1:3]
    if (height, width) == size:
        return scene
    rows, columns = ((np.arange(n) * m + m // 2) // n for n, m in zip(size, (height, width)))
    fx, fy, cx, cy = scene["intrinsics"]
    x, y = size[1] / width, size[0] / height
    rgb = np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_AREA) for f in scene["rgb"]])
    return {**scene, "rgb": rgb, "depth": scene["depth"][:, rows][:, :, columns],
            "classes": scene["classes"][:, rows][:, :, columns],
            "intrinsics": np.array([fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5])}


def seen(depth: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the first frame's patch centres lie in the second's patch grid, (rows, columns) float64 x and y.

    `depth` (2, H, W) metres, `pose` (2, 4, 4) camera to world, `intrinsics` (fx, fy, cx, cy). NaN where the first has
    no depth, the point leaves the second image, or something nearer hides it there.
    """
    height, width = depth.shape[1:]
    fx, fy, cx, cy = intrinsics
    v, u = np.meshgrid(np.arange(patch // 2, height, patch), np.arange(patch // 2, width, patch), indexing="ij")
    z = depth[0, v, u].astype(np.float64)
    ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(z)], axis=-1)
    world = (ray * z[..., None]) @ pose[0, :3, :3].T + pose[0, :3, 3]
    camera = (world - pose[1, :3, 3]) @ pose[1, :3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        x = camera[..., 0] / camera[..., 2] * fx + cx
        y = camera[..., 1] / camera[..., 2] * fy + cy
        inside = (camera[..., 2] > 0.05) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        there = depth[1, np.where(inside, y, 0).round().astype(int), np.where(inside, x, 0).round().astype(int)]
        visible = inside & (np.abs(there - camera[..., 2]) < 0.05 * camera[..., 2] + 0.02)
    shift = patch // 2  # the pixel that stands for a patch's centre
    return tuple(np.where(visible, (c - shift) / patch, np.nan) for c in (x, y))


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
    device = torch.device(arguments.device, rank) if arguments.device == "cuda" else torch.device(arguments.device)
    backbone = load_backbone(arguments.backbone, arguments.resume).to(device).requires_grad_(True)
    if not arguments.resume:
        with torch.no_grad():  # blocks that start near the identity train faster than the random ones of the tests
            for name, p in backbone.named_parameters():
                if name.endswith(("scale1", "scale2")):
                    p.fill_(0.2)
    heads = {kind: create_head(kind, backbone, arch="fine").to(device).train() for kind in ("segmentation", "depth")}
    state = Path(f"{arguments.resume}.heads")
    if arguments.resume and state.exists():
        saved = load_file(state)
        for kind, head in heads.items():
            head.load_state_dict({k[len(kind) + 1:]: v for k, v in saved.items() if k.startswith(kind + ".")}, strict=False)
    parameters = [*backbone.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimiser = torch.optim.AdamW([
        dict(params=[p for p in parameters if p.dim() >= 2], weight_decay=0.03),
        dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0)], lr=arguments.rate, betas=(0.9, 0.98))
    size = tuple(int(side) for side in arguments.size.split("x")) if arguments.size else None
    pairs = Pairs(arguments.scenes, backbone.spec.patch, size, arguments.seed + rank)
    weights = torch.ones(len(CLASSES), device=device)
    weights[BIG_ROCK] = RARE
    average = {k: v.detach().clone() for k, v in backbone.state_dict().items()}
    graphs: dict[tuple[int, int], torch.nn.Module] = {}
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
        for group in optimiser.param_groups:
            group["lr"] = arguments.rate * warm * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-6
        batch = {key: value.to(device) for key, value in pairs.batch(arguments.pairs).items()}
        size = tuple(batch["rgb"].shape[1:3])
        taps = backbone.spec.taps
        graph = graphs.setdefault(size, backbone.at(*size, taps).to(device).train())
        with torch.autocast(device.type, torch.bfloat16):
            features = graph(batch["rgb"])
            logits = heads["segmentation"](*features)
            metres = heads["depth"](*features)
        segmentation = F.cross_entropy(resized(logits, size), batch["classes"], weights, ignore_index=255, label_smoothing=0.02)
        depth = depth_loss(resized(metres, size)[:, 0], batch["depth"])
        descriptors = F.normalize(features[-1].float().flatten(2).transpose(1, 2), dim=-1)
        match = match_loss(descriptors[0::2], descriptors[1::2], batch["target"], features[-1].shape[3])
        loss = segmentation + depth + 0.3 * match
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if many:
            average_gradients(parameters, count)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        decay = min(0.998, step / (step + 20))
        for key, value in backbone.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if step % 20 == 0 and rank == 0:
            line = dict(step=step, minutes=round((time.monotonic() - start) / 60, 2), segmentation=round(segmentation.item(), 4),
                        depth=round(depth.item(), 4), match=round(match.item(), 4), loss=round(loss.item(), 4))
            print(json.dumps(line), file=log, flush=True)
        if step % 20 == 0:
            pairs.refresh()
        if step % 500 == 0 and rank == 0:
            save(backbone, average, heads, arguments, step)
    if rank == 0:
        save(backbone, average, heads, arguments, step)
    if many:
        processes.destroy_process_group()


def average_gradients(parameters: list[Tensor], count: int) -> None:
    """Every process's gradients become the mean over all `count` processes."""
    given = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in given])
    processes.all_reduce(flat)
    for p, mean in zip(given, (flat / count).split([p.numel() for p in given])):
        p.grad.copy_(mean.view_as(p))


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
    parser.add_argument("--backbone", default="rover-tiny", help="catalogue id whose architecture is trained")
    parser.add_argument("--resume", default="", help="start from this backbone file, for a second phase at a larger size")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time")
    parser.add_argument("--steps", type=int, default=20000, help="stop after so many steps")
    parser.add_argument("--pairs", type=int, default=6, help="frame pairs a step and process")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
