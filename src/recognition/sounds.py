"""One recording: its samples, its speech, and what makes a verdict on it less sure.

sound -> `load_sound` -> samples [N] -> `speech_stretches` -> seconds of speech
samples, seconds -> `faults_of` -> warnings

N samples, E embedding size. A sound is an audio file or an array of samples.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from errors import UserError
from speech.audio import (
    AudioError,
    ChannelError,
    Recording,
    Segment,
    check_length,
    load_recording,
    resampled,
)
from speech.packs import FULL_SCALE

MIN_SECONDS = 0.3  # the shortest sound; a shorter one holds no voice
MIN_PEAK = 0.001  # of full scale; anything below is silence
LITTLE_SPEECH = 2.0  # seconds; verdicts on less speech are less sure
MAX_CLIPPED = 0.001  # share of the samples at full scale
MIN_HIGH_POWER = 1e-4  # at 5 to 7 kHz, relative to 2 to 3.5 kHz; 8 kHz sound has less
WIDE_BAND_RATE = 14_000  # Hz; at a lower rate a recording cannot hold 7 kHz
DETECTOR_RATE = 16_000  # Hz
Sound = str | Path | np.ndarray


class VoiceError(UserError):
    """A sound, a name or a store of people that cannot be used."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording as the model hears it."""

    name: str
    vector: NDArray[np.float32]  # [E], of length 1
    seconds: float
    speech: float  # seconds
    digest: str  # of its samples
    warnings: tuple[str, ...]


def with_names(sounds: Sequence[Sound]) -> list[tuple[str, Sound]]:
    """Name each sound: files by their paths, arrays by their positions."""
    return [
        (f"array {i}" if isinstance(sound, np.ndarray) else str(sound), sound)
        for i, sound in enumerate(sounds)
    ]


def load_sound(
    sound: Sound, sample_rate: int, min_seconds: float, channel: int | None = None
) -> Recording:
    """Return a sound as int16 samples [N] at `sample_rate`, with the warning of
    `load_recording`; `channel` is that of a file, unless the file has only one.

    An array is int16 or floating point in [-1, 1], at `sample_rate` already. Raises
    `AudioError` if the sound cannot be decoded, is too short or is silent.
    """
    if isinstance(sound, np.ndarray):
        recording = Recording(_as_int16(sound), sample_rate)
        check_length(len(sound), sample_rate, min_seconds)
    else:
        segment = Segment(Path(sound), channel=channel)
        try:
            recording = load_recording(segment, sample_rate, min_seconds)
        except ChannelError as error:
            if error.num_channels > 1:
                raise
            recording = load_recording(segment.path, sample_rate, min_seconds)
            faults = f"one channel, taken for channel {channel}", recording.warning
            recording = replace(recording, warning="; ".join(filter(None, faults)))
    samples = recording.samples
    if max(samples.max(), -int(samples.min())) < MIN_PEAK * FULL_SCALE:
        raise AudioError("expected speech, found silence")
    return recording


def _as_int16(samples: np.ndarray) -> NDArray[np.int16]:
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
    if peak > 2:  # between 1 and 2 it is clipped, as in files
        raise AudioError(f"expected samples in [-1, 1], got {peak:g}")
    scaled = (samples * FULL_SCALE).round()
    return scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


@cache
def _detector() -> tuple[Any, Any]:
    """Load silero-vad's network, and the function that applies it."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        from silero_vad import get_speech_timestamps, load_silero_vad

        network = load_silero_vad()
    torch.set_num_threads(threads)  # importing silero_vad sets it to one
    return network, get_speech_timestamps


def speech_stretches(
    samples: NDArray[np.int16], sample_rate: int
) -> list[tuple[float, float]]:
    """Return begin and end, in seconds, of each stretch of speech in samples [N], as
    silero-vad finds them."""
    network, find_stretches = _detector()
    waveform = torch.from_numpy(samples).float() / FULL_SCALE
    waveform = resampled(waveform, sample_rate, DETECTOR_RATE)
    return [
        (stretch["start"] / DETECTOR_RATE, stretch["end"] / DETECTOR_RATE)
        for stretch in find_stretches(waveform, network, sampling_rate=DETECTOR_RATE)
    ]


def faults_of(
    samples: NDArray[np.int16], rate: int, seconds: float, speech: float
) -> list[str]:
    """Return what makes a verdict on samples [N] less sure; `speech` is the number of
    seconds of speech in them."""
    faults = []
    if not speech:
        faults.append("no speech was found")
    elif speech < LITTLE_SPEECH:
        faults.append(f"{speech:.1f} s of speech, less than {LITTLE_SPEECH:g} s")
    if 0 < speech < seconds / 2 and seconds - speech > LITTLE_SPEECH:
        faults.append(f"long pauses, {seconds - speech:.1f} of {seconds:.1f} s")
    clipped = np.isin(samples, (-FULL_SCALE, FULL_SCALE - 1)).mean()
    if clipped > MAX_CLIPPED:
        faults.append(f"clipped, {100 * clipped:.1f} % of the samples at full scale")
    if rate >= WIDE_BAND_RATE and _is_narrow(samples[: 60 * rate], rate):  # a minute
        faults.append("narrow band, like a recording at 8 kHz")
    return faults


def _is_narrow(samples: NDArray[np.int16], rate: int) -> bool:
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    high = power[(hertz >= 5000) & (hertz < 7000)].mean()
    return high < MIN_HIGH_POWER * power[(hertz >= 2000) & (hertz < 3500)].mean()
