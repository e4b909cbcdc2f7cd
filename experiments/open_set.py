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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.files import atomic_write
from errors import run_command
from recognition.people import read_people
from verification.metrics import bootstrap_rates, rates_at
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
    parts = np.split(vectors.astype(np.float64), ends)
    return dict(zip(people, parts, strict=True))


def deal(vectors: dict[str, NDArray]) -> tuple[list[str], list[str]]:
    """Return the names to enrol, those with clips to test first, and the strangers'."""
    rng = np.random.default_rng(SEED)
    tested = [name for name, of in vectors.items() if len(of) > NUM_CLIPS]
    others = [name for name, of in vectors.items() if len(of) == NUM_CLIPS]
    ranked = [*rng.permutation(tested).tolist(), *rng.permutation(others).tolist()]
    enrolled = ranked[:NUM_ENROLLED]
    return enrolled, [name for name in vectors if name not in enrolled]


def scores(gallery: list[NDArray], clips: NDArray, mean: bool) -> NDArray:
    """Return cosines [clips, people] of clips with people, by a person's mean direction
    or best clip."""
    if mean:
        means = np.stack([of_person.mean(0) for of_person in gallery])
        return clips @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    return np.stack([(clips @ of.T).max(1) for of in gallery], axis=1)


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


def interval(values: list[float]) -> list[float]:
    """Return the 95 % interval of resampled values."""
    return np.quantile(values, (0.025, 0.975)).tolist()


def identify(voices: Voices, vectors: dict[str, NDArray]) -> dict:
    """Return detection and identification rates by what is enrolled and how it is
    scored."""
    enrolled, strangers = deal(vectors)
    probes = {
        n: vectors[n][NUM_CLIPS:] for n in enrolled if len(vectors[n]) > NUM_CLIPS
    }
    counts = [len(of) for of in probes.values()]
    owners = np.repeat([enrolled.index(name) for name in probes], counts)
    stranger_of = np.repeat(range(len(strangers)), [len(vectors[n]) for n in strangers])
    known_clips = np.concatenate(list(probes.values()))
    unknown_clips = np.concatenate([vectors[name] for name in strangers])
    calibration = voices.calibration
    among = voices.threshold.among(len(enrolled))
    llr_thresholds = {
        "identify": among.llr,
        "identify, strict": among.strict,
        "not raised for 60 people": calibration.threshold,
    }
    systems = {}
    for system, count, mean in (
        ("one clip", 1, True),
        ("three clips, mean direction", NUM_CLIPS, True),
        ("three clips, a vector each", NUM_CLIPS, False),
    ):
        gallery = [vectors[name][:count] for name in enrolled]
        known = scores(gallery, known_clips, mean)
        right = known.argmax(1) == owners
        best, unknown = known.max(1), scores(gallery, unknown_clips, mean).max(1)
        report: dict = {"right, if a threshold were no matter": float(right.mean())}
        cosine_of = {
            name: (llr - calibration.offset) / calibration.scale
            for name, llr in llr_thresholds.items()
        }
        resamples: dict[str, list] = {}
        rng = np.random.default_rng(SEED)
        for _ in range(NUM_RESAMPLES):
            rows = resampled(owners, rng)
            columns = resampled(stranger_of, rng)
            part = right[rows], best[rows], unknown[columns]
            for rate in RATES:
                threshold = threshold_at(rate, part[2])
                resamples.setdefault(f"{rate:g}", []).append(rates(threshold, *part))
            for name, threshold in cosine_of.items():
                resamples.setdefault(name, []).append(rates(threshold, *part))
        points = {f"{rate:g}": threshold_at(rate, unknown) for rate in RATES}
        for name, threshold in (points | cosine_of).items():
            identified, false_alarm = rates(threshold, right, best, unknown)
            detections, false_alarms = zip(*resamples[name], strict=True)
            report[name] = {
                "identified": identified,
                "identified_interval": interval(detections),
                "false_alarm": false_alarm,
                "false_alarm_interval": interval(false_alarms),
            }
        systems[system] = report
    return {
        "num_enrolled": len(enrolled),
        "num_tested": len(probes),
        "num_clips": len(known_clips),
        "num_strangers": len(strangers),
        "num_clips_of_strangers": len(unknown_clips),
        "systems": systems,
    }


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
    encoders = voices.calibration
    promised = voices.calibrate({name: people[name] for name in half})
    for name, calibration in (("encoder", encoders), ("own", promised)):
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
        "miss": promised.miss,
        "miss_interval": promised.miss_interval,
        "false_alarm": promised.false_alarm,
        "false_alarm_interval": promised.false_alarm_interval,
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
