"""Scores against definitions written out, calibration against what must come out."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from verification.calibration import calibrate
from verification.metrics import cllr, min_cllr, rates_at
from verification.scoring import Backend, as_norm, cosine_scores, unit
from verification.trials import Trials, make_trials

TRIALS = make_trials([str(n // 5) for n in range(30)], 10**6, 0)


def test_cosines_are_cosines():
    embeddings = torch.randn(30, 8)
    sides = (embeddings[torch.from_numpy(s)] for s in (TRIALS.enrolment, TRIALS.test))
    expected = F.cosine_similarity(*(side.double() for side in sides))
    scores = cosine_scores(embeddings, TRIALS)
    assert np.allclose(scores, expected.numpy(), atol=1e-12)
    longer = embeddings * torch.rand(30, 1)
    assert np.allclose(cosine_scores(longer, TRIALS), scores, atol=1e-6)


def test_unit_vectors_have_length_1_but_zeros_stay():
    assert np.allclose(unit(np.array([[3, 4], [0, 0]])), [[0.6, 0.8], [0, 0]])


def test_as_norm_by_definition():
    embeddings, cohort, top = torch.randn(30, 8), torch.randn(12, 8), 5
    scores = cosine_scores(embeddings, TRIALS)
    normalised = as_norm(scores, embeddings, TRIALS, cohort, top)
    cosines = F.cosine_similarity(embeddings[:, None], cohort, dim=2).numpy()
    nearest = np.sort(cosines)[:, -top:]
    for k in (0, 17, 100):
        sides = [nearest[TRIALS.enrolment[k]], nearest[TRIALS.test[k]]]
        z_scores = [(scores[k] - side.mean()) / side.std() for side in sides]
        assert normalised[k] == pytest.approx(np.mean(z_scores), rel=1e-4)
    swapped = Trials(TRIALS.test, TRIALS.enrolment, TRIALS.targets)
    again = as_norm(scores, 3 * embeddings, swapped, 7 * cohort, top)
    assert np.allclose(again, normalised)
    # A cohort smaller than `top` serves whole.
    whole, beyond = (as_norm(scores, embeddings, TRIALS, cohort, n) for n in (12, 99))
    assert np.array_equal(beyond, whole)


def test_a_backend_without_a_cohort_leaves_cosines():
    embeddings = torch.randn(30, 8)
    scores = Backend.unfitted(8).scores(embeddings, TRIALS, 5)
    assert list(scores) == ["trained"]
    assert np.array_equal(scores["trained"], cosine_scores(embeddings, TRIALS))


def test_backend_of_an_earlier_version_opens():
    calibration = calibrate([(np.arange(9.0), np.arange(9) > 5)], 0.1)
    values = Backend(torch.eye(2), {"trained": calibration}, ["development"]).as_dict()
    assert Backend.from_dict(values).calibrations["trained"] == calibration
    del values["calibrations"]["trained"]["strict"], values["calibrated_on"]
    assert Backend.from_dict(values).calibrations["trained"].strict is None
    assert Backend.from_dict(values).calibrated_on == ["development"]


def test_calibration_finds_gaussian_likelihood_ratios():
    targets = np.arange(200_000) % 5 == 0
    llrs = np.random.default_rng(1).normal(np.where(targets, 2.0, -2.0), 2.0)
    calibration = calibrate([(llrs / 3 + 0.7, targets)], 0.01)
    assert astuple(calibration)[:2] == pytest.approx((3, -2.1), rel=0.02)
    calibrated = calibration.llrs(llrs / 3 + 0.7)
    assert cllr(calibrated, targets) == pytest.approx(min_cllr(llrs, targets), abs=2e-3)
    rates = calibration.miss, calibration.false_alarm
    assert rates_at(calibration.threshold, calibrated, targets) == pytest.approx(rates)
    strict = rates_at(calibration.strict, calibrated, targets)
    assert 0.01 - 1e-4 < rates[1] <= 0.01
    assert 0.001 - 1e-4 < strict[1] <= 0.001


def test_calibration_of_scores_that_separate_stays_finite():
    scores, targets = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1], bool)
    calibration = calibrate([(scores, targets)], 0.1)
    assert np.isfinite(astuple(calibration)[:3]).all()
    assert (calibration.miss, calibration.false_alarm) == (0, 0)


@pytest.mark.parametrize("score", [0.0, 0.3, -2.0])
def test_calibration_of_scores_that_are_all_the_same(score):
    calibration = calibrate([(np.full(20, score), np.arange(20) % 4 == 0)], 0.1)
    assert np.abs(calibration.llrs(np.array([score]))) < 1e-6
    assert (calibration.miss, calibration.false_alarm) == (1, 0)
    assert calibration.threshold_of_scores == np.inf  # which rejects all


def test_every_corpus_weighs_alike_in_a_calibration():
    generator = np.random.default_rng(1)
    corpora = []
    for count, shift in ((300, 0.0), (3000, 1.0)):
        targets = generator.random(count) < 0.3
        corpora.append((generator.normal(2.0 * targets + shift), targets))
    calibration = calibrate(corpora, 0.05)
    small, large = corpora
    again = calibrate([[values.repeat(20) for values in small], large], 0.05)
    expected = astuple(calibration)[:3]  # scale, offset, threshold
    assert astuple(again)[:3] == pytest.approx(expected, rel=1e-4)
    llrs = [(calibration.llrs(scores), targets) for scores, targets in corpora]
    rates = np.mean([rates_at(calibration.threshold, *corpus) for corpus in llrs], 0)
    assert rates == pytest.approx([calibration.miss, calibration.false_alarm])
    assert 0.045 < rates[1] <= 0.05
    assert calibration.scale != pytest.approx(calibrate([large], 0.05).scale, rel=0.05)
