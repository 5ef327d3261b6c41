"""How often a place is known again under another light: ~/place beside simple descriptors, on drives with poses.

    python -m dino_perception.training.terrain.scenes --out RETURNS --worlds 6 --frames 30 --suns 2 --beside 0.5 \\
        --first-seed 9200 --styles mars_gale,volcanic
    python -m dino_perception.measuring.place_recall RETURNS

The frames under each world's first light are the map of all worlds together; those under the later ones are asked for. A
frame counts where the map has one of the same world within 1 m and 30 degrees of it, and is known again at k where one of
its k best partners is such a one. The vocabularies are fitted on the map alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dino_perception import results
from dino_perception.engines import default_folder
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import create_head
from dino_perception.training.datasets import Sample, open_dataset
from dino_perception.training.features import FeatureCache
from dino_perception.training.places import fit, seen, vectors

NEAR_M, NEAR_DEG = 1.0, 30.0
WORDS = 200
"""Of the vocabulary of ORB descriptors."""


def recall(known: np.ndarray, asked: np.ndarray, right: np.ndarray, counts: Sequence[int] = (1, 5)) -> dict[int, float]:
    """The share of `asked` (M, D), of those with any partner in `right` (M, N) bool, with one among the k of `known` (N, D)
    with the largest products."""
    order = np.argsort(-(asked @ known.T), axis=1, kind="stable")
    some = right.any(axis=1)
    hits = np.take_along_axis(right, order, axis=1)[some]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in counts}


def partners(known: Sequence[Sample], asked: Sequence[Sample]) -> np.ndarray:
    """(M, N) bool: which of the known frames show what an asked one shows, by world and pose."""
    worlds = [[sample.scene.rsplit("-", 1)[0] for sample in frames] for frames in (known, asked)]
    a, b = (np.stack([sample.pose for sample in frames]) for frames in (known, asked))
    far = np.linalg.norm(b[:, None, :3, 3] - a[None, :, :3, 3], axis=2)
    ahead = np.einsum("mi,ni->mn", b[:, :3, 2], a[:, :3, 2]) > np.cos(np.radians(NEAR_DEG))
    same = np.array(worlds[1])[:, None] == np.array(worlds[0])[None]
    return same & ahead & (far <= NEAR_M)


def colour_histograms(frames: Sequence[Sample]) -> np.ndarray:
    """(N, 512): square roots of the shares of 8 x 8 x 8 colours in HSV, so that products are Bhattacharyya's coefficients."""
    rows = []
    for sample in frames:
        hsv = cv2.cvtColor(sample.read_image(), cv2.COLOR_RGB2HSV)
        rows.append(cv2.calcHist([hsv], [0, 1, 2], None, [8] * 3, [0, 180, 0, 256, 0, 256]).ravel())
    counts = np.stack(rows)
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def orb_words(known: Sequence[Sample], asked: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Bags of ORB words (Sivic and Zisserman 2003): words by k-means of the known frames' descriptors, each frame's counts
    weighted by inverse document frequency, at unit length."""
    orb = cv2.ORB_create(1000)
    described = [[_described(orb, sample) for sample in frames] for frames in (known, asked)]
    every = np.concatenate(described[0])
    cv2.setRNGSeed(0)
    every = every[np.linspace(0, len(every) - 1, min(len(every), 20_000)).astype(int)]
    stop = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 20, 1e-3)
    _, _, words = cv2.kmeans(every, min(WORDS, len(every)), None, stop, 1, cv2.KMEANS_PP_CENTERS)
    bags = []
    for frames in described:
        rows = [
            np.bincount(((d[:, None] - words[None]) ** 2).sum(axis=2).argmin(axis=1), minlength=len(words)) if len(d) else
            np.zeros(len(words)) for d in frames
        ]  # fmt: skip
        bags.append(np.stack(rows).astype(float))
    weights = np.log((1 + len(known)) / (1 + (bags[0] > 0).sum(axis=0)))
    return tuple(b * weights / np.maximum(np.linalg.norm(b * weights, axis=1, keepdims=True), 1e-9) for b in bags)


def _described(orb, sample: Sample) -> np.ndarray:
    found = orb.detectAndCompute(cv2.cvtColor(sample.read_image(), cv2.COLOR_RGB2GRAY), None)[1]
    return np.zeros((0, 256), np.float32) if found is None else np.unpackbits(found, axis=1).astype(np.float32)


def measure(args: argparse.Namespace) -> tuple[Mapping[str, dict[int, float]], str]:
    """Recall by method, and what it was measured on in a line."""
    samples = open_dataset(args.folder, cache=args.cache).samples
    first = {world: min(s.scene for s in samples if s.scene.startswith(world)) for world in
             {s.scene.rsplit("-", 1)[0] for s in samples}}  # fmt: skip
    known = [s for s in samples if s.scene == first[s.scene.rsplit("-", 1)[0]]]
    asked = [s for s in samples if s.scene != first[s.scene.rsplit("-", 1)[0]]]
    right = partners(known, asked)
    colours = colour_histograms(known), colour_histograms(asked)
    rows = {"colour histogram": recall(*colours, right), "ORB bag of words": recall(*orb_words(known, asked), right)}
    backbone = load_backbone(args.backbone, args.weights)
    heads = {
        "mean (~/descriptor)": create_head("descriptor", backbone),
        "GeM (~/place)": create_head("place", backbone),
    }
    cache = FeatureCache(
        args.cache, backbone, heads["GeM (~/place)"].spec.taps, *args.input, engine=args.engine,
        report=lambda line: None,
    )  # fmt: skip
    try:
        maps = seen(cache, known), seen(cache, asked)
    finally:
        cache.close()
    heads["VLAD (~/place, `places fit`)"] = fit(backbone, maps[0])
    for name, head in heads.items():
        rows[name] = recall(*(vectors(head, frames) for frames in maps), right)
    about = f"{len(known)} frames known, {int(right.any(axis=1).sum())} of {len(asked)} asked have a partner; {args.backbone}"
    return rows, about


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="rendered drives that come back")
    parser.add_argument("--cache", type=Path, default=default_folder(), metavar="DIR", help="where engines are kept")
    parser.add_argument("--backbone", default="rover-tiny")
    parser.add_argument("--weights", default="", metavar="FILE", help="of the backbone; default: the bundled ones")
    parser.add_argument("--input", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")
    rows, about = measure(args := parser.parse_args())
    print("| | recall@1 | recall@5 |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row[1]:.3f} | {row[5]:.3f} |")
    print(f"\n{about}")
    results.keep_json(args.json, {"about": about, "recall": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
