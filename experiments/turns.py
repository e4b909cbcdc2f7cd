"""Who speaks when: `Voices.who` on recordings made of turns that are known.

    python experiments/turns.py COMMON_VOICE [assets/turns.json]

COMMON_VOICE is a folder with a folder for each person whom the released encoder never
heard. A recording joins clips of four people, with half a second between: of three who
are enrolled with three other clips each, and of a stranger. Their speech is what
silero-vad finds in the clips before they are joined. The table says to whom `who` gives
it, in shares of its time. Intervals are of 95 %, by drawing recordings anew.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.files import atomic_write
from errors import UserError
from recognition.people import read_people
from recognition.sounds import speech_stretches
from recognition.verdicts import Turn
from reports.tables import print_table
from speech.audio import load_recording
from voices import Voices

NUM_RECORDINGS = 20
NUM_ENROLLED, NUM_CLIPS = 3, 3  # of a recording's people; clips of each
PAUSE = 0.5  # seconds
TICK = 0.01  # seconds, in which speech is counted
STRANGER = "a stranger"
NUM_RESAMPLES, SEED = 1000, 0
TABLE = Path(__file__).parents[1] / "assets" / "turns.json"


def join(
    clips: Sequence[tuple[str, NDArray[np.int16]]], rate: int
) -> tuple[NDArray[np.int16], list[tuple[float, float, str]]]:
    """A recording [N] of clips by name, and (begin, end, name) of its speech."""
    parts, spoken, seconds = [], [], 0.0
    for name, samples in clips:
        stretches = speech_stretches(samples, rate)
        spoken += [(seconds + b, seconds + e, name) for b, e in stretches]
        parts += [samples, np.zeros(round(PAUSE * rate), np.int16)]
        seconds += len(samples) / rate + PAUSE
    return np.concatenate(parts), spoken


def count(
    spoken: Sequence[tuple[float, float, str]], turns: Sequence[Turn]
) -> dict[str, dict[str, int]]:
    """Ticks of speech of enrolled people and of strangers, by whom they are given to;
    what no turn covers is given to nobody."""
    size = 1 + round(max([e for _, e, _ in spoken] + [t.end for t in turns]) / TICK)
    names_of_ticks = np.full(size, "nobody", dtype=object)
    for turn in turns:
        names_of_ticks[round(turn.begin / TICK) : round(turn.end / TICK)] = (
            turn.name or "unknown"
        )
    counts = {
        "enrolled": {"right": 0, "other": 0, "unknown": 0, "nobody": 0},
        "stranger": {"other": 0, "unknown": 0, "nobody": 0},
    }
    for begin, end, name in spoken:
        names, ticks = np.unique(
            names_of_ticks[round(begin / TICK) : round(end / TICK)], return_counts=True
        )
        of = counts["stranger" if name == STRANGER else "enrolled"]
        for own, number in zip(names.tolist(), ticks.tolist(), strict=True):
            kind = "right" if own == name else own if own in of else "other"
            of[kind] += number
    return counts


def measure(voices: Voices, folder: Path) -> dict:
    """Shares of speech by whom it is given to, with intervals."""
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
        limits = np.percentile(sums / sums.sum(1, keepdims=True), [2.5, 97.5], axis=0)
        shares = table.sum(0) / table.sum()
        report[whose] = {
            "seconds": float(table.sum() * TICK),
            **{
                kind: {"share": float(share), "interval": interval.tolist()}
                for kind, share, interval in zip(kinds, shares, limits.T, strict=True)
            },
        }
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("common_voice", type=Path, metavar="COMMON_VOICE")
    parser.add_argument("out", type=Path, nargs="?", default=TABLE)
    options = parser.parse_args()
    try:
        report = measure(Voices.load(), options.common_voice)
        with atomic_write(options.out) as file:
            file.write(json.dumps(report, indent=2).encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [["speech of", "given to", "share, %"]]
    for whose in ("enrolled", "stranger"):
        for kind, one in report[whose].items():
            if kind != "seconds":
                low, high = one["interval"]
                share = f"{100 * one['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                rows.append([whose, kind, share])
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
