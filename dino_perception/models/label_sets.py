"""The label sets of the heads one can have today: names in the order of their ids, colours, and what a class means to
somebody who drives.

Nav2, points and overlays know groups, so that they work with any label set.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dino_perception.models.palette import CLASSES


@dataclass(frozen=True)
class Label:
    """A class of a segmentation head: its id in the mask, its name, its overlay colour (RGB, 0..255)."""

    id: int
    name: str
    colour: tuple[int, int, int]


GROUPS = {
    "t": "traversable",  # grass too: who must not drive on it gives it a cost by its name
    "o": "obstacle",
    "w": "water",
    "v": "vegetation",  # what grows higher than grass
    "p": "person",
    "c": "vehicle",
    "s": "sky",
    "-": "unknown",  # a class that says nothing about the place, such as background
}

# AI4Mars' four classes and sky. The colours are Okabe and Ito's, which people with any colour vision tell apart.
LABELS = (
    Label(0, "soil", CLASSES["soil"]),
    Label(1, "bedrock", CLASSES["bedrock"]),
    Label(2, "sand", CLASSES["sand"]),
    Label(3, "big_rock", CLASSES["big_rock"]),
    Label(4, "sky", CLASSES["sky"]),
)

# Each set: "name group" in the order of the ids. Sources: AI4Mars (Swan et al. 2021); objectInfo150 of ADE20k; PASCAL VOC
# 2012's 20 objects after background; COCO's 80 things and its 53 merged stuff classes after background; Cityscapes' 19
# evaluated classes.
_TERRAIN = "soil t, bedrock t, sand t, big_rock o, sky s"
_ADE20K = """
wall o, building o, sky s, floor t, tree v, ceiling o, road t, bed o, windowpane o, grass t, cabinet o, sidewalk t,
person p, earth t, door o, table o, mountain o, plant v, curtain o, chair o, car c, water w, painting o, sofa o, shelf o,
house o, sea w, mirror o, rug t, field t, armchair o, seat o, fence o, desk o, rock o, wardrobe o, lamp o, bathtub o,
railing o, cushion o, base o, box o, column o, signboard o, chest of drawers o, counter o, sand t, sink o, skyscraper o,
fireplace o, refrigerator o, grandstand o, path t, stairs o, runway t, case o, pool table o, pillow o, screen door o,
stairway o, river w, bridge t, bookcase o, blind o, coffee table o, toilet o, flower v, book o, hill o, bench o,
countertop o, stove o, palm v, kitchen island o, computer o, swivel chair o, boat c, bar o, arcade machine o, hovel o,
bus c, towel o, light o, truck c, tower o, chandelier o, awning o, streetlight o, booth o, television receiver o,
airplane c, dirt track t, apparel o, pole o, land t, bannister o, escalator o, ottoman o, bottle o, buffet o, poster o,
stage o, van c, ship c, fountain w, conveyer belt o, canopy o, washer o, plaything o, swimming pool w, stool o, barrel o,
basket o, waterfall w, tent o, bag o, minibike c, cradle o, oven o, ball o, food o, step o, tank o, trade name o,
microwave o, pot o, animal o, bicycle c, lake w, dishwasher o, screen o, blanket o, sculpture o, hood o, sconce o, vase o,
traffic light o, tray o, ashcan o, fan o, pier t, crt screen o, plate o, monitor o, bulletin board o, shower o,
radiator o, glass o, clock o, flag o
"""
_VOC2012 = """
background -, aeroplane c, bicycle c, bird o, boat c, bottle o, bus c, car c, cat o, chair o, cow o, diningtable o, dog o,
horse o, motorbike c, person p, pottedplant v, sheep o, sofa o, train c, tvmonitor o
"""
_COCO_PANOPTIC = """
background -, person p, bicycle c, car c, motorcycle c, airplane c, bus c, train c, truck c, boat c, traffic light o,
fire hydrant o, stop sign o, parking meter o, bench o, bird o, cat o, dog o, horse o, sheep o, cow o, elephant o, bear o,
zebra o, giraffe o, backpack o, umbrella o, handbag o, tie o, suitcase o, frisbee o, skis o, snowboard o, sports ball o,
kite o, baseball bat o, baseball glove o, skateboard o, surfboard o, tennis racket o, bottle o, wine glass o, cup o,
fork o, knife o, spoon o, bowl o, banana o, apple o, sandwich o, orange o, broccoli o, carrot o, hot dog o, pizza o,
donut o, cake o, chair o, couch o, potted plant v, bed o, dining table o, toilet o, tv o, laptop o, mouse o, remote o,
keyboard o, cell phone o, microwave o, oven o, toaster o, sink o, refrigerator o, book o, clock o, vase o, scissors o,
teddy bear o, hair drier o, toothbrush o, banner o, blanket o, bridge t, cardboard o, counter o, curtain o,
door-stuff o, floor-wood t, flower v, fruit o, gravel t, house o, light o, mirror-stuff o, net o, pillow o, platform t,
playingfield t, railroad o, river w, road t, roof o, sand t, sea w, shelf o, snow t, stairs o, tent o, towel o,
wall-brick o, wall-stone o, wall-tile o, wall-wood o, water-other w, window-blind o, window-other o, tree-merged v,
fence-merged o, ceiling-merged o, sky-other-merged s, cabinet-merged o, table-merged o, floor-other-merged t,
pavement-merged t, mountain-merged o, grass-merged t, dirt-merged t, paper-merged o, food-other-merged o,
building-other-merged o, rock-merged o, wall-other-merged o, rug-merged t
"""
_CITYSCAPES = """
road t, sidewalk t, building o, wall o, fence o, pole o, traffic light o, traffic sign o, vegetation v, terrain t, sky s,
person p, rider p, car c, truck c, bus c, train c, motorcycle c, bicycle c
"""
# What people call such classes in labels of their own.
_OTHERS = """
dirt t, gravel t, mud t, asphalt t, concrete t, pavement t, road marking t, trail t, snow t, ground t, bush v, log o,
rubble o, barrier o, rock o, boulder o, puddle w, object o, obstacle o, pedestrian p, vehicle c, bicyclist p, sign o,
void -, other -, unknown -, unlabeled -
"""


def numbered(count: int) -> tuple[Label, ...]:
    """Labels of classes whose names nobody knows. Hues a golden angle apart, so that any number of classes differs."""
    colours = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.65, 0.95) for i in range(count))
    return tuple(Label(i, f"class_{i}", tuple(round(255 * c) for c in rgb)) for i, rgb in enumerate(colours))


def named(names: Mapping[int, str]) -> tuple[Label, ...]:
    """Labels of classes of which the ids and names are known, in the colours of the label set that has them so, else in
    those of `numbered`."""
    for labels in (*LABEL_SETS.values(), GROUP_LABELS):
        if {label.id: label.name for label in labels} == dict(names):
            return labels
    colours = numbered(1 + max(names, default=-1))
    return tuple(Label(i, name, colours[i].colour) for i, name in sorted(names.items()))


def group(name: str) -> str:
    """What a class of that name means to somebody who drives: a value of `GROUPS`, "unknown" for a name not known."""
    return GROUPS[_BY_NAME.get(name.strip().lower().replace("_", " "), "-")]


def groups(labels: Sequence[Label]) -> dict[str, list[int]]:
    """Group -> the ids of its classes, for the groups that have any."""
    found: dict[str, list[int]] = {}
    for label in labels:
        found.setdefault(group(label.name), []).append(label.id)
    return found


def group_ids(labels: Sequence[Label]) -> list[int]:
    """For each of 256 mask values the id of its group's class; 255, which is no class, stays."""
    ids = {label.name: label.id for label in GROUP_LABELS}
    table = list(range(256))
    for label in labels:
        table[label.id] = ids[group(label.name)]
    return table


def _pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(entry.strip().rsplit(" ", 1)) for entry in text.replace("\n", " ").split(",")]


def _voc_colour(index: int) -> tuple[int, int, int]:
    """The colour map of PASCAL VOC, which gives each number its own: its bits, dealt to the channels from the top."""
    return tuple(sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))


def _set(text: str, first: int = 1) -> tuple[Label, ...]:
    return tuple(Label(i, name, _voc_colour(i + first)) for i, (name, _) in enumerate(_pairs(text)))


_COCO = [(label.name, label.colour) for label in _set(_COCO_PANOPTIC, 0)[1:81]]
"""COCO's 80 things."""
_CITY_COLOURS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
LABEL_SETS: Mapping[str, tuple[Label, ...]] = {
    "terrain": LABELS,
    "ade20k": _set(_ADE20K),
    "voc2012": _set(_VOC2012, 0),
    "coco-panoptic": _set(_COCO_PANOPTIC, 0),
    "coco": tuple(Label(i, *_COCO[i]) for i in range(80)),
    "cityscapes": tuple(Label(i, n, c) for i, ((n, _), c) in enumerate(zip(_pairs(_CITYSCAPES), _CITY_COLOURS))),
}
GROUP_LABELS = (
    Label(0, "unknown", (127, 127, 127)),
    Label(1, "traversable", (0, 158, 115)),
    Label(2, "obstacle", (204, 121, 167)),
    Label(3, "water", (0, 114, 178)),
    Label(4, "vegetation", (240, 228, 66)),
    Label(5, "person", (213, 94, 0)),
    Label(6, "vehicle", (230, 159, 0)),
    Label(7, "sky", (86, 180, 233)),
)
"""The groups as classes, in Okabe and Ito's colours."""
_BY_NAME = {
    name.replace("_", " "): letter
    for text in (_OTHERS, _CITYSCAPES, _COCO_PANOPTIC, _VOC2012, _ADE20K, _TERRAIN)
    for name, letter in _pairs(text)
}
