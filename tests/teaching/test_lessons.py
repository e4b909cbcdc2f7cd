"""What the notebook's figures say, not how they look."""

import matplotlib.colors
import numpy as np
import pytest

from models import Block
from reports.figures import NON_TARGET, TARGET
from teaching.anatomy import Inside, Step
from teaching.lessons import (
    VOICES,
    draw_attention,
    draw_convolution_costs,
    draw_costs,
    draw_error_rates,
    draw_gates,
    draw_llr_costs,
    draw_margins,
    draw_normalisation,
    draw_pipeline,
    draw_pooling,
    draw_receptive_fields,
    draw_target_cosines,
    players,
    source_of,
)
from verification.metrics import equal_error_rate, min_dcf


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    targets = np.arange(500) < 100
    return rng.normal(size=500) + 2 * targets, targets


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_source_is_that_of_the_file():
    shown = source_of(Block.forward)
    assert shown.startswith("`src/models.py`, lines ")
    assert "\ndef forward(self, x: Tensor" in shown
    assert shown.rstrip().endswith("```")


def test_a_player_for_each_sound():
    page = players({"<a>": np.zeros(800, np.int16), "b": np.ones(800, np.int16)}, 8000)
    assert page.count("<audio controls") == 2
    assert "&lt;a&gt;" in page


def test_pipeline_names_every_step_and_every_part():
    steps = [Step("sound", (1, 8)), Step("block", (1, 2, 3), 70)]
    parts = [("deep", 1), ("point", 2), ("norm", 3)] * 3 + [("squeeze", 4), ("skip", 5)]
    (axes,) = draw_pipeline(steps, "block", parts).axes
    shown = texts(axes)
    assert {"[1, 8]", "[1, 2, 3]", "block\n70 weights", "squeeze: 4"} <= set(shown)
    assert shown.count("deep: 1") == shown.count("norm: 3") == 3
    assert any(text.startswith("skip") for text in shown)


def test_costs_say_how_many_times_fewer():
    (axes,) = draw_convolution_costs({7: (100, 250)}).axes
    assert texts(axes) == [" 250", " 100, 2.5 times fewer"]


def test_fields_in_frames_and_milliseconds():
    fields = [(3, 3), (7, 9)]
    _, below = draw_receptive_fields(fields, np.zeros((4, 200), np.float32), 0.01).axes
    assert texts(below) == ["3 frames, 30 ms", "9 frames, 90 ms"]


def test_gates_measure_their_distance():
    gates = {"a": [np.zeros(4)], "b": [np.full(4, 0.25)], "c": [np.full(4, 0.5)]}
    titles = [axes.get_title(loc="left") for axes in draw_gates(gates, ["block"]).axes]
    assert titles == [f"block\nmean difference {d}" for d in ("0.250", "0.500")]


@pytest.fixture
def inside() -> Inside:
    frames = np.arange(20, dtype=np.float32).reshape(10, 2)
    return Inside([], frames, np.full((10, 2), 0.1), np.array([9.0, 10, 1, 2]))


def test_even_attention_is_one(inside):
    _, below = draw_attention(np.zeros((3, 10), np.float32), inside, 0.01).axes
    np.testing.assert_allclose(below.get_lines()[0].get_ydata(), 1)


def test_pooling_shows_mean_and_deviation(inside):
    (axes,) = draw_pooling(inside, [1], 0.01).axes
    assert axes.get_title(loc="left") == "channel 1: mean 10.00, deviation 2.00"


def test_a_dot_where_a_curve_bends():
    degrees = np.linspace(0, 180, 181)
    names = ("cosine", "one", "two", "three")
    (axes,) = draw_target_cosines(
        degrees, dict.fromkeys(names, degrees), {"one": 90}
    ).axes
    (dot,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert dot.get_xydata().tolist() == [[90, 90]]


def test_ring_is_grey_where_no_loss_is_content():
    angles = np.radians(np.arange(-180, 180))
    losses = np.stack([np.where(angles > 0.5, 0.1, 2), np.where(angles < 0, 0, 2)], 1)
    vectors = np.array([[0.0, 1.0], [0.0, -2.0]], np.float32)
    circle, curve = draw_margins(angles, {"loss": losses}, vectors).axes
    ring = [(p.get_facecolor()[:3], p.theta2 - p.theta1) for p in circle.patches]
    assert [round(width) for _, width in ring] == [180, 29, 151]
    assert ring[1][0] == (0.85, 0.85, 0.85)
    assert [line.get_color() for line in curve.get_lines()[:2]] == [*VOICES]


def test_equal_error_rate_is_where_the_curves_cross(trials):
    above, below = draw_error_rates(*trials).axes
    assert texts(below) == [f"EER {equal_error_rate(*trials):.1%}"]
    misses, false_alarms = below.get_lines()[:2]
    assert (misses.get_color(), false_alarms.get_color()) == (TARGET, NON_TARGET)
    colours = {matplotlib.colors.to_hex(p.get_facecolor()) for p in above.patches}
    assert matplotlib.colors.to_hex(TARGET) in colours


def test_costs_are_those_of_the_metric(trials):
    (axes,) = draw_costs(*trials, (0.01, 0.5)).axes
    labels = [line.get_label() for line in axes.get_lines()]
    for prior in (0.01, 0.5):
        cost = min_dcf(*trials, prior)
        assert f"prior {prior:g}: minDCF {cost:.3f}" in labels


def test_no_evidence_costs_one_bit(trials):
    above, _ = draw_llr_costs(*trials).axes
    for line in above.get_lines()[:2]:
        assert np.interp(0, *line.get_data()) == pytest.approx(1, abs=0.01)


def test_normalised_by_the_nearest():
    cohort = np.concatenate([np.zeros(50), [0.2, 0.4]])
    first, _ = draw_normalisation({"a": cohort, "b": cohort}, 0.6, 2).axes
    assert first.get_title(loc="left") == (
        "a: mean 0.30, deviation 0.100; the trial is at +3.0 deviations"
    )
