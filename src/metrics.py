"""Error rates of verification scores: EER and minDCF.

scores [K], targets [K] -> `error_rates` -> `equal_error_rate`, `min_dcf`

K trials. A trial is accepted when its score reaches the threshold; a miss is a target
trial (same speaker) rejected, a false alarm a non-target trial accepted. Every metric
depends on the set of trials alone, not on their order: trials of equal scores are
accepted or rejected together. The cost is that of the NIST speaker recognition
evaluations.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def error_rates(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds, miss rates and false-alarm rates, one point per distinct score.

    `scores` [K] are finite, higher for the same speaker; `targets` [K] are true for
    target trials. A trial is accepted when score >= threshold. Thresholds increase from
    the lowest score (accept everything: miss 0, false alarm 1) to the highest, then to
    infinity (reject everything: miss 1, false alarm 0). Raises `ValueError` for arrays
    that are not one-dimensional and equally long, scores that are not finite, and
    trials without a target or without a non-target.
    """
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
    target_scores, other_scores = np.sort(scores[targets]), np.sort(scores[~targets])
    num_targets, num_others = len(target_scores), len(other_scores)
    if not (num_targets and num_others):
        raise ValueError(
            "targets: expected at least one target and one non-target trial, "
            f"got {num_targets} and {num_others}"
        )
    thresholds = np.append(np.unique(scores), np.inf)
    misses = np.searchsorted(target_scores, thresholds)
    false_alarms = num_others - np.searchsorted(other_scores, thresholds)
    return thresholds, misses / num_targets, false_alarms / num_others


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> float:
    """Rate, 0 to 1, at which misses equal false alarms.

    Where the line between neighbouring points of the ROC crosses miss = false alarm.
    Takes and refuses what `error_rates` does.
    """
    _, miss, false_alarm = error_rates(scores, targets)
    return float(np.interp(0, miss - false_alarm, miss))


def min_dcf(
    scores: ArrayLike,
    targets: ArrayLike,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Least detection cost over all thresholds, 0 to 1.

    The cost c_miss * p_target * miss + c_fa * (1 - p_target) * false alarm, divided by
    that of the better of rejecting and accepting everything. `p_target`, between 0 and
    1, is the prior of a target; costs are above 0. Takes and refuses what `error_rates`
    does, and raises `ValueError` for a prior or a cost out of range.
    """
    if not (0 < p_target < 1 and c_miss > 0 and c_fa > 0):
        raise ValueError(
            "expected p_target between 0 and 1 and costs above 0, "
            f"got p_target {p_target}, c_miss {c_miss}, c_fa {c_fa}"
        )
    _, miss, false_alarm = error_rates(scores, targets)
    miss_weight, false_alarm_weight = c_miss * p_target, c_fa * (1 - p_target)
    costs = miss_weight * miss + false_alarm_weight * false_alarm
    return float(costs.min() / min(miss_weight, false_alarm_weight))
