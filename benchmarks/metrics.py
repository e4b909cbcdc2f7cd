"""Measure the metrics of a million trials, and intervals of a hundred thousand.

    python benchmarks/metrics.py

Ratios are to sorting the same scores once, which every such metric has to.
"""

import json
import sys
from pathlib import Path
from statistics import median

import numpy as np
from timing import take_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from verification.metrics import (
    RARE_TARGETS,
    bootstrap_speakers,
    equal_error_rate,
    min_cllr,
    min_dcf,
)

ROUNDS = 3


def main() -> None:
    """Command line."""
    generator = np.random.default_rng(0)
    speakers = generator.integers(200, size=(2, 1_000_000))
    targets = speakers[0] == speakers[1]
    scores = generator.normal(2.0 * targets)
    few = slice(100_000)
    sides = speakers[0][few], speakers[1][few]
    ways = {
        "sort of 1,000,000 scores": lambda: np.sort(scores),
        "EER of 1,000,000 trials": lambda: equal_error_rate(scores, targets),
        "minDCF of 1,000,000 trials": lambda: min_dcf(scores, targets),
        "min Cllr of 1,000,000 trials": lambda: min_cllr(scores, targets),
        "1,000 resamples of 100,000 trials": lambda: bootstrap_speakers(
            scores[few], targets[few], sides, RARE_TARGETS, 1000, 0
        ),
    }
    _, times = take_turns(ways, ROUNDS)
    medians = {name: median(seconds) for name, seconds in times.items()}
    sort = medians["sort of 1,000,000 scores"]
    for name, seconds in medians.items():
        print(f"{name:36}{seconds:8.2f} s{seconds / sort:8.1f} sorts")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
