"""Vectors of places: a vocabulary from the user's own drives, and which frames show one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads import Head, create_head
from dino_perception.models.heads.place import SIZE, WORDS
from dino_perception.models.heads.prototypes import centres_of
from dino_perception.perception.geometry import image_shares
from dino_perception.training.datasets import DataError, Sample
from dino_perception.training.features import FeatureCache

FEWEST = 8
"""Frames that a vocabulary is fitted on at least; it had better be hundreds, of all that the robot passes."""
PATCHES = 40_000
"""Patches that the words are found among, evenly spread over all frames."""
SPREAD = 4
"""How many times the distance from their median to their upper quartile the cosines of different times must be left below by
a match: 2.7 standard deviations where they are normally distributed. Returns are few and move neither."""

Tell = Callable[[int, int], None]
"""Told how much is done, and how much there is."""


def seen(cache: FeatureCache, samples: Sequence[Sample], tell: Tell = lambda *_: None) -> list[tuple[Tensor, Tensor]]:
    """The last layer (1, C, h, w) float16 of every frame, and the share (1, h, w) of each patch that is image."""
    found = []
    for done, sample in enumerate(samples):
        tell(done, len(samples))
        image = sample.read_image()
        features = cache.look(image)[0].to("cpu", torch.float16, copy=True)
        found.append((features, torch.from_numpy(image_shares(cache.box(image, 2), *features.shape[2:]))[None]))
    return found


@torch.inference_mode()
def vectors(head: Head, frames: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """(N, D) float32 unit vectors of what `seen` gave."""
    return np.concatenate([head.reduce(head(f.float(), share), 0, 0)[0].numpy() for f, share in frames])


@torch.inference_mode()
def fit(backbone: Backbone, frames: Sequence[tuple[Tensor, Tensor]], **training: Any) -> Head:
    """A place head whose words and components are those of these frames (`seen`). Raises DataError for too few."""
    if len(frames) < FEWEST:
        raise DataError(f"{len(frames)} frames are too few for a vocabulary; give {FEWEST} at least, better hundreds")
    each = -(-PATCHES // len(frames))
    patches = []
    for features, share in frames:
        whole = features[0].flatten(1).T[share.flatten() == 1].float()
        patches.append(whole[torch.linspace(0, len(whole) - 1, min(each, len(whole))).long()])
    size = min(SIZE, len(frames) - 1)
    head = create_head("place", backbone, "vlad", words=WORDS, size=size)
    head.net.words.copy_(centres_of(torch.cat(patches), WORDS))
    whole = torch.cat([head.net.whole(features.float(), share) for features, share in frames])
    head.net.mean.copy_(whole.mean(dim=0))
    # Of N frames with far more numbers than frames the components are those of the N x N products.
    centred = whole - head.net.mean
    values, left = torch.linalg.eigh(centred.double() @ centred.double().T)
    values, left = values[-size:].flip(0), left[:, -size:].flip(1)
    known = values > 1e-9 * values[0].clamp_min(1e-12)
    components = torch.where(known, left / values.clamp_min(1e-12).sqrt(), 0).T @ centred.double()
    head.net.components.copy_(components.float())
    head.trained = True
    head.spec = dataclasses.replace(head.spec, training={"by": "places fit", "frames": len(frames), **training})
    return head.requires_grad_(False)


@dataclass(frozen=True)
class Revisit:
    """A stretch of frames that show what an earlier stretch showed, in seconds of their recordings, at its best `at` and
    `earlier_at`, with that cosine."""

    begin: float
    end: float
    at: float
    earlier_at: float
    cosine: float
    frames: int


def threshold(found: np.ndarray, times: np.ndarray, apart: float) -> float:
    """The cosine that frames more than `apart` seconds apart hardly reach unless they show one place; NaN without any."""
    cosines = (found @ found.T)[np.abs(times[:, None] - times) > apart]
    if not cosines.size:
        return float("nan")
    middle, upper = np.quantile(cosines, (0.5, 0.75))
    return float(min(middle + SPREAD * (upper - middle), 0.9999))


def revisits(
    earlier: np.ndarray,
    earlier_times: np.ndarray,
    later: np.ndarray,
    times: np.ndarray,
    least: float,
    apart: float = 0.0,
) -> list[Revisit]:
    """Where `later` (M, D) shows what `earlier` (N, D) showed, best first: each frame's best partner of at least that
    cosine and, for one recording with itself, more than `apart` seconds before it. Neighbouring frames with neighbouring
    partners are one revisit."""
    cosines = later @ earlier.T
    if apart:
        cosines = np.where(times[:, None] - earlier_times > apart, cosines, -2)
    best = cosines.argmax(axis=1)
    high = cosines.max(axis=1)
    runs: list[list[int]] = []
    period = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    for i in np.nonzero(high >= least)[0].tolist():
        near = runs and times[i] - times[runs[-1][-1]] <= 2.5 * period
        if near and abs(earlier_times[best[i]] - earlier_times[best[runs[-1][-1]]]) <= 2.5 * period:
            runs[-1].append(i)
        else:
            runs.append([i])
    found = []
    for run in runs:
        top = max(run, key=lambda i: high[i])
        found.append(
            Revisit(
                *map(float, (times[run[0]], times[run[-1]], times[top], earlier_times[best[top]], high[top])), len(run)
            )
        )
    return sorted(found, key=lambda r: -r.cosine)
