"""The metrics against hand-computed cases, theory and scikit-learn's ROC."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, roc_curve

from verification.metrics import (
    OperatingPoint,
    actual_dcf,
    bootstrap_rates,
    bootstrap_speakers,
    cllr,
    det_points,
    equal_error_rate,
    error_rates,
    min_cllr,
    min_dcf,
    rates_at,
    threshold_for,
    unseen_rate,
)

PERFECT = [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]
WRONG = [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]
TIED = [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]
MIXED = [1, 2, 3, 4, 5], [0, 1, 0, 0, 1]


@pytest.fixture(params=range(12))
def trials(request) -> tuple[np.ndarray, np.ndarray]:
    """Trials on a grid of a few scores, from tens to thousands."""
    generator = np.random.default_rng(request.param)
    num_trials = int(generator.integers(20, 3000))
    targets = generator.random(num_trials) < generator.uniform(0.05, 0.95)
    targets[:2] = True, False
    scores = generator.normal(targets * generator.uniform(0, 3))
    return np.round(scores, int(generator.integers(0, 3))), targets


def test_error_rates_by_hand():
    thresholds, miss, false_alarm = error_rates(*MIXED)
    assert thresholds.tolist() == [1, 2, 3, 4, 5, np.inf]
    assert miss.tolist() == [0, 0, 0.5, 0.5, 0.5, 1]
    assert false_alarm.tolist() == [1, 2 / 3, 2 / 3, 1 / 3, 0, 0]
    of_ties = [rates.tolist() for rates in error_rates(*TIED)]
    assert of_ties == [[0.5, np.inf], [0, 1], [1, 0]]
    assert rates_at(3, *MIXED) == (0.5, 2 / 3)
    assert rates_at(9, *MIXED) == (1, 0)
    assert threshold_for(1 / 3, [MIXED]) == 4
    assert threshold_for(0.3, [MIXED]) == 5
    assert threshold_for(0.0, [([1, 2, 2], [0, 0, 1])]) == np.inf


@pytest.mark.parametrize(
    ("trials", "eer", "dcf"),
    [
        (PERFECT, 0, 0),
        (WRONG, 1, 1),
        (TIED, 0.5, 1),
        (MIXED, 0.5, 0.5),  # false alarms weigh 99 times as much: threshold 5
        # (miss, false alarm) from (0, 1/2) to (1, 0): crossed a third of the way
        (([1, 2, 2], [0, 0, 1]), 1 / 3, 1),
    ],
)
def test_eer_and_min_dcf_by_hand(trials, eer, dcf):
    assert equal_error_rate(*trials) == pytest.approx(eer, abs=1e-15)
    assert min_dcf(*trials) == pytest.approx(dcf, abs=1e-15)


def test_cllr_by_hand():
    assert cllr([0, 0, 0], [0, 1, 1]) == 1  # no information costs one bit
    # A target at 3 to 1 costs log2(4/3), a non-target there log2(4).
    expected = (np.log2(4 / 3) + 2) / 2
    assert cllr([np.log(3), np.log(3)], [1, 0]) == pytest.approx(expected)
    assert cllr([-900, 900], [0, 1]) == 0
    assert np.isfinite(cllr([900, -900], [0, 1]))
    for trials, least in ((PERFECT, 0), (WRONG, 1), (TIED, 1)):
        assert min_cllr(*trials) == pytest.approx(least)


def test_agrees_with_scikit_learn(trials):
    scores, targets = trials
    false_alarm, hit, _ = roc_curve(targets, scores, drop_intermediate=False)
    miss = 1 - hit  # from 1 down to 0
    eer = np.interp(0, false_alarm - miss, miss)
    assert equal_error_rate(*trials) == pytest.approx(eer, abs=1e-12)
    for p_target, c_miss, c_fa in [(0.01, 1, 1), (0.05, 10, 1), (0.5, 1, 3)]:
        costs = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
        dcf = costs.min() / min(c_miss * p_target, c_fa * (1 - p_target))
        point = OperatingPoint(p_target, c_miss, c_fa)
        assert min_dcf(*trials, point) == pytest.approx(dcf, abs=1e-12)


def test_neither_order_nor_scale_matters(trials):
    scores, targets = trials
    order = np.random.default_rng(1).permutation(len(scores))
    for changed in ((scores[order], targets[order]), (np.exp(scores), targets)):
        assert equal_error_rate(*changed) == equal_error_rate(*trials)
        assert min_dcf(*changed) == min_dcf(*trials)


def test_min_cllr_is_that_of_pooled_adjacent_violators(trials):
    scores, targets = trials
    weights = np.where(targets, 1 / targets.sum(), 1 / (~targets).sum())
    pav = IsotonicRegression().fit_transform(scores, targets, sample_weight=weights)
    expected = log_loss(targets, pav, sample_weight=weights) / np.log(2)
    assert min_cllr(*trials) == pytest.approx(expected, abs=1e-9)
    assert min_cllr(*trials) <= cllr(*trials)


def test_calibrated_gaussian_scores_cost_what_they_must():
    """Scores of +-d2/2 and variance d2 are their own log likelihood ratios."""
    targets = np.arange(400_000) % 2 == 0
    llrs = np.random.default_rng(1).normal(np.where(targets, 2.0, -2.0), 2.0)
    eer = NormalDist().cdf(-1)  # of scores two deviations apart
    assert equal_error_rate(llrs, targets) == pytest.approx(eer, abs=3e-3)
    assert cllr(llrs, targets) == pytest.approx(min_cllr(llrs, targets), abs=2e-3)
    assert cllr(llrs + 1, targets) > cllr(llrs, targets) + 0.05
    for point in map(OperatingPoint, (0.01, 0.5, 0.9)):
        actual, least = actual_dcf(llrs, targets, point), min_dcf(llrs, targets, point)
        assert least <= actual <= least + 0.01
        assert actual_dcf(llrs + 2, targets, point) > actual + 0.02


def test_det_points_lie_on_the_curve(trials):
    _, miss, false_alarm = error_rates(*trials)
    whole = set(zip(miss.tolist(), false_alarm.tolist(), strict=True))
    points = [tuple(map(float, p)) for p in zip(*det_points(*trials, 50), strict=True)]
    assert set(points) <= whole
    assert len(points) <= 50
    assert all(m > 0 and f > 0 for m, f in points)


def corpus_scores(rng, num_speakers: int, per_speaker: int) -> tuple:
    """Cosines of all pairs of utterances; some speakers vary more than others."""
    centres = rng.normal(size=(num_speakers, 1, 6))
    spread = rng.uniform(0.3, 1.2, size=(num_speakers, 1, 1))
    x = centres + spread * rng.normal(size=(num_speakers, per_speaker, 6))
    x = (x / np.linalg.norm(x, axis=2, keepdims=True)).reshape(-1, 6)
    speakers = np.repeat(np.arange(num_speakers), per_speaker)
    first, second = np.triu_indices(len(x), 1)
    sides = speakers[first], speakers[second]
    return (x[first] * x[second]).sum(1), np.equal(*sides), sides


@pytest.mark.parametrize(("num_speakers", "least"), [(50, 0.88), (10, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_speakers, least):
    generator = np.random.default_rng(3)
    scores, targets, _ = corpus_scores(generator, 1500, 2)
    eer, covered = equal_error_rate(scores, targets), 0
    for seed in range(200):
        trials = corpus_scores(generator, num_speakers, 6)
        interval, _ = bootstrap_speakers(*trials, OperatingPoint(0.1), 100, seed)
        covered += interval.low <= eer <= interval.high
    assert least <= covered / 200 <= 0.99


def test_intervals_of_two_speakers_and_one_resample():
    trials = [0.9, 0.1, 0.2, 0.8], [1, 0, 0, 1]
    sides = [0, 0, 0, 1], [0, 1, 1, 1]
    for seed in range(20):  # half of all draws have no non-target trial
        eer, _ = bootstrap_speakers(*trials, sides, OperatingPoint(), 1, seed)
        assert (eer.low, eer.high) == (0, pytest.approx(1 - 0.05**0.5))


def test_intervals_where_no_trial_or_every_trial_is_an_error():
    """Of four speakers with two recordings each, as in 4 target and 24 other trials."""
    first, second = np.triu_indices(8, 1)
    sides = first // 2, second // 2
    targets = np.equal(*sides)
    # Errors of half of all speakers would go unseen in four with probability 1 / 16,
    # those of 52.7 % with probability 0.05.
    unseen, almost = (pytest.approx(rate, abs=5e-4) for rate in (0.527, 0.473))
    for accepted, low, high in ((targets, 0, unseen), (~targets, almost, 1)):
        for interval in bootstrap_rates(accepted, targets, sides, 50, 0):
            assert (interval.low, interval.high) == (low, high)
    eer, dcf = bootstrap_speakers(targets, targets, sides, OperatingPoint(), 50, 0)
    assert (eer.low, eer.high, dcf.low, dcf.high) == (0, unseen, 0, unseen)
    eer, dcf = bootstrap_speakers(~targets, targets, sides, OperatingPoint(), 50, 0)
    assert (eer.low, eer.high, dcf.low, dcf.high) == (almost, 1, 1, 1)
    for num_speakers in (30, 100, 1000):
        assert unseen_rate(num_speakers) == pytest.approx(3 / num_speakers, rel=0.05)


def test_intervals_of_rates_by_resampling_written_out():
    rng = np.random.default_rng(0)
    enrolled, tested = rng.integers(6, size=(2, 400))
    targets = enrolled == tested
    accepted = rng.random(400) < np.where(targets, 0.8, 0.1)
    intervals = bootstrap_rates(accepted, targets, (enrolled, tested), 2000, 1)
    rates, rng = [], np.random.default_rng(2)
    while len(rates) < 2000:
        drawn = rng.integers(6, size=(6, 1))
        weights = np.where(targets, 1, (drawn == tested).sum(0))
        rows = np.repeat(np.arange(400), (drawn == enrolled).sum(0) * weights)
        same, decided = targets[rows], accepted[rows]
        if 0 < same.sum() < len(rows):
            rates.append((1 - decided[same].mean(), decided[~same].mean()))
    low, high = np.quantile(rates, (0.025, 0.975), axis=0)
    for interval, *expected in zip(intervals, low, high, strict=True):
        assert [interval.low, interval.high] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("scores", "targets", "value"),
    [
        ([], [], "targets: .* got 0 and 0"),
        ([0.1, 0.2], [1, 1], "targets: .* got 2 and 0"),
        ([0.1, 0.2], [0, 0], "targets: .* got 0 and 2"),
        ([0.1, 0.2], [0, 1, 1], r"got shapes \(2,\) and \(3,\)"),
        ([[0.1, 0.2]], [[0, 1]], r"got shapes \(1, 2\) and \(1, 2\)"),
        ([0.1, np.nan, 0.3], [0, 1, 1], r"scores: .* got nan \(1 of 3"),
        ([0.1, -np.inf], [0, 1], "scores: .* got -inf"),
    ],
)
@pytest.mark.parametrize("metric", [error_rates, equal_error_rate, min_dcf])
def test_refuses_trials(metric, scores, targets, value):
    with pytest.raises(ValueError, match=value):
        metric(scores, targets)


@pytest.mark.parametrize("wrong", ["p_target=0", "p_target=1", "c_miss=0", "c_fa=-1"])
def test_refuses_operating_points(wrong):
    key, value = wrong.split("=")
    with pytest.raises(ValueError, match=wrong):
        OperatingPoint(**{key: int(value)})
