"""A calibration to a user's own recordings, with cross-validated rates.

vectors [U, E], speakers [U] -> `calibrate_on` -> `Calibration`

U recordings, K trials, E embedding size. Loads scikit-learn.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recognition.sounds import VoiceError
from verification.calibration import calibrate
from verification.metrics import bootstrap_rates, rates_at
from verification.scoring import Calibration, cosine_scores
from verification.trials import make_trials

MIN_PEOPLE = 4  # two of them to find a threshold, two to measure it
MAX_TRIALS = 10**6
NUM_RESAMPLES = 1000


def refuse_few_people(speakers: NDArray[np.str_]) -> None:
    """Raise `VoiceError` unless enough people have several recordings."""
    several = sum(count > 1 for count in Counter(speakers.tolist()).values())
    if several < MIN_PEOPLE:
        raise VoiceError(
            f"expected at least {MIN_PEOPLE} people with two recordings or more, "
            f"got {several}"
        )


def calibrate_on(
    vectors: torch.Tensor, speakers: NDArray[np.str_], false_alarm_rate: float
) -> Calibration:
    """Calibrate on all pairs of these unit vectors.

    The rates are cross-validated: each half of the people is tested at a threshold
    found on the other half.
    """
    counts = Counter(speakers.tolist())
    rng = np.random.default_rng(0)
    several = rng.permutation([name for name in counts if counts[name] > 1])
    alone = rng.permutation([name for name in counts if counts[name] == 1])
    shuffled = [*several, *alone]
    halves = [
        _scored(vectors, speakers, np.isin(speakers, shuffled[start::2]))
        for start in (0, 1)
    ]
    accepted = []
    for (scores, _, _), (other_scores, other_targets, _) in (halves, halves[::-1]):
        fitted = calibrate([(other_scores, other_targets)], false_alarm_rate)
        accepted.append(fitted.llrs(scores) >= fitted.threshold)
    accepted = np.concatenate(accepted)
    targets = np.concatenate([half[1] for half in halves])
    sides = np.concatenate([half[2] for half in halves], axis=1)
    miss, false_alarm = rates_at(1, accepted, targets)  # decisions, as scores 0 and 1
    intervals = bootstrap_rates(accepted, targets, sides, NUM_RESAMPLES, seed=0)
    everybody = np.ones(len(speakers), bool)
    return replace(
        calibrate([_scored(vectors, speakers, everybody)[:2]], false_alarm_rate),
        miss=miss,
        false_alarm=false_alarm,
        num_people=len(counts),
        miss_interval=(intervals[0].low, intervals[0].high),
        false_alarm_interval=(intervals[1].low, intervals[1].high),
    )


def _scored(
    vectors: torch.Tensor, speakers: NDArray[np.str_], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return the cosines [K] of all pairs of chosen recordings, whether they are
    targets [K], and the numbers of their speakers [2, K]."""
    _, codes = np.unique(speakers, return_inverse=True)
    trials = make_trials(speakers[chosen], MAX_TRIALS, seed=0)
    sides = np.stack([codes[chosen][trials.enrolment], codes[chosen][trials.test]])
    return cosine_scores(vectors[chosen], trials), trials.targets, sides
