"""Hostile files of every kind, in small."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import hostile
from damage import damaged
from hostile import fuzz
from hostile_kinds import SHARES, scores, trials


@pytest.mark.reliability
def test_hostile_files_are_read_or_refused(tmp_path):
    command = [sys.executable, hostile.__file__, "2000", "1", tmp_path / "inputs"]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=threads
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == {build.__name__ for build in SHARES}
    assert sum(kind["tried"] for kind in found.values()) >= 2000
    for kind in found.values():
        assert kind["read"] + kind["refused"] == kind["tried"]
        assert kind["refused"] > 0


def raise_key_error() -> None:
    raise KeyError("raw")


def use_memory() -> None:
    bytearray(2**40)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (raise_key_error, "KeyError: 'raw'"),
        (use_memory, "MemoryError: "),
        (lambda: os._exit(9), "ended with 9"),
    ],
)
def test_a_breach_names_its_input(tmp_path, act, said):
    num_calls = 0

    def read(*_):
        nonlocal num_calls
        num_calls += 1
        if num_calls > 4:  # the sound files are read
            act()

    def build(folder):
        return replace(trials(folder), read=read)

    with pytest.raises(AssertionError) as caught:
        fuzz(10, 3, tmp_path, {build: 1})
    assert str(caught.value).startswith(f"build, seed 3, number 0: {said}")


def test_damage_depends_on_its_seed_alone(tmp_path):
    kind = scores(tmp_path)
    sound, keys = kind.files[0], [[1, n] for n in range(50)] * 2
    made = [damaged(sound, kind, np.random.default_rng(key)) for key in keys]
    assert made[:50] == made[50:]
    assert len(set(made)) > 40
