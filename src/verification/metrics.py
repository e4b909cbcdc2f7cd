"""Metrics of verification scores: error rates, costs, and their intervals.

scores [K], targets [K] -> `error_rates` -> `equal_error_rate`, `min_dcf`, `det_points`
log likelihood ratios [K], targets [K] -> `actual_dcf`, `cllr`, `min_cllr`
scores, targets, speakers [K] -> `bootstrap_speakers`, `bootstrap_rates` -> `Interval`

K trials. A trial is accepted when its score reaches the threshold; a miss is a target
trial (same speaker) rejected, a false alarm a non-target trial accepted. No metric
depends on the order of the trials: those of equal scores are accepted or rejected
together. The cost is that of the NIST speaker recognition evaluations; Cllr is Brummer
and du Preez, Computer Speech and Language 20 (2006).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def error_rates(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds, miss rates and false-alarm rates, one of each per distinct score.

    `scores` [K] are finite, higher for the same speaker; `targets` [K] are true for
    target trials. A trial is accepted if its score is at least the threshold.
    Thresholds increase from the lowest score (accept all: miss 0, false alarm 1) to the
    highest, then to infinity (reject all: miss 1, false alarm 0). Raises `ValueError`
    for arrays that are not one-dimensional or differ in length, for scores that are not
    finite, and for trials without targets or without non-targets.
    """
    scores, targets = _checked(scores, targets)
    target_scores, other_scores = np.sort(scores[targets]), np.sort(scores[~targets])
    thresholds = np.append(np.unique(scores), np.inf)
    misses = np.searchsorted(target_scores, thresholds)
    false_alarms = len(other_scores) - np.searchsorted(other_scores, thresholds)
    return thresholds, misses / len(target_scores), false_alarms / len(other_scores)


def _checked(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores = np.asarray(scores, dtype=np.float64)
    targets = np.asarray(targets, dtype=bool)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(
            "scores and targets: expected one-dimensional arrays of one length, "
            f"got shapes {scores.shape} and {targets.shape}"
        )
    if not np.isfinite(scores).all():
        invalid = scores[~np.isfinite(scores)]
        raise ValueError(
            f"scores: expected finite numbers, got {invalid[0]} "
            f"({len(invalid)} of {len(scores)} are not finite)"
        )
    num_targets = int(targets.sum())
    if not 0 < num_targets < len(targets):
        raise ValueError(
            "targets: expected at least one target and one non-target trial, "
            f"got {num_targets} and {len(targets) - num_targets}"
        )
    return scores, targets


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> float:
    """The rate, 0 to 1, at which misses and false alarms are equal.

    Between neighbouring points of the ROC rates are interpolated linearly. Takes and
    raises what `error_rates` does.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    return _crossing(miss, false_alarm)


def _crossing(miss: NDArray[np.float64], false_alarm: NDArray[np.float64]) -> float:
    return float(np.interp(0, miss - false_alarm, miss))


def min_dcf(
    scores: ArrayLike,
    targets: ArrayLike,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """The lowest detection cost over all thresholds, 0 to 1.

    The cost c_miss * p_target * miss + c_fa * (1 - p_target) * false alarm, divided by
    the cost of accepting all or of rejecting all, whichever is lower. `p_target`,
    between 0 and 1, is the prior of a target; costs are above 0. Takes and raises what
    `error_rates` does, and raises `ValueError` for a prior or a cost out of range.
    """
    weights = _cost_weights(p_target, c_miss, c_fa)
    _, miss, false_alarm = error_rates(scores, targets)
    return _least_cost(miss, false_alarm, *weights)


def _cost_weights(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """Weights of misses and of false alarms, the smaller scaled to 1."""
    if not (0 < p_target < 1 and c_miss > 0 and c_fa > 0):
        raise ValueError(
            "expected p_target between 0 and 1 and costs above 0, "
            f"got p_target {p_target}, c_miss {c_miss}, c_fa {c_fa}"
        )
    miss_weight, false_alarm_weight = c_miss * p_target, c_fa * (1 - p_target)
    smaller = min(miss_weight, false_alarm_weight)
    return miss_weight / smaller, false_alarm_weight / smaller


def _least_cost(
    miss: NDArray, false_alarm: NDArray, miss_weight: float, false_alarm_weight: float
) -> float:
    return float((miss_weight * miss + false_alarm_weight * false_alarm).min())


def rates_at(
    threshold: float, scores: ArrayLike, targets: ArrayLike
) -> tuple[float, float]:
    """Miss and false-alarm rate at a threshold."""
    scores, targets = _checked(scores, targets)
    rejected = scores < threshold
    return float(rejected[targets].mean()), float((~rejected)[~targets].mean())


def threshold_for(
    false_alarm_rate: float, parts: Sequence[tuple[ArrayLike, ArrayLike]]
) -> float:
    """The lowest threshold, a score or infinity, whose false-alarm rate, averaged over
    the parts (scores and targets each), is at most this."""
    checked = [_checked(scores, targets) for scores, targets in parts]
    thresholds = np.unique(np.concatenate([scores for scores, _ in checked]))
    false_alarms = np.zeros(len(thresholds))
    for scores, targets in checked:
        others = np.sort(scores[~targets])
        accepted = len(others) - np.searchsorted(others, thresholds)
        false_alarms += accepted / len(others) / len(checked)
    fitting = thresholds[false_alarms <= false_alarm_rate]
    return float(fitting[0]) if len(fitting) else np.inf


def actual_dcf(
    llrs: ArrayLike,
    targets: ArrayLike,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Detection cost of log likelihood ratios at the Bayes threshold,
    log(c_fa (1 - p_target) / (c_miss p_target)).

    Normalised as `min_dcf`, and never below it. Above 1, accepting all or rejecting all
    would have been better.
    """
    weights = _cost_weights(p_target, c_miss, c_fa)
    threshold = np.log(c_fa * (1 - p_target) / (c_miss * p_target))
    miss, false_alarm = rates_at(threshold, llrs, targets)
    return weights[0] * miss + weights[1] * false_alarm


def cllr(llrs: ArrayLike, targets: ArrayLike) -> float:
    """Cost of log likelihood ratios over all priors, in bits: 0 is perfect, 1 is no
    information, and more is worse than none."""
    llrs, targets = _checked(llrs, targets)
    cost_of_targets = np.logaddexp(0, -llrs[targets]).mean()
    cost_of_others = np.logaddexp(0, llrs[~targets]).mean()
    return float((cost_of_targets + cost_of_others) / (2 * np.log(2)))


def min_cllr(scores: ArrayLike, targets: ArrayLike) -> float:
    """Cllr after the best monotone calibration of these very trials.

    It has one value for each edge of the ROC's convex hull: the likelihood ratio is the
    edge's share of the targets divided by its share of the non-targets.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    hull = _lower_hull(miss, false_alarm)
    target_share, other_share = np.diff(miss[hull]), -np.diff(false_alarm[hull])
    # An edge with only targets or only non-targets costs nothing.
    mixed = (target_share > 0) & (other_share > 0)
    target_share, other_share = target_share[mixed], other_share[mixed]
    llrs = np.log(target_share / other_share)
    costs = target_share * np.logaddexp(0, -llrs) + other_share * np.logaddexp(0, llrs)
    return float(costs.sum() / (2 * np.log(2)))


def _lower_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Corners of the lower convex hull of points with rising x and falling y, by
    Andrew's monotone chain."""
    # Only corners of the staircase can be corners of the hull.
    corner = np.ones(len(x), dtype=bool)
    corner[1:-1] = (np.diff(y)[:-1] < 0) & (np.diff(x)[1:] > 0)
    hull: list[int] = []
    for i in np.flatnonzero(corner).tolist():
        while len(hull) > 1:
            j, k = hull[-1], hull[-2]
            if (x[j] - x[k]) * (y[i] - y[k]) > (y[j] - y[k]) * (x[i] - x[k]):
                break
            hull.pop()
        hull.append(i)
    return hull


def det_points(
    scores: ArrayLike, targets: ArrayLike, max_points: int = 500
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Miss and false-alarm rates of a DET curve, at most `max_points`.

    Points where a rate is 0 are left out: they have no place on the curve's axes.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    inner = (miss > 0) & (false_alarm > 0)
    miss, false_alarm = miss[inner], false_alarm[inner]
    if len(miss) > max_points:
        position = np.log(miss) - np.log(false_alarm)  # rises along the curve
        evenly = np.linspace(position[0], position[-1], max_points)
        indices = np.unique(np.searchsorted(position, evenly).clip(max=len(miss) - 1))
        miss, false_alarm = miss[indices], false_alarm[indices]
    return miss, false_alarm


def bootstrap_speakers(
    scores: ArrayLike,
    targets: ArrayLike,
    speakers: tuple[ArrayLike, ArrayLike],
    p_target: float,
    c_miss: float,
    c_fa: float,
    num_resamples: int,
    seed: int,
) -> tuple[Interval, Interval]:
    """95 % confidence intervals of EER and minDCF by resampling speakers.

    Trials share speakers, so speakers are drawn with replacement, not trials. If
    speaker i is drawn w_i times, its target trials weigh w_i, and its non-target trials
    with speaker j weigh w_i w_j. `speakers` are numbers from 0, [K] for each side of
    the trials. Intervals are percentiles; resamples without targets or without
    non-targets are drawn again.
    """
    scores, targets = _checked(scores, targets)
    weights = _cost_weights(p_target, c_miss, c_fa)
    order = np.argsort(scores, kind="stable")
    scores, targets = scores[order], targets[order]
    enrolled, tested = (np.asarray(side)[order] for side in speakers)
    # Where runs of equal scores end.
    ends = np.flatnonzero(np.append(np.diff(scores) > 0, True))
    weights_of_trials = _speaker_weights(targets, enrolled, tested, seed)
    resampled = []  # EER and minDCF
    for weight in itertools.islice(weights_of_trials, num_resamples):
        missed = np.cumsum(weight * targets)[ends]
        rejected = np.cumsum(weight * ~targets)[ends]
        miss = np.append(0, missed / missed[-1])
        false_alarm = np.append(1, 1 - rejected / rejected[-1])
        resampled.append(
            (_crossing(miss, false_alarm), _least_cost(miss, false_alarm, *weights))
        )
    return _intervals(resampled)


def bootstrap_rates(
    accepted: ArrayLike,
    targets: ArrayLike,
    speakers: tuple[ArrayLike, ArrayLike],
    num_resamples: int,
    seed: int,
) -> tuple[Interval, Interval]:
    """95 % confidence intervals of the miss and false-alarm rate of decisions [K],
    true for accepted trials, by resampling speakers as `bootstrap_speakers` does."""
    accepted, targets = _checked(accepted, targets)
    enrolled, tested = map(np.asarray, speakers)
    weights_of_trials = _speaker_weights(targets, enrolled, tested, seed)
    rates = []
    for weight in itertools.islice(weights_of_trials, num_resamples):
        right, wrong = weight * targets, weight * ~targets
        missed = (right * (1 - accepted)).sum() / right.sum()
        rates.append((missed, (wrong * accepted).sum() / wrong.sum()))
    return _intervals(rates)


def _speaker_weights(
    targets: NDArray[np.bool_], enrolled: NDArray, tested: NDArray, seed: int
) -> Iterator[NDArray[np.int64]]:
    """How often each trial [K] counts in each of endless resamples of the speakers."""
    num_speakers = 1 + int(max(enrolled.max(), tested.max()))
    generator = np.random.default_rng(seed)
    while True:
        resample = generator.integers(num_speakers, size=num_speakers)
        counts = np.bincount(resample, minlength=num_speakers)
        weight = np.where(targets, counts[enrolled], counts[enrolled] * counts[tested])
        if weight[targets].any() and weight[~targets].any():
            yield weight


def _intervals(pairs: Sequence[tuple[float, float]]) -> tuple[Interval, Interval]:
    low, high = np.quantile(pairs, (0.025, 0.975), axis=0).tolist()
    return Interval(low[0], high[0]), Interval(low[1], high[1])
