"""`dino-perception train`: a head for your classes or your camera's depth, on the frozen backbone."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli.argument_types import at_least_0, count, device, numbers, positive, share, whole
from dino_perception.cli.training_options import (
    add_backbone_arguments,
    add_data_arguments,
    cache_folder,
    opened,
)

if TYPE_CHECKING:
    from rich.console import Console

    from dino_perception.cli.progress import Stages
    from dino_perception.models.backbone import Backbone
    from dino_perception.training.datasets import Dataset
    from dino_perception.training.features import FeatureCache
    from dino_perception.training.fit import Recipe

HELP = "train a segmentation, depth or detection head on the frozen backbone"


class TrainError(ValueError):
    """Training cannot be done; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("head", type=trainable, help="what the head is to tell: segmentation, depth or detection")
    add_data_arguments(parser)
    parser.add_argument(
        "--out",
        type=results.file,
        metavar="FILE",
        help="head file to write (.safetensors); with --curve the plot (.png)",
    )
    model = parser.add_argument_group("model")
    add_backbone_arguments(model)
    model.add_argument(
        "--arch",
        default="",
        help="light (several layers, convolutions; default), fine (also finds what is smaller than half a patch) or linear "
        "(one layer, as in DINOv3's evaluation); a detector has fcos alone",
    )
    model.add_argument(
        "--option",
        type=option,
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="the architecture's own numbers, such as width=48",
    )
    model.add_argument(
        "--taps", type=numbers, default=None, metavar="I,J,..", help="backbone layers to read, 0 is the first"
    )
    model.add_argument(
        "--depth-range", type=positive, nargs=2, metavar=("NEAR", "FAR"), help="metres that a depth head can give"
    )
    model.add_argument(
        "--begin-with",
        default="",
        metavar="FILE",
        help="a trained head of the same backbone, layers and architecture, of which all but the last layer is taken over",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--limit", type=whole, default=0, metavar="N", help="use only N labelled frames, drawn by the seed"
    )
    training.add_argument(
        "--val",
        default="0.2",
        metavar="SHARE|DATA",
        help="share of the frames that judge the training "
        "meanwhile, or other data for that; 0: none (default: 0.2, or the data's own division)",
    )
    training.add_argument(
        "--test", nargs="+", default=[], metavar="DATA", help="data that only measures the finished head"
    )
    training.add_argument(
        "--views",
        type=whole,
        default=2,
        help="looks at each frame: 1 as it is, 2 also mirrored, more also in other light (default: 2)",
    )
    training.add_argument(
        "--epochs", type=whole, default=None, help="passes over the frames, at least 400 steps (default: 30)"
    )
    training.add_argument("--steps", type=whole, default=None, help="least number of steps (default: 400)")
    training.add_argument("--batch", type=whole, default=None, help="looks a step (default: 8)")
    training.add_argument("--rate", type=positive, default=None, help="highest learning rate (default: 0.001)")
    training.add_argument("--weight-decay", type=at_least_0, default=None, help="default: 0.01")
    training.add_argument(
        "--patience", type=whole, default=None, help="stop after so many validations without a better one (default: 12)"
    )
    training.add_argument(
        "--label-smoothing", type=share, default=None, help="share of each label spread over all classes (default: 0)"
    )
    training.add_argument(
        "--class-weights", choices=("none", "sqrt"), default=None, help="sqrt: rare classes count more (default: none)"
    )
    training.add_argument(
        "--overlap",
        type=at_least_0,
        default=None,
        metavar="WEIGHT",
        help="weight of a second loss, one minus the mean soft IoU: finds more of classes of few pixels (default: 0; try 0.5)",
    )
    training.add_argument(
        "--relief",
        type=at_least_0,
        default=None,
        metavar="WEIGHT",
        help="of a depth head: weight of the error where something stands out from the ground (default: 0; try 0.5)",
    )
    training.add_argument("--seed", type=count, default=0, help="of the split, the order and the dropout (default: 0)")
    training.add_argument("--device", type=device, default="auto", help="cpu, cuda or auto (default)")
    curve = parser.add_argument_group("label efficiency")
    curve.add_argument(
        "--curve",
        type=numbers,
        default=None,
        metavar="N,N,..",
        help="instead of one head, train with so many labelled frames each and measure (5,20,100,500)",
    )
    curve.add_argument("--draws", type=whole, default=3, help="draws of frames for each count (default: 3)")
    curve.add_argument("--page", type=results.page, metavar="FILE", help="put the table into this Markdown page")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")


def trainable(text: str) -> str:
    from dino_perception.training.tasks import TaskError, task_of

    try:
        return task_of(text).kind
    except TaskError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def option(text: str) -> tuple[str, int | float]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=NUMBER, such as width=48") from None


def run(args: argparse.Namespace) -> int:
    import torch

    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.measuring.markdown_tables import check
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import create_head
    from dino_perception.training.features import FeatureCache
    from dino_perception.training.splitting import with_truth
    from dino_perception.training.tasks import task_of

    if args.out is None and not (args.curve and args.json):
        raise TrainError("say with --out which file to write")
    if args.curve:
        check(args.page, "label efficiency")
    console = wide_console()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise TrainError(f"--device {args.device}: torch finds no CUDA device here")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    with Stages(console) as stages:
        backbone = load_backbone(args.backbone, args.weights)
        if not backbone.trained:
            stages.say(
                f"{args.backbone} has no weights here, so its features are random and the head learns little; "
                "give --weights"
            )
        data = with_truth(opened(args, args.data, stages), args.head)
        head = create_head(
            args.head,
            backbone,
            args.arch,
            taps=args.taps,
            **task_of(args.head).options(task_of(args.head).labels(data), args.depth_range),
            **dict(args.option),
        )
        cache = FeatureCache(
            cache_folder(args),
            backbone,
            head.spec.taps,
            *args.input,
            engine=args.engine,
            precision=args.precision,
            threads=args.threads,
            report=lambda line: None,
        )
        try:
            if args.curve:
                return _curve(args, backbone, cache, data, device, stages, console)
            return _train(args, head, cache, data, device, stages, console)
        finally:
            cache.close()


def _train(args, head, cache: FeatureCache, data: Dataset, device, stages: Stages, console: Console) -> int:
    import dino_perception
    from dino_perception.models.heads import load_head, packed_head
    from dino_perception.training.fit import TrainingStep, fit, measure, recipe_record
    from dino_perception.training.looks import Look, views
    from dino_perception.training.splitting import with_truth
    from dino_perception.training.tasks import task_of
    from dino_perception.training.usual_frames import of_items, usual

    start = time.monotonic()
    begun = load_head(args.head, cache.backbone, args.begin_with) if args.begin_with else None
    train, validation = _parts(args, data, stages)
    looks = cache.items(train, args.head, views(args.views), stages)
    judged = cache.items(validation, args.head, [Look()], stages) if validation else []
    stages.say(
        f"{len(train.samples)} frames to learn from, {len(judged)} to judge by; backbone {args.backbone} at "
        f"{args.input[0]}x{args.input[1]}, layers {', '.join(map(str, head.spec.taps))}, {cache.engine.info.engine} "
        f"{cache.engine.info.precision}"
    )
    ready = time.monotonic()
    recipe = _recipe(args)
    measured = task_of(args.head).measured

    def told(state: TrainingStep) -> None:
        note = f"loss {state.loss:.3f}" + (f"  {measured} {state.score:.3f}  best {state.best:.3f}" if judged else "")
        stages("training", state.step, state.steps, note)

    outcome = fit(head, looks, judged, recipe, device, told, begun)
    trained = time.monotonic()
    metrics: dict[str, Any] = {"validation": measure(head, judged, device) if judged else {}}
    if args.test:
        test = with_truth(opened(args, args.test, stages), args.head)
        _same_classes(test, data, args.head)
        metrics["test"] = {"data": test.source, **measure(head, cache.items(test, args.head, [Look()], stages), device)}
    head.to("cpu")
    tap = len(head.spec.taps) - 1
    seen = of_items(cache, train, looks, args.views, tap)
    head.domain = usual(seen, of_items(cache, validation, judged, 1, tap) if judged else seen[:0], data=data.source)
    record = {
        "data": data.source,
        "frames": len(train.samples),
        "validation_frames": len(judged),
        "views": args.views,
        "input": list(args.input),
        "engine": cache.engine.info.engine,
        "precision": cache.engine.info.precision,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "recipe": recipe_record(recipe),
        "begun_with": begun.spec.training.get("data", "") if begun else "",
        "package": dino_perception.__version__,
        "backbone_trained": cache.backbone.trained,
    }
    head.spec = dataclasses.replace(head.spec, training=record, metrics=metrics)
    args.out = results.keep(args.out, packed_head(head)) or args.out
    times = {"features_s": round(ready - start, 1), "training_s": round(trained - ready, 1)}
    stages.stop()
    _tell(console, args, head, outcome, metrics, times)
    _write_json(
        args,
        {
            "head": str(args.out),
            "training": record,
            "metrics": metrics,
            **times,
            "history": [dict(zip(("step", "loss", "score"), row)) for row in outcome.history],
        },
    )
    return 0


def _curve(
    args, backbone: Backbone, cache: FeatureCache, data: Dataset, device, stages: Stages, console: Console
) -> int:
    from rich.table import Table

    from dino_perception.measuring.markdown_tables import fill, markdown
    from dino_perception.training.evaluation import plots
    from dino_perception.training.evaluation.label_curve import label_efficiency
    from dino_perception.training.splitting import with_truth

    if args.head != "segmentation":
        raise TrainError("--curve measures mIoU and is for segmentation heads")
    if args.test:
        train, test = data, with_truth(opened(args, args.test, stages), args.head)
        _same_classes(test, data, args.head)
    else:
        train, test = _parts(args, data, stages)
        if not test:
            raise TrainError("--curve needs frames to measure on: give --test DATA, or --val above 0")
    recipe = _recipe(args)
    rows = label_efficiency(
        backbone,
        cache,
        train,
        test,
        arch=args.arch,
        taps=args.taps,
        counts=args.curve,
        seeds=args.draws,
        looks=args.views,
        recipe=recipe,
        device=device,
        progress=stages,
    )
    stages.stop()
    table = Table(title=f"Label efficiency, {len(test.samples)} frames never seen", title_justify="left")
    for column in ("labelled frames", "mIoU", f"spread of {args.draws} draws", "only shown", "colour k-NN"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["frames"]), *(f"{row[key]:.3f}" for key in ("miou", "spread", "shown_miou", "baseline_miou"))
        )
    console.print(table)
    _write_json(args, {"data": train.source, "test": test.source, "test_frames": len(test.samples), "rows": rows})
    if args.page:
        fill(args.page, "label efficiency", markdown(table))
    if args.out:
        console.print(f"plot: {plots.save(plots.label_efficiency(rows), args.out.with_suffix('.png'))}", soft_wrap=True)
    return 0


def _parts(args: argparse.Namespace, data: Dataset, stages: Stages) -> tuple[Dataset, Dataset | None]:
    """Frames to learn from and frames to judge by."""
    from dino_perception.training.splitting import limited, split, with_truth

    try:
        share = float(args.val)
    except ValueError:
        validation = with_truth(opened(args, [args.val], stages), args.head)
        _same_classes(validation, data, args.head)
        return limited(data, args.limit, args.seed), validation
    if not 0 <= share < 1:
        raise TrainError(f"--val is {args.val}; accepted is a share from 0 to below 1, or data")
    train, validation = split(data if data.splits else limited(data, args.limit, args.seed), share, args.seed)
    if data.splits:
        train = limited(train, args.limit, args.seed)
    return train, validation if validation.samples else None


def _same_classes(other: Dataset, data: Dataset, kind: str) -> None:
    from dino_perception.training.tasks import task_of

    wanted, found = ([label.name for label in task_of(kind).labels(d)] for d in (data, other))
    if task_of(kind).classed and wanted != found:
        raise TrainError(
            f"{other.source} has the classes {', '.join(found)}, and {data.source} {', '.join(wanted)}; give both "
            "the same --labels"
        )


def _recipe(args: argparse.Namespace) -> Recipe:
    from dino_perception.training.fit import Recipe

    given = dict(
        epochs=args.epochs,
        least_steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        weight_decay=args.weight_decay,
        patience=args.patience,
        label_smoothing=args.label_smoothing,
        class_weights=args.class_weights,
        overlap=args.overlap,
        relief=args.relief,
        seed=args.seed,
    )
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _tell(console: Console, args, head, outcome, metrics: dict[str, Any], times: dict[str, float]) -> None:
    from rich.table import Table

    table = Table(
        title=f"{args.out}: {head.spec.arch} {head.spec.kind} head for {head.spec.backbone}", title_justify="left"
    )
    table.add_column("")
    for name in metrics:
        table.add_column(name, justify="right")
    left_out = ("iou", "ap50_of", "objects", "data", "looks", "up_to_m")
    for key in (k for k in next((m for m in metrics.values() if m), {}) if k not in left_out):
        table.add_row(key, *("-" if m.get(key) is None else f"{m[key]:.3f}" for m in metrics.values()))
    of, words = ("ap50_of", "AP50") if head.spec.kind == "detection" else ("iou", "IoU")
    for label in head.spec.labels:
        values = [m.get(of, {}).get(label.name) for m in metrics.values()]
        table.add_row(f"{words} {label.name}", *("-" if v is None else f"{v:.3f}" for v in values))
    console.print(table)
    ended = "ended early" if outcome.stopped_early else "ended"
    console.print(
        f"features {times['features_s']:.0f} s, training {times['training_s']:.0f} s; {ended} after "
        f"{outcome.steps} steps, weights of step {outcome.best_step}",
        soft_wrap=True,
    )


def _write_json(args: argparse.Namespace, data: dict[str, Any]) -> None:
    from dino_perception.training.evaluation.report import plain

    results.keep_json(args.json, plain(data))
