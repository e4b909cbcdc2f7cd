"""Figures: what is drawn, not how it looks."""

import subprocess
import sys

import numpy as np
import pytest

from conftest import REPOSITORY, tone
from reports.figures import (
    draw_curves,
    draw_det,
    draw_scores,
    draw_sounds,
    draw_turns,
)
from reports.spectrogram import colour_spectrogram
from reports.style import SYSTEM_COLOURS
from verification.metrics import det_points


def test_a_training_curve_needs_nothing_that_draws_maps():
    slow = {"plotly", "sklearn", "umap"}
    code = f"import sys, reports.figures; print({slow} & set(sys.modules))"
    done = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY / "src")
    assert done == b"set()\n"


def test_sounds_are_drawn_on_common_scales():
    loud = tone(1, hertz=2000, amplitude=1).astype(np.float32)
    quiet = np.concatenate([np.zeros(4000, np.float32), 0.1 * loud])
    figure = draw_sounds({"before": loud, "after": quiet}, 16_000)
    waves, spectrograms = figure.axes[:2], figure.axes[2:4]
    assert [axes.get_title(loc="left") for axes in waves] == ["before", "after"]
    assert waves[0].get_ylim() == waves[1].get_ylim()
    assert waves[0].get_xlim() == spectrograms[1].get_xlim() == (0, 1.25)
    levels = [axes.images[0].get_array() for axes in spectrograms]
    for image, loudest in zip(levels, (0, -20), strict=True):
        rows = np.ma.filled(image, -np.inf).max(1)[::-1]  # drawn from the top
        assert rows.argmax() == pytest.approx(2000 / 8000 * (len(rows) - 1), abs=1)
        assert rows.max() == pytest.approx(20 * np.log10(0.5) + loudest, abs=0.5)
    assert spectrograms[0].images[0].get_clim() == spectrograms[1].images[0].get_clim()


def test_a_coloured_spectrogram_shows_a_tone_where_it_is():
    loud = tone(2, hertz=2000, amplitude=10_000).astype(np.int16)
    picture = colour_spectrogram(loud, 16_000)
    assert (picture.shape, picture.dtype) == ((129, 201, 3), np.uint8)
    brightest = picture[:, 100].sum(1, dtype=int).argmax()
    assert 128 - brightest == 2000 / 8000 * 128  # 0 Hz is below
    louder = colour_spectrogram(3 * loud, 16_000)
    assert np.abs(louder[brightest].astype(int) - picture[brightest]).max() <= 1
    assert colour_spectrogram(np.zeros(8000, np.int16), 16_000).shape == (129, 51, 3)
    assert colour_spectrogram(np.tile(loud, 50), 16_000).shape[1] <= 601


def test_curves_leave_out_what_was_not_measured():
    one = {"epoch": 1, "train/loss": 2.0, "train/accuracy": 0.2}
    epochs = [one, one | {"epoch": 2, "train/loss": 1.0}]
    loss, accuracy = draw_curves({"run": epochs}).axes
    (trained,) = loss.get_lines()
    assert trained.get_xydata().tolist() == [[1, 2], [2, 1]]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")


def test_runs_of_different_lengths_share_an_axis():
    epochs = [{"epoch": n, "train/loss": 1.0} for n in (1, 2, 3, 4)]
    runs = {"TitaNet, CE": epochs[:2], "other": epochs}
    loss, _ = draw_curves(runs).axes
    short, long, *_ = loss.get_lines()
    assert short.get_xdata().tolist() == [0.5, 1]
    assert long.get_xdata().tolist() == [0.25, 0.5, 0.75, 1]
    assert short.get_color() == SYSTEM_COLOURS["TitaNet, CE"]


def test_gaussian_scores_give_straight_det_curves():
    targets = np.arange(200_000) % 2 == 0
    scores = np.random.default_rng(0).normal(3.0 * targets)
    curves = {name: det_points(scores, targets) for name in ("one", "other")}
    axes = draw_det(curves).axes[0]
    diagonal, line, other = axes.get_lines()
    x, y = line.get_data()
    inner = (np.abs(x) < 2.3) & (np.abs(y) < 2.3)  # further out trials are few
    assert np.abs(x + y + 3.0)[inner].max() < 0.1
    assert line.get_label() == "one"
    assert line.get_color() != other.get_color()
    assert np.array_equal(*diagonal.get_data())
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:3] == ["0.1", "0.5", "2"]


def test_scores_are_drawn_as_densities():
    targets = np.arange(9000) % 9 == 0
    scores = np.random.default_rng(0).normal(4.0 * targets)
    systems = {"one": scores, "other": 2 * scores, "third": scores}
    figure = draw_scores(systems, targets, {"one": 2.0, "third": np.inf})
    for container in (c for axes in figure.axes for c in axes.containers):
        area = sum(bar.get_height() * bar.get_width() for bar in container)
        assert area == pytest.approx(1)
    one, other, third = figure.axes
    assert one.get_lines()[0].get_xdata() == [2.0, 2.0]
    assert not [*other.get_lines(), *third.get_lines()]
    names = [text.get_text() for text in one.get_legend().get_texts()]
    assert set(names) == {"non-target trials", "target trials", "threshold"}


def test_turns_have_a_row_for_each_person():
    turns = [(0.0, 2.0, "ben"), (2.0, 5.0, None), (6.0, 7.0, "ann"), (8.0, 9.0, "ben")]
    (axes,) = draw_turns(turns).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["ann", "ben", "unknown"]
    corners = [[p.vertices[:, 0] for p in c.get_paths()] for c in axes.collections]
    spans = [[(x.min(), x.max()) for x in row] for row in corners]
    assert spans == [[(6, 7)], [(0, 2), (8, 9)], [(2, 5)]]
    draw_turns([])  # nobody spoke


@pytest.mark.filterwarnings("error")
def test_names_of_any_script_are_drawn(tmp_path):
    names = ["$x_$ $", "\u674e", "\u0915\u094d\u200d\u0937", "\u6f22"]
    figure = draw_turns([(n, n + 1, name) for n, name in enumerate(names)])
    figure.savefig(tmp_path / "turns.png")
    drawn = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert "$x_$ $" in drawn
    assert drawn & {"\u674e", r"\u674e"}  # escaped where no font has it
