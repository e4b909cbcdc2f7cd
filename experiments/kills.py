"""Trainings killed at random moments and gone on with; they end as unbroken ones."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from conftest import MINIATURE, REPOSITORY, outcome, same

EPOCHS = 4


def start(folder: Path, name: str) -> subprocess.Popen:
    """Start a run, or resume it if it has a checkpoint."""
    run = folder / "runs" / name
    arguments = ["--resume", str(run)]
    if not (run / "last.pt").exists():
        shutil.rmtree(run, ignore_errors=True)  # as the message for it asks
        arguments = ["-p", "parameters.yml", *MINIATURE, f"run.name={name}"]
        arguments += ["training.compile=never", f"training.epochs={EPOCHS}"]
        # Too few to be drawn: UMAP would take longer than all else.
        arguments += ["dataset.synthetic.utterances_per_speaker=4"]
        arguments += [f"run.directory={folder / 'runs'}"]
        arguments += [f"dataset.packs={folder / f'packs-{name}'}"]
    return subprocess.Popen(
        [sys.executable, "src/train.py", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def moments(folder: Path, name: str, chance: random.Random) -> dict[str, Callable]:
    """The moments to kill at, by name, each with the condition to wait for."""
    run, packs = folder / "runs" / name, folder / f"packs-{name}"
    line = chance.randint(0, EPOCHS - 1)

    def epochs() -> int:
        path = run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    return {
        "packing": lambda: any(packs.glob(".*/samples.int16")),
        "in an epoch": lambda: run.exists() and epochs() >= line,
        "writing a checkpoint": lambda: any(run.glob("*.pt.partial")),
        "at the end": lambda: epochs() == EPOCHS,
    }


def kill_and_go_on(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill trainings `count` times at random moments, each run two to four times, and
    resume them to the end; return the number of kills by moment.

    Raises AssertionError, naming the seed, if one ends unlike an unbroken run.
    """
    whole = start(folder, "unbroken")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    expected = outcome(folder / "runs" / "unbroken")
    chance, kills, number = random.Random(seed), Counter(), 0
    while kills.total() < count:
        name, number = f"killed-{number}", number + 1
        finished = False
        for _ in range(min(chance.randint(2, 4), count - kills.total())):
            choices = moments(folder, name, chance)
            moment = chance.choice(list(choices))
            delay = chance.uniform(0, 0.3) * (moment == "in an epoch")
            process = start(folder, name)
            while not choices[moment]() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay)
            finished = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            if finished:
                assert process.returncode == 0, f"seed {seed}, {name}: {errors}"
                break
            kills[moment] += 1
        if not finished:
            process = start(folder, name)
            _, errors = process.communicate()
            assert process.returncode == 0, f"seed {seed}, {name}: {errors}"
        run = folder / "runs" / name
        assert same(outcome(run), expected), f"seed {seed}, {name}: another outcome"
        shutil.rmtree(run)
        shutil.rmtree(folder / f"packs-{name}")
        left = [path for path in os.listdir(folder / "runs") if path != "unbroken"]
        assert left == []
    return dict(kills)
