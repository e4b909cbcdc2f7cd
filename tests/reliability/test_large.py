"""Memory that grows neither with recordings nor with corpora nor with steps."""

import subprocess
import sys
import time

import pytest

import large
from conftest import MINIATURE, RATE, REPOSITORY

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.mark.parametrize(
    ("kind", "seconds", "count", "most"),
    [
        # A step takes up to 3 GB, by how glibc's blocks fall; the samples are 2.3 GB.
        ("hours", (), 20 * 3600 * RATE, 4e9),
        ("recording", (), 1, 1e9),
        ("utterances", (), 200_000, 2e9),
        ("who", (600,), 20, 9e8),
        ("compare", (600,), 1, 9e8),
    ],
)
def test_memory_is_bounded(tmp_path, kind, seconds, count, most):
    command = [sys.executable, large.__file__, kind, tmp_path, *map(str, seconds)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    largest, counted = map(int, ran.stdout.split()[:2])
    assert counted == count
    assert largest < most


def test_memory_does_not_grow_over_500_steps(tmp_path):
    # 6 of 8 speakers are trained on, with 60 of their 67 utterances: 60 steps of 6.
    run, epochs = tmp_path / "runs" / "long", 9
    command = [
        *(sys.executable, "src/train.py", "-p", "parameters.yml", *MINIATURE),
        *(f"run.directory={run.parent}", f"run.name={run.name}"),
        *(f"dataset.packs={tmp_path / 'packs'}", "training.epochs=99"),
        "dataset.synthetic.utterances_per_speaker=67",
    ]
    most, finished = [0] * epochs, 0  # by epochs finished
    deadline = time.monotonic() + 300
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log) as training,
    ):
        try:
            while finished < epochs and training.poll() is None:
                most[finished] = max(
                    most[finished], large.anonymous_bytes(training.pid)
                )
                time.sleep(0.01)
                if (run / "metrics.jsonl").exists():
                    finished = (run / "metrics.jsonl").read_bytes().count(b"\n")
                if time.monotonic() > deadline:
                    break
        finally:
            training.kill()
    assert finished == epochs, (tmp_path / "log").read_text()[-2000:]
    assert max(most[3:]) < max(most[1:3]) + 2**25
