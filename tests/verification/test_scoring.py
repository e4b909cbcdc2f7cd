"""Scores against definitions written out, calibration against what must come out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from verification.calibration import calibrate
from verification.metrics import cllr, min_cllr, rates_at
from verification.scoring import Backend, as_norm, cosine_scores
from verification.trials import make_trials


@pytest.fixture
def some():
    embeddings = torch.randn(30, 8)
    trials = make_trials([str(n // 5) for n in range(30)], 10**6, 0)
    return embeddings, trials


def test_cosines_are_cosines(some):
    embeddings, trials = some
    expected = F.cosine_similarity(
        embeddings[torch.from_numpy(trials.enrolment)].double(),
        embeddings[torch.from_numpy(trials.test)].double(),
    )
    assert np.allclose(cosine_scores(embeddings, trials), expected.numpy(), atol=1e-12)
    longer = embeddings * torch.rand(30, 1)
    found = cosine_scores(longer, trials)
    assert np.allclose(found, cosine_scores(embeddings, trials), atol=1e-6)


def test_as_norm_by_definition(some):
    embeddings, trials = some
    cohort, top = torch.randn(12, 8), 5
    scores = cosine_scores(embeddings, trials)
    found = as_norm(scores, embeddings, trials, cohort, top)
    for k in (0, 17, 100):
        parts = []
        for side in (trials.enrolment[k], trials.test[k]):
            cosines = F.cosine_similarity(embeddings[side][None], cohort).numpy()
            nearest = np.sort(cosines)[-top:]
            parts.append((scores[k] - nearest.mean()) / nearest.std())
        assert found[k] == pytest.approx(sum(parts) / 2, rel=1e-4)


def test_as_norm_is_symmetric_and_forgets_scale(some):
    embeddings, trials = some
    cohort = torch.randn(12, 8)
    scores = cosine_scores(embeddings, trials)
    found = as_norm(scores, embeddings, trials, cohort, 5)
    turned = type(trials)(trials.test, trials.enrolment, trials.targets)
    assert np.allclose(as_norm(scores, embeddings, turned, cohort, 5), found)
    assert np.allclose(as_norm(scores, 3 * embeddings, trials, 7 * cohort, 5), found)
    # A cohort smaller than `top` serves whole.
    whole = as_norm(scores, embeddings, trials, cohort, 12)
    assert np.allclose(as_norm(scores, embeddings, trials, cohort, 99), whole)


def test_calibration_finds_gaussian_likelihood_ratios():
    generator = np.random.default_rng(1)
    targets = np.arange(200_000) % 5 == 0
    llrs = generator.normal(np.where(targets, 2.0, -2.0), 2.0)
    found = calibrate([(llrs / 3 + 0.7, targets)], 0.01)
    assert found.scale == pytest.approx(3, rel=0.02)
    assert found.offset == pytest.approx(-2.1, rel=0.02)
    assert found.false_alarm <= 0.01
    assert found.false_alarm == pytest.approx(0.01, abs=1e-4)
    calibrated = found.llrs(llrs / 3 + 0.7)
    assert cllr(calibrated, targets) == pytest.approx(min_cllr(llrs, targets), abs=2e-3)
    assert (calibrated >= found.threshold)[targets].mean() == pytest.approx(
        1 - found.miss
    )
    strict_false_alarm = (calibrated >= found.strict)[~targets].mean()
    assert strict_false_alarm <= 0.001
    assert strict_false_alarm == pytest.approx(0.001, abs=1e-4)


def test_backend_of_an_earlier_version_opens():
    calibration = calibrate([(np.arange(9.0), np.arange(9) > 5)], 0.1)
    values = Backend(torch.eye(2), {"trained": calibration}, ["development"]).as_dict()
    assert Backend.from_dict(values).calibrations["trained"] == calibration
    del values["calibrations"]["trained"]["strict"]
    assert Backend.from_dict(values).calibrations["trained"].strict is None


def test_calibration_of_scores_that_separate_stays_finite():
    found = calibrate(
        [(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1], bool))], 0.1
    )
    assert np.isfinite([found.scale, found.offset, found.threshold]).all()
    assert (found.miss, found.false_alarm) == (0, 0)


@pytest.mark.parametrize("score", [0.0, 0.3, -2.0])
def test_calibration_of_scores_that_are_all_the_same(score):
    targets = np.arange(20) % 4 == 0
    found = calibrate([(np.full(20, score), targets)], 0.1)
    assert np.abs(found.llrs(np.array([score]))) < 1e-6
    assert (found.miss, found.false_alarm) == (1, 0)
    assert found.threshold_of_scores == np.inf  # which rejects them, as it should


def test_every_corpus_weighs_alike_in_a_calibration():
    generator = np.random.default_rng(1)
    parts = []
    for count, shift in ((300, 0.0), (3000, 1.0)):
        targets = generator.random(count) < 0.3
        parts.append((generator.normal(2.0 * targets + shift), targets))
    found = calibrate(parts, 0.05)
    small, large = parts
    larger = [values.repeat(20) for values in small]
    again = calibrate([larger, large], 0.05)
    assert again.scale == pytest.approx(found.scale, rel=1e-4)
    assert again.offset == pytest.approx(found.offset, rel=1e-4)
    assert again.threshold == pytest.approx(found.threshold, rel=1e-4)
    rates = [rates_at(found.threshold, found.llrs(s), t) for s, t in parts]
    assert np.mean(rates, axis=0) == pytest.approx([found.miss, found.false_alarm])
    assert 0.045 < found.false_alarm <= 0.05
    assert found.scale != pytest.approx(calibrate([large], 0.05).scale, rel=0.05)
