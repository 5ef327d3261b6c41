"""A replay scales depth by the height that the bag's fixed transforms tell, as the live node does by /tf_static."""

import numpy as np
import pytest
from recorded import decoded

from dino_perception.bags.camera_height import height_in
from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.reader import BagReader
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.share import share

ASKS = Settings.from_flat({"depth.camera_height_scaling": True})


def test_the_sample_drives_camera_stands_where_its_transforms_say():
    """The height is above base_link, which lies on the ground there (terrain/sample_bag.py: 1.1 m)."""
    with BagReader(share("data", "sample_drive")) as bag:
        height = height_in(bag, ASKS)
        assert height("camera_optical_frame", "base_link") == pytest.approx(1.1) and not bag.problems
        assert height("camera_optical_frame", "base_footprint") is None
        assert "from 'camera_optical_frame' to 'base_footprint'" in bag.problems[0].sentence


def test_a_bags_transforms_are_not_read_when_nobody_asks():
    with BagReader(share("data", "sample_drive")) as bag:
        assert height_in(bag, ASKS.changed({"camera_height": 1.1}))("camera_optical_frame", "base_link") is None


def test_the_bags_transforms_scale_the_depth_of_a_replay(tmp_path):
    """After five views, half a second apart, every pixel by one factor; before, by none."""
    small = {"input_height": 240, "input_width": 320, "output_height": 120, "output_width": 160, "engine": "torch"}
    plain = Settings.from_flat({**small, "heads": ["segmentation", "depth"], "ground_frame": "base_link"})
    perceiver = Perceiver(plain, cache=tmp_path / "cache", report=lambda line: None)
    depths = {}
    for name, settings in (("plain", plain), ("scaled", plain.changed({"depth.camera_height_scaling": True}))):
        perceiver.settings = settings
        out = tmp_path / f"{name}.mcap"
        job = Job(
            share("data", "sample_drive"),
            out,
            settings,
            every=5,
            duration=4.0,
            copy=("none",),
            outputs=("depth/image",),
        )
        assert run(job, lambda: perceiver).code == 0
        messages = decoded(out, "/dino_perception/depth/image")
        depths[name] = [np.frombuffer(m.data.tobytes(), np.float32) for m in messages]
    perceiver.close()
    assert len(depths["plain"]) == 8
    ratios = [b / a for a, b in zip(depths["plain"], depths["scaled"])]
    assert all(np.array_equal(r[np.isfinite(r)], np.ones(np.isfinite(r).sum())) for r in ratios[:4])
    last = ratios[-1][np.isfinite(ratios[-1])]
    assert 0.5 < last[0] < 0.98 or 1.02 < last[0] < 2
    np.testing.assert_allclose(last, last[0], rtol=1e-5)
