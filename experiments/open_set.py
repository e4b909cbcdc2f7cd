"""Identify enrolled people among strangers, and calibrate on one's own recordings.

    python experiments/open_set.py COMMON_VOICE SPEECHOCEAN [assets/open_set.json]

Both are folders with a folder for each person whom the released encoder never heard.

Common Voice: 60 people are enrolled with their first clip or first three clips; all
others are strangers. Enrolled people with four clips or more are tested on the clips
after the third, however many are enrolled. The rest of the 60, with three clips, are
not tested; they only serve as wrong answers. The detection and identification rate is
the share of test clips assigned to the right person, at the threshold where 1 % or 5 %
of the strangers' clips are assigned to anybody. A person's score is the cosine with the
mean direction of their clips, or the highest with any one clip. All is repeated at the
threshold of `Voices`, with and without raising it for 60 people.

speechocean762: half the people calibrate the encoder, the other half are tested.

Intervals are 95 %, from resampling enrolled people and strangers. `make docs` tabulates
the file.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.files import atomic_write
from errors import run_command
from recognition.people import read_people
from verification.metrics import bootstrap_rates, interval_of, rates_at
from voices import Voices

NUM_ENROLLED = 60
NUM_CLIPS = 3
RATES = (0.01, 0.05)
NUM_RESAMPLES = 1000
SEED = 0
RESULTS = Path(__file__).parents[1] / "assets" / "open_set.json"


def vectors_of(voices: Voices, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Return the vectors [clips, E] of each person below a folder."""
    people = read_people([str(folder)])
    vectors = voices.embed([file for files in people.values() for file in files])
    ends = np.cumsum([len(files) for files in people.values()])[:-1]
    return dict(zip(people, np.split(vectors.astype(np.float64), ends), strict=True))


def deal(vectors: dict[str, NDArray]) -> tuple[list[str], list[str]]:
    """Return the names to enrol, those with clips to test first, and the strangers'."""
    rng = np.random.default_rng(SEED)
    tested = [name for name, clips in vectors.items() if len(clips) > NUM_CLIPS]
    others = [name for name, clips in vectors.items() if len(clips) == NUM_CLIPS]
    ranked = [*rng.permutation(tested).tolist(), *rng.permutation(others).tolist()]
    enrolled = ranked[:NUM_ENROLLED]
    return enrolled, [name for name in vectors if name not in enrolled]


def scores(gallery: list[NDArray], clips: NDArray, mean: bool) -> NDArray:
    """Return cosines [clips, people] of clips with people, by a person's mean direction
    or best clip."""
    if mean:
        means = np.stack([person.mean(0) for person in gallery])
        return clips @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    return np.stack([(clips @ person.T).max(1) for person in gallery], axis=1)


def rates(
    threshold: float, right: NDArray, known: NDArray, unknown: NDArray
) -> tuple[float, float]:
    """Return the share of known clips that are detected and identified, and that of
    unknown clips that are given to somebody."""
    return float((right & (known >= threshold)).mean()), float(
        (unknown >= threshold).mean()
    )


def threshold_at(rate: float, unknown: NDArray) -> float:
    """Return the lowest threshold that gives at most this share of unknown clips to
    somebody."""
    ranked = np.sort(unknown)[::-1]
    return float(np.nextafter(ranked[math.floor(rate * len(ranked))], np.inf))


def resampled(owners: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of people who are drawn with replacement."""
    names = np.unique(owners)
    chosen = rng.choice(names, len(names))
    return np.concatenate([np.flatnonzero(owners == name) for name in chosen])


def identify(voices: Voices, vectors: dict[str, NDArray]) -> dict:
    """Return detection and identification rates by what is enrolled and how it is
    scored."""
    enrolled, strangers = deal(vectors)
    tested = [name for name in enrolled if len(vectors[name]) > NUM_CLIPS]
    known_clips = np.concatenate([vectors[name][NUM_CLIPS:] for name in tested])
    known_counts = [len(vectors[name]) - NUM_CLIPS for name in tested]
    owners = np.repeat([enrolled.index(name) for name in tested], known_counts)
    unknown_clips = np.concatenate([vectors[name] for name in strangers])
    unknown_counts = [len(vectors[name]) for name in strangers]
    unknown_owners = np.repeat(range(len(strangers)), unknown_counts)
    calibration = voices.calibration
    among = voices.threshold.among(len(enrolled))
    thresholds = {
        name: (llr - calibration.offset) / calibration.scale  # of the cosine
        for name, llr in (
            ("identify", among.llr),
            ("identify, strict", among.strict),
            ("not raised for 60 people", calibration.threshold),
        )
    }
    systems = {}
    for system, count, mean in (
        ("one clip", 1, True),
        ("three clips, mean direction", NUM_CLIPS, True),
        ("three clips, a vector each", NUM_CLIPS, False),
    ):
        gallery = [vectors[name][:count] for name in enrolled]
        known = scores(gallery, known_clips, mean)
        right, best = known.argmax(1) == owners, known.max(1)
        unknown = scores(gallery, unknown_clips, mean).max(1)
        systems[system] = {
            "right, if a threshold were no matter": float(right.mean()),
            **rates_with_intervals(
                right, best, unknown, thresholds, (owners, unknown_owners)
            ),
        }
    return {
        "num_enrolled": len(enrolled),
        "num_tested": len(tested),
        "num_clips": len(known_clips),
        "num_strangers": len(strangers),
        "num_clips_of_strangers": len(unknown_clips),
        "systems": systems,
    }


def rates_with_intervals(
    right: NDArray,
    known: NDArray,
    unknown: NDArray,
    thresholds: dict[str, float],
    owners: tuple[NDArray, NDArray],
) -> dict[str, dict]:
    """Return both rates by threshold: where `RATES` of the unknown clips are given to
    somebody, and at the given ones. `owners` are of known and of unknown clips."""
    resamples: dict[str, list] = defaultdict(list)
    rng = np.random.default_rng(SEED)
    for _ in range(NUM_RESAMPLES):
        rows, columns = resampled(owners[0], rng), resampled(owners[1], rng)
        resample = right[rows], known[rows], unknown[columns]
        for rate in RATES:
            threshold = threshold_at(rate, resample[2])
            resamples[f"{rate:g}"].append(rates(threshold, *resample))
        for name, threshold in thresholds.items():
            resamples[name].append(rates(threshold, *resample))
    points = {f"{rate:g}": threshold_at(rate, unknown) for rate in RATES}
    num_people = [len(np.unique(of_clips)) for of_clips in owners]
    report = {}
    for name, threshold in (points | thresholds).items():
        report[name] = {}
        for metric, rate, values, number in zip(
            ("identified", "false_alarm"),
            rates(threshold, right, known, unknown),
            zip(*resamples[name], strict=True),
            num_people,
            strict=True,
        ):
            interval = interval_of(values, number)
            report[name][metric] = rate
            report[name][f"{metric}_interval"] = [interval.low, interval.high]
    return report


def calibrate_on_half(voices: Voices, folder: Path) -> dict:
    """Return error rates of half the people, at the encoder's threshold and at one
    found on the other half."""
    people = read_people([str(folder)])
    names = np.random.default_rng(SEED).permutation(list(people)).tolist()
    half, others = names[::2], names[1::2]
    files = [file for name in others for file in people[name]]
    codes = np.repeat(range(len(others)), [len(people[name]) for name in others])
    vectors = voices.embed(files).astype(np.float64)
    first, second = np.triu_indices(len(files), 1)
    cosines = (vectors @ vectors.T)[first, second]
    targets = codes[first] == codes[second]
    report = {"num_people": len(half), "num_tested": len(others)}
    encoders = voices.calibration  # `calibrate` replaces it
    own = voices.calibrate({name: people[name] for name in half})
    for name, calibration in (("encoder", encoders), ("own", own)):
        accepted = calibration.llrs(cosines) >= calibration.threshold
        miss, false_alarm = rates_at(1, accepted, targets)
        intervals = bootstrap_rates(
            accepted, targets, (codes[first], codes[second]), NUM_RESAMPLES, SEED
        )
        report[name] = {
            "threshold": calibration.threshold,
            "miss": miss,
            "miss_interval": [intervals[0].low, intervals[0].high],
            "false_alarm": false_alarm,
            "false_alarm_interval": [intervals[1].low, intervals[1].high],
        }
    report["own"]["told"] = {
        "miss": own.miss,
        "miss_interval": own.miss_interval,
        "false_alarm": own.false_alarm,
        "false_alarm_interval": own.false_alarm_interval,
    }
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("common_voice", type=Path, metavar="COMMON_VOICE")
    parser.add_argument("speechocean", type=Path, metavar="SPEECHOCEAN")
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS)
    options = parser.parse_args()

    def command() -> None:
        voices = Voices.load()
        vectors = vectors_of(voices, options.common_voice)
        report = {
            "encoder": voices.digest,
            "identification": identify(voices, vectors),
            "calibration": calibrate_on_half(voices, options.speechocean),
        }
        with atomic_write(options.out) as file:
            file.write(json.dumps(report, indent=2).encode())

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
