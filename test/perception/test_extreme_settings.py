"""Every number that a setting accepts is one that the arithmetic survives: all of them, at both ends and between."""

import math

import numpy as np
import pytest

from dino_perception.messages.demand import Demand
from dino_perception.messages.topics import offered, outputs
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import CameraModel, Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import SettingError, Settings

TOPICS = offered(Settings().heads)

SMALL = {
    "engine": "torch",
    "threads": 1,
    "input_height": 64,
    "input_width": 64,
    "output_height": 32,
    "output_width": 32,
}
FLOATS = (5e-324, 1e-300, 1e300, -1.0, math.nan, math.inf, -math.inf)
INTEGERS = (1, -1, 2**31, 2**63, -(2**63), 10**400)
NUMERIC = [p for p in Settings().parameters() if type(p.value) in (int, float)]
LIVE = [p for p in NUMERIC if p.field.metadata["live"]]
BASE = Settings.from_flat(SMALL)


def accepted(parameter):
    """The extreme values that may be set, the ends of the range among them."""
    about = parameter.field.metadata
    for value in (*(FLOATS if isinstance(parameter.value, float) else INTEGERS), about["low"], about["high"]):
        try:
            yield value, BASE.changed({parameter.name: value})
        except SettingError as error:
            assert parameter.name in str(error)


def frame(number):
    pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    model = CameraModel(64, 48, np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]]))
    return Frame("front", 10**18 + number * 10**8, "optical", pixels, model)


def look(perceiver, settings):
    """Two frames as the node looks at them; every topic comes."""
    types, demand, seen = RosbagsTypes(), Demand(), set()
    perceiver.reset_tracks()
    for number in range(2):
        topics, heads = demand.decide("front", frame(number).stamp_ns, _data(), dict(settings.head))
        percept = perceiver.perceive([frame(number)], [heads])[0]
        for name, message in outputs(types, percept, settings, topics).items():
            types.serialize(message)
            seen.add(name)
    return seen


def _data():
    return {name for name, about in TOPICS.items() if not about.latched}


@pytest.fixture(scope="module")
def perceiver():
    made = Perceiver(BASE, report=lambda line: None)
    yield made
    made.close()


def test_every_number_has_a_range():
    assert len(NUMERIC) > 10
    for parameter in NUMERIC:
        low, high = (parameter.field.metadata[end] for end in ("low", "high"))
        assert low is not None and math.isfinite(low) and math.isfinite(high), parameter.name
        for wrong in (math.nan, math.inf, high * 1.01 + 1, low - 1):
            with pytest.raises(SettingError, match=parameter.name):
                BASE.changed({parameter.name: wrong})


@pytest.mark.parametrize("name", [p.name for p in LIVE])
def test_a_live_number_at_its_extremes(perceiver, name):
    parameter = next(p for p in LIVE if p.name == name)
    everything = look(perceiver, BASE)
    tried = 0
    for _, settings in accepted(parameter):
        perceiver.update(settings)
        assert look(perceiver, settings) == everything
        tried += 1
    perceiver.update(BASE)
    assert tried >= 2


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 1024},
        {"input_height": 32, "input_width": 32, "output_height": 8, "output_width": 8},
        {"input_height": 32, "input_width": 256, "output_height": 1024, "output_width": 64},
    ],
    ids=str,
)
def test_a_number_that_is_set_before_the_start_at_its_extremes(values):
    settings = BASE.changed(values)
    perceiver = Perceiver(settings, report=lambda line: None)
    assert "segmentation/mask" in look(perceiver, settings)
    perceiver.close()


def test_the_largest_sizes_are_said_and_are_those_of_the_commands():
    from dino_perception.cli.argument_types import LARGEST_SIDE

    for name in ("input_height", "input_width", "output_height", "output_width"):
        BASE.changed({name: LARGEST_SIDE})
        with pytest.raises(SettingError, match=f"'{name}' is 4096; accepted is (32|8) to {LARGEST_SIDE}"):
            BASE.changed({name: 4096})
