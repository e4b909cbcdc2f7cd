"""Interactive maps: what is drawn, heard and listed."""

import base64
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from reports.maps import map_embeddings, map_voices
from reports.projections import draw_embeddings, project_svd
from reports.style import MARKERS, MAX_SPEAKERS

ORIGIN = np.zeros((4, 2), np.float32)


class Tags(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.ids, self.scripts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def mapped(page: str) -> tuple[go.Figure, list[bytes]]:
    """The figure in a map, and the sound of each utterance."""

    def unpack(values: dict) -> dict | np.ndarray:
        if "bdata" not in values:
            return values
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])

    figure = re.search(r"newPlot\(map, .* \.\.\.(.*)}\);\n", page)[1]
    sounds = json.loads(re.search(r"const sounds = (.*);\n", page)[1])
    decoded = [base64.b64decode(sound) for sound in sounds]
    return go.Figure(json.loads(figure, object_hook=unpack)), decoded


def test_speakers_look_alike_in_figure_and_map():
    embeddings = np.random.default_rng(0).normal(size=(180, 16)).astype(np.float32)
    speakers = [f"s{n:02}" for n in range(30) for _ in range(6)]
    plane = np.zeros((180, 2), np.float32)
    plane[:144] = project_svd(embeddings[:144])
    ids = [f"u{n}" for n in range(180)]
    figure, _ = mapped(map_embeddings(plane, speakers, ids, "A title"))
    axes, *_ = draw_embeddings({"net": embeddings}, speakers, "A", 1, ("SVD",)).axes
    assert [trace.name for trace in figure.data] == sorted(set(speakers))
    assert len(figure.data) > len(axes.collections) == MAX_SPEAKERS
    symbols = {}
    for trace, points in zip(figure.data, axes.collections, strict=False):
        assert np.stack([trace.x, trace.y], 1) == pytest.approx(points.get_offsets())
        colour = to_hex(points.get_facecolor()[0])
        assert (trace.name, trace.marker.color.lower()) == (points.get_label(), colour)
        shape = points.get_paths()[0].vertices.tobytes()
        assert symbols.setdefault(shape, trace.marker.symbol) == trace.marker.symbol
        assert list(trace.text) == [f"u{6 * int(trace.name[1:]) + n}" for n in range(6)]
    assert list(symbols.values()) == list(MARKERS.values())[: len(symbols)]
    first, again = figure.data[0].marker, figure.data[MAX_SPEAKERS].marker
    assert (again.symbol, again.color) == (first.symbol, first.color)
    assert figure.layout.title.text == "A title"
    assert not figure.layout.showlegend  # of more speakers than have looks


def test_errors_are_lines_and_a_list():
    plane = np.array([[0, 1], [2, 3], [4, 5]], np.float32)
    errors = [("u3", "u1", "false alarm, 0.71"), ("u1", "u2", "miss, -0.02")]
    ids, sounds = ["u1", "u2", "u3"], {"u1": b"x"}
    page = map_embeddings(plane, [*"aab"], ids, "A title", sounds, errors)
    lines = mapped(page)[0].data[0]
    assert np.array_equal(lines.x, [4, 0, np.nan, 0, 2, np.nan], equal_nan=True)
    assert np.array_equal(lines.y, [5, 1, np.nan, 1, 3, np.nan], equal_nan=True)
    button = '<button value="0">a · u1</button>'  # what can be heard
    assert re.findall("<li>(.*)</li>", page) == [
        f"false alarm, 0.71: b · u3 and {button}",
        f"miss, -0.02: {button} and a · u2",
    ]


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    """ "a' & <b>b</b> &lt; ${1} $key %{x} \\ \u2028""",
    "語 \udcff",  # a byte of a file name that is not UTF-8
)


def test_names_in_a_map_are_text():
    def page_of(names) -> str:
        sounds, errors = dict.fromkeys(names, b"sound"), [(names[1], names[2], "x")]
        return map_embeddings(ORIGIN, names, names, names[0], sounds, errors)

    page = page_of(HOSTILE)
    assert Tags(page.encode().decode()).tags == Tags(page_of("abcd")).tags
    _, *points = mapped(page)[0].data
    assert {html.unescape(trace.name) for trace in points} == set(HOSTILE)
    for trace in points:
        assert "<" not in trace.name
        assert trace.text == (trace.name,)


def test_a_map_plays_the_sounds_that_there_are():
    arguments = ORIGIN[:3], [*"bab"], ["u1", "u2", "u3"], "A title"
    page = map_embeddings(*arguments, {"u1": b"one", "u3": b"three"})
    figure, sounds = mapped(page)
    assert sounds == [b"one", b"", b"three"]
    rows = {trace.name: list(trace.customdata) for trace in figure.data}
    assert rows == {"a": [1], "b": [0, 2]}
    silent = map_embeddings(*arguments)
    assert not any(mapped(silent)[1])
    assert ["audio" in Tags(one).tags for one in (page, silent)] == [True, False]


def test_a_map_is_a_page_with_its_script():
    page = map_embeddings(ORIGIN[:1], ["a"], ["a"], "A title")
    assert page.startswith("<!DOCTYPE html>")
    script, drawing = Tags(page).scripts
    assert script == get_plotlyjs()
    assert "https:" not in drawing


def test_voices_are_mapped_among_others():
    random = np.random.default_rng(0)
    others, ann, voice = (random.normal(size=size) for size in ((9, 2), (3, 2), 2))
    people = {"Ann": ann, "<b>&amp;": ann[:1]}
    traces = map_voices(others, people, voice).data
    names = ["training speakers", "Ann", "&lt;b&gt;&amp;amp;", "this voice"]
    assert [trace.name for trace in traces] == names
    expected = others, *people.values(), voice[None]
    for trace, points in zip(traces, expected, strict=True):
        assert np.column_stack([trace.x, trace.y]) == pytest.approx(points)
    looks = {(t.marker.color, t.marker.symbol) for t in traces}
    assert len(looks) == len(traces)
