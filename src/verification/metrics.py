"""Metrics of verification scores: error rates, costs, and their intervals.

scores [K], targets [K] -> `error_rates` -> `equal_error_rate`, `min_dcf`, `det_points`
log likelihood ratios [K], targets [K] -> `actual_dcf`, `cllr`, `min_cllr`
scores, targets, speakers [K] -> `bootstrap_speakers`, `bootstrap_rates` -> `Interval`s

K trials. A trial is accepted when its score reaches the threshold; a miss is a target
trial (same speaker) rejected, a false alarm a non-target trial accepted. No metric
depends on the order of the trials: trials of equal score are accepted or rejected
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


@dataclass(frozen=True)
class OperatingPoint:
    """The prior of a target and the costs of both errors.

    `p_target` is between 0 and 1, costs are above 0; raises `ValueError` otherwise.
    """

    p_target: float = 0.01
    c_miss: float = 1.0
    c_fa: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.p_target < 1 and self.c_miss > 0 and self.c_fa > 0):
            raise ValueError(
                f"expected p_target between 0 and 1 and costs above 0, got {self}"
            )

    @property
    def weights(self) -> tuple[float, float]:
        """Return the weights of misses and of false alarms, the smaller scaled to 1."""
        miss, false_alarm = self.c_miss * self.p_target, self.c_fa * (1 - self.p_target)
        smaller = min(miss, false_alarm)
        return miss / smaller, false_alarm / smaller

    @property
    def threshold(self) -> float:
        """Return the Bayes threshold of log likelihood ratios,
        log(c_fa (1 - p_target) / (c_miss p_target))."""
        return np.log(self.c_fa * (1 - self.p_target) / (self.c_miss * self.p_target))

    def cost(self, miss: ArrayLike, false_alarm: ArrayLike) -> ArrayLike:
        """Return the detection cost of these rates.

        It is c_miss * p_target * miss + c_fa * (1 - p_target) * false alarm, divided by
        the cost of accepting all or of rejecting all, whichever is lower.
        """
        miss_weight, false_alarm_weight = self.weights
        return miss_weight * miss + false_alarm_weight * false_alarm


RARE_TARGETS = OperatingPoint()


def error_rates(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return thresholds, miss rates and false-alarm rates, one per distinct score.

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
    """Return the rate, 0 to 1, at which misses and false alarms are equal.

    Rates are interpolated linearly between neighbouring points of the ROC. Takes the
    arguments of `error_rates` and raises the same errors.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    return _crossing(miss, false_alarm)


def _crossing(miss: NDArray[np.float64], false_alarm: NDArray[np.float64]) -> float:
    return float(np.interp(0, miss - false_alarm, miss))


def min_dcf(
    scores: ArrayLike, targets: ArrayLike, point: OperatingPoint = RARE_TARGETS
) -> float:
    """Return the lowest detection cost over all thresholds, 0 to 1.

    Takes the arguments of `error_rates` and raises the same errors.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    return float(point.cost(miss, false_alarm).min())


def rates_at(
    threshold: float, scores: ArrayLike, targets: ArrayLike
) -> tuple[float, float]:
    """Return the miss rate and the false-alarm rate at a threshold."""
    scores, targets = _checked(scores, targets)
    rejected = scores < threshold
    return float(rejected[targets].mean()), float((~rejected)[~targets].mean())


def threshold_for(
    false_alarm_rate: float, corpora: Sequence[tuple[ArrayLike, ArrayLike]]
) -> float:
    """Return the lowest threshold with at most this false-alarm rate: one of the
    scores, or infinity.

    The rate is averaged over the corpora, each given by its scores and targets.
    """
    checked = [_checked(scores, targets) for scores, targets in corpora]
    thresholds = np.unique(np.concatenate([scores for scores, _ in checked]))
    false_alarms = np.zeros(len(thresholds))
    for scores, targets in checked:
        non_targets = np.sort(scores[~targets])
        accepted = len(non_targets) - np.searchsorted(non_targets, thresholds)
        false_alarms += accepted / len(non_targets) / len(checked)
    low_enough = thresholds[false_alarms <= false_alarm_rate]
    return float(low_enough[0]) if len(low_enough) else np.inf


def actual_dcf(
    llrs: ArrayLike, targets: ArrayLike, point: OperatingPoint = RARE_TARGETS
) -> float:
    """Return the detection cost of log likelihood ratios at the Bayes threshold.

    It is never below `min_dcf`. Above 1, accepting all or rejecting all is cheaper.
    """
    return point.cost(*rates_at(point.threshold, llrs, targets))


def cllr(llrs: ArrayLike, targets: ArrayLike) -> float:
    """Return the cost of log likelihood ratios over all priors, in bits.

    0 is perfect, 1 is no information, and above 1 the ratios mislead.
    """
    llrs, targets = _checked(llrs, targets)
    target_cost = np.logaddexp(0, -llrs[targets]).mean()
    non_target_cost = np.logaddexp(0, llrs[~targets]).mean()
    return float((target_cost + non_target_cost) / (2 * np.log(2)))


def min_cllr(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return Cllr after the best monotone calibration of these very trials.

    That calibration has one likelihood ratio for each edge of the ROC's convex hull:
    the edge's share of the targets divided by its share of the non-targets.
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
    """Return the corners of the lower convex hull of points with rising x and falling
    y, by Andrew's monotone chain."""
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
    """Return the miss rates and the false-alarm rates of a DET curve, at most
    `max_points` each.

    Points where a rate is 0 are left out: the curve's axes have no place for them.
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
    point: OperatingPoint,
    num_resamples: int,
    seed: int,
) -> tuple[Interval, Interval]:
    """Return 95 % confidence intervals of EER and minDCF by resampling speakers.

    Trials share speakers, so speakers are drawn with replacement, not trials. If
    speaker i is drawn w_i times, its target trials weigh w_i, and its non-target trials
    with speaker j weigh w_i w_j. `speakers` are numbers from 0, [K] for each side of
    the trials. Intervals are percentiles. A resample without targets or without
    non-targets is drawn again.
    """
    scores, targets = _checked(scores, targets)
    order = np.argsort(scores, kind="stable")
    scores, targets = scores[order], targets[order]
    enrolled, tested = (np.asarray(side)[order] for side in speakers)
    # The last index of each group of equal scores: no threshold lies within a group.
    ends = np.flatnonzero(np.append(np.diff(scores) > 0, True))
    weights_of_trials = _speaker_weights(targets, enrolled, tested, seed)
    resampled = []  # EER and minDCF
    for weight in itertools.islice(weights_of_trials, num_resamples):
        missed = np.cumsum(weight * targets)[ends]
        rejected = np.cumsum(weight * ~targets)[ends]
        miss = np.append(0, missed / missed[-1])
        false_alarm = np.append(1, 1 - rejected / rejected[-1])
        least_cost = point.cost(miss, false_alarm).min()
        resampled.append((_crossing(miss, false_alarm), least_cost))
    eers, costs = zip(*resampled, strict=True)
    num_speakers = min(_num_speakers(targets, enrolled, tested))
    low, high = np.quantile(costs, (0.025, 0.975)).tolist()
    if high == 0:  # no error was seen: target trials, which are fewer, bound the cost
        high = min(1.0, float(point.cost(unseen_rate(num_speakers), 0)))
    return interval_of(eers, num_speakers), Interval(low, high)


def bootstrap_rates(
    accepted: ArrayLike,
    targets: ArrayLike,
    speakers: tuple[ArrayLike, ArrayLike],
    num_resamples: int,
    seed: int,
) -> tuple[Interval, Interval]:
    """Return 95 % confidence intervals of the miss rate and the false-alarm rate.

    `accepted` [K] are the decisions, true for accepted trials. Speakers are resampled
    as `bootstrap_speakers` does.
    """
    accepted, targets = _checked(accepted, targets)
    enrolled, tested = map(np.asarray, speakers)
    weights_of_trials = _speaker_weights(targets, enrolled, tested, seed)
    rates = []
    for weight in itertools.islice(weights_of_trials, num_resamples):
        same, different = weight * targets, weight * ~targets
        miss = (same * (1 - accepted)).sum() / same.sum()
        rates.append((miss, (different * accepted).sum() / different.sum()))
    num_speakers = _num_speakers(targets, enrolled, tested)
    return tuple(map(interval_of, zip(*rates, strict=True), num_speakers))


def _speaker_weights(
    targets: NDArray[np.bool_], enrolled: NDArray, tested: NDArray, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each trial counts, [K], in endless resamples of the speakers."""
    num_speakers = 1 + int(max(enrolled.max(), tested.max()))
    generator = np.random.default_rng(seed)
    while True:
        resample = generator.integers(num_speakers, size=num_speakers)
        counts = np.bincount(resample, minlength=num_speakers)
        weight = np.where(targets, counts[enrolled], counts[enrolled] * counts[tested])
        if weight[targets].any() and weight[~targets].any():
            yield weight


def _num_speakers(
    targets: NDArray[np.bool_], enrolled: NDArray, tested: NDArray
) -> tuple[int, int]:
    """Return how many speakers the target and the non-target trials have."""
    return tuple(
        len(np.union1d(enrolled[chosen], tested[chosen]))
        for chosen in (targets, ~targets)
    )


def interval_of(resampled: ArrayLike, num_speakers: int) -> Interval:
    """Return the 95 % interval of a rate from its resamples over this many speakers.

    It is that of percentiles. Where no resample has an error, or each has nothing else,
    they say nothing of how rare the others are: that end is `unseen_rate`, or 1 less
    it.
    """
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    if high == 0:
        high = unseen_rate(num_speakers)
    if low == 1:
        low = 1 - unseen_rate(num_speakers)
    return Interval(low, high)


def unseen_rate(num_speakers: int) -> float:
    """Return the highest rate of errors, at 95 % confidence, if none of so many
    speakers has one: 1 - 0.05^(1 / n), about 3 / n.

    It is the limit of Clopper and Pearson (Biometrika 26, 1934) and the "rule of three"
    of Hanley and Lippman-Hand (JAMA 249, 1983). Speakers count, not trials: trials that
    share a speaker are not independent.
    """
    return 1 - 0.05 ** (1 / num_speakers)
