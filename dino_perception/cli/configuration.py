"""The configuration of a command: the node's parameter file, and single parameters that win over it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_perception.perception.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", type=Path, metavar="YAML", help="the node's parameter file (default: the node's defaults)"
    )
    group.add_argument(
        "--preset",
        default="",
        metavar="NAME",
        help="a ready configuration of released models, such as outdoor, indoor, street (config/presets); wins over the file",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="one parameter, such as --set engine=torch; wins over the file; may be given again",
    )


def preset_file(name: str) -> Path:
    """The parameter file of a preset: one of config/presets, or a path to one's own. Raises SettingError."""
    from dino_perception.perception.settings import SettingError
    from dino_perception.share import share

    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = share("config", "presets")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise SettingError(f"there is no preset '{name}'; the presets are {', '.join(known)}")
    return folder / f"{name}.yaml"


def settings_of(args: argparse.Namespace, **more: Any) -> Settings:
    """The settings of the command line; `more` wins over both. Raises SettingError."""
    from dino_perception.models.yaml_text import YamlError, load
    from dino_perception.perception.settings import SettingError, Settings, flat_values

    values: dict[str, Any] = {}
    for text in args.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text} is no NAME=VALUE")
        try:
            values[name] = load(value) if value else ""
        except YamlError:
            raise SettingError(f"--set {text} has a value that cannot be read") from None
    if preset := getattr(args, "preset", ""):
        values = {**flat_values(preset_file(preset)), **values}
    values.update(more)
    return Settings.from_yaml(args.config, values) if args.config else Settings.from_flat(values)
