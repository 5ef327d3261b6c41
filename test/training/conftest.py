"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import SIZE, picture, striped


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Ten labelled pictures of two classes with depth beside them, as a user would lay them out."""
    folder = tmp_path / "labelled"
    for i in range(10):
        image, mask = striped(i)
        picture(folder / "images" / f"{i:03}.png", image)
        picture(folder / "masks" / f"{i:03}.png", mask)
        depth = np.where(mask == 1, 400 + 100 * np.arange(SIZE[0])[::-1, None], 0).astype(np.uint16)
        picture(folder / "depth" / f"{i:03}.png", depth)
    (folder / "labels.yaml").write_text("labels: [{name: sky}, {name: ground, colour: [180, 110, 60]}]\n")
    return folder
