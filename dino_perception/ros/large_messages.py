"""Room for images in Fast DDS's shared memory, for a process that publishes them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from dino_perception.share import share

VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def use_large_message_profile(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the profile of config/fastdds in `environment`, unless the user has set one. Takes effect in a process whose
    rclpy.init comes after."""
    if not any(environment.get(name) for name in VARIABLES):
        for name in _known(environment):
            environment[name] = str(share("config", "fastdds", "large_images.xml"))


def _known(environment: MutableMapping[str, str]) -> tuple[str, ...]:
    # Kilted renamed the variable and warns of the older name; before, only the older one is read.
    older = environment.get("ROS_DISTRO", "") in ("", "humble", "iron", "jazzy")
    return VARIABLES[:1] if older else VARIABLES[1:]
