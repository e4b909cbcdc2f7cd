"""A calibration to a user's own recordings, with cross-validated rates.

vectors [U, E], speakers [U] -> `calibrate_on` -> `Calibration`

U recordings, K trials, E embedding size.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recognition.sounds import Clip, VoiceError
from verification.calibration import CalibrationError, ScoredTrials, calibrate
from verification.metrics import bootstrap_rates, rates_at
from verification.scoring import Calibration, cosine_scores
from verification.trials import make_trials

MIN_PEOPLE = 4  # two of them to find a threshold, two to measure it
NUM_FOLDS = MIN_PEOPLE
MAX_TRIALS = 10**6
NUM_RESAMPLES = 1000
NUM_DEALS, LEVEL = 199, 0.05  # of the permutation test of labels


def refuse_few_people(speakers: NDArray[np.str_]) -> None:
    """Raise `VoiceError` unless enough people have several recordings."""
    several = sum(count > 1 for count in Counter(speakers.tolist()).values())
    if several < MIN_PEOPLE:
        raise VoiceError(
            f"expected at least {MIN_PEOPLE} people with two recordings or more, "
            f"got {several}"
        )


def first_of_each(
    clips: Sequence[Clip], speakers: NDArray[np.str_]
) -> NDArray[np.bool_]:
    """Return which clips [U] are the first with their samples; raise `VoiceError` if
    two people have the same."""
    first: dict[str, int] = {}
    for i, clip in enumerate(clips):
        other = first.setdefault(clip.digest, i)
        if speakers[other] != speakers[i]:
            raise VoiceError(
                f"expected each recording of one person, got {clips[other].name} of "
                f"{speakers[other]} and, the same, {clip.name} of {speakers[i]}"
            )
    return np.isin(np.arange(len(clips)), list(first.values()))


def refuse_mixed_people(vectors: torch.Tensor, speakers: NDArray[np.str_]) -> None:
    """Raise `VoiceError` unless the recordings of one person are more alike than
    recordings dealt to the same people at random, by a permutation test."""
    _, codes = np.unique(speakers, return_inverse=True)
    rng = np.random.default_rng(0)

    def likeness(codes: NDArray[np.int64]) -> float:
        """The sum of all cosines between recordings of one person, twice, and a
        constant."""
        sums = vectors.new_zeros(codes.max() + 1, vectors.shape[1])
        sums.index_add_(0, torch.from_numpy(codes), vectors)
        return float(sums.square().sum())

    least = likeness(codes) * (1 - 1e-6)  # equal deals differ by rounding
    as_like = sum(likeness(rng.permutation(codes)) >= least for _ in range(NUM_DEALS))
    if (chance := (1 + as_like) / (1 + NUM_DEALS)) > LEVEL:
        raise VoiceError(
            "expected the recordings of each person together, got some that are no "
            "more alike than recordings dealt to these people at random "
            f"(p = {chance:.2f}); are they sorted by person?"
        )


def calibrate_on(
    vectors: torch.Tensor,
    speakers: NDArray[np.str_],
    seconds: Sequence[float],
    false_alarm_rate: float,
    prior: Calibration | None,
) -> Calibration:
    """Calibrate on all pairs of these unit vectors of recordings with `seconds` of
    speech [U], drawn to the encoder's own calibration.

    The rates are cross-validated: each pair is decided by a calibration on people of
    whom neither speaks in it. Raises `VoiceError` for recordings that are not sorted by
    person, `CalibrationError` as `calibrate` does.
    """
    refuse_mixed_people(vectors, speakers)
    names, codes = np.unique(speakers, return_inverse=True)
    trials = make_trials(speakers, MAX_TRIALS, seed=0)
    sides = codes[np.stack([trials.enrolment, trials.test])]  # [2, K]
    scores, shorter = cosine_scores(vectors, trials), trials.shorter(seconds)

    def fit(chosen: NDArray[np.bool_]) -> Calibration:
        group = ScoredTrials(
            scores[chosen],
            trials.targets[chosen],
            len(np.unique(sides[:, chosen])),
            shorter[chosen],
        )
        return calibrate([group], false_alarm_rate, prior)

    folds = _folds(speakers)[sides]  # [2, K]
    accepted = np.zeros(len(scores), bool)
    for pair in itertools.combinations_with_replacement(range(NUM_FOLDS), 2):
        tested = (pair == np.sort(folds, axis=0).T).all(1)
        try:
            fitted = fit(~np.isin(folds, pair).any(0))
        except CalibrationError:  # without a threshold nobody is accepted
            continue
        llrs = fitted.llrs(scores[tested], shorter[tested])
        accepted[tested] = llrs >= fitted.threshold
    # Decisions, as scores of 0 and 1.
    miss, false_alarm = rates_at(1, accepted, trials.targets)
    intervals = bootstrap_rates(accepted, trials.targets, sides, NUM_RESAMPLES, seed=0)
    return replace(
        fit(np.ones(len(scores), bool)),
        miss=miss,
        false_alarm=false_alarm,
        num_people=len(names),
        miss_interval=(intervals[0].low, intervals[0].high),
        false_alarm_interval=(intervals[1].low, intervals[1].high),
    )


def _folds(speakers: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the fold of each person in the order of their names. People with several
    recordings are spread evenly, and so are the others."""
    names, counts = np.unique(speakers, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(names))
    ranked = shuffled[np.argsort(counts[shuffled] == 1, kind="stable")]
    folds = np.empty(len(names), np.int64)
    folds[ranked] = np.arange(len(names)) % NUM_FOLDS
    return folds
