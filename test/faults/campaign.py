"""A seeded campaign of hostile inputs: files, pictures, calibrations, settings, bags, command lines and the running node.

    .venv/bin/python test/faults/campaign.py --minutes 60 --json campaign.json

Counted are deaths (a process ends that should not), hangs (a try takes longer than HANG_S), blow-ups (it takes more than
BLOW_UP bytes), losses (an input file is not what it was, or an output cannot be read) and tracebacks (anything but the
error that the part in question may raise). All must be 0; exit code 1 otherwise. The tries run in a process of their own,
so that the campaign outlives them; each has a number, and `--only NUMBER` with the same seed does it again. Once a bag or a
weights file breaks something, its number in the list of findings is what to begin with.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

TEST = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TEST.parent), *(str(TEST / room) for room in ("faults", "ros", "bags"))]

HANG_S = 60.0
"""Generous: a loaded machine may take a second for what takes 20 ms."""
BLOW_UP = 3 << 30
COUNTED = ("deaths", "hangs", "blow-ups", "losses", "tracebacks")


class Loss(Exception):
    """Data is not what it must be."""


def kinds() -> dict:
    """Name -> a function of a Random and a folder that does one try, and how often it comes up."""
    from tries import TRIES

    return TRIES


def child(seed: int, first: int, seconds: float, only: bool) -> None:
    """Do tries for so long, from when everything is loaded, and tell of each: a line before and a line after."""
    tries = kinds()
    names = [name for name, (_, weight) in tries.items() for _ in range(weight)]
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    number = first
    say = sys.stdout
    sys.stdout = open(folder / "out", "w")  # what commands print is nobody's business

    def hung(*_):
        raise TimeoutError("hang")

    signal.signal(signal.SIGALRM, hung)
    until = time.time() + seconds
    while time.time() < until:
        random_ = random.Random(f"{seed} {number}")
        name = random_.choice(names)
        print(json.dumps({"number": number, "kind": name}), file=say, flush=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        found, detail = "", ""
        try:
            tries[name][0](random_, folder)
        except TimeoutError as error:
            found, detail = ("hangs" if str(error) == "hang" else "tracebacks"), traceback.format_exc(limit=-3)
        except BaseException as error:
            found, detail = "losses" if type(error).__name__ == "Loss" else "tracebacks", traceback.format_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not found and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BLOW_UP:
            found, detail = "blow-ups", "memory"
        print(json.dumps({"done": number, "found": found, "detail": detail[-2000:]}), file=say, flush=True)
        number += 1
        if only:
            return


class Campaign:
    """The parent: starts children until the time is over, and counts."""

    def __init__(self, seed: int, minutes: float):
        self.seed, self.seconds = seed, 60 * minutes
        self.counts = collections.Counter({name: 0 for name in COUNTED})
        self.tries: collections.Counter = collections.Counter()
        self.findings: list[dict] = []

    def run(self, first: int = 0, only: bool = False) -> None:
        number, left = first, self.seconds
        while left > 0:
            command = [
                sys.executable,
                __file__,
                "--child",
                str(number),
                str(left),
                str(self.seed),
                str(int(only)),
            ]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            open_: dict | None = None
            killer = threading.Timer(left + 4 * HANG_S, process.kill)
            killer.start()
            begun = None
            for line in process.stdout:
                try:
                    told = json.loads(line)
                except ValueError:
                    continue
                begun = begun or time.monotonic()
                if "kind" in told:
                    open_ = told
                    self.tries[told["kind"]] += 1
                else:
                    if told["found"]:
                        self.find(told["found"], open_, told["detail"])
                    open_, number = None, told["done"] + 1
            killer.cancel()
            code = process.wait()
            left -= time.monotonic() - (begun or 0.0)
            if open_ is not None:
                self.find("deaths", open_, f"the process ended with code {code}")
                number = open_["number"] + 1
            elif code:
                self.find("deaths", {"number": number, "kind": "start"}, f"the process ended with code {code}")
                return
            if only:
                return

    def find(self, what: str, which: dict, detail: str) -> None:
        self.counts[what] += 1
        if len(self.findings) < 100:
            self.findings.append({"what": what, **which, "detail": detail})

    def node(self) -> None:
        """Nonsense to every service and topic of a running node, for as long."""
        from tries_node import torment

        for what, detail in torment(self.seed, self.seconds, self.tries):
            self.find(what, {"number": -1, "kind": "node"}, detail)

    def figures(self) -> dict:
        return {
            **self.counts,
            "tries": sum(self.tries.values()),
            "of each kind": dict(self.tries),
            "findings": self.findings,
        }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[4]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[5] == "1")
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this try alone")
    parser.add_argument("--no-node", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = run(args.minutes, args.seed, args.only, node=not args.no_node)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return int(any(figures[name] for name in COUNTED))


def run(minutes: float, seed: int, only: int | None = None, *, node: bool = True) -> dict:
    """The figures of a campaign. Where ROS 2 is installed the node is tormented beside it."""
    campaign = Campaign(seed, minutes)
    beside = threading.Thread(target=campaign.node) if node and only is None else None
    if beside:
        beside.start()
    campaign.run(only or 0, only is not None)
    if beside:
        beside.join()
    return campaign.figures()


if __name__ == "__main__":
    sys.exit(main())
