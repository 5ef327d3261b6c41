"""With real weights, the numbers that Hugging Face published when it converted DINOv3.

DINO_PERCEPTION_WEIGHTS names a folder with any of the released files or repositories, under their released names, and
with COCO's image 000000039769.jpg. Without it these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_perception.models import catalog
from dino_perception.models.checkpoints import load_backbone

IMAGE = "000000039769.jpg"
# First five numbers of the normed CLS token and of the first patch, at 224x224.
PUBLISHED = {
    "dinov3-vits16": (
        [0.463561, -0.415609, 0.408236, -0.126613, -0.286636],
        [-0.038754, -0.250895, -0.016392, -0.455473, 0.571582],
    ),
    "dinov3-vits16plus": (
        [-0.471349, -1.365778, -0.317983, 0.377219, -0.769085],
        [0.144551, -0.388117, -0.393433, -0.157695, -0.600380],
    ),
    "dinov3-vitb16": (
        [1.034643, -0.180609, -0.341018, -0.066376, -0.011383],
        [-0.082523, -0.456272, -0.728029, -0.430680, -0.152880],
    ),
    "dinov3-vitl16": (
        [0.484527, -0.582214, 0.480636, 0.592040, 0.945166],
        [-0.211367, -0.490863, -0.257131, 0.101763, 0.154511],
    ),
    "dinov3-vith16plus": (
        [-0.064575, -0.148866, -0.621524, 0.634878, 0.152695],
        [-0.093817, 0.287407, -0.050036, 0.428043, 0.094561],
    ),
    "dinov3-vit7b16": (
        [0.275439, -0.261353, 0.067772, 0.049936, -0.158747],
        [0.044442, -0.052542, 0.070777, -0.065111, -0.026546],
    ),
    "dinov3-convnext-tiny": ([-6.372119, 1.300791, 2.074303, -0.079975, 0.607205], None),
}


def released(backbone_id: str) -> tuple[Path, Path]:
    folder = os.environ.get("DINO_PERCEPTION_WEIGHTS")
    if not folder:
        pytest.skip("DINO_PERCEPTION_WEIGHTS names no folder with released weights")
    spec = catalog.get(backbone_id)
    names = [n for n in (spec.file, spec.huggingface.rpartition("/")[2], spec.timm.rpartition("/")[2]) if n]
    weights = next((Path(folder) / n for n in names if (Path(folder) / n).exists()), None)
    if weights is None or not (Path(folder) / IMAGE).exists():
        pytest.skip(f"{folder} lacks {' or '.join(names) if weights is None else IMAGE}")
    return weights, Path(folder) / IMAGE


@pytest.mark.parametrize("backbone_id", PUBLISHED)
def test_released_weights_give_the_published_numbers(backbone_id: str) -> None:
    weights, picture = released(backbone_id)
    from PIL import Image

    pixels = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1)[None] / 255
    pixels = F.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    backbone = load_backbone(backbone_id, weights)
    with torch.no_grad():
        graph = backbone.at(224, 224, [backbone.spec.depth - 1], pixels="float", extras=["cls"])
        patches, cls = graph((pixels - mean) / std)
    wanted_cls, wanted_patch = PUBLISHED[backbone_id]
    assert np.allclose(cls[0, :5].numpy(), wanted_cls, atol=1e-3)
    assert wanted_patch is None or np.allclose(patches[0, :5, 0, 0].numpy(), wanted_patch, atol=1e-3)
