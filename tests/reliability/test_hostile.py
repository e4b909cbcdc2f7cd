"""Damaged files of every kind, in small."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import hostile
from hostile import KINDS, damaged, fuzz


@pytest.mark.reliability
def test_damaged_files_are_read_or_refused(tmp_path):
    # In a process of its own: a crash has a status, a hang an end, memory a peak.
    command = [sys.executable, hostile.__file__, "2000", "1", tmp_path / "inputs"]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=threads
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == set(KINDS)
    assert sum(kind["tried"] for kind in found.values()) >= 2000
    for kind in found.values():
        assert kind["read"] + kind["refused"] == kind["tried"]
        assert kind["refused"] > 0


@pytest.mark.parametrize("error", [KeyError("raw"), MemoryError()])
def test_a_breach_names_its_input(tmp_path, monkeypatch, error):
    errors = iter([None, error])  # the sound file is read

    def read(*_):
        if (breach := next(errors)) is not None:
            raise breach

    trials = replace(KINDS["trials"](tmp_path), read=read)
    monkeypatch.setattr("hostile.KINDS", {"trials": lambda _: trials})
    said = f"trials, seed 3, number 0: {type(error).__name__}: {error}"
    with pytest.raises(AssertionError) as caught:
        fuzz(10, 3, tmp_path)
    assert str(caught.value).startswith(said)


def test_damage_depends_on_its_seed_alone(tmp_path):
    kind = KINDS["scores"](tmp_path)
    sound, keys = kind.files[0], [[1, n] for n in range(50)] * 2
    made = [damaged(sound, kind, np.random.default_rng(key)) for key in keys]
    assert made[:50] == made[50:]
    assert len(set(made)) > 40
