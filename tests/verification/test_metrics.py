"""The metrics against hand-computed cases, theory and scikit-learn's ROC."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve

from verification.metrics import (
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
)

PERFECT = [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]
WRONG = [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]
TIED = [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]
MIXED = [1, 2, 3, 4, 5], [0, 1, 0, 0, 1]


def tied_trials(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Trials on a grid of a few scores, from tens to thousands."""
    generator = np.random.default_rng(seed)
    num_trials = int(generator.integers(20, 3000))
    targets = generator.random(num_trials) < generator.uniform(0.05, 0.95)
    targets[:2] = True, False
    scores = generator.normal(targets * generator.uniform(0, 3))
    return np.round(scores, int(generator.integers(0, 3))), targets


# Hand-computed cases


def test_error_rates_by_hand():
    thresholds, miss, false_alarm = error_rates(*MIXED)
    assert thresholds.tolist() == [1, 2, 3, 4, 5, np.inf]
    assert miss.tolist() == [0, 0, 0.5, 0.5, 0.5, 1]
    assert false_alarm.tolist() == [1, 2 / 3, 2 / 3, 1 / 3, 0, 0]


def test_ties_are_one_point():
    thresholds, miss, false_alarm = error_rates(*TIED)
    assert thresholds.tolist() == [0.5, np.inf]
    assert miss.tolist() == [0, 1]
    assert false_alarm.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("trials", "eer"),
    [
        (PERFECT, 0),
        (WRONG, 1),
        (TIED, 0.5),
        (MIXED, 0.5),  # miss stays 0.5 while false alarm passes from 2/3 to 1/3
        # (miss, false alarm) from (0, 1/2) to (1, 0): crossed a third of the way
        (([1, 2, 2], [0, 0, 1]), 1 / 3),
    ],
)
def test_equal_error_rate_by_hand(trials, eer):
    assert equal_error_rate(*trials) == pytest.approx(eer, abs=1e-15)


@pytest.mark.parametrize(
    ("trials", "p_target", "dcf"),
    [
        (PERFECT, 0.01, 0),
        (WRONG, 0.01, 1),
        (TIED, 0.01, 1),
        (MIXED, 0.01, 0.5),  # false alarms at 99 times the weight: threshold 5
        (MIXED, 0.5, 0.5),
        (MIXED, 0.75, 2 / 3),  # 0.25 * 2/3 at threshold 2, over 0.25
    ],
)
def test_min_dcf_by_hand(trials, p_target, dcf):
    assert min_dcf(*trials, p_target) == pytest.approx(dcf, abs=1e-15)


def test_min_dcf_weighs_costs():
    # Threshold 2: 2 * 0.75 * 2/3 = 1; threshold 5: 10 * 0.25 * 0.5 = 1.25; over 1.5.
    assert min_dcf(*MIXED, 0.25, c_miss=10, c_fa=2) == pytest.approx(2 / 3)


# Laws


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scikit_learn(seed):
    scores, targets = tied_trials(seed)
    false_alarm, hit, _ = roc_curve(targets, scores, drop_intermediate=False)
    miss = 1 - hit  # from 1 down to 0
    after = np.argmax(miss <= false_alarm)
    gap_before, gap_after = (miss - false_alarm)[[after - 1, after]]
    share = gap_before / (gap_before - gap_after)
    eer = miss[after - 1] + share * (miss[after] - miss[after - 1])
    assert equal_error_rate(scores, targets) == pytest.approx(eer, abs=1e-12)
    for p_target, c_miss, c_fa in [(0.01, 1, 1), (0.05, 10, 1), (0.5, 1, 3)]:
        costs = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
        dcf = costs.min() / min(c_miss * p_target, c_fa * (1 - p_target))
        ours = min_dcf(scores, targets, p_target, c_miss, c_fa)
        assert ours == pytest.approx(dcf, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_trials_does_not_matter(seed):
    scores, targets = tied_trials(seed)
    order = np.random.default_rng(seed).permutation(len(scores))
    shuffled = scores[order], targets[order]
    assert equal_error_rate(*shuffled) == equal_error_rate(scores, targets)
    assert min_dcf(*shuffled) == min_dcf(scores, targets)


@pytest.mark.parametrize("seed", range(5))
def test_only_the_order_of_scores_matters(seed):
    scores, targets = tied_trials(seed)
    assert equal_error_rate(np.exp(scores), targets) == equal_error_rate(
        scores, targets
    )
    assert min_dcf(np.exp(scores), targets) == min_dcf(scores, targets)


@pytest.mark.parametrize("separation", [0.5, 2, 4])
def test_gaussian_theory(separation):
    num_trials = 200_000
    generator = np.random.default_rng(1)
    targets = np.arange(num_trials) % 2 == 0
    scores = generator.normal(separation * targets)
    expected = NormalDist().cdf(-separation / 2)
    error = np.sqrt(expected * (1 - expected) / num_trials)
    assert equal_error_rate(scores, targets) == pytest.approx(expected, abs=4 * error)


def test_rates_at_a_threshold_by_hand():
    assert rates_at(3, *MIXED) == (0.5, 2 / 3)
    assert rates_at(9, *MIXED) == (1, 0)
    assert threshold_for(1 / 3, [MIXED]) == 4
    assert threshold_for(0.3, [MIXED]) == 5
    assert threshold_for(0.0, [([1, 2, 2], [0, 0, 1])]) == np.inf


def test_cllr_by_hand():
    assert cllr([0, 0, 0], [0, 1, 1]) == 1  # no information costs one bit
    # A target at 3 to 1 costs log2(4/3), a non-target there log2(4).
    expected = (np.log2(4 / 3) + 2) / 2
    assert cllr([np.log(3), np.log(3)], [1, 0]) == pytest.approx(expected)
    assert cllr([-900, 900], [0, 1]) == 0
    assert np.isfinite(cllr([900, -900], [0, 1]))


def test_min_cllr_by_hand():
    assert min_cllr(*PERFECT) == 0
    assert min_cllr(*WRONG) == pytest.approx(1)
    assert min_cllr(*TIED) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(20))
def test_min_cllr_is_that_of_pooled_adjacent_violators(seed):
    scores, targets = tied_trials(seed)
    weights = np.where(targets, 1 / targets.sum(), 1 / (~targets).sum())
    posterior = IsotonicRegression(out_of_bounds="clip").fit_transform(
        scores, targets, sample_weight=weights
    )
    with np.errstate(divide="ignore"):
        costs = -np.log2(np.where(targets, posterior, 1 - posterior))
    expected = (costs[targets].mean() + costs[~targets].mean()) / 2
    assert min_cllr(scores, targets) == pytest.approx(expected, abs=1e-9)
    assert min_cllr(scores, targets) <= cllr(scores, targets)


def test_calibrated_gaussian_scores_cost_what_they_must():
    """Scores of +-d2/2 and variance d2 are their own log likelihood ratios."""
    generator = np.random.default_rng(1)
    targets = np.arange(400_000) % 2 == 0
    llrs = generator.normal(np.where(targets, 2.0, -2.0), 2.0)
    assert cllr(llrs, targets) == pytest.approx(min_cllr(llrs, targets), abs=2e-3)
    for p_target in (0.01, 0.5, 0.9):
        actual = actual_dcf(llrs, targets, p_target)
        least = min_dcf(llrs, targets, p_target)
        assert least <= actual <= least + 0.01
        assert actual_dcf(llrs + 2, targets, p_target) > actual + 0.02
    assert cllr(llrs + 1, targets) > cllr(llrs, targets) + 0.05


@pytest.mark.parametrize("seed", range(5))
def test_det_points_lie_on_the_curve(seed):
    scores, targets = tied_trials(seed)
    _, miss, false_alarm = error_rates(scores, targets)
    whole = set(zip(miss.tolist(), false_alarm.tolist(), strict=True))
    found = list(zip(*det_points(scores, targets, 50), strict=True))
    assert {(float(m), float(f)) for m, f in found} <= whole
    assert len(found) <= 50
    assert all(m > 0 and f > 0 for m, f in found)


# Intervals


def corpus_scores(
    generator: np.random.Generator, num_speakers: int, per_speaker: int
) -> tuple:
    """Scores of all pairs of utterances of speakers, some of whom vary more than
    others."""
    centres = generator.normal(size=(num_speakers, 6))
    spread = generator.uniform(0.3, 1.2, size=(num_speakers, 1, 1))
    shape = (num_speakers, per_speaker, 6)
    x = (centres[:, None] + spread * generator.normal(size=shape)).reshape(-1, 6)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    speakers = np.repeat(np.arange(num_speakers), per_speaker)
    first, second = np.triu_indices(len(x), 1)
    targets = speakers[first] == speakers[second]
    scores = (x[first] * x[second]).sum(1)
    return scores, targets, (speakers[first], speakers[second])


@pytest.mark.parametrize(("num_speakers", "least"), [(50, 0.88), (10, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_speakers, least):
    generator = np.random.default_rng(3)
    scores, targets, _ = corpus_scores(generator, 1500, 2)
    eer, dcf = equal_error_rate(scores, targets), min_dcf(scores, targets, 0.1)
    covered = np.zeros(2)
    for seed in range(200):
        trials = corpus_scores(generator, num_speakers, 6)
        intervals = bootstrap_speakers(*trials, 0.1, 1, 1, 100, seed)
        for i, (truth, interval) in enumerate(zip((eer, dcf), intervals, strict=True)):
            covered[i] += interval.low <= truth <= interval.high
    assert least <= covered[0] / 200 <= 0.99


def test_intervals_of_two_speakers_and_one_resample():
    trials = [0.9, 0.1, 0.2, 0.8], [1, 0, 0, 1]
    sides = [0, 0, 0, 1], [0, 1, 1, 1]
    for seed in range(20):  # half of all draws have no non-target trial
        eer, _ = bootstrap_speakers(*trials, sides, 0.01, 1, 1, 1, seed)
        assert (eer.low, eer.high) == (0, 0)


def test_intervals_of_rates_by_resampling_written_out():
    rng = np.random.default_rng(0)
    enrolled, tested = rng.integers(6, size=(2, 400))
    targets = enrolled == tested
    accepted = rng.random(400) < np.where(targets, 0.8, 0.1)
    found = bootstrap_rates(accepted, targets, (enrolled, tested), 2000, 1)
    rates, rng = [], np.random.default_rng(2)
    for _ in range(2000):
        drawn = rng.integers(6, size=6).tolist()
        weights = [
            drawn.count(i) * (1 if i == j else drawn.count(j))
            for i, j in zip(enrolled, tested, strict=True)
        ]
        rows = np.repeat(np.arange(400), weights)
        if 0 < targets[rows].sum() < len(rows):
            same = targets[rows]
            decided = accepted[rows]
            rates.append((1 - decided[same].mean(), decided[~same].mean()))
    low, high = np.quantile(rates, (0.025, 0.975), axis=0)
    for interval, *expected in zip(found, low, high, strict=True):
        assert [interval.low, interval.high] == pytest.approx(expected, abs=0.02)


# Refusals


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([], [], "targets: expected at least one target and one non-target trial"),
        ([0.1, 0.2], [1, 1], "got 2 and 0"),
        ([0.1, 0.2], [0, 0], "got 0 and 2"),
        ([0.1, 0.2], [0, 1, 1], r"one length, got shapes \(2,\) and \(3,\)"),
        ([[0.1, 0.2]], [[0, 1]], "one-dimensional"),
        ([0.1, np.nan, 0.3], [0, 1, 1], r"finite numbers, got nan \(1 of 3"),
        ([0.1, -np.inf], [0, 1], "finite numbers, got -inf"),
    ],
)
def test_refuses_trials(scores, targets, message):
    for metric in (error_rates, equal_error_rate, min_dcf):
        with pytest.raises(ValueError, match=message) as refusal:
            metric(scores, targets)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "operating_point", [{"p_target": 0}, {"p_target": 1}, {"c_miss": 0}, {"c_fa": -1}]
)
def test_refuses_operating_points(operating_point):
    with pytest.raises(ValueError, match="p_target between 0 and 1 and costs above 0"):
        min_dcf(*MIXED, **operating_point)
