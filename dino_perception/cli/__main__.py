"""`dino-perception <command>`: one file of this folder a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys

import dino_perception

COMMANDS = ("demo", "replay", "play", "extract", "train", "evaluate", "benchmark", "compile", "models", "doctor")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 done, 1 failed or found wrong, 2 a wrong command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="dino-perception", description=dino_perception.__doc__)
    parser.add_argument("--version", action="version", version=f"dino_perception {dino_perception.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    for name in [asked] if asked in available() else available():
        module = importlib.import_module(f"dino_perception.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not type(error).__module__.startswith("dino_perception."):
            raise
        print(f"dino-perception {parsed.command}: {error}", file=sys.stderr)  # the package's errors are sentences
        return 1


def available() -> list[str]:
    return [name for name in COMMANDS if importlib.util.find_spec(f"dino_perception.cli.{name}")]


if __name__ == "__main__":
    sys.exit(main())
