"""Metrics of a million trials, and intervals of a hundred thousand.

    python benchmarks/metrics.py

Ratios are to sorting the same scores once, which every such metric has to.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from verification.metrics import (
    RARE_TARGETS,
    bootstrap_speakers,
    equal_error_rate,
    min_cllr,
    min_dcf,
)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median over repeats."""
    timings = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        timings.append(time.perf_counter() - began)
    return median(timings)


def main() -> int:
    """Command line."""
    generator = np.random.default_rng(0)
    speakers = generator.integers(200, size=(2, 1_000_000))
    targets = speakers[0] == speakers[1]
    scores = generator.normal(2.0 * targets)
    few = slice(100_000)
    sides = speakers[0][few], speakers[1][few]

    def eer_and_dcf() -> None:
        equal_error_rate(scores, targets)
        min_dcf(scores, targets)

    def intervals() -> None:
        bootstrap_speakers(scores[few], targets[few], sides, RARE_TARGETS, 1000, 0)

    timings = {
        "sort of 1,000,000 scores": seconds(lambda: np.sort(scores), 5),
        "EER and minDCF of 1,000,000 trials": seconds(eer_and_dcf, 5),
        "min Cllr of 1,000,000 trials": seconds(lambda: min_cllr(scores, targets), 3),
        "1,000 resamples of 100,000 trials": seconds(intervals, 1),
    }
    unit = timings["sort of 1,000,000 scores"]
    for name, value in timings.items():
        print(f"{name:36}{value:8.2f} s{value / unit:8.1f} sorts")
    print(json.dumps(timings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
