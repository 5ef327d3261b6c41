"""`dino-perception play`: a bag onto live ROS topics, for machines without `ros2 bag play`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

    from dino_perception.ros.player import Player, Recorded

HELP = "play a bag on ROS topics in real time: compressed images raw, with /clock"


class PlayError(RuntimeError):
    """The bag cannot be played; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="a ROS 2 bag (folder, .mcap or .db3) or a ROS 1 .bag")
    parser.add_argument("--rate", type=_positive, default=1.0, help="how many times as fast as recorded (default: 1)")
    parser.add_argument("--loop", action="store_true", help="start over at the end; time jumps back then")
    parser.add_argument("--topic", action="append", metavar="NAME", help="play only this topic; may be given again")
    parser.add_argument("--compressed", action="store_true", help="leave compressed images compressed, under their own names")
    parser.add_argument("--remap", action="append", default=[], metavar="FROM:=TO", help="publish a topic under another name")
    parser.add_argument("--clock", type=float, default=100.0, metavar="HZ", help="rate of /clock; 0: none (default: 100)")
    parser.add_argument("--wait", type=float, default=5.0, metavar="SECONDS",
                        help="longest wait for a first subscriber of an image topic (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was played: counts a topic, seconds")


def run(args: argparse.Namespace) -> int:
    try:
        import rclpy
    except ImportError:
        raise PlayError("playing needs ROS 2's rclpy, which is not installed here") from None
    from dino_perception.ros.large_messages import large_message_profile
    from dino_perception.ros.player import Player

    with closing(_opened(args.bag)) as reader:
        topics = _topics(reader, args.topic)
        os.environ.update(large_message_profile())
        ros_args = [part for remap in args.remap for part in ("-r", remap)]
        with _context(rclpy) as context:
            node = rclpy.create_node("bag_player", context=context, cli_args=["--ros-args", *ros_args] if ros_args else None,
                                     enable_rosout=False, start_parameter_services=False)
            player = Player(node, topics, decode=not args.compressed, latched=_latched(reader), clock_rate=args.clock)
            try:
                player.wait_for_subscriber(args.wait)
                seconds = _play(reader, player, args, context.ok)
            finally:
                if context.ok():
                    player.close()
    _tell(player, seconds, args)
    return 0


def _play(reader: AnyReader, player: Player, args: argparse.Namespace, ok: Any) -> float:
    """Plays once, or over and over. Returns the bag's seconds that were played."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    length = reader.duration / 1e9
    passed = 0.0
    with Progress(TextColumn(args.bag.name), BarColumn(), TextColumn("{task.completed:.1f} / {task.total:.1f} s"), TimeElapsedColumn(),
                  transient=True) as progress:
        task = progress.add_task("", total=length)
        while True:
            first = reader.start_time

            def played(message: Recorded) -> None:
                progress.update(task, completed=(message.time_ns - first) / 1e9)

            player.play(_recorded(reader, set(args.topic or reader.topics)), args.rate, played, ok)
            passed += progress.tasks[0].completed
            if not (args.loop and ok()):
                return passed


def _recorded(reader: AnyReader, topics: set[str]) -> Iterator[Recorded]:
    from dino_perception.ros.player import Recorded

    connections = [connection for connection in reader.connections if connection.topic in topics]
    for connection, time_ns, raw in reader.messages(connections):
        if not reader.is2:
            raw = reader.typestore.ros1_to_cdr(raw, connection.msgtype)
        yield Recorded(connection.topic, connection.msgtype, time_ns, bytes(raw))


def _opened(path: Path) -> AnyReader:
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.typesys import Stores, get_typestore

    if not path.exists():
        raise PlayError(f"there is no bag {path}")
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
        return reader
    except (AnyReaderError, OSError) as error:
        raise PlayError(f"{path} cannot be read as a bag: {error}") from None


def _topics(reader: AnyReader, wanted: list[str] | None) -> dict[str, str]:
    """Topic -> type of what is to be played."""
    topics = {connection.topic: connection.msgtype for connection in reader.connections}
    missing = [topic for topic in wanted or [] if topic not in topics]
    if missing:
        raise PlayError(f"the bag has no topic {', '.join(missing)}; it has {', '.join(sorted(topics))}")
    return {topic: kind for topic, kind in topics.items() if not wanted or topic in wanted}


def _latched(reader: AnyReader) -> set[str]:
    return {connection.topic for connection in reader.connections
            if connection.topic == "/tf_static" or any(
                getattr(profile.durability, "name", "") == "TRANSIENT_LOCAL"
                for profile in getattr(connection.ext, "offered_qos_profiles", None) or [])}


class _context:
    """A context of our own, so that a process which plays may also do other things with rclpy."""

    def __init__(self, rclpy: Any):
        self._rclpy = rclpy

    def __enter__(self) -> Any:
        self._context = self._rclpy.Context()
        self._rclpy.init(context=self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        self._rclpy.try_shutdown(context=self._context)


def _tell(player: Player, seconds: float, args: argparse.Namespace) -> None:
    for topic, kind in player.left_out.items():
        print(f"left out {topic}: {kind} is not installed")
    for topic, reason in player.unreadable.items():
        print(f"{topic}: {reason}")
    print(f"played {sum(player.counts.values())} messages of {len(player.counts)} topics, {seconds:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"counts": dict(player.counts), "seconds": seconds, "left_out": player.left_out}, indent=1) + "\n")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
