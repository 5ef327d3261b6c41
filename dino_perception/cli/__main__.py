"""`dino-perception <command>`: one file of this folder a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys

import dino_perception
from dino_perception import results
from dino_perception.missing_packages import missing

COMMANDS = (
    "demo",
    "drive",
    "replay",
    "play",
    "extract",
    "label",
    "places",
    "train",
    "teach",
    "calibrate",
    "canopy",
    "evaluate",
    "odometry",
    "benchmark",
    "compile",
    "models",
    "doctor",
    "view",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 done, 1 failed or found wrong, 2 a wrong command line, 6
    done, but a result is not where it was asked for; `replay` has more."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        if sentence := missing(error):
            return _failed(next((name for name in arguments if name in COMMANDS), ""), sentence)
        raise


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dino-perception", description=dino_perception.__doc__)
    parser.add_argument("--version", action="version", version=f"dino_perception {dino_perception.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    for name in [asked] if asked in available() else available():
        module = importlib.import_module(f"dino_perception.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    results.displaced.clear()
    parsed = parser.parse_args(arguments)
    try:
        return results.code(parsed.run(parsed))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough; nothing more can be said, also not while leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _failed(parsed.command, _of_the_machine(error))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("dino_perception."):
            raise
        return _failed(parsed.command, str(error))  # the package's errors are sentences


def _failed(command: str, sentence: str) -> int:
    from dino_perception.messages.printable import printable

    lines = (printable(line, 4000) for line in sentence.splitlines())
    print(f"{f'dino-perception {command}'.strip()}: " + "\n".join(lines), file=sys.stderr)
    return 1


def _of_the_machine(error: OSError | MemoryError) -> str:
    """What a disk, a path or the memory does not allow, in one sentence."""
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this ({str(error) or 'the machine gave none'})"
    files = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {error.strerror}" if files and error.strerror else str(error) or type(error).__name__


def available() -> list[str]:
    return [name for name in COMMANDS if importlib.util.find_spec(f"dino_perception.cli.{name}")]


if __name__ == "__main__":
    sys.exit(main())
