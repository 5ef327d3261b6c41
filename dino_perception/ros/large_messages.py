"""Room for images in Fast DDS's shared memory, for a process that publishes them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dino_perception.share import share

VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def large_message_profile(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment of a process that publishes images, before its rclpy.init: the profile of
    config/fastdds, or nothing when the user has chosen one."""
    if any(environment.get(name) for name in VARIABLES):
        return {}
    # Kilted renamed the variable and warns of the older name; before, only the older one is read.
    older = environment.get("ROS_DISTRO", "jazzy") in ("humble", "iron", "jazzy")
    return {VARIABLES[0 if older else 1]: str(share("config", "fastdds", "large_images.xml"))}
