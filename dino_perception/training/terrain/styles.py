"""What kinds of ground there are: colours, light, and how much of everything. Data, no code.

Colours are linear-light RGB albedos (ground) or radiances relative to a white surface facing the sun (sky). A pair
is a range a world draws from uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CLASSES = ("soil", "bedrock", "sand", "big_rock", "sky")
"""Class names by id: the AI4Mars vocabulary (Swan et al., CVPR workshops 2021) plus sky."""

SOIL, BEDROCK, SAND, BIG_ROCK, SKY = range(5)

BIG_ROCK_DIAMETER = 0.3
"""Metres; AI4Mars calls a rock big from about 30 cm. A smaller one belongs to the ground it lies on."""

Colour = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """One kind of landscape and light."""

    soil: Colour
    sand: Colour
    bedrock: Colour
    rock: Colour
    dust: Colour
    """What settles on the tops of rocks and slabs."""
    dustiness: Range
    rock_tint: float
    """How much single rocks differ in brightness."""

    sun: Colour
    sun_elevation: Range
    """Degrees."""
    sky_zenith: Colour
    sky_horizon: Colour
    ambient: Range
    """Sky light on level ground relative to a vertical sun."""
    haze: Range
    """Metres until 63 % of the contrast is gone."""
    glow: float
    clouds: float

    relief: Range
    """Standard deviation of the far hills in metres."""
    roughness: Range
    """Standard deviation of the metre-scale ground relief in metres."""
    mesas: float
    craters: Range
    """Craters of more than 1 m a hectare."""
    sand_cover: Range
    bedrock_cover: Range
    slab: Range
    """Bedrock slab size in metres."""
    ripple: Range
    """Ripple wavelength in metres."""
    rocks: Range
    """Rocks wider than 5 cm a square metre."""
    flatness: Range
    """Height of rocks over width."""
    wind: float = 1.0
    """Strength of ripples; 0 where there is no air."""


_MARS = Style(
    soil=(0.300, 0.168, 0.090),
    sand=(0.215, 0.128, 0.078),
    bedrock=(0.385, 0.250, 0.158),
    rock=(0.215, 0.140, 0.098),
    dust=(0.360, 0.205, 0.110),
    dustiness=(0.15, 0.6),
    rock_tint=0.35,
    sun=(1.0, 0.92, 0.80),
    sun_elevation=(20, 62),
    sky_zenith=(0.42, 0.30, 0.19),
    sky_horizon=(0.74, 0.60, 0.44),
    ambient=(0.22, 0.42),
    haze=(500, 2500),
    glow=0.5,
    clouds=0.0,
    relief=(6, 30),
    roughness=(0.04, 0.12),
    mesas=0.4,
    craters=(2, 12),
    sand_cover=(0.08, 0.4),
    bedrock_cover=(0.1, 0.45),
    slab=(0.5, 1.4),
    ripple=(0.18, 0.55),
    rocks=(1.5, 9.0),
    flatness=(0.45, 0.8),
)

STYLES: dict[str, Style] = {
    "mars": _MARS,
    # Dust in the air: weak soft shadows, everything in one colour.
    "mars_dusty": replace(
        _MARS,
        soil=(0.335, 0.180, 0.088),
        rock=(0.250, 0.150, 0.090),
        dustiness=(0.4, 0.85),
        sun=(1.0, 0.86, 0.66),
        sky_zenith=(0.50, 0.34, 0.19),
        sky_horizon=(0.66, 0.48, 0.30),
        ambient=(0.55, 0.95),
        haze=(120, 500),
    ),
    # Basaltic plains and pale mudstone, as at Gale.
    "mars_gale": replace(
        _MARS,
        soil=(0.235, 0.150, 0.096),
        sand=(0.130, 0.088, 0.062),
        bedrock=(0.345, 0.245, 0.170),
        rock=(0.175, 0.128, 0.098),
        dust=(0.310, 0.195, 0.120),
        dustiness=(0.2, 0.55),
        sky_zenith=(0.46, 0.36, 0.25),
        sky_horizon=(0.78, 0.66, 0.50),
        bedrock_cover=(0.2, 0.5),
        rocks=(2.0, 10.0),
        slab=(0.4, 1.1),
        flatness=(0.35, 0.7),
    ),
    "moon": replace(
        _MARS,
        soil=(0.138, 0.133, 0.127),
        sand=(0.120, 0.116, 0.111),
        bedrock=(0.166, 0.162, 0.156),
        rock=(0.185, 0.181, 0.174),
        dust=(0.150, 0.145, 0.138),
        dustiness=(0.3, 0.8),
        sun=(1.0, 0.98, 0.95),
        sun_elevation=(10, 45),
        sky_zenith=(0.0, 0.0, 0.0),
        sky_horizon=(0.0, 0.0, 0.0),
        ambient=(0.015, 0.05),
        haze=(1e6, 2e6),
        glow=0.0,
        relief=(10, 40),
        roughness=(0.05, 0.13),
        mesas=0.0,
        craters=(40, 140),
        sand_cover=(0.05, 0.2),
        bedrock_cover=(0.04, 0.2),
        ripple=(0.5, 1.5),
        rocks=(0.8, 6.0),
        flatness=(0.55, 0.9),
        wind=0.0,
    ),
    "desert": replace(
        _MARS,
        soil=(0.400, 0.300, 0.200),
        sand=(0.520, 0.400, 0.270),
        bedrock=(0.430, 0.350, 0.265),
        rock=(0.300, 0.240, 0.185),
        dust=(0.430, 0.335, 0.235),
        sun=(1.0, 0.95, 0.86),
        sun_elevation=(25, 70),
        sky_zenith=(0.10, 0.22, 0.48),
        sky_horizon=(0.52, 0.62, 0.74),
        ambient=(0.12, 0.28),
        haze=(1500, 6000),
        glow=0.35,
        clouds=0.5,
        craters=(0, 1),
        sand_cover=(0.1, 0.5),
    ),
    "red_desert": replace(
        _MARS,
        soil=(0.400, 0.190, 0.100),
        sand=(0.480, 0.245, 0.130),
        bedrock=(0.450, 0.270, 0.175),
        rock=(0.310, 0.160, 0.100),
        dust=(0.420, 0.205, 0.110),
        sun=(1.0, 0.95, 0.86),
        sun_elevation=(20, 70),
        sky_zenith=(0.08, 0.20, 0.50),
        sky_horizon=(0.50, 0.62, 0.78),
        ambient=(0.10, 0.25),
        haze=(2000, 8000),
        glow=0.3,
        clouds=0.6,
        mesas=0.9,
        craters=(0, 1),
    ),
    "badlands": replace(
        _MARS,
        soil=(0.330, 0.300, 0.255),
        sand=(0.410, 0.370, 0.305),
        bedrock=(0.460, 0.435, 0.390),
        rock=(0.270, 0.235, 0.205),
        dust=(0.370, 0.335, 0.285),
        sun=(1.0, 0.96, 0.90),
        sun_elevation=(20, 60),
        sky_zenith=(0.34, 0.40, 0.48),
        sky_horizon=(0.70, 0.74, 0.78),
        ambient=(0.3, 0.7),
        haze=(500, 2000),
        glow=0.3,
        clouds=0.9,
        relief=(10, 40),
        mesas=0.7,
        craters=(0, 1),
        bedrock_cover=(0.15, 0.5),
        slab=(0.3, 0.8),
    ),
    "volcanic": replace(
        _MARS,
        soil=(0.075, 0.066, 0.060),
        sand=(0.050, 0.047, 0.045),
        bedrock=(0.105, 0.095, 0.088),
        rock=(0.086, 0.077, 0.071),
        dust=(0.115, 0.102, 0.090),
        dustiness=(0.0, 0.35),
        sun=(1.0, 0.96, 0.88),
        sun_elevation=(15, 55),
        sky_zenith=(0.20, 0.29, 0.42),
        sky_horizon=(0.62, 0.68, 0.74),
        ambient=(0.15, 0.5),
        haze=(700, 3000),
        glow=0.3,
        clouds=0.8,
        relief=(10, 45),
        roughness=(0.06, 0.14),
        craters=(0, 3),
        rocks=(3.0, 12.0),
        flatness=(0.55, 0.9),
    ),
}
"""Every style by name."""

HELD_OUT_STYLES = ("mars_gale", "volcanic")
"""Styles kept for evaluation: nothing is trained on them."""

TRAIN_STYLES = tuple(name for name in STYLES if name not in HELD_OUT_STYLES)
