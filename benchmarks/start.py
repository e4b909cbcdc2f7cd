"""Measure how long a comparison of two recordings takes from the command line.

    python benchmarks/start.py [a.wav b.wav] [--json FILE]

The yardstick is a process that imports torch, loads the released encoder's file and
silero-vad, and ends. Figures are medians of the rounds, each of which starts both.
Without recordings two of a synthetic voice are compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import soundfile
from timing import take_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from speech.synthetic import SyntheticUtterance
from voices import RELEASED

ROUNDS = 7
RATE = 16_000  # Hz
MINIMAL = """
import sys
import torch
from silero_vad import load_silero_vad
torch.load(sys.argv[1], map_location="cpu", weights_only=True)
load_silero_vad()
"""


def measure(first: Path, second: Path) -> dict[str, float]:
    """Return the median seconds of both, of `--help`, their difference and ratio."""
    program = Path(__file__).parents[1] / "src" / "voices.py"
    words = {
        "minimal": ["-c", MINIMAL, RELEASED],
        "compare": [program, "compare", first, second],
        "help": [program, "--help"],
    }
    ways = {
        name: lambda arguments=arguments: subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True
        )
        for name, arguments in words.items()
    }
    _, times = take_turns(ways, ROUNDS)
    pairs = [*zip(times["compare"], times["minimal"], strict=True)]
    return {
        **{f"{name}_seconds": median(seconds) for name, seconds in times.items()},
        "difference_seconds": median(c - m for c, m in pairs),
        "ratio": median(c / m for c, m in pairs),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recordings", type=Path, nargs="*", metavar="a.wav b.wav")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    if len(options.recordings) not in (0, 2):
        parser.error("expected two recordings, or none")
    with tempfile.TemporaryDirectory() as folder:
        files = options.recordings
        if not files:
            files = [Path(folder) / f"{index}.wav" for index in (0, 1)]
            for index, file in enumerate(files):
                voice = SyntheticUtterance(speaker=0, index=index, seconds=3.0, seed=3)
                soundfile.write(file, voice.render(RATE), RATE)
        report = measure(*files)
    for name, value in report.items():
        print(f"{name:20}{value:8.2f}")
    text = json.dumps(report, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
