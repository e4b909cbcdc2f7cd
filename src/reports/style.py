"""The style and the palette that all figures share.

A colour has one meaning throughout. Systems that are often compared have colours of
their own, and so have target and non-target trials. Other systems, and speakers, take
the palette's colours in order.
"""

import itertools
from collections.abc import Iterable
from functools import cache
from typing import Any

from matplotlib.font_manager import findfont, fontManager, get_font

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, BLACK = PALETTE
SYSTEM_COLOURS = {
    "d-vector, CE": ORANGE,
    "TitaNet, CE": BLUE,
    "TitaNet, ArcFace": GREEN,
    "released encoder": BLACK,
}
TARGET, NON_TARGET = RED, "0.55"  # trials of one speaker, trials of two
MARKERS = {  # matplotlib's names: plotly's
    "o": "circle",
    "^": "triangle-up",
    "s": "square",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
FONT = "DejaVu Sans"  # which comes with matplotlib
STYLE = {
    "figure.dpi": 150,
    "font.family": FONT,
    "font.size": 10,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
}
MAX_SPEAKERS = 24  # with looks of their own; more could not be told apart


@cache
def _letters(family: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(findfont(family)).get_charmap()))


def style_for(names: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return `STYLE` with installed fonts for the letters of these names, and each name
    as it can be drawn: letters that no font has are escaped."""
    names, families = set(names), [FONT]
    missing = {*"".join(names)} - _letters(FONT)
    for family in sorted({font.name for font in fontManager.ttflist}):
        if missing & _letters(family):
            families.append(family)
            missing -= _letters(family)
    escapes = str.maketrans({letter: ascii(letter)[1:-1] for letter in missing})
    drawn = {name: name.translate(escapes) for name in names}
    return STYLE | {"font.family": families}, drawn


def speaker_looks(speakers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a marker and a colour for each of the first 24 speakers in order."""
    names = sorted(set(speakers))[:MAX_SPEAKERS]
    return dict(zip(names, itertools.product(MARKERS, PALETTE), strict=False))


def system_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each system: its own, or the next of the palette."""
    others = itertools.cycle(PALETTE)
    return {name: SYSTEM_COLOURS.get(name) or next(others) for name in names}
