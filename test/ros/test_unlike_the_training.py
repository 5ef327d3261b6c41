"""The bundled heads believe the sample drive and doubt noise: a warning, a count, and nothing said where asked."""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from live_node import picture_of, wait_for

from dino_perception.share import share
from dino_perception.training.datasets import open_dataset

SIZES = {"input_height": 240, "input_width": 320, "output_height": 120, "output_width": 160}
SENTENCE = "this camera's pictures are unlike what the segmentation head was trained on"
COUNT = "unlike the training"


def test_noise_is_told_counted_and_silenced_and_the_sample_drive_is_not(start, tmp_path):
    sample = open_dataset(share("data", "sample_drive"), cache=tmp_path).samples[0]
    node, client = start({"engine": "torch", "threads": 1, "max_age": 600.0, **SIZES}, name="doubting")
    client.wait_for_state("active")
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    sure = client.listen("segmentation/confidence", "sensor_msgs/msg/Image")
    depths = client.listen("depth/image", "sensor_msgs/msg/Image")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)

    def once(condition, what, pixels=None):
        def send():
            client.send(*picture_of(sample, client.now_ns(), pixels))
            time.sleep(0.2)
            return condition()

        wait_for(send, what, 180.0)

    def answers(pixels=None):
        """Mask, confidence and depth of the fourth frame from now: what was under way before is over by then."""
        received = (masks, sure, depths)
        enough = [len(messages) + 4 for messages in received]
        once(lambda: all(len(m) >= n for m, n in zip(received, enough)), "frames", pixels)
        return [np.frombuffer(bytes(m[-1].data), kind) for m, kind in zip(received, ("u1", "u1", "f4"))]

    once(lambda: client.count("camera", "published") >= 4, "frames in the diagnostics")
    status = client.found("camera camera")
    assert SENTENCE not in status.message and client.count("camera", COUNT) == 0
    believed = answers()[1].mean()

    once(lambda: SENTENCE in client.found("camera camera").message, "a warning", noise)
    status = client.found("camera camera")
    assert status.level == DiagnosticStatus.WARN and client.count("camera", COUNT) > 0
    mask, confidence, depth = answers(noise)
    assert confidence.mean() < 0.6 * believed
    assert (mask != 255).any() and np.isfinite(depth).any()

    assert client.set(domain__ignore=True).successful
    mask, confidence, depth = answers(noise)
    assert (mask == 255).all() and not confidence.any() and np.isnan(depth).all()
    mask, confidence, depth = answers()
    assert (mask != 255).all() and confidence.mean() > 0.9 * believed and np.isfinite(depth).all()
    once(lambda: SENTENCE not in client.found("camera camera").message, "the warning to end")
    assert node.alive()
