"""Which classes there are and which mask values mean them: `labels.yaml`, and tables from values to ids."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception import results
from dino_perception.models.heads import LABELS, Label
from dino_perception.models.palette import OTHERS
from dino_perception.models.yaml_text import YamlError, load_file
from dino_perception.perception.frame import IGNORE
from dino_perception.training.datasets.base import DataError, to_ids


@dataclass(frozen=True)
class LabelMap:
    """The classes of a dataset, and for each the mask values and mask colours that mean it.

    `values[i]` are the stored values of class i; `ignored` those that mean "no class", IGNORE (255) always among them
    unless a class uses it. A mask of colours is read by the labels' own colours and `ignored_colours`.
    """

    labels: tuple[Label, ...]
    values: tuple[tuple[int, ...], ...] = ()
    ignored: tuple[int, ...] = (IGNORE,)
    ignored_colours: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)

    def ids(self, stored: np.ndarray, what: str) -> np.ndarray:
        """Ids (H, W) uint8 of a mask as stored: ids (H, W) or colours (H, W, 3). `what` names it in a DataError."""
        if stored.ndim == 3:
            return self._from_colours(stored, what)
        table = np.full(65536, -1, np.int32)
        table[list(self.ignored)] = IGNORE
        for label, values in zip(self.labels, self.values or [(label.id,) for label in self.labels]):
            table[list(values)] = label.id
        return to_ids(stored, table, what, self._accepted())

    def _accepted(self) -> str:
        values = self.values or [(label.id,) for label in self.labels]
        return ", ".join(f"{' '.join(map(str, v))} {label.name}" for label, v in zip(self.labels, values))

    def _from_colours(self, stored: np.ndarray, what: str) -> np.ndarray:
        packed = _packed(stored)
        ids = np.full(packed.shape, -1, np.int32)
        for colour in self.ignored_colours:
            ids[packed == _packed(np.array(colour))] = IGNORE
        for label in self.labels:
            ids[packed == _packed(np.array(label.colour))] = label.id
        if (ids < 0).any():
            value = int(packed[ids < 0][0])
            colour = (value >> 16, value >> 8 & 255, value & 255)
            raise DataError(
                f"{what} holds the colour {colour}, which is none of its labels; they are "
                + ", ".join(f"{tuple(label.colour)} {label.name}" for label in self.labels)
            )
        return ids.astype(np.uint8)


DEFAULT = LabelMap(LABELS)
"""AI4Mars' four classes and sky, ids as they are."""


def read_labels(path: Path) -> LabelMap:
    """The classes of a labels.yaml. Raises DataError.

        labels:
          - {name: soil, id: 0, colour: [230, 159, 0]}
          - {name: grass, id: 1, values: [3, 29, 30]}     # several mask values may mean one class
        ignore: [255, 0]                                  # mask values without a class

    `id` is optional (the order counts), as are `colour` and `values` (by default the id itself).
    """
    try:
        document = load_file(path)
    except (OSError, YamlError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from None
    entries = document.get("labels") if isinstance(document, Mapping) else None
    if (
        not isinstance(entries, Sequence)
        or not entries
        or not all(isinstance(e, Mapping) and "name" in e for e in entries)
    ):
        raise DataError(f"{path} needs a list 'labels' of entries with a name, such as {{name: soil, id: 0}}")
    try:
        return _label_map(entries, document.get("ignore", [IGNORE]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """A labels.yaml that `read_labels` reads, a line a class. Raises OSError."""
    results.write(path, labels_text(labels).encode())


def labels_text(labels: Sequence[Label]) -> str:
    """The content of such a file."""
    lines = [
        f"  - {{id: {label.id}, name: {label.name}, colour: [{', '.join(map(str, label.colour))}]}}" for label in labels
    ]
    return (
        "# Mask values and what they mean. 255 is unlabelled.\nlabels:\n" + "\n".join(lines) + f"\nignore: [{IGNORE}]\n"
    )


def colour_of(index: int) -> tuple[int, int, int]:
    """A colour for the class of that number; neighbours differ."""
    if index < len(OTHERS):
        return OTHERS[index]
    r, g, b = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.95 - 0.3 * (index % 2))
    return round(255 * r), round(255 * g), round(255 * b)


def _label_map(entries: Iterable[Mapping[str, Any]], ignored: Any) -> LabelMap:
    labels, values = [], []
    for index, entry in enumerate(entries):
        if unknown := set(entry) - {"id", "name", "colour", "color", "values"}:
            raise ValueError(
                f"label '{entry['name']}' has '{sorted(unknown)[0]}'; accepted are id, name, colour, values"
            )
        colour = entry.get("colour", entry.get("color", colour_of(index)))
        if len(colour) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
            raise ValueError(f"the colour of '{entry['name']}' is {colour}; accepted are three numbers 0 to 255")
        number = int(entry.get("id", index))
        labels.append(Label(number, str(entry["name"]), tuple(colour)))
        values.append(tuple(int(v) for v in entry.get("values", [number])))
    if [label.id for label in labels] != list(range(len(labels))) or not 2 <= len(labels) <= 255:
        raise ValueError(
            f"the label ids are {[label.id for label in labels]}; accepted are 0, 1, 2, ... in order, 2 to 255 "
            "of them; other mask values go into 'values'"
        )
    if len({label.name for label in labels}) < len(labels):
        raise ValueError("two labels have the same name")
    used = [v for group in values for v in group]
    ignored = tuple(v for v in {*map(int, ignored), IGNORE} if v not in used)
    if len(set(used)) < len(used) or not all(0 <= v < 65536 for v in (*used, *ignored)):
        raise ValueError("every mask value may stand for one class only, from 0 to 65535")
    return LabelMap(tuple(labels), tuple(values), ignored)


def _packed(colours: np.ndarray) -> np.ndarray:
    c = colours.astype(np.int32)
    return c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]
