"""Measure audio-seconds per second from the pack to features, beside a loop over files.

    python benchmarks/pipeline.py dataset.name=librispeech dataset.root=DATA \
        augmentation.noise.root=DATA/noise augmentation.reverberation.root=DATA/rirs

Batches are read from the packed corpus, plain and augmented: speed, reverberation and
noise at a probability of 0.5 each. The loop does the same to one file after the other,
which it decodes and changes by torchaudio's own functions. All three take turns within
one process. Figures are medians of the rounds.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torchaudio.transforms import MelSpectrogram

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import TrainingBatches, prepare
from engine.devices import keep_freed_memory
from engine.parameter_files import (
    SHIPPED,
    check_parameters,
    load_parameters,
    override_values,
)
from errors import run_command
from parameters import Parameters
from speech.corpora import utterances
from speech.surroundings import (
    load_surroundings,
    noise_recordings,
    response_recordings,
)
from transforms import Augmentation, FrontEnd

CPU = torch.device("cpu")


class Stopwatch:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Charge the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


@torch.inference_mode()
def batched(
    batches: TrainingBatches,
    augmentation: Augmentation,
    front_end: FrontEnd,
    epoch: int,
) -> tuple[float, Stopwatch]:
    """Return the audio-seconds of an epoch, and where its time went."""
    audio, watch = 0.0, Stopwatch()
    for batch in batches.epoch(epoch):
        watch.lap("crops")
        torch.manual_seed(batch.seed)
        x = batch.waveforms
        if augmentation.speed is not None:
            x = augmentation.speed(x, batch.crop)
            watch.lap("speed")
        for name, change in augmentation.changes.items():
            x = change(x)
            watch.lap(name)
        front_end(x)
        watch.lap("log-mel")
        audio += x.numel() / batches.sample_rate
    return audio, watch


class FileLoop:
    """One file after the other, as in a data set's `__getitem__`."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        augmentation = parameters.augmentation
        self.noise = [r.source for r in noise_recordings(augmentation.noise.root)]
        rooms = response_recordings(augmentation.reverberation.root, download=False)
        self.rooms = [r.source.path for r in rooms]
        self.files = [
            u.source for u in utterances(parameters.dataset) if u.split != "test"
        ]
        f = parameters.front_end
        self.mel = MelSpectrogram(
            f.sample_rate,
            f.n_fft,
            round(f.window_seconds * f.sample_rate),
            round(f.hop_seconds * f.sample_rate),
            n_mels=f.num_mels,
            norm="slaney",
            mel_scale="slaney",
        )

    def _read(self, path: Path) -> torch.Tensor:
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples[:, :1].T)  # the first channel, [1, N]

    def run(self, count: int, seed: int) -> float:
        """Decode and augment `count` files; return their audio-seconds."""
        augmentation, rng = self.parameters.augmentation, random.Random(seed)
        rate, audio = self.parameters.front_end.sample_rate, 0.0
        for path in rng.sample(self.files, count):
            x = self._read(path)
            if rng.random() < augmentation.speed.probability:
                steps = augmentation.speed.steps
                factor = 1 + rng.randint(-steps, steps) / 100
                x, _ = torchaudio.functional.speed(x, rate, factor)
            size = round(rng.choice(self.parameters.model.crop_seconds) * rate)
            start = rng.randint(0, max(0, x.shape[1] - size))
            x = x[:, start : start + size].repeat(1, -(-size // x.shape[1]))[:, :size]
            if rng.random() < augmentation.reverberation.probability:
                room = self._read(rng.choice(self.rooms))
                x = torchaudio.functional.fftconvolve(x, room)[:, :size]
            if rng.random() < augmentation.noise.probability:
                noise = self._read(rng.choice(self.noise))
                noise = noise.repeat(1, -(-size // noise.shape[1]))[:, :size]
                snr = torch.tensor([rng.uniform(*augmentation.noise.snr_db)])
                x = torchaudio.functional.add_noise(x, noise + 1e-9, snr)
            features = torch.log(self.mel(x) + 2**-24)
            (features - features.mean(2, keepdim=True)) / features.std(2, keepdim=True)
            audio += size / rate
        return audio


def measure(parameters: Parameters, rounds: int, loop_files: int) -> dict:
    """Return audio-seconds per second of each way, and the shares of the augmented
    batches' time."""
    kinds = ("speed", "reverberation", "noise")
    splits = prepare(parameters.dataset, parameters.front_end)
    front_end = FrontEnd(parameters.front_end).train()
    sample_rate = parameters.front_end.sample_rate
    ways = {}
    for name, probability in (("plain", 0), ("augmented", 0.5)):
        changes = [f"augmentation.{k}.probability={probability}" for k in kinds]
        config = check_parameters(override_values(parameters.as_dict(), changes))
        surroundings = load_surroundings(config, CPU)
        augmentation = Augmentation(config.augmentation, sample_rate, surroundings)
        ways[name] = TrainingBatches(splits, config, CPU), augmentation, front_end
    loop = FileLoop(config)
    speeds, parts = defaultdict(list), defaultdict(float)
    for number in range(-1, rounds):  # the first round warms up
        for name, way in ways.items():
            audio, watch = batched(*way, epoch=number + 1)
            if number >= 0:
                speeds[name].append(audio / sum(watch.seconds.values()))
                for part, seconds in watch.seconds.items():
                    parts[part] += seconds * (name == "augmented")
        began = time.perf_counter()
        audio = loop.run(loop_files, number)
        if number >= 0:
            speeds["file by file"].append(audio / (time.perf_counter() - began))
    return {
        "audio_seconds_per_second": {k: median(v) for k, v in speeds.items()},
        "ratio_to_file_by_file": {
            k: median(np.array(v) / np.array(speeds["file by file"]))
            for k, v in speeds.items()
        },
        "shares": {k: v / sum(parts.values()) for k, v in parts.items()},
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()

    def command() -> None:
        parameters = load_parameters(SHIPPED, overrides=options.overrides)
        report = measure(parameters, rounds=7, loop_files=200)
        for name, speed in report["audio_seconds_per_second"].items():
            ratio = report["ratio_to_file_by_file"][name]
            print(f"{name:14}{speed:8.0f} audio s/s{ratio:7.1f} times file by file")
        for part, share in report["shares"].items():
            print(f"  {part:14}{share:6.1%} of the augmented")
        print(json.dumps(report))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
