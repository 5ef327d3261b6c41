"""`dino-perception doctor`: what runs on this machine, and why not the rest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dino_perception import results

if TYPE_CHECKING:
    from rich.console import Console

HELP = "say what runs on this machine and why not the rest; try every engine on the bundled model"

MARKS = {"ok": "[green]ok[/]", "absent": "-", "wrong": "[red]amiss[/]"}


class DoctorError(ValueError):
    """The command cannot do what was asked; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engines", default="", metavar="A,B", help="try only these engines (default: every one; none: only look)"
    )
    parser.add_argument(
        "--cache", type=results.folder, metavar="FOLDER", help="folder of engines (default: as the node has it)"
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write what was found")


def run(args: argparse.Namespace) -> int:
    """0: everything that is here works; 1: something is amiss, which the table names."""
    import dino_perception
    from dino_perception.cli.progress import wide_console
    from dino_perception.engines import ENGINES, default_folder
    from dino_perception.measuring.engine_trial import trial
    from dino_perception.measuring.inventory import WRONG, inventory

    names = list(ENGINES) if not args.engines else [name for name in args.engines.split(",") if name != "none"]
    if unknown := [name for name in names if name not in ENGINES]:
        raise DoctorError(f"--engines {','.join(unknown)} is not known; accepted are none, {', '.join(ENGINES)}")
    console = wide_console(markup=True)
    console.print(f"dino_perception {dino_perception.__version__}")
    with console.status("looking"):
        findings = inventory()
    _show_findings(console, findings)
    trials = []
    for name in names:
        with console.status(f"trying the engine {name}"):
            trials.append(trial(name, cache=args.cache or default_folder()))
    if trials:
        _show_trials(console, trials)
    amiss = [f"{f.name}: {f.found}" for f in findings if f.level == WRONG]
    amiss += [f"engine {t['engine']}: {t['error']}" for t in trials if "error" in t]
    if names and not any("pass_ms" in t for t in trials):
        amiss.append("no engine runs")
    _conclude(console, trials, amiss)
    data = {
        "version": dino_perception.__version__,
        "findings": [vars(finding) for finding in findings],
        "engines": trials,
        "amiss": amiss,
    }
    results.keep_json(args.json, data)
    return 1 if amiss else 0


def _show_findings(console: Console, findings: list[Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "", box=box.SIMPLE, pad_edge=False)
    for column in ("found", "what to do"):
        table.add_column(column, overflow="fold")  # a path that is cut is of no use in a bug report
    for finding in findings:
        advice = finding.advice if finding.level != "ok" else ""
        table.add_row(escape(finding.name), MARKS[finding.level], escape(finding.found), escape(advice))
    console.print(table)


def _show_trials(console: Console, trials: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("engine", "", "precision", "a pass", "start", "against float32", box=box.SIMPLE, pad_edge=False)
    for t in trials:
        if "pass_ms" in t:
            parity = "; ".join(f"{name}: {text}" for name, text in t["parity"].items())
            start = f"{t['start_s']:.1f} s{'' if t['from_cache'] else ', built'}"
            table.add_row(t["engine"], MARKS["ok"], t["precision"], f"{t['pass_ms']:.1f} ms", start, escape(parity))
        elif "error" in t:
            table.add_row(t["engine"], MARKS["wrong"], "", "", "", escape(t["error"]))
        else:
            table.add_row(t["engine"], MARKS["absent"], "", "", "", escape(t["unavailable"]))
    console.print(table)


def _conclude(console: Console, trials: list[dict[str, Any]], amiss: list[str]) -> None:
    from rich.markup import escape

    running = [t for t in trials if "pass_ms" in t]
    if running:
        first = running[0]
        console.print(
            f"`engine: auto` takes {first['engine']} here: {first['pass_ms']:.1f} ms a frame with two heads "
            f"({first['device']})."
        )
    for line in amiss:
        console.print(f"[red]amiss[/] {escape(line)}", soft_wrap=True)
    if not amiss:
        console.print("Nothing is amiss.")
