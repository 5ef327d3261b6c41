"""Without trained weights nothing runs unless that is asked for."""

from __future__ import annotations

import pytest

from dino_perception.models import catalog
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import SettingError, Settings
from dino_perception.perception.untrained import refuse_untrained

SMALL = {"engine": "torch", "input_height": 32, "input_width": 64, "output_height": 16, "output_width": 32}


def test_a_backbone_without_weights_is_refused_with_where_to_get_them(tmp_path):
    given = {**SMALL, "backbone": "dinov3-vits16", "heads": ["correspondences"]}
    with pytest.raises(SettingError) as error:
        Perceiver(Settings.from_flat(given), cache=tmp_path)
    assert "dino-perception models --download dinov3-vits16" in str(error.value)
    assert "'weights'" in str(error.value) and "'allow_untrained'" in str(error.value)
    Perceiver(Settings.from_flat({**given, "allow_untrained": True}), cache=tmp_path).close()


@pytest.mark.parametrize("backbone", catalog.all_ids())
def test_every_backbone_says_where_its_weights_are(backbone):
    spec = catalog.get(backbone)
    with pytest.raises(SettingError) as error:
        refuse_untrained(spec, {"backbone": False})
    ways = (f"--download {backbone}", "ask for them at https://", "`dino-perception models` says where")
    assert any(way in str(error.value) for way in ways) and "'weights'" in str(error.value)


def test_heads_without_weights_are_named():
    with pytest.raises(SettingError) as error:
        refuse_untrained(catalog.get("dinov3-vits16"), {"backbone": True, "segmentation": False, "depth": False})
    assert "'segmentation.weights', 'depth.weights'" in str(error.value) and "dino-perception train" in str(error.value)


def test_with_trained_weights_nothing_is_said():
    refuse_untrained(catalog.get("rover-tiny"), {"backbone": True, "depth": True})
