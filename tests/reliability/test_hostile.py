"""Damaged files of every kind, in small."""

import json
import os
import subprocess
import sys

import hostile
import numpy as np
import pytest
from hostile import KINDS, damaged, fuzz


@pytest.mark.reliability
def test_damaged_files_are_read_or_refused(tmp_path):
    # In a process of its own: a crash has a status, a hang an end, memory a peak.
    done = subprocess.run(
        [sys.executable, hostile.__file__, "2000", "1", tmp_path / "inputs"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == set(KINDS)
    assert sum(kind["tried"] for kind in found.values()) >= 2000
    for kind in found.values():
        assert kind["read"] + kind["refused"] == kind["tried"]
        assert kind["refused"] > 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("raw"), "trials, seed 3, number 0: KeyError: 'raw'"),
        (MemoryError(), "trials, seed 3, number 0: MemoryError"),
    ],
)
def test_a_breach_names_its_input(tmp_path, monkeypatch, error, said):
    build, calls = KINDS["trials"], []

    def broken(folder):
        kind = build(folder)

        def read(*arguments):
            calls.append(arguments)
            if len(calls) > len(kind.files):
                raise error

        object.__setattr__(kind, "read", read)
        return kind

    monkeypatch.setattr("hostile.KINDS", {"trials": broken})
    with pytest.raises(AssertionError) as caught:
        fuzz(10, 3, tmp_path)
    assert str(caught.value).startswith(said)


def test_damage_depends_on_its_seed_alone(tmp_path):
    kind = KINDS["scores"](tmp_path)
    made = [
        [damaged(kind.files[0], kind, np.random.default_rng([1, n])) for n in range(50)]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40
