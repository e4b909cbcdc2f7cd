"""Damaged and hostile files are read or refused in one line.

    python experiments/hostile.py COUNT SEED FOLDER [KIND...]    prints `fuzz`'s JSON

Every input depends only on (seed, kind, number). None may raise anything but the
refusal of its kind, in one line, take longer than `MAX_SECONDS`, let its process grow
by more than `MAX_GROWTH`, or be refused for want of memory. Each kind has a process of
its own: a crash has a status, memory a peak. The last input stays in its folder.
No library may write to the terminal either.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # as a command

from damage import Kind, damaged
from errors import MAX_MESSAGE
from hostile_kinds import SHARES

MAX_SECONDS = 10.0  # of a core, for one input; none has taken nearly as long
MAX_WAIT = 120.0  # seconds until a process is killed, on a core that others use too
MAX_GROWTH = 2**29  # bytes of resident memory, over all inputs of a kind
MAX_ADDRESSES = 2**31  # bytes that a kind's process may ask for
MAX_BREACHES = 10  # of a kind, which then stops
FORK = multiprocessing.get_context("fork")  # with all that is imported


class HangError(BaseException):
    """An input that is still being read; no reader may catch it."""


@dataclass
class Outcome:
    """What happened to the inputs of a kind."""

    tried: int = 0
    read: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    slowest_number: int = 0
    peak_bytes: int = 0  # of the process, with torch
    growth_bytes: int = 0
    largest_number: int = 0  # of the input that reached the peak
    breaches: list[str] = field(default_factory=list)


def fuzz(
    count: int, seed: int, folder: Path, shares: dict[Callable, int] = SHARES
) -> dict[str, dict]:
    """Read at least so many hostile files in `folder`; return the outcome of each kind.

    Raises `AssertionError` with all breaches if there is one. What a kind has come to
    so far stands in its folder, in outcome.json.
    """
    processes = {}
    for build, share in shares.items():
        while sum(p.is_alive() for p in processes.values()) >= os.cpu_count():
            time.sleep(0.1)
        home = folder / build.__name__
        home.mkdir(parents=True)
        size = -(-count * share // sum(shares.values()))
        key = [seed, *build.__name__.encode()]
        process = FORK.Process(target=_read_kind, args=(build, size, key, home))
        process.start()
        processes[home] = process
    outcomes, breaches = {}, []
    for home, process in processes.items():
        process.join()
        outcome = json.loads((home / "outcome.json").read_text())
        breaches += outcome.pop("breaches")
        if process.exitcode:
            crash = f"{home.name}, seed {seed}, number {outcome['tried']}: "
            breaches.append(f"{crash}ended with {process.exitcode}")
        outcomes[home.name] = outcome
    assert not breaches, "\n".join(breaches)
    return outcomes


def _read_kind(build: Callable, count: int, key: Sequence[int], folder: Path) -> None:
    """Read the inputs of a kind, and write what came of them."""
    torch.set_num_threads(1)
    os.dup2(os.open(folder / "terminal.txt", os.O_CREAT | os.O_RDWR), 2)
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends what Python cannot stop
    outcome = Outcome()
    _write(outcome, folder)
    kind = build(folder)
    for content in kind.files:  # sound, and warms up
        refused, breach = _outcome(kind, folder, content, key)
        assert not refused, f"{folder.name}, a sound file: {breach}"
    start, written = _peak(), os.fstat(2).st_size
    addresses = int(Path("/proc/self/statm").read_text().split()[0])
    most = addresses * resource.getpagesize() + MAX_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while outcome.tried < count and len(outcome.breaches) < MAX_BREACHES:
        number = outcome.tried
        content = _input(kind, [*key, number], number)
        began, before = time.process_time(), _peak()
        refused, breach = _outcome(kind, folder, content, [*key, number])
        seconds, peak = time.process_time() - began, _peak()
        outcome.tried += 1
        outcome.read += not refused
        outcome.refused += refused
        if seconds > outcome.slowest_seconds:
            outcome.slowest_seconds = round(seconds, 3)
            outcome.slowest_number = number
        if peak > before:
            outcome.largest_number = number
        outcome.peak_bytes, outcome.growth_bytes = peak, peak - start
        if peak - max(start, before) > MAX_GROWTH or seconds > MAX_SECONDS:
            breach = f"{peak - start} bytes of memory, {seconds:.1f} s"
        if os.fstat(2).st_size > written:
            breach = breach or f"wrote {os.pread(2, 1000, written)}"
            written = os.fstat(2).st_size
        if breach:
            where = f"{folder.name}, seed {key[0]}, number {number}"
            outcome.breaches.append(f"{where}: {breach}")
        _write(outcome, folder)


def _write(outcome: Outcome, folder: Path) -> None:
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes


def _stop(*_) -> None:
    raise HangError


def _input(kind: Kind, key: Sequence[int], number: int) -> bytes:
    """Return a hostile file: those written by hand come first."""
    if number < len(kind.nasties):
        return kind.nasties[number]
    random = np.random.default_rng(key)
    content = kind.files[random.integers(len(kind.files))]
    if kind.rewrap and random.random() < 0.5:
        return kind.rewrap(content, random)
    return damaged(content, kind, random)


def _outcome(
    kind: Kind, folder: Path, content: bytes, key: Sequence[int]
) -> tuple[bool, str]:
    """Read an input; return whether it was refused, and what is wrong with that."""
    path = folder / f"input{kind.suffix}"
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_WAIT)
    try:
        kind.read(path, np.random.default_rng([*key, 0]))
        return False, ""
    except kind.refusal as error:
        message = str(error)
        if _lacked_memory(error):
            return True, f"wanted more memory than there is: {message[:1000]!r}"
    except (Exception, HangError) as error:
        return False, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    is_one_line = message.isprintable() and len(message) <= 2 * MAX_MESSAGE
    if is_one_line and (message.startswith(f"{folder}") or not kind.names_file):
        return True, ""
    return True, f"expected one line that names the file, got {message[:1000]!r}"


def _lacked_memory(error: BaseException | None) -> bool:
    """Return whether an error or one before it says that there is no more memory."""
    while error:
        if isinstance(error, MemoryError) or "t allocate memory" in str(error):
            return True
        error = error.__context__
    return False


if __name__ == "__main__":
    count, seed, folder, *names = sys.argv[1:]
    chosen = {b: s for b, s in SHARES.items() if not names or b.__name__ in names}
    print(json.dumps(fuzz(int(count), int(seed), Path(folder), chosen), indent=1))
