"""`dino-perception evaluate`: how good the node's outputs are on data with truth, beside simple baselines."""

from __future__ import annotations

import argparse
import time

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import count, positive, whole
from dino_perception.cli.training_options import add_data_arguments, cache_folder, opened

HELP = "measure segmentation, depth, detections and matches on data with truth"


class EvaluateError(ValueError):
    """Nothing can be measured; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--bag",
        action="append",
        default=[],
        metavar="BAG",
        help="a bag with depth, mask or poses; the same as --data BAG",
    )
    parser.add_argument(
        "--terrain",
        default="",
        metavar="SEEDS",
        help="rendered worlds by seed, such as 9000-9019; the same as --data terrain:SEEDS",
    )
    parser.add_argument(
        "--ground",
        default="",
        metavar="SEEDS",
        help="judge obstacles and the map of where one can drive instead, on rendered worlds by seed, such as 9300-9303: "
        "level ones, hills and trenches",
    )
    configuration.add_arguments(parser)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--heads", default="", metavar="A,B", help="only these heads (default: all of the configuration)")
    what.add_argument(
        "--part", default="", metavar="NAME", help="part of a dataset with parts (default: test, else val, else all)"
    )
    what.add_argument(
        "--limit", type=count, default=0, metavar="N", help="at most N frames, evenly spaced, for masks and depth"
    )
    what.add_argument(
        "--gaps", default="1,3,10,30", metavar="N,N,..", help="frames between the two of a pair (default: 1,3,10,30)"
    )
    what.add_argument(
        "--pairs", type=whole, default=40, metavar="N", help="pairs a gap at most, evenly spaced (default: 40)"
    )
    what.add_argument(
        "--farthest", type=positive, default=30.0, metavar="M", help="metres up to which depth is judged (default: 30)"
    )
    what.add_argument(
        "--odometry",
        action="store_true",
        help="drive along whole drives with poses, too: how far odometry drifts, beside SIFT and ORB (needs evo)",
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")
    parser.add_argument("--page", type=results.page, metavar="FILE", help="put the tables into this Markdown page")
    parser.add_argument(
        "--plots",
        type=results.folder,
        metavar="DIR",
        help="write confusion, reliability, depth by range, PCK curves and the best and worst frames as PNG",
    )


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.measuring.markdown_tables import check, fill, markdown
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.training.evaluation import report
    from dino_perception.training.evaluation.evaluate import evaluate

    if args.ground:
        return _ground(args)
    sources = [*args.data, *args.bag, *([f"terrain:{args.terrain}"] if args.terrain else [])]
    if not sources:
        raise EvaluateError("say with --data, --bag or --terrain what to measure on")
    gaps = [int(gap) for gap in args.gaps.split(",") if gap.isdigit() and int(gap) > 0]
    if len(gaps) != len(args.gaps.split(",")):
        raise EvaluateError(f"--gaps is '{args.gaps}'; accepted are whole numbers above 0, such as 1,3,10,30")
    check(args.page, "evaluation")
    console = wide_console()
    start = time.monotonic()
    with Stages(console) as stages:
        settings = _settings(args)
        data = _part(opened(args, sources, stages), args.part)
        stages("starting the perception", 0, 1)
        perceiver = Perceiver(settings, cache=args.cache and cache_folder(args) / "engines", report=lambda line: None)
        stages("starting the perception", 1, 1)
        try:
            result = evaluate(
                perceiver,
                data,
                gaps=gaps,
                pairs=args.pairs,
                limit=args.limit,
                farthest=args.farthest,
                odometry=args.odometry,
                progress=stages,
            )
            model = perceiver.describe()
        finally:
            perceiver.close()
    numbers = report.as_data(result)
    results.keep_json(args.json, {**numbers, "weights_trained": model["trained"], "model": report.plain(model)})
    tables = report.tables(numbers)
    for table in tables:
        console.print(table)
    for note in numbers["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    about = (
        f"{data.source}; {model['backbone']}, {model['engine']} {model['precision']}; baselines are fitted on every "
        "second frame of the same data"
    )
    console.print(f"{about}; {time.monotonic() - start:.0f} s", soft_wrap=True)
    if args.page:
        fill(args.page, "evaluation", [*(line for table in tables for line in (*markdown(table), "")), f"{about}."])
    if not model["trained"]:
        untrained = ", ".join(name for name, part in model["parts"].items() if not part["trained"])
        console.print(f"without trained weights, so that the numbers mean little: {untrained}", style="yellow")
    if args.plots:
        from dino_perception.training.evaluation import plots

        console.print("plots: " + ", ".join(str(path) for path in plots.write(result, args.plots)), soft_wrap=True)
    if not any(key in numbers for key in ("segmentation", "depth", "detection", "correspondences", "odometry")):
        raise EvaluateError(f"{data.source} has no truth that could be measured against")
    return 0


def _ground(args: argparse.Namespace) -> int:
    """Obstacles and the map against terrain whose heights are known."""
    from dino_perception.cli.progress import wide_console
    from dino_perception.measuring.ground.report import measure, tables
    from dino_perception.measuring.markdown_tables import check, fill, markdown
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.training.datasets.terrain import parse_seeds

    check(args.page, "ground")
    console, start = wide_console(), time.monotonic()
    settings = configuration.settings_of(args, **_untrained(args), heads=["segmentation", "depth"])
    seeds = parse_seeds(args.ground)
    cache = cache_folder(args)
    perceiver = Perceiver(settings, cache=args.cache and cache / "engines", report=lambda line: None)
    try:
        numbers = measure(perceiver, seeds, cache, lambda line: console.print(line, style="dim"))
        model = perceiver.describe()
    finally:
        perceiver.close()
    results.keep_json(args.json, {**numbers, "weights_trained": model["trained"]})
    found = tables(numbers)
    for table in found:
        console.print(table)
    about = (
        f"{numbers['frames']} frames of worlds {args.ground}; {model['backbone']}, {model['engine']} {model['precision']}; "
        f"robot.step {settings.robot.step:g} m, robot.max_slope {settings.robot.max_slope:g} degrees"
    )
    console.print(
        f"{about}; {numbers['ms']:.1f} ms a look at the ground; {time.monotonic() - start:.0f} s", soft_wrap=True
    )
    if args.page:
        fill(args.page, "ground", [*(line for table in found for line in (*markdown(table), "")), f"{about}."])
    return 0


def _untrained(args: argparse.Namespace) -> dict[str, bool]:
    """What random weights reach is what trained ones are compared with, and the report says which these are; where a
    preset's are missing, the user is told which command fetches them."""
    return {} if args.preset else {"allow_untrained": True}


def _settings(args: argparse.Namespace):
    """The configuration with the command line's settings and heads; pairs of frames are matched with each other, whatever
    it says of key frames. Raises SettingError."""
    chosen = {"heads": args.heads.split(",")} if args.heads else {}
    settings = configuration.settings_of(args, **_untrained(args), **chosen)
    if "correspondences" not in settings.heads:
        return settings
    return settings.changed({"correspondences.reference": "previous"})


def _part(data, name: str):
    if name or not data.splits:
        return data.part(name) if name else data
    return data.part(next(part for part in ("test", "val", *data.splits) if part in data.splits))
