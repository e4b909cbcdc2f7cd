"""Calibrate on few people, and count false alarms among others.

    python src/voices.py embed DEVELOPMENT development.npz
    python src/voices.py embed TEST test.npz
    python experiments/few_people.py development.npz test.npz [assets/few_people.json]

Both are folders with a folder for each person whom the released encoder never heard.
Of those of the first who have several recordings, 2 to 20 people are drawn 30 times.
Each time a threshold for 1 % of false alarms is found on all pairs of their recordings,
in three ways: by logistic regression and the quantile of non-targets alone, with the
prior for an encoder of which nothing is known, and with that of the encoder's own
calibration. All people of the second folder are tested at it. `make docs` tabulates the
file.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.files import atomic_write
from errors import run_command
from recognition.vectors import load_vectors
from verification.calibration import ScoredTrials, calibrate
from verification.metrics import rates_at, threshold_for
from verification.scoring import Calibration, cosine_scores
from verification.trials import make_trials
from voices import Voices

NUM_PEOPLE = (2, 3, 5, 10, 20)
NUM_DRAWS, SEED, RATE = 30, 0, 0.01
RESULTS = Path(__file__).parents[1] / "assets" / "few_people.json"


def scored(vectors: NDArray, people: NDArray) -> ScoredTrials:
    """Return the cosines of all pairs of recordings."""
    trials = make_trials(people, 10**6, SEED)
    scores = cosine_scores(torch.from_numpy(vectors), trials)
    return ScoredTrials(scores, trials.targets, len(np.unique(people)))


def without_prior(group: ScoredTrials) -> Calibration:
    """Return logistic regression and a quantile of these trials alone."""
    scores, targets = group.scores, group.targets
    weights = np.where(targets, 1 / targets.sum(), 1 / (~targets).sum())
    regression = LogisticRegression(C=np.inf, tol=1e-8)
    regression.fit(scores[:, None], targets, sample_weight=weights * len(scores) / 2)
    scale, offset = float(regression.coef_[0, 0]), float(regression.intercept_[0])
    threshold = threshold_for(RATE, [(scale * scores + offset, targets)])
    return Calibration(scale, offset, threshold, math.nan, math.nan)


def measure(vectors: Mapping, tested: ScoredTrials, own: Calibration) -> dict:
    """Return rates, slopes and log likelihood ratios by way and number of people."""
    people = np.array([path.partition("/")[0] for path in vectors["path"]])
    names, counts = np.unique(people, return_counts=True)
    rng = np.random.default_rng(SEED)
    ways = {
        "alone": without_prior,
        "unknown": lambda group: calibrate([group], RATE),
        "own": lambda group: calibrate([group], RATE, own),
    }
    report: dict = {way: {} for way in ways}
    for count in NUM_PEOPLE:
        found: dict[str, list] = {way: [] for way in ways}
        for _ in range(NUM_DRAWS):
            chosen = np.isin(people, rng.choice(names[counts > 1], count, False))
            group = scored(vectors["vector"][chosen], people[chosen])
            for way, fit in ways.items():
                calibration = fit(group)
                llrs = calibration.llrs(tested.scores)
                rates = rates_at(calibration.threshold, llrs, tested.targets)
                found[way].append((*rates, calibration.scale, np.abs(llrs).max()))
        for way, draws in found.items():
            miss, false_alarm, slope, llr = np.transpose(draws)
            report[way][str(count)] = {
                "false_alarm": float(np.median(false_alarm)),
                "worst_false_alarm": float(false_alarm.max()),
                "miss": float(np.median(miss)),
                "slope": [
                    float(slope.min()),
                    float(np.median(slope)),
                    float(slope.max()),
                ],
                "largest_llr": [float(np.median(llr)), float(llr.max())],
            }
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("development", type=Path, metavar="development.npz")
    parser.add_argument("test", type=Path, metavar="test.npz")
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS)
    options = parser.parse_args()

    def command() -> None:
        voices = Voices.load()
        development, test = map(load_vectors, (options.development, options.test))
        people = np.array([path.partition("/")[0] for path in test["path"]])
        tested = scored(test["vector"], people)
        own = voices.model.backend.calibrations["trained"]
        report = {
            "command": "python experiments/few_people.py development.npz test.npz",
            "encoder": str(test["digest"]),
            "num_draws": NUM_DRAWS,
            "num_tested": tested.num_speakers,
            "encoders_slope": own.scale,
            **measure(development, tested, own),
        }
        with atomic_write(options.out) as file:
            file.write(json.dumps(report, indent=2).encode())

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
