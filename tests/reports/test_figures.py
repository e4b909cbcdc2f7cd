"""Figures: what is drawn, not how it looks."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from unittest.mock import Mock

import matplotlib.colors
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from plotly.offline import get_plotlyjs
from sklearn.decomposition import TruncatedSVD

from reports.figures import (
    MARKERS,
    MAX_SPEAKERS,
    SYSTEM_COLOURS,
    colour_spectrogram,
    draw_corpus,
    draw_curves,
    draw_det,
    draw_embeddings,
    draw_features,
    draw_scores,
    draw_sounds,
    draw_turns,
    map_embeddings,
    map_voices,
    project_svd,
    project_tsne,
    project_umap,
)
from teaching.live_curves import LiveCurves
from verification.metrics import det_points


@pytest.fixture
def clusters():
    """Thirty speakers of six utterances, each near its own direction."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 16))
    embeddings = np.repeat(centres, 6, 0) + rng.normal(size=(180, 16)) / 10
    speakers = [f"s{n:02}" for n in range(30) for _ in range(6)]
    return embeddings.astype(np.float32), speakers


def test_umap_leaves_torchs_threads_alone(clusters):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        project_umap(clusters[0][:30], seed=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_svd_is_scikit_learns(clusters):
    embeddings, _ = clusters
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    svd = TruncatedSVD(2, algorithm="arpack", random_state=0)
    expected = svd.fit_transform(unit - unit.mean(0))
    assert np.allclose(np.abs(project_svd(embeddings)), np.abs(expected), atol=1e-4)


@pytest.mark.parametrize("project", [project_umap, project_tsne])
def test_maps_are_seeded_and_keep_speakers_together(clusters, project):
    embeddings, speakers = clusters
    plane = project(embeddings, 1)
    assert np.array_equal(plane, project(embeddings, 1))
    nearest = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.fill_diagonal(nearest, np.inf)
    neighbours = np.array(speakers)[nearest.argmin(1)]
    assert (neighbours == speakers).mean() > 0.95


def test_every_utterance_of_24_speakers_is_drawn(clusters):
    embeddings, speakers = clusters
    systems = {"one": embeddings, "other": embeddings[::-1]}
    ways = ("SVD", "t-SNE")
    figure = draw_embeddings(systems, speakers, "A title", 1, ways)
    assert "A title" in figure.get_suptitle()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["one, SVD", "one, t-SNE", "other, SVD", "other, t-SNE"]
    for axes in figure.axes:
        drawn = [c.get_offsets() for c in axes.collections]
        assert len(drawn) == MAX_SPEAKERS
        assert all(len(points) == 6 for points in drawn)
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
        for c in figure.axes[0].collections
    }
    assert len(looks) == MAX_SPEAKERS


def test_a_corpus_in_three_histograms():
    seconds = [60.0, 60.0, 30.0, 90.0]
    genders = ["f", "f", "m", None]
    figure = draw_corpus(seconds, ["ann", "ann", "bob", "cat"], genders)
    assert figure.get_suptitle() == "0.1 h, 4 utterances of 3 speakers"
    durations, amounts, counts = figure.axes
    assert sum(bar.get_height() for bar in durations.patches) == 4
    assert [bar.get_height() for bar in amounts.patches] == [2.0, 1.5, 0.5]
    names = [text.get_text() for text in amounts.get_legend().get_texts()]
    assert names == ["1 women", "1 men", "1 gender unknown"]
    assert [bar.get_height() for bar in counts.patches] == [2, 1]


def test_features_share_their_time():
    steps = {"log-mel\nnats": np.eye(80, 200), "normalised": np.eye(40, 200)}
    figure = draw_features(steps, 0.01)
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert [image.get_extent() for image in images] == [[0, 2, 0, 80], [0, 2, 0, 40]]
    assert figure.axes[0].get_title(loc="left") == "log-mel"
    assert [axes.get_ylabel() for axes in figure.axes[2:]] == ["nats", ""]


def test_curves_leave_out_what_was_not_measured():
    epochs = [
        {"epoch": n, "train/loss": 3.0 - n, "train/accuracy": 0.2} for n in (1, 2)
    ]
    loss, accuracy = draw_curves({"run": epochs}).axes
    (trained,) = loss.get_lines()
    assert trained.get_xydata().tolist() == [[1, 2], [2, 1]]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")


def test_runs_of_different_lengths_share_an_axis():
    runs = {
        name: [{"epoch": n + 1, "train/loss": 1.0} for n in range(length)]
        for name, length in (("TitaNet, CE", 2), ("other", 4))
    }
    loss, _ = draw_curves(runs).axes
    short, long, *_ = loss.get_lines()
    assert short.get_xdata().tolist() == [0.5, 1]
    assert long.get_xdata().tolist() == [0.25, 0.5, 0.75, 1]
    assert short.get_color() == SYSTEM_COLOURS["TitaNet, CE"]
    assert loss.get_xlabel() == "share of training"


class Tags(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.ids, self.scripts, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def mapped(page: str) -> tuple[go.Figure, list[bytes]]:
    """The figure in a map, and the sound of each utterance."""

    def unpack(found: dict) -> dict | np.ndarray:
        if "bdata" not in found:
            return found
        return np.frombuffer(base64.b64decode(found["bdata"]), found["dtype"])

    figure = re.search(r"newPlot\(map, .* \.\.\.(.*)}\);\n", page)[1]
    sounds = json.loads(re.search(r"const sounds = (.*);\n", page)[1])
    decoded = [base64.b64decode(sound) for sound in sounds]
    return go.Figure(json.loads(figure, object_hook=unpack)), decoded


def test_speakers_look_alike_in_figure_and_map(clusters):
    embeddings, speakers = clusters
    plane = np.zeros((180, 2), np.float32)
    plane[:144] = project_svd(embeddings[:144])
    everybody = sorted(set(speakers))
    ids = [f"u{n}" for n in range(len(plane))]
    figure, _ = mapped(map_embeddings(plane, speakers, ids, "A title"))
    drawn = (
        draw_embeddings({"net": embeddings}, speakers, "A title", 1).axes[0].collections
    )
    assert [trace.name for trace in figure.data] == everybody
    assert len(everybody) > len(drawn) == MAX_SPEAKERS
    symbols = {}
    for trace, points in zip(figure.data, drawn, strict=False):
        assert trace.name == points.get_label()
        assert np.array_equal(np.stack([trace.x, trace.y], 1), points.get_offsets())
        colour = matplotlib.colors.to_hex(points.get_facecolor()[0])
        assert trace.marker.color.lower() == colour
        shape = points.get_paths()[0].vertices.tobytes()
        assert symbols.setdefault(shape, trace.marker.symbol) == trace.marker.symbol
        own = [name for name, s in zip(ids, speakers, strict=True) if s == trace.name]
        assert list(trace.text) == own
    assert list(symbols.values()) == list(MARKERS.values())[: len(symbols)]
    first, again = figure.data[0].marker, figure.data[MAX_SPEAKERS].marker
    assert (again.symbol, again.color) == (first.symbol, first.color)
    assert figure.layout.title.text == "A title"
    assert not figure.layout.showlegend  # of more speakers than have looks


def test_errors_are_lines_and_a_list():
    plane = np.array([[0, 1], [2, 3], [4, 5]], np.float32)
    errors = [("u3", "u1", "false alarm, 0.71"), ("u1", "u2", "miss, -0.02")]
    page = map_embeddings(
        plane, [*"aab"], ["u1", "u2", "u3"], "A title", {"u1": b"x"}, errors
    )
    lines = mapped(page)[0].data[0]
    assert np.array_equal(lines.x, [4, 0, np.nan, 0, 2, np.nan], equal_nan=True)
    assert np.array_equal(lines.y, [5, 1, np.nan, 1, 3, np.nan], equal_nan=True)
    one, other = re.findall("<li>(.*)</li>", page)
    button = '<button value="0">a · u1</button>'  # what can be heard
    assert one == f"false alarm, 0.71: b · u3 and {button}"
    assert other == f"miss, -0.02: {button} and a · u2"


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    """ "a' & <b>b</b> &lt; ${1} $key %{x} \\ \u2028""",
    "語 \udcff",  # a byte of a file name that is not UTF-8
)


@pytest.mark.parametrize("offline", [False, True])
def test_names_in_a_map_are_text(offline):
    plane = np.zeros((len(HOSTILE), 2), np.float32)
    sounds = dict.fromkeys(HOSTILE, b"sound")
    harmless = dict.fromkeys("abcd", b"sound")
    page, like = (
        map_embeddings(
            plane, names, names, names[0], sounds, [(names[1], names[2], "x")], offline
        )
        for names, sounds in ((HOSTILE, sounds), ([*"abcd"], harmless))
    )
    expected = Tags(like)
    assert Tags(page.encode().decode()).tags == expected.tags
    figure, _ = mapped(page)
    _, *points = figure.data
    assert {html.unescape(trace.name) for trace in points} == set(HOSTILE)
    for trace in points:
        assert "<" not in trace.name + trace.text[0]
        assert trace.text == (trace.name,)


def test_a_map_plays_the_sounds_that_there_are():
    plane, ids = np.zeros((3, 2), np.float32), ["u1", "u2", "u3"]
    page = map_embeddings(
        plane, [*"bab"], ids, "A title", {"u1": b"one", "u3": b"three"}
    )
    figure, sounds = mapped(page)
    assert sounds == [b"one", b"", b"three"]
    rows = {trace.name: list(trace.customdata) for trace in figure.data}
    assert rows == {"a": [1], "b": [0, 2]}
    assert "audio" in Tags(page).tags
    assert "hear" in Tags(page).text
    silent = map_embeddings(plane, [*"bab"], ids, "A title")
    assert not any(mapped(silent)[1])
    assert "audio" not in Tags(silent).tags
    assert "hear" not in Tags(silent).text


def test_maps_share_a_page():
    plane = np.zeros((1, 2), np.float32)
    one, other = (
        Tags(map_embeddings(plane, ["a"], ["a"], "A title")) for _ in range(2)
    )
    assert len({*one.ids, *other.ids}) == len(one.ids) + len(other.ids) == 2
    assert all(f"#{one.ids[0]} " in script for script in one.scripts)


def test_a_map_brings_its_script_or_names_it():
    plane = np.zeros((1, 2), np.float32)
    page = map_embeddings(plane, ["a"], ["a"], "A title", offline=True)
    assert page.startswith("<!DOCTYPE html>")
    script, drawing = Tags(page).scripts
    assert script == get_plotlyjs()
    assert "https:" not in drawing
    part = map_embeddings(plane, ["a"], ["a"], "A title")
    assert "https://cdn.plot.ly/plotly-" in part
    assert 'integrity: "sha256-' in part
    assert len(part) < 20_000


def test_sounds_are_drawn_on_common_scales():
    times = np.arange(16_000) / 16_000
    loud = np.sin(2 * np.pi * 2000 * times).astype(np.float32)
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
    assert spectrograms[0].get_xlabel() == "time (s)"


def test_a_coloured_spectrogram_shows_a_tone_where_it_is():
    times = np.arange(32_000) / 16_000
    loud = (10_000 * np.sin(2 * np.pi * 2000 * times)).astype(np.int16)
    picture = colour_spectrogram(loud, 16_000)
    assert picture.shape == (129, 201, 3)
    assert picture.dtype == np.uint8
    brightest = picture[:, 100].sum(1, dtype=int).argmax()
    assert 128 - brightest == 2000 / 8000 * 128  # 0 Hz is below
    louder = colour_spectrogram(3 * loud, 16_000)
    assert np.abs(louder[brightest].astype(int) - picture[brightest]).max() <= 1
    assert colour_spectrogram(np.zeros(8000, np.int16), 16_000).shape == (129, 51, 3)
    assert colour_spectrogram(np.tile(loud, 50), 16_000).shape[1] <= 601


def test_live_curves_grow_in_their_place():
    handle = Mock()
    curves = LiveCurves("run", handle)
    for epoch in (1, 2, 3):
        curves({"epoch": epoch, "train/loss": 1.0 / epoch, "train/accuracy": 0.5})
    calls = [(name, figure) for name, (figure,), _ in handle.mock_calls]
    assert [name for name, _ in calls] == ["display", "update", "update"]
    lines = [figure.axes[0].get_lines()[0] for _, figure in calls]
    assert [len(line.get_xdata()) for line in lines] == [1, 2, 3]


def test_live_curves_say_whether_a_run_was_trained_now():
    epochs = [{"epoch": n, "train/loss": 1.0} for n in (1, 2, 3)]
    loaded, trained, resumed = (LiveCurves("run", Mock()) for _ in range(3))
    assert loaded.finish(epochs) == "run: a finished run, loaded"
    for epoch in epochs:
        trained(epoch)
    assert re.fullmatch(
        r"run: 3 epochs trained and tested in [\d.]+ min", trained.finish(epochs)
    )
    resumed(epochs[2])
    assert resumed.finish(epochs).endswith(" min, after 2 of an earlier start")
    (figure,) = resumed.handle.mock_calls[-1].args
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == 3


def test_gaussian_scores_give_straight_det_curves():
    generator = np.random.default_rng(0)
    targets = np.arange(200_000) % 2 == 0
    scores = generator.normal(3.0 * targets)
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
    generator = np.random.default_rng(0)
    targets = np.arange(9000) % 9 == 0
    scores = generator.normal(4.0 * targets)
    systems = {"one": scores, "other": 2 * scores, "third": scores}
    figure = draw_scores(systems, targets, {"one": 2.0, "third": np.inf})
    for axes in figure.axes:
        for container in axes.containers:
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
    spans = [
        [
            (path.vertices[:, 0].min(), path.vertices[:, 0].max())
            for path in row.get_paths()
        ]
        for row in axes.collections
    ]
    assert spans == [[(6, 7)], [(0, 2), (8, 9)], [(2, 5)]]
    draw_turns([])  # nobody spoke


def test_voices_are_mapped_among_others():
    random = np.random.default_rng(0)
    others, ann, voice = (random.normal(size=size) for size in ((9, 2), (3, 2), 2))
    people = {"Ann": ann, "<b>&amp;": ann[:1]}
    traces = map_voices(others, people, voice).data
    names = ["training speakers", "Ann", "&lt;b&gt;&amp;amp;", "this voice"]
    assert [trace.name for trace in traces] == names
    for trace, places in zip(
        traces, (others, *people.values(), voice[None]), strict=True
    ):
        assert np.column_stack([trace.x, trace.y]) == pytest.approx(places)
    looks = {(t.marker.color, t.marker.symbol) for t in traces}
    assert len(looks) == len(traces)
