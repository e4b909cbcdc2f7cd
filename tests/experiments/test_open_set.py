"""Identification among strangers, by hand."""

import sys

import numpy as np
import pytest

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "experiments"))
import open_set


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
