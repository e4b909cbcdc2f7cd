"""Marks of documents and the cells of their tables, by hand."""

import sys

import pytest

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "experiments"))
import cells
import documents
import tables

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
    assert (
        cells.table(["a", "b"], ["1", "2"]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    )


def test_the_race_is_won_by_the_lowest_mean():
    def run(eer: float) -> dict:
        return {"eer": {"last": eer}, "accuracy": 0.9}

    develop = {"slow": [run(5.0), run(5.0)], "fast": [run(4.0), run(2.0)]}
    rows = tables.race({"race": {"develop": develop, "test": {}}}).splitlines()
    assert rows[4:6] == ["| fast | 2 | 3.00 ± 1.00 | 90 |", "| slow | 2 | 5.00 | 90 |"]
