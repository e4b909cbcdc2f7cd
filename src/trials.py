"""Verification trials: pairs of utterances that one speaker said, or two.

speakers [U] -> `make_trials` -> `Trials` <-> `write_trials`, `read_trials` <-> file

U utterances, K trials. Files are in VoxCeleb's format (arXiv 1706.08612): one trial a
line, `1 enrolment test` for the same speaker, `0 enrolment test` for different ones.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parameters import UserError


class TrialError(UserError):
    """A list of trials that cannot be made, written or read."""


@dataclass(frozen=True)
class Trials:
    """Pairs of indices into a list of utterances."""

    enrolment: NDArray[np.int64]  # [K]
    test: NDArray[np.int64]  # [K]
    targets: NDArray[np.bool_]  # [K], true where both have one speaker


def _pairs(ranks: NDArray[np.int64], num_utterances: int) -> tuple[NDArray, NDArray]:
    """Members of `itertools.combinations(range(num_utterances), 2)` by their ranks."""
    first = np.arange(num_utterances, dtype=np.int64)
    starts = first * (2 * num_utterances - first - 1) // 2  # rank of (i, i + 1)
    # Looked up, not solved for: exact where a float's square root would not be.
    enrolment = np.searchsorted(starts, ranks, side="right") - 1
    return enrolment, ranks - starts[enrolment] + enrolment + 1


def make_trials(speakers: Sequence[str], max_trials: int, seed: int) -> Trials:
    """Every unordered pair of distinct utterances, or `max_trials` of them by chance.

    `speakers` [U] names the speaker of each utterance. The sample is uniform, without
    replacement, drawn from `seed` and in the order of all pairs; it may happen to hold
    no target. Raises `TrialError` where all pairs hold no target or no non-target.
    """
    _, codes, counts = np.unique(
        np.asarray(speakers, dtype=str), return_inverse=True, return_counts=True
    )
    if len(counts) < 2:
        raise TrialError(
            f"trials: expected utterances of at least two speakers, got {len(counts)}"
        )
    if counts.max() < 2:
        raise TrialError(
            "trials: expected a speaker with at least two utterances, "
            f"got {len(counts)} speakers with one each"
        )
    num_pairs = len(codes) * (len(codes) - 1) // 2
    if num_pairs <= max_trials:
        ranks = np.arange(num_pairs, dtype=np.int64)
    else:
        generator = np.random.default_rng(seed)
        ranks = generator.choice(num_pairs, max_trials, replace=False, shuffle=False)
        ranks.sort()
    enrolment, test = _pairs(ranks, len(codes))
    return Trials(enrolment, test, codes[enrolment] == codes[test])


def write_trials(path: Path, trials: Trials, ids: Sequence[str]) -> None:
    """Write trials of the utterances `ids` [U], whole or not at all.

    Raises `TrialError` for an id with white space and for a path that refuses.
    """
    for name in ids:
        if name.split() != [name]:
            raise TrialError(f"{path}: expected ids without white space, got {name!r}")
    rows = zip(
        trials.targets.tolist(),
        trials.enrolment.tolist(),
        trials.test.tolist(),
        strict=True,
    )
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{target:d} {ids[i]} {ids[j]}\n" for target, i, j in rows)
        os.replace(partial, path)
    except OSError as error:
        raise TrialError(f"{path}: cannot be written: {error.strerror}") from None


def read_trials(path: Path, ids: Sequence[str]) -> Trials:
    """Read trials of the utterances `ids` [U].

    Raises `TrialError` naming file and line for a line that is not a trial or an id
    that is not among `ids`, and for a file that is empty or cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrialError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrialError(f"{path}: expected lines of text, got other bytes") from None
    if not lines:
        raise TrialError(f"{path}: expected lines `1 id id` or `0 id id`, got none")
    indices = {name: index for index, name in enumerate(ids)}
    rows = np.empty((len(lines), 3), dtype=np.int64)
    for number, line in enumerate(lines, start=1):
        match line.split():
            case ["0" | "1" as target, enrolment, test]:
                pass
            case _:
                raise TrialError(
                    f"{path}:{number}: expected `1 id id` or `0 id id`, got {line!r}"
                )
        for name in (enrolment, test):
            if name not in indices:
                raise TrialError(
                    f"{path}:{number}: expected the id of an utterance, got {name!r}"
                )
        rows[number - 1] = int(target), indices[enrolment], indices[test]
    targets, enrolment, test = rows.T
    return Trials(enrolment.copy(), test.copy(), targets.astype(bool))
