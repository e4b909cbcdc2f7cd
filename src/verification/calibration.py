"""Scores to log likelihood ratios.

`ScoredTrials` of corpora or conditions -> `calibrate` -> `Calibration`

K trials. Calibration is logistic regression (Brummer and du Preez, Computer Speech and
Language 20, 2006), fitted on speakers that are not tested. Trials share speakers, so
few speakers say little, however many their trials. So the weights are those of maximum
a posteriori with a Gaussian prior (as Brummer and Swart, Interspeech 2014, have one
where data are few), and all trials of n speakers count as n of each kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from verification.metrics import rates_at
from verification.scoring import Calibration, log_seconds

# Standard deviations of the prior: of the slope, as a share of the prior's own, of the
# offset, and of a log second, both in log likelihood ratios. The best slopes on five
# corpora were 0.8 to 4 times that of the released encoder, and the mean of non-targets
# moved by 0.5, over real telephones by 6.
DEVIATIONS = (0.5, 3.0, 1.0)
# Where nothing is known of an encoder, scores are taken for two Gaussians this many
# deviations apart, which is an EER of 5 %.
SEPARATION = 3.3
PRIOR_SPEAKERS = 5  # whom the tail of the prior's non-targets counts as
LENIENCE = 2  # times the wanted rate that one of several groups may have


class CalibrationError(UserError):
    """Scores from which no calibration can be found."""


@dataclass(frozen=True, eq=False)
class ScoredTrials:
    """The trials of a corpus, or of a corpus in one condition.

    `seconds` are those of speech in the shorter side, where they are known.
    """

    scores: NDArray[np.float64]  # [K]
    targets: NDArray[np.bool_]  # [K]
    num_speakers: int
    seconds: NDArray[np.float64] | None = None  # [K]


def calibrate(
    groups: Sequence[ScoredTrials],
    false_alarm_rate: float,
    prior: Calibration | None = None,
) -> Calibration:
    """Fit a calibration to groups of trials, each of which has equal weight, and in
    each targets and non-targets.

    The fit is drawn to `prior`, the encoder's own calibration, or without one to that
    of Gaussian scores with an EER of 5 %; the more speakers, the less. The threshold is
    the lowest at which the mean false-alarm rate of the groups is at most
    `false_alarm_rate`, and that of none is more than twice that. A group's rate is its
    trials', or a mean of theirs and the prior's tail if that is higher
    (`_false_alarms`). Raises `CalibrationError` for a slope that is not above 0.
    """
    if prior is None or prior.strict is None:
        prior = _of_gaussians(groups, false_alarm_rate)
    slope, shift, duration = _fit(groups, prior).tolist()
    if not slope > 0:
        raise CalibrationError(
            "expected recordings of one person to be more alike than those of two"
        )
    fitted = replace(
        prior,
        scale=slope * prior.scale,
        offset=slope * prior.offset + shift,
        duration=slope * prior.duration + duration,
    )
    llrs = [fitted.llrs(group.scores, group.seconds) for group in groups]
    # The prior's non-targets at its two thresholds are those of this Gaussian.
    z, strict_z = map(
        NormalDist().inv_cdf, (1 - false_alarm_rate, 1 - false_alarm_rate / 10)
    )
    deviation = (prior.strict - prior.threshold) / (strict_z - z)
    mean = slope * (prior.threshold - z * deviation) + shift
    tail = NormalDist(mean, slope * deviation)
    non_targets = [
        (np.sort(values[~group.targets]), group.num_speakers)
        for values, group in zip(llrs, groups, strict=True)
    ]
    threshold, strict = (
        _threshold(rate, non_targets, tail)
        for rate in (false_alarm_rate, false_alarm_rate / 10)
    )
    rates = [
        rates_at(threshold, values, group.targets)
        for values, group in zip(llrs, groups, strict=True)
    ]
    miss, false_alarm = np.mean(rates, axis=0).tolist()
    return replace(
        fitted, threshold=threshold, miss=miss, false_alarm=false_alarm, strict=strict
    )


def _of_gaussians(groups: Sequence[ScoredTrials], rate: float) -> Calibration:
    """Return the calibration of scores that are two Gaussians, `SEPARATION` deviations
    apart, and have the means of these."""
    means = [
        [group.scores[group.targets == same].mean() for same in (True, False)]
        for group in groups
    ]
    target, non_target = np.mean(means, axis=0).tolist()
    if target < non_target or math.isclose(target, non_target):
        raise CalibrationError(
            "expected recordings of one person to be more alike than those of two, got "
            f"mean scores of {target:.3f} and {non_target:.3f}"
        )
    scale = SEPARATION**2 / (target - non_target)
    offset = -scale * (target + non_target) / 2
    llrs = NormalDist(-(SEPARATION**2) / 2, SEPARATION)  # of non-targets
    threshold, strict = (llrs.inv_cdf(1 - r) for r in (rate, rate / 10))
    return Calibration(scale, offset, threshold, math.nan, math.nan, strict)


def _fit(groups: Sequence[ScoredTrials], prior: Calibration) -> NDArray[np.float64]:
    """Return slope, shift and weight of log seconds, which map the prior's log
    likelihood ratios to those of these groups, by Newton's method."""
    x = np.concatenate(
        [
            np.stack(
                [
                    prior.llrs(group.scores, group.seconds),
                    np.ones(len(group.scores)),
                    np.zeros(len(group.scores))
                    if group.seconds is None
                    else log_seconds(group.seconds),
                ],
                axis=1,
            )
            for group in groups
        ]
    )
    targets = np.concatenate([group.targets for group in groups])
    weights = np.concatenate(
        [
            np.where(g.targets, 1 / g.targets.sum(), 1 / (~g.targets).sum())
            for g in groups
        ]
    )
    # All target trials together count as the mean number of speakers, as all others do.
    weights *= np.mean([group.num_speakers for group in groups]) / len(groups)
    centre, precision = np.array([1.0, 0.0, 0.0]), np.square(DEVIATIONS) ** -1

    def loss(theta: NDArray[np.float64]) -> float:
        errors = np.logaddexp(0, np.where(targets, -1, 1) * (x @ theta))
        return weights @ errors + precision @ np.square(theta - centre) / 2

    theta = centre
    for _ in range(50):
        probabilities = np.exp(-np.logaddexp(0, -(x @ theta)))
        gradient = x.T @ (weights * (probabilities - targets))
        gradient += precision * (theta - centre)
        curvature = weights * probabilities * (1 - probabilities)
        step = np.linalg.solve((x.T * curvature) @ x + np.diag(precision), gradient)
        # The loss is convex: a step that is too long is halved until it descends.
        while loss(theta - step) > loss(theta) and np.abs(step).max() > 1e-10:
            step /= 2
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    return theta


def _threshold(
    rate: float,
    non_targets: Sequence[tuple[NDArray[np.float64], int]],
    tail: NormalDist,
) -> float:
    """Return the lowest threshold with at most this rate of false alarms, by
    bisection."""
    low = min(llrs[0] for llrs, _ in non_targets)
    high = max(llrs[-1] for llrs, _ in non_targets) + 10 * tail.stdev + abs(tail.mean)
    while high - low > 1e-9 * max(1.0, abs(high)):
        middle = (low + high) / 2
        rates = [_false_alarms(middle, *group, tail) for group in non_targets]
        if np.mean(rates) <= rate and max(rates) <= LENIENCE * rate:
            high = middle
        else:
            low = middle
    return float(high)


def _false_alarms(
    threshold: float,
    llrs: NDArray[np.float64],
    num_speakers: int,
    tail: NormalDist,
) -> float:
    """Return the rate of false alarms to expect of other people like these.

    From few people the share of their own sorted `llrs` is too low, as there is nobody
    in their tail. So it is averaged with that of the prior's tail, which counts as
    `PRIOR_SPEAKERS`: the mean of a Dirichlet process (Ferguson, Annals of Statistics 1,
    1973). The tail is moved to the mean of `llrs`, for that differs most between
    recordings, and is the wider the fewer people the mean rests on. The first person
    makes no pair.
    """
    observed = (len(llrs) - np.searchsorted(llrs, threshold)) / len(llrs)
    others = num_speakers - 1
    known = others / (others + 0.5)  # the prior's mean counts as half a person
    mean = known * float(llrs.mean()) + (1 - known) * tail.mean
    deviation = tail.stdev * math.sqrt(1 + 1 / (others + 0.5))
    expected = 1 - NormalDist(mean, deviation).cdf(threshold)
    share = PRIOR_SPEAKERS / (PRIOR_SPEAKERS + others)
    return max(observed, share * expected + (1 - share) * observed)
