"""Sentences say what the numbers do."""

from unittest.mock import Mock

import numpy as np

from teaching import remarks
from verification.metrics import Interval
from verification.records import Evaluation, Verification, VerificationReport

REFERENCES = {"mean log-mel": "mean spectrum"}


def report(low: float, high: float) -> VerificationReport:
    eer = (low + high) / 2
    return VerificationReport(1, 1, 2, eer, 1, 1, Interval(low, high))


def evaluation(trained: VerificationReport, floor: VerificationReport) -> Evaluation:
    reports = {"trained": trained, "mean log-mel": floor}
    test = Verification([], Mock(), np.empty(0), {}, reports, {})
    return Evaluation({}, {"test/one": test}, [], {}, "", 0)


def test_only_intervals_that_are_apart_rank():
    good, poor, floor = report(0.01, 0.03), report(0.08, 0.12), report(0.1, 0.2)
    found = {"TitaNet, CE": evaluation(good, floor), "d": evaluation(poor, floor)}
    said = remarks.on_tests(found, REFERENCES)
    assert said == (
        "EER on one: TitaNet with CE is below the mean spectrum. Of the models, "
        "TitaNet with CE is below d; the intervals of other pairs overlap."
    )
    poorest = {"d": evaluation(poor, floor)}
    said = remarks.on_tests(poorest, REFERENCES)
    assert "no model is below the mean spectrum" in said
    assert "does not rank" in said
    moved = remarks.on_change_of_corpus(found, poorest)
    assert moved.endswith("the unseen one: d 10.0% and 10.0%.")


def test_the_ends_of_curves():
    rows = [{"epoch": 1, "train/accuracy": 0.1}, {"epoch": 2, "train/accuracy": 0.5}]
    said = remarks.on_curves({"TitaNet, CE": rows}, 100)
    assert "TitaNet with CE names 50% of its training crops (2 epochs)" in said
    assert "accuracy of 1.0% and a loss of ln 100 = 4.6" in said


def test_names_are_listed():
    lists = {"a": ["a"], "a and b": ["a", "b"], "a, b and c": ["a", "b", "c"]}
    assert {text: remarks.listed(names) for text, names in lists.items()} == {
        text: text for text in lists
    }
    assert "0.250" in remarks.on_calibration(0.5, 0.25)
