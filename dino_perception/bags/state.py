"""Where a replay stands: enough to go on from there as if it had never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception.bags.storage.problems import USAGE, BagError
from dino_perception.bags.storage.topic import Record, Topic

VERSION = 2


@dataclass(frozen=True)
class State:
    """After `records` input messages, the last one recorded at `time_ns` (with `at_time` of that very time): frames
    seen and percepts made, images seen a camera, the CameraInfo in force by topic, cameras whose labels are written,
    and what the rates of the heads (`demand`) and the tracks remember."""

    records: int = 0
    time_ns: int = 0
    at_time: int = 0
    frames_in: int = 0
    frames_out: int = 0
    images: Mapping[str, int] = field(default_factory=dict)
    infos: Mapping[str, bytes] = field(default_factory=dict)
    labelled: frozenset[str] = frozenset()
    demand: Mapping[str, Any] = field(default_factory=dict)
    tracks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def after(self, record: Record, camera: str = "", **changes: Any) -> State:
        """One input message further; `camera` is the one whose image it is."""
        if camera:
            changes["images"] = {**self.images, camera: self.images.get(camera, 0) + 1}
        return dataclasses.replace(
            self,
            records=self.records + 1,
            time_ns=record.time_ns,
            at_time=self.at_time + 1 if record.time_ns == self.time_ns else 1,
            **changes,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A state with the output it belongs to: `end` and `topics` of the output's file, `job`, what was to be done, and
    whether the output is being written `beside` its place, because something older is still there."""

    state: State
    end: int
    topics: list[Topic]
    job: Mapping[str, Any]
    beside: bool = False

    def save(self, path: Path) -> None:
        """Write the file in one step, so that it is whole whenever it is there."""
        arrays: dict[str, np.ndarray] = {}
        about = {
            "version": VERSION,
            "end": self.end,
            "topics": [vars(topic) for topic in self.topics],
            "job": dict(self.job),
            "beside": self.beside,
            "state": {
                **{
                    f.name: getattr(self.state, f.name)
                    for f in dataclasses.fields(self.state)
                    if f.name not in ("infos", "tracks")
                },
                "labelled": sorted(self.state.labelled),
            },
        }
        for topic, raw in self.state.infos.items():
            arrays[f"info {topic}"] = np.frombuffer(raw, np.uint8)
        for camera, values in self.state.tracks.items():
            for name, value in values.items():
                arrays[f"track {camera} {name}"] = np.asarray(value)
        part = path.with_name(path.name + ".part")
        try:
            with open(part, "wb") as file:
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def load(path: Path, job: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in a file. Raises BagError when it cannot be read, or belongs to a different job."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            infos = {key[5:]: arrays[key].tobytes() for key in arrays if key.startswith("info ")}
            tracks: dict[str, dict[str, Any]] = {}
            for key in arrays:
                if key.startswith("track "):
                    _, camera, name = key.split(" ", 2)
                    tracks.setdefault(camera, {})[name] = arrays[key]
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']}")
        state = State(
            **{**about["state"], "labelled": frozenset(about["state"]["labelled"]), "infos": infos, "tracks": tracks}
        )
        topics = [Topic(**topic) for topic in about["topics"]]
        checkpoint = Checkpoint(state, int(about["end"]), topics, dict(about["job"]), bool(about["beside"]))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged archive makes numpy or json raise
        raise BagError(f"{path} cannot be read ({error}); start anew with --force", USAGE) from None
    check_same(job, checkpoint.job)
    return checkpoint


def check_same(job: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Raises BagError when an earlier job was another one, naming what differs."""
    changed = [name for name in job if json.loads(json.dumps(job[name])) != earlier.get(name)]
    if changed:
        raise BagError(
            f"the replay cannot go on, because what it is to do has changed since: {', '.join(changed)}; "
            "give the same arguments, or start anew with --force",
            USAGE,
        )


def checkpoint_file(output: Path) -> Path:
    """Where the checkpoint of an output bag lies: beside it."""
    return output.with_name(output.name + ".resume")
