"""What the figures of the model and of its training say, not how they look."""

import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import wandb

from conftest import REPOSITORY
from models import Block, build_encoder
from teaching import lessons, live_curves
from teaching.anatomy import layers
from teaching.live_curves import LiveCurves, draw_panels, log_comparison, train_live
from verification.metrics import equal_error_rate


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_equal_numbers_link_the_lines_that_they_equal():
    shown = lessons.agrees([1, 2], torch.tensor([1.0, 2.000001]), Block.forward)
    path, lines = re.search(r"\((\S+)#L(\d+-L\d+)\)", shown).groups()
    first, last = map(int, lines.split("-L"))
    listing = (REPOSITORY / path).read_text().splitlines()[first - 1 : last]
    assert "def forward(" in listing[0]
    assert listing[-1].strip().startswith("return")
    assert "metrics.py" in lessons.agrees(0, 0, equal_error_rate)
    for off in ([1, 2.1], [1, 2, 3]):
        with pytest.raises(AssertionError):
            lessons.agrees([1, 2], off, Block)


def test_a_remark_is_text_in_a_box():
    assert lessons.remark("a < b.", "c").endswith(" a &lt; b. c</div>")


def test_a_player_for_each_sound():
    sounds = dict.fromkeys(("<a>", "b"), np.ones(800, np.int16))
    page = lessons.players(sounds, 8000)
    assert page.count("<audio controls") == 2
    assert "&lt;a&gt;" in page


def test_the_picture_of_the_d_vector_has_its_layers(shipped):
    encoder = build_encoder(shipped("model.name=dvector").model, 80)
    (axes,) = lessons.draw_dvector(layers(encoder), 80).axes
    shown = texts(axes)
    assert shown.count("LSTM") == 4 * encoder.lstm.num_layers
    assert {"80 log-mel bands", "$x_{160}$"} <= set(shown)


def test_costs_in_multiples_and_fields_in_frames_and_milliseconds():
    (axes,) = lessons.draw_convolution_costs({7: (100, 250)}).axes
    assert texts(axes) == [" 250", " 100, 2.5 times fewer"]
    features = np.zeros((4, 200), np.float32)
    fields = [(3, 3), (7, 9)]
    _, below, bar = lessons.draw_receptive_fields(fields, features, 0.01).axes
    assert texts(below) == ["3 frames, 30 ms", "9 frames, 90 ms"]
    assert bar.get_ylabel() == "log-mel"


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


def test_losses_that_cannot_be_compared_share_no_axis():
    epochs = [{"epoch": n, "train/loss": 9 / n, "train/accuracy": 1} for n in (1, 2)]
    histories = {"one": epochs, "other": epochs * 2}
    same = draw_panels(histories, {"one": "cross_entropy", "other": "cross_entropy"})
    assert len(same.axes) == 4
    assert len(same.axes[0].get_lines()) == 2
    figure = draw_panels(histories, {"one": "cross_entropy", "other": "arcface"})
    counts = [len(axes.get_lines()) for axes in figure.axes]
    assert counts == [1, 1, 1, 1, 2, 2]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "cross-entropy loss, training"
    assert titles[3] == "ArcFace loss, validation"
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("logged", "has_folder", "said"),
    [
        ("W&B: logging to https://w/1", True, "W&B: logging to https://w/1"),
        ("W&B: offline", True, "to see it: wandb leet"),
        ("", False, "W&B: disabled"),
    ],
)
def test_a_training_says_where_wandb_shows_it(
    tmp_path, monkeypatch, capsys, logged, has_folder, said
):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "train/loss": 1}\n')
    if has_folder:
        (tmp_path / "wandb").mkdir()

    def train(parameters, watch):
        print(logged)
        return tmp_path

    monkeypatch.setattr(live_curves, "train_once", train)
    assert train_live("run", None, Mock()) == tmp_path
    assert said in capsys.readouterr().out


def test_a_comparison_is_a_page_beside_the_runs(miniature, capsys):
    p = miniature("wandb.mode=offline")
    log_comparison(p, "<table>one and other</table>")
    folder = p.run.directory / "comparison" / "wandb"
    assert f"wandb leet {folder}\n" in capsys.readouterr().out
    (panel,) = folder.rglob("media/html/results/comparison*.html")
    assert panel.read_text().endswith("<table>one and other</table>")
    wandb.teardown()  # has all written
    (log,) = folder.rglob("*.wandb")
    assert p.run.directory.name.encode() in log.read_bytes()  # the group
