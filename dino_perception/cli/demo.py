"""`dino-perception demo`: the node on a recorded drive over real ROS 2, measured against the truth."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from dino_perception import results

PATIENCE = {"max_age": "10.0"}
"""A machine that is too slow for the drive shows its latency, where a rover would rather have nothing than old news."""
RESULTS = ("pictures.png", "report.json", "drive", "node.log")

HELP = "run the node on the sample drive and measure what it publishes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bag", type=Path, help="a drive with ground truth (default: the sample drive that comes with the package)"
    )
    parser.add_argument("--params-file", type=Path, help="the node's parameters (default: config/rover.yaml)")
    parser.add_argument(
        "--preset",
        default="",
        metavar="NAME",
        help="a ready configuration of released models, such as outdoor (config/presets); wins over the file",
    )
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME:=VALUE", help="one parameter; wins over the file"
    )
    parser.add_argument(
        "--out", type=results.folder, default="out/demo", help="folder of the results (default: out/demo)"
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the report here, too")


def run(args: argparse.Namespace) -> int:
    """Returns 1 when a topic is missing or something does not fit together."""
    from rich.console import Console

    from dino_perception.cli.configuration import preset_file
    from dino_perception.share import share

    console = Console(highlight=False)
    bag = args.bag or share("data", "sample_drive")
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)

    image, info, image_topic = _camera(bag)
    heard = _play(
        console,
        bag,
        image,
        info,
        [args.params_file or share("config", "rover.yaml"), *([preset_file(args.preset)] if args.preset else [])],
        {**PATIENCE, **_parameters(args.param)},
        out,
    )
    with console.status("scoring against the ground truth"):
        scored, samples, types = _scored(bag, heard, image_topic)
        results.keep(out / "report.json", json.dumps(scored.report, indent=2) + "\n", within=out)
        results.keep_json(args.json, scored.report, indent=2)
    with console.status("writing the bag and the pictures"):
        _keep(out, bag, heard, scored, samples, types)

    from dino_perception.measuring.demo_report import show

    show(console, scored.report, heard.status, scored.problems)
    console.print(f"results in {out}: {', '.join(RESULTS)}")
    return 1 if scored.problems else 0


def _play(
    console: Any, bag: Path, image: str, info: str, params_files: list[Path], overrides: dict[str, str], out: Path
) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.measuring import demo_run

    with BagReader(bag) as reader:
        frames = reader.topics[info].count
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[news]}"), TimeElapsedColumn())
    if not console.is_terminal:
        console.print(f"playing {bag.name} to the node")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting the node", total=None, news="")

        def progress(published: int, seen: int) -> None:
            if published:
                bar.update(
                    task,
                    description=f"playing {bag.name}",
                    total=frames,
                    completed=published,
                    news=f"{published} of {frames} frames, {seen} looked at",
                )

        return demo_run.run(
            bag,
            image,
            info,
            params_files,
            overrides,
            out / "node.log",
            lambda sentence: bar.update(task, news=sentence.removeprefix("configuring: ")),
            progress,
        )


def _camera(bag: Path) -> tuple[str, str, str]:
    """Names of the images and of their camera_info as they are played, and of the images in the bag."""
    from dino_perception.training.datasets.bag import Bag

    recorded = Bag(bag)
    try:
        topic = recorded.image_topic()
    finally:
        recorded.close()
    image = topic.removesuffix("/compressed")
    return image, f"{image.rpartition('/')[0]}/camera_info", topic


def _scored(bag: Path, heard: Any, image_topic: str) -> tuple[Any, ...]:
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.measuring.demo_score import score
    from dino_perception.messages.types import RosbagsTypes
    from dino_perception.ros.rig.watcher import Heard
    from dino_perception.training.datasets import bag as recorded

    with BagReader(bag) as reader:
        headers = [
            Heard(image_topic, record.topic.type, record.time_ns, record.data)
            for record in reader.messages([image_topic])
        ]
    images = {header.stamp_ns: header.frame_id for header in headers}
    dataset = recorded.read(bag)
    types = RosbagsTypes()
    samples = {sample.stamp_ns: sample for sample in dataset.samples}
    return score(heard, image_topic, images, dataset, types), samples, types


def _keep(out: Path, bag: Path, heard: Any, scored: Any, samples: Any, types: Any) -> None:
    from dino_perception.bags.storage.problems import BagError
    from dino_perception.measuring.demo_pictures import draw
    from dino_perception.measuring.demo_report import write_bag

    results.keep(out / "drive", lambda path: write_bag(path, bag, heard), within=out, failures=(OSError, BagError))
    values = heard.status.get("dino_perception: perception", ("", {}))[1]
    untrained = "" if scored.report["weights_trained"] else "  (untrained weights)"
    title = f"{bag.name}: {values.get('backbone', '')} on {values.get('engine', '')}{untrained}"
    results.keep(
        out / "pictures.png",
        lambda path: draw(path, heard, samples, scored.labels, scored.match_errors, types, title),
        within=out,
    )


def _parameters(texts: list[str]) -> dict[str, str]:
    from dino_perception.measuring.demo_run import DemoError

    for text in texts:
        if ":=" not in text:
            raise DemoError(f"--param is '{text}'; accepted is NAME:=VALUE")
    return dict(text.split(":=", 1) for text in texts)
