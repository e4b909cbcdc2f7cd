"""Decisions on log likelihood ratios, and how they read."""

import math

import pytest

from recognition import verdicts
from recognition.verdicts import Candidate, Comparison, Identification, Threshold, Turn

THRESHOLD = Threshold(1.5, 3.0, 0.01, "trials")


@pytest.mark.parametrize(
    ("llr", "threshold", "verdict", "same"),
    [
        (3.0, THRESHOLD, "the same person", True),
        (3.0, Threshold(1.5, None, 0.01, ""), "probably the same person", True),
        (1.5, THRESHOLD, "probably the same person", True),
        (1.4, THRESHOLD, "undecided", False),
        (0.0, THRESHOLD, "different people", False),
        (None, None, "no verdict, the model has no calibration", None),
    ],
)
def test_verdicts(llr, threshold, verdict, same):
    found = Comparison("a", "b", 0.5, llr, threshold, (2.0, 3.0), ())
    assert (found.verdict, found.same_speaker) == (verdict, same)


def test_sentences_say_what_was_measured():
    found = Comparison("a", "b", 0.5, 3.25, THRESHOLD, (2.0, 3.0), ())
    for word in ("a and b: the same person", "0.500", "+3.2", "+1.5", "1 %", "trials"):
        assert word in str(found)
    nearest = (Candidate("Ann", 0.5, 4.0), Candidate("Bob", 0.25, 1.0))
    found = Identification("x", "Ann", nearest, 2, THRESHOLD, 2.0, ())
    for word in ("x: Ann", "Ann +4.0, Bob +1.0", "margin 3.0", "2 people", "2.0 s"):
        assert word in str(found)
    alone = Identification("x", None, nearest[:1], 1, THRESHOLD, 2.0, ())
    assert alone.margin is None
    assert str(alone).startswith("x: unknown")


def test_threshold_among_several_people():
    one = Threshold(2.0, 4.0, 0.01, "")  # 1 % above 2, 0.1 % above 4
    for people, llr in ((1, 2.0), (10, 4.0), (100, 6.0)):  # 0.1 % for each of ten
        assert one.among(people) == Threshold(llr, llr + 2, 0.01, "")
    alone = Threshold(2.0, None, 0.01, "")
    assert alone.among(10) == Threshold(2 + math.log(10), None, 0.01, "")


def test_rttm():
    turns = [Turn(0.5, 2.0, "Ann Lee", 3.0), Turn(2.0, 4.25, None, -1.0)]
    assert verdicts.as_rttm(turns, "the meeting") == (
        "SPEAKER the_meeting 1 0.500 1.500 <NA> <NA> Ann_Lee <NA> <NA>\n"
        "SPEAKER the_meeting 1 2.000 2.250 <NA> <NA> unknown <NA> <NA>\n"
    )


@pytest.mark.parametrize("enrolled", [(), ("Ann_Lee",)])
def test_names_that_rttm_would_make_one(enrolled):
    names = ["Ann Lee", "Ann_Lee"][: 2 - len(enrolled)]
    turns = [Turn(0.0, 1.0, name, 3.0) for name in names]
    lines = verdicts.as_rttm(turns, "a", enrolled).splitlines()
    assert [line.split()[7] for line in lines] == ["Ann%20Lee", "Ann_Lee"][: len(names)]
