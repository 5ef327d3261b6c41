"""`dino-perception odometry`: the way of a camera through a recording, as a TUM file and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import seconds, whole

HELP = "follow a camera through a recording: its way as a TUM file, and a picture of it from above"


class OdometryError(ValueError):
    """There is no way to be written; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="a bag (rosbag2 folder, .mcap, .db3 or ROS 1 .bag)")
    parser.add_argument(
        "--out",
        type=results.file,
        default=Path("odometry.tum"),
        metavar="FILE",
        help="the way: seconds, x y z, quaternion x y z w (default: odometry.tum); with several cameras one file each",
    )
    parser.add_argument("--picture", type=results.file, metavar="FILE", help="a PNG of the way from above")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the figures")
    configuration.add_arguments(parser)
    what = parser.add_argument_group("what is looked at")
    what.add_argument(
        "--camera", nargs="+", action="extend", default=[], metavar="[NAME=]TOPIC[,INFO]", help="as replay has it"
    )
    what.add_argument("--start", type=seconds, default=0.0, metavar="S", help="begin so many seconds into the bag")
    what.add_argument("--duration", type=seconds, metavar="S", help="end after so many seconds")
    what.add_argument("--every", type=whole, default=1, metavar="N", help="only every N-th image of a camera")


def run(args: argparse.Namespace) -> int:
    from dino_perception.bags.cameras import choose_cameras
    from dino_perception.bags.feed import Part
    from dino_perception.bags.report.path import picture
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.bags.trajectory import trajectories
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.perception.perceiver import Perceiver

    # Points that are matched with a key frame drift less than those that are handed on from frame to frame.
    settings = configuration.settings_of(args)
    if "correspondences" not in settings.heads:
        raise OdometryError(
            f"the heads are {', '.join(settings.heads)}; odometry needs correspondences, and wants depth"
        )
    if not args.config and not any(text.startswith("correspondences.reference") for text in args.settings):
        settings = settings.changed({"correspondences.reference": "keyframe"})
    console = wide_console()
    with BagReader(args.bag) as bag, Stages(console) as stages:
        cameras = choose_cameras(bag, args.camera, settings.cameras, (), settings.max_megapixels)
        start = bag.start_ns + round(args.start * 1e9) if args.start else None
        stop = (start or bag.start_ns) + round(args.duration * 1e9) if args.duration is not None else None
        part = Part(start, stop, args.every, (), settings.max_megapixels, settings.image_bits)
        total = sum(bag.topics[camera.image].count for camera in cameras) // args.every
        stages("starting the perception", 0, 1)
        perceiver = Perceiver(settings, batch_sizes={1}, report=lambda line: None)
        stages("starting the perception", 1, 1)
        try:
            ways = trajectories(
                bag, cameras, perceiver, settings, part, lambda done: stages("driving", done, max(done, total))
            )
        finally:
            perceiver.close()
    ways = {name: way for name, way in ways.items() if way.poses}
    if not ways:
        raise OdometryError(
            f"no camera of {args.bag} could be followed: odometry needs a camera_info and an image after the first"
        )
    figures = {}
    for name, way in ways.items():
        file = args.out if len(ways) == 1 else args.out.with_name(f"{args.out.stem}_{name}{args.out.suffix}")
        results.keep(file, way.tum())
        counts = {health: sum(pose.health == health for pose in way.poses) for health in ("good", "weak", "lost")}
        figures[name] = {"frames": len(way.poses), "metres": way.metres, **counts, "file": str(file), **way.health}
        console.print(
            f"{name}: {way.metres:.2f} m in {len(way.poses)} frames ({counts['good']} good, {counts['weak']} weak, "
            f"{counts['lost']} lost), in {file}",
            soft_wrap=True,
        )
    if args.picture:
        results.keep(args.picture, picture(ways, args.bag.name))
        console.print(f"picture: {args.picture}", soft_wrap=True)
    results.keep_json(args.json, figures)
    return 0
