"""`dino-perception drive`: a rover in rendered worlds that steers by what the node says, to a goal 30 m away."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import whole

if TYPE_CHECKING:
    from collections.abc import Callable

HELP = "drive a simulated rover by the perception, beside blind and perfectly seeing ones"


class DriveError(ValueError):
    """Nothing can be driven; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--terrain",
        default="9100-9119",
        metavar="SEEDS",
        help="rendered worlds by seed, such as 9100 or 9100-9119 (default: 9100-9119, which nothing is trained on)",
    )
    parser.add_argument(
        "--style", default="", metavar="NAME", help="kind of terrain (default: mars_gale and volcanic, taking turns)"
    )
    configuration.add_arguments(parser)
    parser.add_argument(
        "--direct",
        action="store_true",
        help="ask the perception in this process, without ROS, as replay does (default: the node, over DDS)",
    )
    parser.add_argument(
        "--by",
        choices=("obstacles", "points"),
        default="obstacles",
        help="the topic that tells what is in the way; points: by class and height over one plane (default: obstacles)",
    )
    parser.add_argument(
        "--frames", type=whole, metavar="N", help="end each drive after N frames (default: at the goal)"
    )
    parser.add_argument(
        "--out",
        type=results.folder,
        default=Path("out/drive"),
        help="folder of a map and a video of each drive (default: out/drive)",
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="take the figures of worlds that were driven in the same way before from --out, and drive the others",
    )
    parser.add_argument("--no-video", action="store_true", help="write maps only")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")
    parser.add_argument("--page", type=results.page, metavar="FILE", help="put the table into this Markdown page")


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.measuring.driving import score
    from dino_perception.measuring.driving.course import course
    from dino_perception.measuring.driving.obstacles import FINDERS
    from dino_perception.measuring.driving.world_drives import BLIND, PERCEPTION, PERFECT, drive_world
    from dino_perception.measuring.markdown_tables import check, fill, markdown
    from dino_perception.training.datasets.terrain import parse_seeds
    from dino_perception.training.terrain.world import STYLES

    if args.style and args.style not in STYLES:
        raise DriveError(f"there is no terrain style '{args.style}'; accepted are {', '.join(STYLES)}")
    seeds = parse_seeds(args.terrain)
    check(args.page, "driving")
    args.out.mkdir(parents=True, exist_ok=True)
    how = _how(args)
    console, start, worlds = wide_console(), time.monotonic(), []
    with Stages(console) as stages, ExitStack() as stack:
        door = _door(args, stages, stack)
        for number, seed in enumerate(seeds):
            title = f"world {number + 1} of {len(seeds)} (seed {seed})"
            stages(title, 0, 1)
            kept = args.out / f"{seed}.json"
            figures = _before(kept, how) if args.go_on else None
            if figures is None:
                figures = drive_world(
                    course(seed, args.style),
                    door,
                    FINDERS[args.by],
                    args.out,
                    video=not args.no_video,
                    most_frames=args.frames,
                    say=lambda name, frames: stages(title, 0, 1, f"{name}, frame {frames}"),
                )
                results.keep(kept, json.dumps({"how": how, **figures}, indent=1) + "\n", within=args.out)
            worlds.append(figures)
            stages(title, 1, 1)
            if not console.is_terminal:
                stages.say("  " + "; ".join(_line(name, one) for name, one in figures["drives"].items()))
    rows = {name: score.of_drives([w["drives"][name] for w in worlds]) for name in (PERCEPTION, PERFECT, BLIND)}
    table = score.table(rows, f"{len(worlds)} drives to a goal 30 m away")
    console.print(table)
    how = "the core in one process" if args.direct else "the node over DDS"
    about = f"terrain {args.terrain} ({', '.join(sorted({w['style'] for w in worlds}))}), {how}"
    console.print(
        f"{about}; {time.monotonic() - start:.0f} s; maps{'' if args.no_video else ' and videos'} in {args.out}"
    )
    results.keep_json(args.json, {"terrain": args.terrain, "direct": args.direct, "rows": rows, "worlds": worlds})
    if args.page:
        fill(args.page, "driving", [*markdown(table), "", f"{about}."])
    return 0


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """What a drive's figures depend on, but for the seed and the code."""
    config = args.config.read_text() if args.config else ""
    given = {"by": args.by, "direct": args.direct, "frames": args.frames, "style": args.style, "preset": args.preset}
    return {**given, "config": config, "settings": args.settings}


def _before(kept: Path, how: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of a world that was driven like this, None without."""
    try:
        figures = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    return figures if figures.pop("how", None) == how else None


def _line(name: str, figures: dict[str, Any]) -> str:
    return f"{name}: {figures['end']}, {figures['interventions']} interventions, {figures['metres']:.1f} m"


def _door(args: argparse.Namespace, stages: Any, stack: ExitStack) -> Callable:
    """What opens the way to the perception anew for each drive. Raises SettingError."""
    from dino_perception.measuring.driving.obstacles import FINDERS
    from dino_perception.measuring.driving.rover import PARAMETERS

    topics = FINDERS[args.by].topics
    settings = configuration.settings_of(args, **PARAMETERS)  # of the rover that is driven
    if args.direct:
        from dino_perception.measuring.driving.doors import DirectDoor
        from dino_perception.perception.perceiver import Perceiver

        stages("starting the perception", 0, 1)
        perceiver = Perceiver(settings, report=lambda line: None)
        stack.callback(perceiver.close)
        stages("starting the perception", 1, 1)

        @contextmanager
        def direct():
            yield DirectDoor(perceiver, settings, topics)

        return direct
    try:
        import rclpy  # noqa: F401
    except ModuleNotFoundError:
        raise DriveError(
            "the node needs ROS 2, of which rclpy is not installed here; --direct drives without"
        ) from None
    from dino_perception.measuring.driving.doors import node_door

    files = [args.config] if args.config else []
    files += [configuration.preset_file(args.preset)] if args.preset else []
    arguments = [word for file in files for word in ("--params-file", str(file))]
    given = [text.replace("=", ":=", 1) for text in args.settings] + [
        f"{n}:={value}" for n, value in PARAMETERS.items()
    ]
    arguments += [word for text in given for word in ("-p", text)]
    return lambda: node_door(topics, arguments, args.out / "node.log")
