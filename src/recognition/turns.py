"""Who speaks when: each window of speech goes to the nearest person, and consecutive
windows of one person are a turn.

stretches of speech -> `as_stretches` -> `Stretch`es -> `windows_of` -> windows
vectors [W, E] of the windows, enrolled people -> `turns_in` -> `Turn`s

W windows of a stretch, P people, N samples, E embedding size.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recognition.verdicts import Turn
from verification.scoring import Calibration, unit

WINDOW_SECONDS, HOP_SECONDS = 1.5, 0.75  # the hop is a maximum
SHORTEST_PAUSE = 1.0  # seconds; a shorter pause does not end a stretch of speech


@dataclass(frozen=True, eq=False)
class Stretch:
    """A stretch of speech, and the centres of the windows that cover it; in seconds."""

    begin: float
    end: float
    centres: NDArray[np.float64]  # [W]


def as_stretches(speech: Sequence[tuple[float, float]]) -> list[Stretch]:
    """Join stretches with short pauses between them, and cover each with windows."""
    joined: list[tuple[float, float]] = []
    for begin, end in speech:
        if joined and begin - joined[-1][1] < SHORTEST_PAUSE:
            begin, _ = joined.pop()
        joined.append((begin, end))
    return [Stretch(*times, _window_centres(*times)) for times in joined]


def _window_centres(begin: float, end: float) -> NDArray[np.float64]:
    size = min(WINDOW_SECONDS, end - begin)
    count = 1 + math.ceil((end - begin - size) / HOP_SECONDS)
    return np.linspace(begin + size / 2, end - size / 2, count)


def windows_of(
    stretch: Stretch, num_samples: int, sample_rate: int, min_seconds: float
) -> list[slice]:
    """Return where each window lies in samples [N]; the window of a stretch that is
    shorter than `min_seconds` reaches beyond the stretch."""
    seconds = num_samples / sample_rate
    size = max(min(WINDOW_SECONDS, stretch.end - stretch.begin), min_seconds)
    begins = np.clip(stretch.centres - size / 2, 0, seconds - size)
    firsts = [round(begin * sample_rate) for begin in begins.tolist()]
    return [slice(first, first + round(size * sample_rate)) for first in firsts]


def turns_in(
    stretch: Stretch,
    vectors: NDArray[np.float64],
    names: Sequence[str],
    centroids: NDArray[np.float64],
    calibration: Calibration,
    threshold: float,
) -> list[Turn]:
    """Return the turns of a stretch, from the vectors [W, E] of its windows and the
    names [P] and centroids [P, E] of the enrolled people.

    Each window, smoothed with its neighbours, is assigned to the nearest person.
    Consecutive windows of one person form a turn, and the mean of its windows decides
    whether the speaker is that person or unknown.
    """
    padded = np.pad(vectors, ((1, 1), (0, 0)))
    smoothed = padded[:-2] + padded[1:-1] + padded[2:]
    nearest = (smoothed @ centroids.T).argmax(1)  # [W]
    changes = np.flatnonzero(np.diff(nearest)) + 1  # first windows of another person
    between = (stretch.centres[changes - 1] + stretch.centres[changes]) / 2
    times = [stretch.begin, *between.tolist(), stretch.end]
    turns = []
    for (begin, end), person, windows in zip(
        itertools.pairwise(times),
        nearest[[0, *changes]],
        np.split(vectors, changes),
        strict=True,
    ):
        mean = unit(windows.sum(0, keepdims=True))[0]  # [E]
        llr = float(calibration.llrs(mean @ centroids[person], end - begin))
        name = names[person] if llr >= threshold else None
        turns.append(Turn(begin, end, name, llr))
    return _join_unknown(turns)


def _join_unknown(turns: Sequence[Turn]) -> list[Turn]:
    """Join consecutive turns of unknown speakers: they differ only in the person who
    was nearest."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and turn.name is None and joined[-1].name is None:
            before = joined.pop()
            turn = Turn(before.begin, turn.end, None, max(before.llr, turn.llr))
        joined.append(turn)
    return joined
