"""An organised cloud seen from above, as a small picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

AHEAD_M, ASIDE_M = 12.0, 6.0
"""What the picture covers, in metres ahead of the camera and to each side of it."""
PIXELS_PER_M = 30
_GROUND = (24, 24, 28)
_LINE = (62, 62, 70)


def birdseye(cloud: Any) -> np.ndarray:
    """(AHEAD_M, 2 * ASIDE_M) at `PIXELS_PER_M`, (H, W, 3) uint8 RGB, of a sensor_msgs/PointCloud2 in an optical frame
    (x right, z ahead, metres) with the fields x, z and, if it has it, rgb. The camera is in the middle of the lower
    edge; arcs are 2 m apart. Of points over one another the later in the cloud wins, which is the lower in the image
    and so the nearer. Raises ValueError for a cloud without x and z."""
    fields = {field.name: int(field.offset) for field in cloud.fields}
    if missing := {"x", "z"} - fields.keys():
        raise ValueError(f"the cloud has no field {', '.join(sorted(missing))}")
    step, count = int(cloud.point_step), int(cloud.width) * int(cloud.height)
    raw = np.frombuffer(cloud.data, np.uint8, step * count).reshape(count, step)
    order = ">" if cloud.is_bigendian else "<"
    x, z = (raw[:, fields[name] : fields[name] + 4].copy().view(f"{order}f4")[:, 0] for name in "xz")
    height, width = round(AHEAD_M * PIXELS_PER_M), round(2 * ASIDE_M * PIXELS_PER_M)
    picture = np.full((height, width, 3), _GROUND, np.uint8)
    for metres in range(2, int(AHEAD_M) + 1, 2):
        cv2.circle(picture, (width // 2, height), metres * PIXELS_PER_M, _LINE, 1, cv2.LINE_AA)
    with np.errstate(invalid="ignore"):  # unknown points are NaN
        inside = (np.abs(x) < ASIDE_M) & (z > 0) & (z < AHEAD_M)
    column = ((x[inside] + ASIDE_M) * PIXELS_PER_M).astype(np.int32)
    row = height - 1 - (z[inside] * PIXELS_PER_M).astype(np.int32)
    if "rgb" in fields:
        packed = raw[inside, fields["rgb"] : fields["rgb"] + 4]
        colour = packed[:, [2, 1, 0]] if order == "<" else packed[:, [1, 2, 3]]
    else:
        colour = np.full((int(inside.sum()), 3), 200, np.uint8)
    for down in (0, 1):
        for right in (0, 1):  # a point is two pixels wide, so that far ground does not look like dust
            picture[np.clip(row - down, 0, height - 1), np.clip(column + right, 0, width - 1)] = colour
    return picture
