"""One camera of the node: its way in and its way out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dino_perception.perception.settings import SettingError
from dino_perception.ros.inputs import CameraInput
from dino_perception.ros.outputs import CameraOutputs


class Camera:
    """What the worker sees of a camera."""

    def __init__(self, inputs: CameraInput, outputs: CameraOutputs):
        self.inputs, self.outputs = inputs, outputs
        self.listened = outputs.listened
        self.frame = inputs.frame
        self.publish = outputs.publish


def prefixes(cameras: Sequence[str]) -> dict[str, str]:
    """Camera name -> what stands before its topics' names: nothing for one camera, `<camera>/` for several.
    Raises SettingError on names that cannot be part of a topic."""
    if not cameras:
        raise SettingError("'cameras' is empty; name at least one camera")
    for camera in cameras:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", camera) or "__" in camera:
            raise SettingError(
                f"'cameras' holds '{camera}'; a camera's name becomes part of its topics: "
                "letters, digits and single underscores, a letter first"
            )
    return {camera: "" if len(cameras) == 1 else f"{camera}/" for camera in cameras}
