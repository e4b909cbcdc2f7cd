"""Measure `Voices.who`, who speaks when, on recordings made of known turns.

    python experiments/turns.py COMMON_VOICE [assets/turns.json]

COMMON_VOICE is a folder with a folder for each person whom the released encoder never
heard. A recording joins clips of four people, with half a second between: of three who
are enrolled with three other clips each, and of a stranger. Their speech is what
silero-vad finds in the clips before they are joined. The file says to whom `who` gives
it, in shares of its time, with 95 % intervals from resampling the recordings. `make
docs` tabulates it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.files import atomic_write
from errors import run_command
from recognition.people import read_people
from recognition.verdicts import Turn
from speech.audio import load_recording
from speech.examination import find_speech
from verification.metrics import interval_of
from voices import Voices

NUM_RECORDINGS = 20
NUM_ENROLLED, NUM_CLIPS = 3, 3  # people of a recording; clips of each
PAUSE_SECONDS = 0.5
TICK_SECONDS = 0.01  # in which speech is counted
STRANGER = "a stranger"
NUM_RESAMPLES, SEED = 1000, 0
RESULTS = Path(__file__).parents[1] / "assets" / "turns.json"


def join(
    clips: Sequence[tuple[str, NDArray[np.int16]]], rate: int
) -> tuple[NDArray[np.int16], list[tuple[float, float, str]]]:
    """Return a recording [N] of named clips, and (begin, end, name) of its speech."""
    parts, spoken, seconds = [], [], 0.0
    for name, samples in clips:
        stretches = find_speech(samples, rate)
        spoken += [(seconds + b, seconds + e, name) for b, e in stretches]
        parts += [samples, np.zeros(round(PAUSE_SECONDS * rate), np.int16)]
        seconds += len(samples) / rate + PAUSE_SECONDS
    return np.concatenate(parts), spoken


def count(
    spoken: Sequence[tuple[float, float, str]], turns: Sequence[Turn]
) -> dict[str, dict[str, int]]:
    """Return how many ticks of speech of enrolled people and of strangers are given to
    whom; what no turn covers is given to nobody."""
    size = 1 + round(
        max([e for _, e, _ in spoken] + [t.end for t in turns]) / TICK_SECONDS
    )
    names_of_ticks = np.full(size, "nobody", dtype=object)
    for turn in turns:
        names_of_ticks[
            round(turn.begin / TICK_SECONDS) : round(turn.end / TICK_SECONDS)
        ] = turn.name or "unknown"
    counts = {
        "enrolled": {"right": 0, "other": 0, "unknown": 0, "nobody": 0},
        "stranger": {"other": 0, "unknown": 0, "nobody": 0},
    }
    for begin, end, name in spoken:
        names, ticks = np.unique(
            names_of_ticks[round(begin / TICK_SECONDS) : round(end / TICK_SECONDS)],
            return_counts=True,
        )
        kinds = counts["stranger" if name == STRANGER else "enrolled"]
        for given, number in zip(names.tolist(), ticks.tolist(), strict=True):
            kind = "right" if given == name else given if given in kinds else "other"
            kinds[kind] += number
    return counts


def measure(voices: Voices, folder: Path) -> dict:
    """Return the shares of speech by whom it is given to, with intervals."""
    people = read_people([str(folder)])
    rng, rate = np.random.default_rng(SEED), voices.sample_rate
    several = [name for name, files in people.items() if len(files) > NUM_CLIPS + 1]
    counts = []
    for _ in range(NUM_RECORDINGS):
        *enrolled, stranger = rng.choice(several, NUM_ENROLLED + 1, replace=False)
        store = voices.enrol({name: people[name][:NUM_CLIPS] for name in enrolled})
        clips = [
            (STRANGER if name == stranger else name, load_recording(file, rate).samples)
            for name in (*enrolled, stranger)
            for file in people[name][NUM_CLIPS : 2 * NUM_CLIPS]
        ]
        order = rng.permutation(len(clips))
        recording, spoken = join([clips[i] for i in order], rate)
        counts.append(count(spoken, voices.who(recording, store)))
    report: dict = {"encoder": voices.digest, "num_recordings": NUM_RECORDINGS}
    for whose in ("enrolled", "stranger"):
        kinds = list(counts[0][whose])
        table = np.array([[one[whose][kind] for kind in kinds] for one in counts])
        resamples = rng.integers(len(table), size=(NUM_RESAMPLES, len(table)))
        sums = table[resamples].sum(1)
        resampled = (sums / sums.sum(1, keepdims=True)).T
        limits = [interval_of(values, NUM_RECORDINGS) for values in resampled]
        shares = table.sum(0) / table.sum()
        report[whose] = {
            "seconds": float(table.sum() * TICK_SECONDS),
            **{
                kind: {"share": float(share), "share_interval": asdict(limit)}
                for kind, share, limit in zip(kinds, shares, limits, strict=True)
            },
        }
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("common_voice", type=Path, metavar="COMMON_VOICE")
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS)
    options = parser.parse_args()

    def command() -> None:
        report = measure(Voices.load(), options.common_voice)
        with atomic_write(options.out) as file:
            file.write(json.dumps(report, indent=2).encode())

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
