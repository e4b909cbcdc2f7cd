"""What the experiments count and what they write into documents, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import cells
import documents
import open_set
import stale
import tables
import terminal_page
import turns
from recognition.verdicts import Turn

FIGURES = {"a.b": {"c": [0.25, {"d / e": 3000}]}}


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("a.b.c.0:.1%", "25.0%"),
        ("a.b.c.0 / 0.5:g", "0.5"),
        ("a.b.c.1.d / e:,", "3,000"),
        ("a.b.c.1.d / e / 1e3:.1f", "3.0"),
    ],
)
def test_a_figure_is_looked_up_and_formatted(mark, text):
    written = f"of <!--{mark}-->{text}<!----> in"
    assert documents.write(f"of <!--{mark}--><!----> in", FIGURES) == written
    assert documents.write(written, FIGURES) == written


def test_a_figure_that_is_in_no_file_is_refused():
    with pytest.raises(KeyError, match=r"^'x'$"):
        documents.write("<!--a.b.x:d-->7<!---->", FIGURES)


def test_a_block_is_replaced(monkeypatch):
    monkeypatch.setattr(tables, "race", lambda figures: "new\n")
    begin, end = "above\n<!-- written by make docs: race -->\n", "<!-- to here -->\n"
    assert documents.write(f"{begin}old\n{end}", {}) == f"{begin}new\n{end}"


def test_cells():
    assert cells.spread([0.25], 100, 1) == "25.0"
    assert cells.spread([1.0, 3.0], 1, 2) == "2.00 ± 1.00"
    report = {"eer": 0.05, "eer_interval": {"low": 0.04, "high": 0.07}}
    assert cells.interval(report, "eer") == "5.0 [4.0, 7.0]"
    assert cells.interval({"eer": 0.05, "eer_interval": None}, "eer") == "5.0"
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert cells.table(["a", "b"], ["1", "2"]) == table


def test_the_race_is_won_by_the_lowest_mean():
    runs = {x: {"eer": {"last": x}, "accuracy": 0.9} for x in (2.0, 4.0, 5.0)}
    develop = {"slow": [runs[5], runs[5]], "fast": [runs[4], runs[2]]}
    rows = tables.race({"race": {"develop": develop, "test": {}}}).splitlines()
    assert rows[4:6] == ["| fast | 2 | 3.00 ± 1.00 | 90 |", "| slow | 2 | 5.00 | 90 |"]


def test_threshold_lets_at_most_the_share_through():
    unknown = np.array([0.1, 0.5, 0.5, 0.7, *np.linspace(-1, 0, 96)])
    for rate, count in ((0.005, 0), (0.01, 1), (0.02, 1), (0.03, 3), (0.05, 5)):
        threshold = open_set.threshold_at(rate, unknown)
        assert (unknown >= threshold).sum() == count


def test_people_with_clips_to_test_are_enrolled_first(monkeypatch):
    monkeypatch.setattr(open_set, "NUM_ENROLLED", 5)
    clips = dict(zip("abcdefgh", (4, 3, 2, 5, 3, 7, 3, 2), strict=True))
    vectors = {name: np.ones((count, 2)) for name, count in clips.items()}
    enrolled, strangers = open_set.deal(vectors)
    assert set(enrolled[:3]) == {"a", "d", "f"}
    assert set(enrolled[3:]) < {"b", "e", "g"}
    assert sorted(enrolled + strangers) == list(clips)


def test_scores_of_people():
    gallery = [np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[-1.0, 0.0]])]
    clips = np.array([[0.0, 1.0]])
    by_mean = open_set.scores(gallery, clips, mean=True)
    assert by_mean == pytest.approx(np.array([[0.5**0.5, 0]]))
    assert open_set.scores(gallery, clips, mean=False).tolist() == [[1, 0]]


def test_rates_count_only_the_right_person():
    right = np.array([True, True, False, True])
    known, unknown = np.array([0.9, 0.2, 0.9, 0.5]), np.array([0.6, 0.1])
    assert open_set.rates(0.5, right, known, unknown) == (0.5, 0.5)


def test_speech_is_counted_by_whom_it_is_given_to():
    spoken = [(0.0, 2.0, "ann"), (3.0, 4.0, "ben"), (5.0, 6.0, turns.STRANGER)]
    given = [
        Turn(0.0, 1.5, "ann", 3.0),
        Turn(1.5, 1.8, "ben", 3.0),  # 0.3 s of ann's
        Turn(3.0, 3.6, None, 0.0),
        Turn(5.0, 5.9, None, 0.0),
        Turn(5.9, 7.0, "ann", 3.0),  # 0.1 s of the stranger's
    ]
    assert turns.count(spoken, given) == {
        "enrolled": {"right": 150, "other": 30, "unknown": 60, "nobody": 60},
        "stranger": {"other": 10, "unknown": 90, "nobody": 0},
    }


def test_clips_are_joined_with_their_speech(monkeypatch):
    monkeypatch.setattr(turns, "find_speech", lambda samples, rate: [(0.25, 0.75)])
    clips = [("ann", np.full(100, 1, np.int16)), ("ben", np.full(200, 2, np.int16))]
    recording, spoken = turns.join(clips, rate=100)
    assert len(recording) == 100 + 50 + 200 + 50
    assert recording[[99, 100, 149, 150, 349, 350]].tolist() == [1, 0, 0, 2, 2, 0]
    assert spoken == [(0.25, 0.75, "ann"), (1.75, 2.25, "ben")]


def test_characters_of_a_terminal_have_their_colours():
    screen = "\x1b[1ma\x1b[38;5;196mb\n\x1b[48;5;232mc\x1b[39md\x1b[0me"
    front, back = terminal_page.FOREGROUND, terminal_page.BACKGROUND
    red, dark = (255, 0, 0), (8, 8, 8)
    assert list(terminal_page.characters(screen)) == [
        (0, 0, "a", front, back),
        (0, 1, "b", red, back),
        (1, 0, "c", red, dark),
        (1, 1, "d", front, dark),
        (1, 2, "e", front, back),
    ]


def test_a_file_is_stale_if_it_measured_another_encoder(monkeypatch, tmp_path):
    released = SimpleNamespace(load=lambda path: SimpleNamespace(digest="new"))
    monkeypatch.setattr(stale, "Voices", released)
    monkeypatch.setattr(stale, "ASSETS", tmp_path)
    monkeypatch.setattr(stale, "MEASURED_BY", {"must": "command"})
    for name, figures in {
        "must": {"eer": 1},
        "current": {"encoder": "new", "runs": {"a": {"encoder": "new"}}},
        "nested": {"runs": {"a": {"encoder": "new"}, "b": {"encoder": "old"}}},
        "older": {"encoder": f"{stale.EARLIER}, old"},
        "rates": {"encoder": {"miss": 0.1}},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(figures))
    assert stale.stale_files() == ["must", "nested"]
