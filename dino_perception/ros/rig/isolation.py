"""A ROS domain of one's own, so that a test or a demo neither hears nor disturbs a robot on the same network."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager

DOMAINS = range(1, 100)
"""Domain ids whose DDS ports lie below Linux's ephemeral ports; 0 is what robots use by default."""


@contextmanager
def isolated(environment: MutableMapping[str, str] = os.environ) -> Iterator[int]:
    """Puts a free domain id, and discovery on this machine only, into `environment` for the length of the context.

    Yields the domain id. Must be entered before rclpy.init, which reads these variables. Raises RuntimeError when
    every domain is taken.
    """
    changes = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if environment.get("ROS_DISTRO") == "humble":  # knows only the older variable, of which later ones warn
        changes = {"ROS_LOCALHOST_ONLY": "1"}
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as lock:
            if not (_bound(lock, 32768 + domain) and _unused(domain)):
                continue
            changes["ROS_DOMAIN_ID"] = str(domain)
            before = {name: environment.get(name) for name in changes}
            environment.update(changes)
            try:
                yield domain
            finally:
                for name, value in before.items():
                    if value is None:
                        environment.pop(name, None)
                    else:
                        environment[name] = value
            return
    raise RuntimeError(f"every ROS domain from {DOMAINS[0]} to {DOMAINS[-1]} is in use on this machine")


def _unused(domain: int) -> bool:
    """Whether no DDS participant of this machine sits in the domain (its first one listens on this port)."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        return _bound(probe, 7410 + 250 * domain)


def _bound(sock: socket.socket, port: int) -> bool:
    # The lock's port is the one of ROS 2's own domain_coordinator, so its tests and these keep off one another.
    try:
        sock.bind(("127.0.0.1", port))
        return True
    except OSError:
        return False
