"""The live part of the demo: the node in a process of its own, the bag played to it by another, and what was heard."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_perception.child_processes import ends_with_parent
from dino_perception.messages import topics
from dino_perception.perception.settings import Settings
from dino_perception.ros.rig.isolation import isolated
from dino_perception.ros.rig.node_process import NODE, NodeProcess, stop
from dino_perception.ros.rig.watcher import Heard, Watcher

QUIET_S = 1.0
"""When nothing has come for this long after the bag's end, nothing more will."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Run:
    """What was played and heard. `played` counts messages by the bag's topic names. `heard` are the node's messages by
    full topic name, of the topics that it offered. `sent_ns` is when each image was published (system clock), by its stamp. `status` holds the node's
    last diagnostics."""

    played: Mapping[str, int]
    heard: Mapping[str, list[Heard]]
    sent_ns: Mapping[int, int]
    status: Mapping[str, tuple[str, Mapping[str, str]]]

    def of(self, name: str) -> list[Heard]:
        """The messages of a topic, by its name below the node's; none where it was not offered."""
        return self.heard.get(f"{NODE}/{name}", [])


def output_topics() -> dict[str, str]:
    """Full name -> type of everything one camera's node may publish of the sample drive."""
    return {
        **{
            f"{NODE}/{name}": topic.type for name, topic in topics.offered(Settings().heads).items() if not topic.placed
        },
        "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    }


def run(
    bag: Path,
    image: str,
    camera_info: str,
    params_files: Sequence[Path],
    overrides: Mapping[str, str],
    log: Path,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Run:
    """Plays `bag` to the node, in real time, on a ROS domain of its own on this machine.

    `image` and `camera_info` are topic names as they are played; of `params_files` the later ones win, and `overrides` win over all. The node's output
    goes to the file `log`. `say` is told what is being waited for, `progress` how many images were published and
    looked at. Raises NodeError when the node does not come up, or dies, and
    DemoError when the bag cannot be played.
    """
    with isolated():
        outputs = output_topics()
        latched = {f"{NODE}/{name}" for name, topic in topics.offered(Settings().heads).items() if topic.latched}
        watcher = Watcher({**outputs, camera_info: "sensor_msgs/msg/CameraInfo"}, latched)
        try:
            with NodeProcess(_arguments(image, camera_info, params_files, overrides), log) as node:
                node.wait_until_active(watcher, say)
                played = _play(bag, node, watcher, camera_info, log, progress)
                offered = watcher.offered()
            # An image's camera_info is published right after it, and is small: it stands for the image.
            sent_ns = {heard.stamp_ns: heard.sent_ns for heard in watcher.heard[camera_info]}
            heard = {topic: watcher.heard[topic] for topic in outputs if topic in offered}
            return Run(played, heard, sent_ns, dict(watcher.diagnostics))
        finally:
            watcher.close()


def _arguments(image: str, camera_info: str, params_files: Sequence[Path], overrides: Mapping[str, str]) -> list[str]:
    parameters = {"use_sim_time": "true", **overrides}
    return [
        *(word for file in params_files for word in ("--params-file", str(file))),  # the later one wins
        "-r",
        f"image:={image}",
        "-r",
        f"camera_info:={camera_info}",
        *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
    ]


def _play(
    bag: Path,
    node: NodeProcess,
    watcher: Watcher,
    camera_info: str,
    log: Path,
    progress: Callable[[int, int], None],
) -> dict[str, int]:
    """Plays the bag and waits until nothing more comes. Returns how many messages of each topic were played."""
    counts = log.with_name("played.json")
    player = subprocess.Popen(
        [sys.executable, "-m", "dino_perception.cli", "play", str(bag), "--wait", "30", "--json", str(counts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **ends_with_parent(),
    )
    try:
        mask = f"{NODE}/segmentation/mask"
        last, changed = 0, time.monotonic()
        while player.poll() is None or time.monotonic() - changed < QUIET_S:
            node.check()
            total = sum(len(watcher.heard[topic]) for topic in watcher.heard if topic != "/diagnostics")
            if total != last:
                last, changed = total, time.monotonic()
            progress(len(watcher.heard[camera_info]), len(watcher.heard[mask]))
            time.sleep(0.05)
        if player.returncode:
            raise DemoError(f"the bag could not be played: {player.communicate()[0].strip()}")
        played = json.loads(counts.read_text())["counts"]
        counts.unlink()
        return played
    finally:
        stop(player)
