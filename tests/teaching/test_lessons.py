"""What the figures of the model and of its training say, not how they look."""

from unittest.mock import Mock

import numpy as np
import pytest

from models import Block
from teaching import lessons
from teaching.anatomy import Inside, Step
from teaching.live_curves import LiveCurves
from verification.metrics import equal_error_rate


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_source_is_that_of_the_file():
    shown = lessons.source_of(Block.forward, equal_error_rate)
    assert shown.startswith("`src/models.py`, lines ")
    assert "\n`src/verification/metrics.py`, lines " in shown
    assert "\ndef forward(self, x: Tensor" in shown
    assert shown.rstrip().endswith("```")


def test_a_player_for_each_sound():
    sounds = dict.fromkeys(("<a>", "b"), np.ones(800, np.int16))
    page = lessons.players(sounds, 8000)
    assert page.count("<audio controls") == 2
    assert "&lt;a&gt;" in page


def test_pipeline_names_every_step_and_every_part():
    steps = [Step("sound", (1, 8)), Step("block", (1, 2, 3), 70)]
    parts = [("deep", 1), ("point", 2), ("norm", 3)] * 3 + [("squeeze", 4), ("skip", 5)]
    (axes,) = lessons.draw_pipeline(steps, "block", parts).axes
    shown = texts(axes)
    assert {"[1, 8]", "[1, 2, 3]", "block\n70 weights", "squeeze: 4"} <= set(shown)
    assert shown.count("deep: 1") == shown.count("norm: 3") == 3
    assert any(text.startswith("skip") for text in shown)


def test_costs_in_multiples_and_fields_in_frames_and_milliseconds():
    (axes,) = lessons.draw_convolution_costs({7: (100, 250)}).axes
    assert texts(axes) == [" 250", " 100, 2.5 times fewer"]
    features = np.zeros((4, 200), np.float32)
    _, below = lessons.draw_receptive_fields([(3, 3), (7, 9)], features, 0.01).axes
    assert texts(below) == ["3 frames, 30 ms", "9 frames, 90 ms"]


def test_gates_measure_their_distance():
    gates = {"a": [np.zeros(4)], "b": [np.full(4, 0.25)], "c": [np.full(4, 0.5)]}
    figure = lessons.draw_gates(gates, ["block"])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"block\nmean difference {d}" for d in ("0.250", "0.500")]


def test_even_attention_is_one_and_pooling_shows_mean_and_deviation():
    frames = np.arange(20, dtype=np.float32).reshape(10, 2)
    inside = Inside([], frames, np.full((10, 2), 0.1), np.array([9.0, 10, 1, 2]))
    _, below = lessons.draw_attention(np.zeros((3, 10), np.float32), inside, 0.01).axes
    np.testing.assert_allclose(below.get_lines()[0].get_ydata(), 1)
    (axes,) = lessons.draw_pooling(inside, [1], 0.01).axes
    assert axes.get_title(loc="left") == "channel 1: mean 10.00, deviation 2.00"


@pytest.mark.parametrize("num_trained", [0, 1, 3])
def test_live_curves_grow_in_their_place_and_say_what_was_trained_now(num_trained):
    epochs = [{"epoch": n, "train/loss": 1 / n, "train/accuracy": 1} for n in (1, 2, 3)]
    curves = LiveCurves("run", handle := Mock())
    for epoch in epochs[3 - num_trained :]:
        curves(epoch)
    said = curves.finish(epochs)
    assert (f"{num_trained} epochs trained" in said) == (num_trained > 0)
    assert ("after 2 of an earlier start" in said) == (num_trained == 1)
    calls = ["display", "update", "update", "update"]
    assert [name for name, _, _ in handle.mock_calls] == calls[: num_trained + 1]
    lines = [figure.axes[0].get_lines()[0] for _, (figure,), _ in handle.mock_calls]
    counts = [*range(1, num_trained + 1), 3]
    assert [len(line.get_xdata()) for line in lines] == counts
