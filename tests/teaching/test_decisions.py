"""What the figures of losses and scores say, not how they look."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from losses import build_loss
from reports.style import NON_TARGET, TARGET
from teaching import decisions, remarks
from verification.metrics import OperatingPoint, equal_error_rate, min_dcf


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    targets = np.arange(500) < 100
    return rng.normal(size=500) + 2 * targets, targets


def test_a_dot_where_a_curve_bends():
    degrees = np.linspace(0, 180, 181)
    cosines = dict.fromkeys(("cosine", "one", "two", "three"), degrees)
    (axes,) = decisions.draw_target_cosines(degrees, cosines, {"one": 90}).axes
    (dot,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert dot.get_xydata().tolist() == [[90, 90]]


@pytest.mark.parametrize(
    ("name", "gap"),  # SphereFace: 1.5 a = pi / 2 - a, from the class vector
    [("cross_entropy", 0.0), ("arcface", 0.3), ("sphereface", math.pi / 10)],
)
def test_losses_on_a_circle(shipped, name, gap):
    criterion = build_loss(shipped(f"loss.name={name}").loss, 2, 2)
    angles = torch.linspace(-0.7, 0.7, 1401, dtype=torch.float64)
    vectors = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    losses = decisions.losses_on_circle(criterion, vectors, angles)
    assert torch.allclose(losses[:, 0], losses.flip(0)[:, 1], atol=1e-3)
    neither = (losses >= math.log(2)).all(1).sum().item() / 1000  # radians
    assert neither == pytest.approx(gap, abs=3e-3)


def test_ring_is_grey_where_both_losses_are_high():
    angles = np.radians(np.arange(-180, 180))
    losses = np.stack([np.where(angles > 0.5, 0.1, 2), np.where(angles < 0, 0, 2)], 1)
    vectors = np.array([[0.0, 1.0], [0.0, -2.0]], np.float32)
    circle, curve = decisions.draw_margins(angles, {"loss": losses}, vectors).axes
    ring = [(p.get_facecolor()[:3], p.theta2 - p.theta1) for p in circle.patches]
    assert [round(width) for _, width in ring] == [180, 29, 151]
    assert ring[1][0] == (0.85, 0.85, 0.85)
    assert [line.get_color() for line in curve.get_lines()[:2]] == [*decisions.VOICES]


def test_curves_of_trials_say_what_the_metrics_do(trials):
    above, below = decisions.draw_error_rates(*trials).axes
    (text,) = below.texts
    assert text.get_text() == f"EER {equal_error_rate(*trials):.1%}"
    misses, false_alarms = below.get_lines()[:2]
    assert (misses.get_color(), false_alarms.get_color()) == (TARGET, NON_TARGET)
    assert to_hex(TARGET) in {to_hex(p.get_facecolor()) for p in above.patches}
    (axes,) = decisions.draw_costs(*trials, (0.01, 0.5)).axes
    labels = {line.get_label() for line in axes.get_lines()}
    costs = {prior: min_dcf(*trials, OperatingPoint(prior)) for prior in (0.01, 0.5)}
    assert {f"prior {p:g}: minDCF {cost:.3f}" for p, cost in costs.items()} <= labels
    assert f"{equal_error_rate(*trials):.1%}: " in remarks.on_errors(*trials)
    # No evidence costs one bit.
    above, _ = decisions.draw_llr_costs(*trials).axes
    for line in above.get_lines()[:2]:
        assert np.interp(0, *line.get_data()) == pytest.approx(1, abs=0.01)


def test_normalised_by_the_nearest():
    cohort = np.concatenate([np.zeros(50), [0.2, 0.4]])
    first, _ = decisions.draw_normalisation({"a": cohort, "b": cohort}, 0.6, 2).axes
    title = "a: mean 0.30, deviation 0.100; the trial is at +3.0 deviations"
    assert first.get_title(loc="left") == title


def test_models_share_an_axis_of_scores(trials):
    scores, targets = trials
    models = {"one": scores / 9, "other": scores / 20}
    one, other = decisions.draw_ranges(models, targets).axes
    assert one.get_xlim() == other.get_xlim()
    assert sum(bar.get_height() for bar in one.patches) == pytest.approx(2)
    high = np.quantile(models["other"][~targets], 0.95)
    assert f"{high:.2f} for other" in remarks.on_ranges(models, targets)
