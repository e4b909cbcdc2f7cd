"""To whom speech is given, by hand."""

import sys

import numpy as np

from conftest import REPOSITORY
from recognition.verdicts import Turn

sys.path.insert(0, str(REPOSITORY / "experiments"))
import turns


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
    monkeypatch.setattr(turns, "speech_stretches", lambda samples, rate: [(0.25, 0.75)])
    clips = [("ann", np.full(100, 1, np.int16)), ("ben", np.full(200, 2, np.int16))]
    recording, spoken = turns.join(clips, rate=100)
    assert len(recording) == 100 + 50 + 200 + 50
    assert recording[[99, 100, 149, 150, 349, 350]].tolist() == [1, 0, 0, 2, 2, 0]
    assert spoken == [(0.25, 0.75, "ann"), (1.75, 2.25, "ben")]
