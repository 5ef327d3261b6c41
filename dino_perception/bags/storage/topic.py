"""What a bag says about a topic, and about the quality of service it was offered with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from dino_perception.models.yaml_text import YamlError, load

log = logging.getLogger(__name__)

_FOREVER = {"sec": 9223372036, "nsec": 854775807}  # what rosbag2 writes for "no limit"
_NAMES = {
    "history": ("system_default", "keep_last", "keep_all", "unknown"),
    "reliability": ("system_default", "reliable", "best_effort", "unknown", "best_available"),
    "durability": ("system_default", "transient_local", "volatile", "unknown", "best_available"),
    "liveliness": ("system_default", "automatic", "manual_by_node", "manual_by_topic", "unknown", "best_available"),
}
"""The names of rmw's enumerations by number: bags up to metadata version 8 hold numbers, later ones names."""


@dataclass(frozen=True)
class Topic:
    """`type` is "package/msg/Name", `definition` its text in the format `encoding` ("ros2msg", "ros2idl"; "" when the
    bag has none), `hash` its RIHS01 hash or "", `qos` the offered profiles as YAML text with names, `count` the number
    of messages as far as the bag says, `coding` what their bytes are. What is not "cdr" keeps type, definition and
    encoding as they are in the bag; a definition that is no text (protobuf's) has a character for each byte."""

    name: str
    type: str
    definition: str = ""
    encoding: str = ""
    hash: str = ""
    qos: str = ""
    count: int = 0
    coding: str = "cdr"

    @property
    def definition_bytes(self) -> bytes:
        return self.definition.encode("utf-8" if self.coding == "cdr" else "latin-1")

    @property
    def latched(self) -> bool:
        """Whether whoever subscribes late gets the last message."""
        return "transient_local" in self.qos or self.name.endswith("/tf_static")


class Record(NamedTuple):
    """One message of a bag: its topic, the time it was recorded at in nanoseconds, and its bytes."""

    topic: Topic
    time_ns: int
    data: Any


def full_type(name: str) -> str:
    """ "package/msg/Name" for "package/Name", which some recorders write; other names as they are."""
    package, _, leaf = name.partition("/")
    return f"{package}/msg/{leaf}" if package and leaf and "/" not in leaf else name


def qos(depth: int, *, durability: str = "volatile", reliability: str = "reliable") -> str:
    """One offered profile, keep last `depth`, as YAML text."""
    profile = {
        "history": "keep_last",
        "depth": depth,
        "reliability": reliability,
        "durability": durability,
        "deadline": dict(_FOREVER),
        "lifespan": dict(_FOREVER),
        "liveliness": "automatic",
        "liveliness_lease_duration": dict(_FOREVER),
        "avoid_ros_namespace_conventions": False,
    }
    return yaml.safe_dump([profile], sort_keys=False)


def named_qos(text: str | list) -> str:
    """Offered profiles of any metadata version, numbers or names, as YAML text with names. What cannot be read is "",
    which a player takes as its default."""
    try:
        profiles = load(text) if isinstance(text, str) else text
        profiles = [dict(profile) for profile in profiles or []]
        for profile in profiles:
            for policy, names in _NAMES.items():
                value = profile.get(policy, 0)
                profile[policy] = names[value] if isinstance(value, int) else str(value)
    except (YamlError, AttributeError, LookupError, TypeError, ValueError) as error:
        log.warning("offered_qos_profiles cannot be read and are left out: %s", error)
        return ""
    return yaml.safe_dump(profiles, sort_keys=False) if profiles else ""
