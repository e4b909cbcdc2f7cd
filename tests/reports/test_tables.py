"""Tables of an evaluation, and the map that it leaves."""

import json
import re

import numpy as np
import pytest
import torch

from dataset import Splits
from reports import evaluation_files, tables
from reports.evaluation_files import write_map
from reports.tables import compare_models, html_table
from speech.packs import Entry, Pack
from verification.metrics import Interval
from verification.records import (
    Evaluation,
    IdentificationReport,
    Verification,
    VerificationReport,
)
from verification.scoring import cosine_scores
from verification.trials import make_trials

INTERVALS = Interval(0.01, 0.3), Interval(0.25, 0.75)


def evaluation(accuracy: float | None, **rates: float) -> Evaluation:
    """A test whose systems have these EERs."""
    reports = {
        name: VerificationReport(3, 4, 5, eer, 0.5, 0.1, *INTERVALS)
        for name, eer in rates.items()
    }
    test = Verification([], None, None, {}, reports, {})
    report = IdentificationReport(1.0, accuracy, 1.0, 10, 5, 5)
    identification = {} if accuracy is None else {"validation": report}
    return Evaluation(identification, {"test": test}, [], {}, "titanet", 1)


def cells(table: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<details>")[0])
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_models_and_references_in_one_short_table():
    evaluations = {
        "one": evaluation(None, trained=0.1, untrained=0.3),
        "other": evaluation(0.75, trained=0.2, untrained=0.4),
    }
    table = compare_models(evaluations, {"untrained": "other, untrained"})
    assert cells(table) == [
        ["", "accuracy", "EER", "minDCF"],
        ["one", "", "10.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
        ["other", "75.0%", "20.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
        ["other, untrained", "", "40.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
    ]
    details = table.split("<details>")[1]
    assert "accuracy 75.00%" in details
    assert "30.00%" in details


def test_each_corpus_of_a_mixture_has_its_columns():
    mixed = evaluation(0.5, trained=0.1, untrained=0.3)
    test = mixed.verification.pop("test")
    mixed.verification.update({"test/a": test, "development/a": test, "test/b": test})
    mixed.identification["validation/a"] = mixed.identification.pop("validation")
    table = compare_models({"one": mixed}, {"untrained": "untrained"})
    header, row, _ = cells(table)
    assert header == ["", "accuracy", "a EER", "a minDCF", "b EER", "b minDCF"]
    metrics = ["10.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"]
    assert row == ["one", "50.0%", *metrics, *metrics]
    assert "a: 3 targets, 4 non-targets" in table


def test_no_column_of_accuracies_where_nobody_has_one_and_cells_are_text():
    table = compare_models({"one": evaluation(None, trained=0.1)}, {})
    assert cells(table)[0] == ["", "EER", "minDCF"]
    assert "<td>&lt;b&gt;</td>" in html_table([["", "x"], ["a", "<b>"]])


# Five speakers have six utterances each.
@pytest.mark.parametrize(
    ("most", "people", "of_each"), [(12, 5, 2), (400, 5, 6), (3, 3, 1)]
)
def test_a_map_says_how_many_it_shows_and_has_the_errors(
    tmp_path, monkeypatch, most, people, of_each
):
    monkeypatch.setattr(evaluation_files, "MAPPED_UTTERANCES", most)
    monkeypatch.setattr(tables, "NUM_HARDEST", 1)
    names = [f"{speaker}{n}" for speaker in "abcde" for n in range(6)]
    entries = [
        Entry(x, x[0], None, None, None, 100 * i, 100) for i, x in enumerate(names)
    ]
    pack = Pack(torch.zeros(3000, dtype=torch.int16), entries, 16_000, [], {"": "x"})
    splits = Splits(pack, [], [], [], [], [*range(30)])
    embeddings = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    trials = make_trials([x[0] for x in names], 1000, 1)
    scores = cosine_scores(torch.from_numpy(embeddings), trials)
    false_alarm = np.where(trials.targets, -np.inf, scores).argmax()
    miss = np.where(trials.targets, scores, np.inf).argmin()
    sides = trials.enrolment, trials.test
    wrong = {names[side[k]] for k in (false_alarm, miss) for side in sides}
    reports = {"trained": VerificationReport(1, 1, 5, 0.125, 0.5, 0.1)}
    scores = {"trained": scores}
    test = Verification(splits.test, trials, embeddings, scores, reports, {})
    write_map(tmp_path, test, splits, 1, "mine/test")
    page = (tmp_path / "map.html").read_text()
    figure = json.loads(re.search(r"newPlot\(map, .* \.\.\.(.*)}\);\n", page)[1])
    shown = {name for trace in figure["data"] for name in trace.get("text", ())}
    assert wrong <= shown
    for first in range(0, 6 * people, 6):
        assert set(names[first : first + 6 : 6 // of_each]) <= shown
    assert len(shown) <= people * of_each + len(wrong)
    speakers = {name[0] for name in shown}
    assert figure["layout"]["title"]["text"].startswith(
        "mine/test: UMAP, EER 12.50%<br>"
        f"{len(shown)} of 30 utterances of {len(speakers)} of 5 speakers"
    )
    assert page.count("<li>") == 2
