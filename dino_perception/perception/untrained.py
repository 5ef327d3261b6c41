"""Weights that are not there: random ones give masks and depths that look like answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino_perception.models.catalog import BackboneSpec
from dino_perception.perception.settings import SettingError


def refuse_untrained(spec: BackboneSpec, trained: Mapping[str, Any]) -> None:
    """Raises SettingError, which says where weights come from, unless all are `trained`: "backbone" and the heads by
    their kinds."""
    lacking = [part for part, has in trained.items() if not has]
    if not lacking:
        return
    sentences = [_backbone(spec)] if "backbone" in lacking else []
    heads = [part for part in lacking if part != "backbone"]
    if heads:
        names = ", ".join(f"'{head}.weights'" for head in heads)
        sentences.append(
            f"there are no trained weights of {', '.join(heads)} for {spec.id}: set "
            f"{names} to what `dino-perception train` has written, or leave "
            f"{'it' if len(heads) == 1 else 'them'} out of 'heads'"
        )
    raise SettingError(
        f"{'; '.join(sentences)}. With 'allow_untrained' true random weights are run, whose outputs mean nothing"
    )


def _backbone(spec: BackboneSpec) -> str:
    lack = f"backbone {spec.id} has no trained weights here"
    command = f"dino-perception models --download {spec.id}"
    if not (spec.huggingface or spec.timm) and spec.access == "open":
        return f"{lack}: `dino-perception models` says where released ones are; set 'weights' to the file"
    if not (spec.huggingface or spec.timm):
        return f"{lack}: ask for them at {spec.access}, and set 'weights' to the file"
    if spec.access != "open" and spec.timm:
        command += " --source timm"
    return f"{lack}: fetch them with `{command}`, and set 'weights' to the file"
