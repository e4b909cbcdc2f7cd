"""Scores to log likelihood ratios.

scores [K], targets [K] -> `calibrate` -> `Calibration`

K trials. Calibration is logistic regression (Brummer and du Preez, Computer Speech and
Language 20, 2006), fitted on speakers that are not tested.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from verification.metrics import rates_at, threshold_for
from verification.scoring import Calibration


def calibrate(
    corpora: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]],
    false_alarm_rate: float,
) -> Calibration:
    """Fit a calibration to the scores and targets, [K] each, of one corpus or several.

    Targets and non-targets have equal weight, and so have the corpora. The threshold is
    the lowest at which the mean false-alarm rate of the corpora is at most
    `false_alarm_rate`.
    """
    from sklearn.linear_model import LogisticRegression  # loading takes a second

    scores, targets = map(np.concatenate, zip(*corpora, strict=True))
    weights = np.concatenate(
        [np.where(t, 1 / t.sum(), 1 / (~t).sum()) for _, t in corpora]
    )
    regression = LogisticRegression(C=np.inf, tol=1e-8)
    share = len(scores) / (2 * len(corpora))
    regression.fit(scores[:, None], targets, sample_weight=weights * share)
    scale, offset = float(regression.coef_[0, 0]), float(regression.intercept_[0])
    llrs = [(scale * scores + offset, targets) for scores, targets in corpora]
    threshold = threshold_for(false_alarm_rate, llrs)
    rates = [rates_at(threshold, *corpus) for corpus in llrs]
    miss, false_alarm = np.mean(rates, axis=0)
    strict = threshold_for(false_alarm_rate / 10, llrs)
    return Calibration(
        scale, offset, threshold, float(miss), float(false_alarm), strict
    )
