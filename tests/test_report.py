"""Tables of what an evaluation found."""

import re

import numpy as np

from metrics import Interval
from report import (
    Evaluation,
    IdentificationReport,
    Verification,
    VerificationReport,
    compare_models,
    html_table,
)
from trials import Trials


def evaluation(accuracy: float | None, **rates: float) -> Evaluation:
    """A test whose systems have these EERs."""
    reports = {
        name.replace("_", " "): VerificationReport(
            *(3, 4, 5, eer, 0.5, 0.1),
            eer_interval=Interval(0.01, 0.3),
            min_dcf_interval=Interval(0.25, 0.75),
        )
        for name, eer in rates.items()
    }
    nothing = np.zeros(0, np.int64)
    trials = Trials(nothing, nothing, nothing.astype(bool))
    embeddings = np.zeros((0, 2), np.float32)
    test = Verification([], trials, embeddings, {}, reports, {})
    identification = {}
    if accuracy is not None:
        found = IdentificationReport(1.0, accuracy, 1.0, 10, 5, 5)
        identification = {"validation": found}
    return Evaluation(identification, {"test": test}, [])


def cells(table: str) -> list[list[str]]:
    short = table.split("<details>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", short)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_models_and_references_in_one_short_table():
    found = {
        "one": evaluation(None, trained=0.1, untrained=0.3),
        "other": evaluation(0.75, trained=0.2, untrained=0.4),
    }
    table = compare_models(found, {"untrained": "other, untrained"})
    assert cells(table) == [
        ["", "accuracy", "EER", "minDCF"],
        ["one", "", "10.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
        ["other", "75.0%", "20.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
        ["other, untrained", "", "40.00% [1.00, 30.00]", "0.500 [0.250, 0.750]"],
    ]
    details = table.split("<details>")[1]
    assert "accuracy 75.00%" in details
    assert "30.00%" in details


def test_no_column_of_accuracies_where_nobody_has_one():
    table = compare_models({"one": evaluation(None, trained=0.1)}, {})
    assert cells(table)[0] == ["", "EER", "minDCF"]


def test_cells_are_text():
    assert "<td>&lt;b&gt;</td>" in html_table([["", "x"], ["a", "<b>"]])
