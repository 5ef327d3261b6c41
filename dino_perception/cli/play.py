"""`dino-perception play`: a bag onto live ROS topics, for machines without `ros2 bag play`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli.argument_types import at_least_0, positive, remap

if TYPE_CHECKING:
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.ros.rig.player import Player

HELP = "play a bag on ROS topics in real time: compressed images raw, with /clock"


class PlayError(RuntimeError):
    """The bag cannot be played; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="a ROS 2 bag (folder, .mcap or .db3) or a ROS 1 .bag")
    parser.add_argument("--rate", type=positive, default=1.0, help="how many times as fast as recorded (default: 1)")
    parser.add_argument("--loop", action="store_true", help="start over at the end; time jumps back then")
    parser.add_argument("--topic", action="append", metavar="NAME", help="play only this topic; may be given again")
    parser.add_argument(
        "--compressed", action="store_true", help="leave compressed images compressed, under their own names"
    )
    parser.add_argument(
        "--remap",
        type=remap,
        action="append",
        default=[],
        metavar="FROM:=TO",
        help="publish a topic under another name",
    )
    parser.add_argument(
        "--clock", type=at_least_0, default=100.0, metavar="HZ", help="rate of /clock; 0: none (default: 100)"
    )
    parser.add_argument(
        "--wait",
        type=at_least_0,
        default=10.0,
        metavar="SECONDS",
        help="longest wait for subscribers of the images before the start (default: 10)",
    )
    parser.add_argument(
        "--json", type=results.file, metavar="FILE", help="write what was played: counts a topic, seconds"
    )


def run(args: argparse.Namespace) -> int:
    try:
        from dino_perception.ros.rig.player import Player, playing_node
    except ModuleNotFoundError as error:
        raise PlayError(f"playing needs ROS 2, of which {error.name} is not installed here") from None
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.ros.large_messages import large_message_profile

    with BagReader(args.bag) as bag:
        topics = _topics(bag, args.topic)
        os.environ.update(large_message_profile())
        with playing_node(args.remap) as node:
            player = Player(
                node,
                topics,
                decode=not args.compressed,
                clock_rate=args.clock,
                latched={name for name, topic in bag.topics.items() if topic.latched},
            )
            try:
                player.wait_for_subscribers(args.wait)
                seconds = _play(bag, player, args, node.context.ok)
            finally:
                if node.context.ok():
                    player.close()
        problems = [problem.sentence for problem in bag.problems]
    _tell(player, seconds, problems, args)
    return 0


def _play(bag: BagReader, player: Player, args: argparse.Namespace, ok: Any) -> float:
    """Plays once, or over and over. Returns the bag's seconds that were played."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from dino_perception.ros.rig.player import Recorded

    passed = 0.0
    with Progress(
        TextColumn(args.bag.name, markup=False),
        BarColumn(),
        TextColumn("{task.completed:.1f} / {task.total:.1f} s"),
        TimeElapsedColumn(),
        transient=True,
        disable=not sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task("", total=(bag.end_ns - bag.start_ns) / 1e9)
        while True:
            seconds = 0.0

            def played(message: Recorded) -> None:
                nonlocal seconds
                seconds = (message.time_ns - bag.start_ns) / 1e9
                progress.update(task, completed=seconds)

            records = (
                Recorded(record.topic.name, record.topic.type, record.time_ns, bytes(record.data))
                for record in bag.messages(args.topic)
            )
            try:
                player.play(records, args.rate, played, ok)
            except KeyboardInterrupt:  # how a looping bag ends
                args.loop = False
            passed += seconds
            if not (args.loop and ok()):
                return passed


def _topics(bag: BagReader, wanted: list[str] | None) -> dict[str, str]:
    """Topic -> type of what is to be played."""
    missing = [topic for topic in wanted or [] if topic not in bag.topics]
    if missing:
        raise PlayError(f"the bag has no topic {', '.join(missing)}; it has {', '.join(sorted(bag.topics))}")
    return {name: topic.type for name, topic in bag.topics.items() if not wanted or name in wanted}


def _tell(player: Player, seconds: float, problems: list[str], args: argparse.Namespace) -> None:
    for problem in problems:
        print(problem)
    for topic, kind in player.left_out.items():
        print(f"left out {topic}: {kind} is not installed")
    for topic, reason in player.unreadable.items():
        print(f"{topic}: {reason}")
    print(f"played {sum(player.counts.values())} messages of {len(player.counts)} topics, {seconds:.1f} s")
    results.keep_json(args.json, {"counts": dict(player.counts), "seconds": seconds, "left_out": player.left_out})
