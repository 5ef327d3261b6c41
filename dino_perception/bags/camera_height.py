"""How high a bag's cameras stand over the ground, by its fixed transforms: what the live node hears on /tf_static."""

from __future__ import annotations

from dino_perception.bags.robot import fixed_frames
from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.reader import BagReader
from dino_perception.messages.intake import Height
from dino_perception.perception.depth_scale import DepthScale
from dino_perception.perception.settings import Settings
from dino_perception.perception.transforms import TransformTree


def height_in(bag: BagReader, settings: Settings) -> Height:
    """Metres of a frame over another by the bag's /tf_static, which is read through once, and only where the settings ask
    for a height that they do not say. A frame whose height it does not know is noted as a problem of the bag."""
    tree = fixed_frames(bag) if DepthScale.asks(settings) else TransformTree()

    def height(frame: str, ground: str) -> float | None:
        metres = tree.height(frame, ground)
        if metres is None:
            bag.note(
                Problem(
                    "",
                    f"no fixed transforms lead from '{frame}' to '{ground}', so that its depth is not scaled by height; set "
                    "camera_height, or ground_frame to the frame whose origin lies on the ground",
                )
            )
        return metres

    return height
