"""Commands that write stores of people and vectors, killed at random moments.

Two writers and a reader share a store; `embed` and `enrol` are killed and started
again. Each program is a fork of this one, which has loaded torch already.
"""

import multiprocessing
import os
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from commands import folder as embedding
from commands import voices_commands
from commands.parser import main
from conftest import CPU, MINIATURE, said, write
from engine.parameter_files import SHIPPED, load_parameters
from recognition.people import People, load_people
from recognition.sounds import Clip
from runs.checkpoints import save_checkpoint
from runs.speaker_model import build_model

FORK = multiprocessing.get_context("fork")


def _enrol_without_sound(sounds: dict, enrolled: People | None) -> People:
    """Enrol people with a vector each, which needs no recordings."""
    nobody, vector = np.empty(0, "U1"), np.eye(1, 4, dtype=np.float32)[0]
    columns = nobody, nobody, nobody, np.empty(0), np.empty((0, 4), np.float32)
    people = enrolled or People("model.pt", "digest", "{}", *columns)
    for name in sounds:
        people = people.with_clips(name, [Clip("x", vector, 3.0, 2.0, name, ())])
    return people


def _program(work: Callable[[], object]) -> multiprocessing.Process:
    """Start a function in a process of its own, which prints nothing."""

    def run() -> None:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(work() or 0)

    process = FORK.Process(target=run)
    process.start()
    return process


def share_a_store(rounds: int, seed: int, folder: Path) -> dict[str, int]:
    """Have two programs write a store at once, and a third read it, while one of them
    is killed; return how many ended in which way.

    Raises AssertionError, naming the seed, if what a finished program wrote is missing,
    or if the reader ever finds no store.
    """
    warnings = Namespace(lines=[])
    voices = Namespace(
        enrol=_enrol_without_sound, disagreements=lambda *_: [], warn=warnings
    )
    voices_commands._load_voices = lambda _: voices
    chance, ends, store = random.Random(seed), Counter(), folder / "people.npz"
    sure, unsure = {"first"}, set()

    def enrol(name: str) -> None:
        arguments = Namespace(people=[f"{name}=a.wav"], store=store, json=True)
        voices_commands.enrol(arguments)

    def forget(name: str) -> None:
        voices_commands.forget(Namespace(name=name, store=store))

    def read() -> None:
        while True:
            load_people(store)

    enrol("first")
    for number in range(rounds):
        present = sorted(load_people(store).names)
        work = {f"person {number}": enrol, f"other {number}": enrol}
        if len(present) > 4:
            work = {f"person {number}": enrol, chance.choice(present): forget}
        reader = _program(read)
        writers = {n: _program(partial(act, n)) for n, act in work.items()}
        time.sleep(chance.uniform(0, 0.04))
        writers[chance.choice([*work])].kill()
        for name, process in writers.items():
            process.join()
            assert process.exitcode in (0, -9), f"seed {seed}, round {number}, {name}"
            finished = process.exitcode == 0
            (unsure.discard if finished else unsure.add)(name)
            if work[name] is forget or not finished:
                sure.discard(name)
            else:
                sure.add(name)
            end = "finished" if finished else "killed"
            ends[f"{work[name].__name__} {end}"] += 1
        assert reader.is_alive(), f"seed {seed}, round {number}: found no store"
        reader.kill()
        reader.join()
        names = set(load_people(store).names)
        assert sure <= names <= sure | unsure, f"seed {seed}, round {number}"
    return dict(ends)


def kill_and_start_again(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill `embed` and `enrol` so often at random moments, and start them again; return
    how many were killed before their end.

    Raises AssertionError, naming the seed, if their files differ from those of commands
    that were left alone.
    """
    p = load_parameters(SHIPPED, overrides=MINIATURE)
    save_checkpoint(folder / "model.pt", build_model(p, ["a", "b"], {"": "d"}, CPU))
    for n in range(4):
        write(folder / "people" / f"{n}" / "a.wav", said(n, 0))
    embedding.FILES_AT_ONCE, embedding.SECONDS_BETWEEN_SAVES = 1, 0.0
    shared = "--checkpoint", str(folder / "model.pt")
    people, chance, kills = str(folder / "people"), random.Random(seed), Counter()
    commands = {
        "embed": lambda out: ["embed", *shared, people, out],
        "enrol": lambda out: ["enrol", *shared, "--store", out, people],
    }
    for name, command in commands.items():
        whole, began = str(folder / f"{name}.npz"), time.monotonic()
        program = _program(lambda c=command, out=whole: main(c(out)))
        program.join()
        seconds = time.monotonic() - began
        assert not program.exitcode, name
        for number in range(count):
            out = folder / f"killed-{name}.npz"
            out.unlink(missing_ok=True)
            program = _program(lambda c=command, out=out: main(c(str(out))))
            program.join(chance.uniform(0, seconds))
            program.kill()
            program.join()
            kills[name] += program.exitcode == -9
            program = _program(lambda c=command, out=out: main(c(str(out))))
            program.join()
            assert not program.exitcode, f"seed {seed}, {name} {number}"
            with np.load(whole) as expected, np.load(out) as found:
                np.testing.assert_equal(dict(found), dict(expected))
    return dict(kills)
