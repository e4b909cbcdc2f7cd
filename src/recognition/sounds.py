"""One recording as it is judged: its samples, its speech, and what is wrong with it.

sound -> `as_int16` -> samples [N] -> `speech_stretches` -> seconds of speech
samples, seconds -> `faults_of` -> warnings

N samples, E embedding size. A sound is an audio file or samples.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from errors import UserError
from speech.audio import AudioError, resampled
from speech.packs import FULL_SCALE

MIN_SECONDS = 0.3  # of a sound; shorter ones hold no voice
MIN_PEAK = 0.001  # of full scale; below is silence
FEW_SECONDS = 2.0  # of speech, below which verdicts are less sure
CLIPPED = 0.001  # share of samples at full scale
NARROW = 1e-4  # power at 5 to 7 kHz beside that at 2 to 3.5 kHz; 8 kHz sound has less
DETECTOR_RATE = 16_000  # Hz
Sound = str | Path | np.ndarray


class VoiceError(UserError):
    """A sound, a name or a store of people that cannot be used."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A sound as the model hears it."""

    name: str
    vector: NDArray[np.float32]  # [E], of length 1
    seconds: float
    speech: float  # seconds of it
    digest: str  # of its samples
    warnings: tuple[str, ...]


def with_names(sounds: Sequence[Sound]) -> list[tuple[str, Sound]]:
    """Files by their paths, arrays by their places."""
    return [
        (f"array {place}" if isinstance(sound, np.ndarray) else str(sound), sound)
        for place, sound in enumerate(sounds)
    ]


def as_int16(samples: np.ndarray) -> NDArray[np.int16]:
    if samples.ndim != 1 or samples.dtype.kind not in "fi":
        raise AudioError(
            "expected samples [N], int16 or floating point, "
            f"got {samples.dtype} {list(samples.shape)}"
        )
    if samples.dtype == np.int16:
        return samples
    if samples.dtype.kind == "i":
        raise AudioError(f"expected int16 or floating point, got {samples.dtype}")
    if not np.isfinite(samples).all():
        raise AudioError("expected finite samples, found NaN or infinity")
    peak = np.abs(samples).max(initial=0)
    if peak > 2:  # slightly above 1 is clipped, as in files
        raise AudioError(f"expected samples in [-1, 1], got {peak:g}")
    scaled = (samples * FULL_SCALE).round()
    return scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


@cache
def _detector() -> tuple[Any, Any]:
    """Silero's network, and the function that applies it."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its network's format is deprecated
        from silero_vad import get_speech_timestamps, load_silero_vad

        network = load_silero_vad()
    torch.set_num_threads(threads)  # the import has set the process's to one
    return network, get_speech_timestamps


def speech_stretches(
    samples: NDArray[np.int16], sample_rate: int
) -> list[tuple[float, float]]:
    """Begin and end in seconds of each stretch of speech in [N] samples, found by
    silero-vad."""
    network, stretches = _detector()
    waveform = torch.from_numpy(samples).float() / FULL_SCALE
    waveform = resampled(waveform, sample_rate, DETECTOR_RATE)
    return [
        (stretch["start"] / DETECTOR_RATE, stretch["end"] / DETECTOR_RATE)
        for stretch in stretches(waveform, network, sampling_rate=DETECTOR_RATE)
    ]


def faults_of(
    samples: NDArray[np.int16], rate: int, seconds: float, speech: float
) -> list[str]:
    """What makes a verdict less sure."""
    faults = []
    if not speech:
        faults.append("no speech was found")
    elif speech < FEW_SECONDS:
        faults.append(f"{speech:.1f} s of speech, below {FEW_SECONDS:g} s is little")
    if 0 < speech < seconds / 2 and seconds - speech > FEW_SECONDS:
        faults.append(f"long pauses, {seconds - speech:.1f} of {seconds:.1f} s")
    clipped = np.isin(samples, (-FULL_SCALE, FULL_SCALE - 1)).mean()
    if clipped > CLIPPED:
        faults.append(f"clipped, {100 * clipped:.1f} % of the samples at full scale")
    if rate >= 14_000:
        power = np.abs(np.fft.rfft(samples[: 60 * rate])) ** 2  # a minute will do
        hertz = np.fft.rfftfreq(len(samples[: 60 * rate]), 1 / rate)
        high = power[(hertz >= 5000) & (hertz < 7000)].mean()
        if high < NARROW * power[(hertz >= 2000) & (hertz < 3500)].mean():
            faults.append("narrow band, as of 8 kHz")
    return faults
