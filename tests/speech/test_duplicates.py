"""Recordings that occur twice, and names that may be one person's."""

import numpy as np
import pytest

from conftest import RATE, noise, write
from speech.duplicates import copies, doubtful_names
from speech.packs import pack
from speech.utterances import Utterance


def test_copies_are_of_the_same_samples_whatever_the_file(tmp_path):
    sound, other = noise()[:4000], noise()[:4000].copy()
    other[3999] += 1  # far from the middle
    back = sound[::-1].copy()
    written = {"a.wav": sound, "b.wav": other, "c.flac": sound, "d.wav": sound[:-1]}
    written |= {"e.wav": back, "f.flac": np.stack([back, back], 1)}
    corpus = [
        Utterance(name, name[0], write(tmp_path / name, samples))
        for name, samples in written.items()
    ]
    packed = pack(corpus, tmp_path / "pack", RATE)
    assert copies(packed, range(6)) == {2: 0, 5: 4}
    assert copies(packed, [5, 3, 2, 0]) == {0: 2}


@pytest.mark.parametrize(
    "names",
    [
        ["Ann", "ann"],
        ["ann%20lee", "ann%C2%A0lee", "annlee"],
        ["Rene\u0301", "Ren\u00e9"],
        ["STRASSE", "stra\u00dfe"],
        ["ann", "ann\u200b"],
    ],
)
def test_names_that_may_be_one_persons(names):
    shown = ascii if "e\u0301" in names[0] else repr
    (line,) = doubtful_names(["other", *names, "anne", "%FE", "%FF"])
    assert line.startswith(f"names {', '.join(map(shown, sorted(names)))} differ ")
