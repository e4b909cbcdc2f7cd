"""Measure what silence, an offset and noise do to verdicts, and which part of a
recording the encoder should hear.

    python experiments/silence.py [assets/silence.json]

Run it in the folder that has the corpora below `data`, as init/titanet-s.yml names
them. It takes recordings of development speakers: of each, one to enrol as it was
recorded and others to test under each condition. Each way of preparing them is applied
to both sides; all pairs within a corpus are scored. The file has, for each corpus,
condition and way, the equal error rate, means and deviations of target and non-target
cosines, their distance in deviations (d'), and misses and false alarms at the encoder's
threshold. `make docs` tabulates it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import split
from engine.files import atomic_write
from errors import run_command
from parameters import DatasetParameters
from speech import examination
from speech.acoustics import coloured_noise
from speech.audio import FULL_SCALE, load_recording
from speech.corpora import utterances
from speech.examination import find_speech, join_speech
from speech.packs import Entry, Pack
from verification.metrics import equal_error_rate
from voices import Voices

# Development speakers, and recordings of each after the one that is enrolled.
CORPORA = {"commonvoice": (40, 1), "speechocean762": (10, 2)}
RATE = 16_000  # Hz
ROOM_TONE, OFFSET = 0.001, 0.01  # of full scale
SHORT_SECONDS = 1.5
MIN_SECONDS = 0.3  # the least that the encoder takes
MARGINS = (0.1, 0.2, 0.3)  # seconds
RESULTS = Path(__file__).parents[1] / "assets" / "silence.json"
Samples = NDArray[np.int16]
Stretches = list[tuple[float, float]]


def as_int16(waveform: np.ndarray) -> Samples:
    """Round and clip a waveform whose full scale is that of int16."""
    return waveform.round().clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def preceded(samples: Samples, seconds: float, level: float) -> Samples:
    """Return white noise of this level, of full scale, before samples [N]."""
    noise = np.random.default_rng(0).normal(size=round(seconds * RATE))
    return as_int16(np.concatenate([noise * level * FULL_SCALE, samples]))


def noisy(samples: Samples, seconds: float) -> Samples:
    """Return samples [N] with pink noise 10 dB below them, that begins earlier."""
    sound = np.concatenate([np.zeros(round(seconds * RATE)), samples])
    generator = torch.Generator().manual_seed(len(samples))
    noise = coloured_noise(torch.ones(1), RATE, len(sound), generator)[0].numpy()
    scale = samples.std() / noise.std() / 10**0.5
    return as_int16(sound + noise * scale)


def short(samples: Samples) -> Samples:
    """Return the middle of samples [N]."""
    size = round(SHORT_SECONDS * RATE)
    return samples[max(0, len(samples) - size) // 2 :][:size]


CONDITIONS: dict[str, Callable[[Samples], Samples]] = {
    "as recorded": lambda samples: samples,
    "20 s of silence before": partial(preceded, seconds=20, level=0),
    "1.5 s long": short,
    "noise at 10 dB": partial(noisy, seconds=0),
    "offset of 0.01": lambda samples: as_int16(samples + OFFSET * FULL_SCALE),
    "20 s of low noise before": partial(preceded, seconds=20, level=ROOM_TONE),
    "5 s of silence before": partial(preceded, seconds=5, level=0),
    "noise at 10 dB, 20 s of it before": partial(noisy, seconds=20),
}


def joined(margin: float, samples: Samples, stretches: Stretches) -> Samples:
    """Join the stretches of speech with this margin."""
    examination.MARGIN_SECONDS = margin
    return join_speech(samples, RATE, stretches, MIN_SECONDS)


def trimmed(samples: Samples, stretches: Stretches) -> Samples:
    """Cut what is before the first and after the last stretch of speech."""
    ends = [(stretches[0][0], stretches[-1][1])] if stretches else []
    return joined(0.2, samples, ends)


WAYS: dict[str, Callable[[Samples, Stretches], Samples]] = {
    "whole": lambda samples, _: samples,
    "ends trimmed": trimmed,
    **{f"speech, margin {margin:g} s": partial(joined, margin) for margin in MARGINS},
}


def development(corpus: DatasetParameters) -> dict[str, list[Path]]:
    """Return the files of each development speaker, without decoding any."""
    found = utterances(corpus)
    entries = [
        Entry(u.id, u.speaker, u.split, None, None, i, 1) for i, u in enumerate(found)
    ]
    samples = torch.arange(len(found))  # each differs from all others
    undecoded = Pack(samples, entries, RATE, warnings=[], digests={})
    files: dict[str, list[Path]] = {}
    for index in split(undecoded, corpus).development:
        files.setdefault(entries[index].speaker, []).append(found[index].source)
    return files


def measure(
    voices: Voices, files: dict[str, list[Path]], num_speakers: int, num_tests: int
) -> dict[str, int | dict]:
    """Return figures by condition and way of preparing recordings."""
    speakers = [name for name, paths in files.items() if len(paths) > 1][:num_speakers]
    enrolled = [load_recording(files[name][0], RATE).samples for name in speakers]
    tested = [
        (name, load_recording(path, RATE).samples)
        for name in speakers
        for path in files[name][1 : 1 + num_tests]
    ]
    targets = np.array([[name == other for other, _ in tested] for name in speakers])
    vectors, _ = prepare_and_embed(voices, enrolled)
    figures = {}
    for condition, change in CONDITIONS.items():
        changed = [change(samples) for _, samples in tested]
        others, without_speech = prepare_and_embed(voices, changed)
        figures[condition] = {
            way: summary(voices, vectors[way] @ others[way].T, targets) for way in WAYS
        }
        figures[condition]["without_speech"] = without_speech
        print(json.dumps({condition: figures[condition]}), flush=True)
    counts = {"num_speakers": len(speakers), "num_targets": int(targets.sum())}
    return counts | {"conditions": figures}


def prepare_and_embed(
    voices: Voices, recordings: Sequence[Samples]
) -> tuple[dict[str, np.ndarray], float]:
    """Return the vectors [U, E] of each way, and the share of recordings in which no
    speech is found."""
    stretches = [find_speech(samples, RATE) for samples in recordings]
    vectors = {
        way: voices.embed_samples(map(prepare, recordings, stretches))
        for way, prepare in WAYS.items()
    }
    return vectors, sum(not found for found in stretches) / len(stretches)


def summary(voices: Voices, cosines: np.ndarray, targets: np.ndarray) -> dict:
    """Return figures of cosines, and of decisions at the encoder's threshold."""
    accepted = voices.calibration.llrs(cosines) >= voices.threshold.llr
    of_targets, of_others = cosines[targets], cosines[~targets]
    spread = np.sqrt((of_targets.var() + of_others.var()) / 2)
    return {
        "eer": equal_error_rate(cosines.ravel(), targets.ravel()),
        "d_prime": float((of_targets.mean() - of_others.mean()) / spread),
        "target_mean": float(of_targets.mean()),
        "target_std": float(of_targets.std()),
        "non_target_mean": float(of_others.mean()),
        "non_target_std": float(of_others.std()),
        "miss": float((~accepted[targets]).mean()),
        "false_alarm": float(accepted[~targets].mean()),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS)
    options = parser.parse_args()

    def command() -> None:
        voices = Voices.load()
        corpora = voices.model.config.dataset.corpora
        report = {
            "command": "python experiments/silence.py",
            "encoder": voices.digest,
            **{
                name: measure(voices, development(corpora[name]), *counts)
                for name, counts in CORPORA.items()
            },
        }
        with atomic_write(options.out) as file:
            file.write(json.dumps(report, indent=2).encode())

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
