import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def drive():
    """Twelve frames at 10 Hz over rendered terrain."""
    from scenes import Drive

    from dino_perception.perception.frame import CameraModel
    from dino_perception.training.terrain.world import PinholeCamera, World

    world = World(14, "badlands")
    poses = world.drive(12, 10.0)
    camera = PinholeCamera.of(640, 480)
    rendered = world.render(poses, camera)
    return Drive(rendered.rgb, rendered.depth, poses, CameraModel(640, 480, np.asarray(camera.k)))
