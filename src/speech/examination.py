"""What is wrong with a recording, and where it holds speech.

`Recording` -> `examine` -> what is doubtful, or `AudioError` if it cannot be used
samples [N] -> `find_speech` -> stretches of speech -> `join_speech` -> samples [N]

N samples. `examine` takes a millisecond for a second of sound at most, so that packing
can afford it. `find_speech` runs silero-vad, a network, and takes ten times as long.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speech.audio import FULL_SCALE, AudioError, Recording, resampled
from speech.samples import Samples, end_to_end, extent, in_blocks

FRAME_SECONDS = 0.02  # of which levels are measured
FRAMES_AT_ONCE = 2**12  # so that hours of sound need little memory
MIN_LEVEL = 3e-4  # of full scale, of a frame without its mean; below it is silence
MIN_SOUND_SECONDS = 0.1  # the least of sound that is no silence
MAX_CLIPPED = 0.001  # share of samples at the peak; a verdict on more is less sure
CLIPPED_THROUGHOUT = 0.2  # with more, the EER of Common Voice doubles and trebles
MAX_OFFSET = 0.005  # of full scale; sound cards have less
MAX_PAUSE_SECONDS = 2.0  # of silence, if it is more than half of a recording
# Decibels between the 5th and the 95th percentile of levels. Speech in noise of its own
# power has 6 and more, steady noise has 1 to 4.
MIN_LEVEL_RANGE = 5.0
MIN_STEADY_SECONDS = 1.0
SPECTRUM_SECONDS, SPECTRUM_SIZE = 60, 1024  # seconds and samples of a spectrum
MIN_HIGH_POWER = 1e-4  # at 5 to 7 kHz, relative to 2 to 3.5 kHz; 8 kHz sound has less
WIDE_BAND_RATE = 14_000  # Hz; at a lower rate a recording cannot hold 7 kHz
NARROW_BAND = "narrow band, like a recording at 8 kHz"
DETECTOR_RATE, DETECTOR_SIZE = 16_000, 512  # Hz, and samples for one probability
DETECTOR_PEAK = 0.5  # to which quiet sound is amplified, so that its speech is found
SECONDS_AT_ONCE = 64  # of sound in floating point; windows of the detector fit in
MARGIN_SECONDS = 0.3  # around each stretch; experiments/silence.py compares others


def examine(
    recording: Recording, sample_rate: int, is_speech: bool = True
) -> list[str]:
    """Return what is doubtful in samples [N], beginning with the warning of decoding.

    Of noise and of room impulse responses less is expected than of speech. Raises
    `AudioError` for silence, whatever its offset, and for speech that is clipped
    throughout.
    """
    samples = recording.samples
    means, levels, clipped = _measure(samples, round(FRAME_SECONDS * sample_rate))
    sounding = levels >= MIN_LEVEL * FULL_SCALE  # [frames]
    least = min(MIN_SOUND_SECONDS / FRAME_SECONDS, len(levels) / 2) if is_speech else 1
    if sounding.sum() < least:
        raise AudioError("expected sound, found silence")
    if is_speech and clipped > CLIPPED_THROUGHOUT:
        raise AudioError(
            "expected speech, found clipping throughout, "
            f"{100 * clipped:.0f} % of the samples"
        )
    doubts = [recording.warning] if recording.warning else []
    if clipped > MAX_CLIPPED:
        doubts.append(f"clipped, {100 * clipped:.1f} % of the samples")
    offset = means[sounding].mean() / FULL_SCALE
    if abs(offset) > MAX_OFFSET:
        doubts.append(f"DC offset, {offset:+.3f} of full scale")
    if is_speech:
        doubts += _doubts_of_levels(levels, sounding)
        if sample_rate >= WIDE_BAND_RATE and _is_narrow(samples, sample_rate):
            doubts.append(NARROW_BAND)
    return doubts


def _measure(
    samples: Samples, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return the mean and the deviation of each frame of `size` samples, and the share
    of samples that are clipped: at the peak, next to another one at the peak."""
    size = min(size, len(samples))
    mean, *extremes = extent(samples)
    # The lesser one, if it is much less, may be the silence around one click.
    farthest = max(abs(extreme - mean) for extreme in extremes)
    peaks = [extreme for extreme in extremes if abs(extreme - mean) >= farthest / 2]
    means, levels, num_clipped = [], [], 0
    for block in in_blocks(samples, size=FRAMES_AT_ONCE * size):
        frames = block[: len(block) // size * size].reshape(-1, size)
        at_peak = np.isin(frames, np.int16(peaks)).ravel()
        num_clipped += np.count_nonzero(at_peak[1:] & at_peak[:-1])
        means.append(frames.mean(1, dtype=np.float32))
        levels.append(frames.std(1, dtype=np.float32))
    return np.concatenate(means), np.concatenate(levels), num_clipped / len(samples)


def _doubts_of_levels(
    levels: NDArray[np.float32], sounding: NDArray[np.bool_]
) -> Iterator[str]:
    seconds = FRAME_SECONDS * len(levels)
    silent = FRAME_SECONDS * np.count_nonzero(~sounding)
    if silent > max(seconds / 2, MAX_PAUSE_SECONDS):
        yield f"long pauses, {silent:.1f} of {seconds:.1f} s are silent"
    low, high = 20 * np.log10(np.percentile(levels, [5, 95]).clip(min=1))
    if seconds >= MIN_STEADY_SECONDS and high - low < MIN_LEVEL_RANGE:
        yield f"steady like noise, its level stays within {high - low:.1f} dB"


def _is_narrow(samples: Samples, rate: int) -> bool:
    size = min(SPECTRUM_SIZE, len(samples))
    samples = samples[: SPECTRUM_SECONDS * rate // size * size]
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = (np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2).mean(0)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    high = power[(hertz >= 5000) & (hertz < 7000)].mean()
    return high < MIN_HIGH_POWER * power[(hertz >= 2000) & (hertz < 3500)].mean()


@cache
def _detector() -> tuple[Any, Callable]:
    """Load silero-vad's network, and the function that finds stretches in its
    probabilities."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        from silero_vad import load_silero_vad
        from silero_vad.utils_vad import get_speech_timestamps_from_probs

        network = load_silero_vad()
    torch.set_num_threads(threads)  # importing silero_vad sets it to one
    return network, get_speech_timestamps_from_probs


@torch.inference_mode()
def find_speech(samples: Samples, sample_rate: int) -> list[tuple[float, float]]:
    """Return begin and end, in seconds, of each stretch of speech in samples [N], as
    silero-vad finds them. An offset and a low level change nothing."""
    network, find_stretches = _detector()
    network.reset_states()
    probabilities = [
        network(window, DETECTOR_RATE).item()
        for window in _windows(samples, sample_rate)
    ]
    stretches = find_stretches(
        probabilities,
        sampling_rate=DETECTOR_RATE,
        audio_length_samples=round(len(samples) / sample_rate * DETECTOR_RATE),
    )
    return [(s["start"] / DETECTOR_RATE, s["end"] / DETECTOR_RATE) for s in stretches]


def _windows(samples: Samples, sample_rate: int) -> Iterator[torch.Tensor]:
    """Yield the samples [512] of each probability, the last with zeros after it."""
    mean, least, largest = extent(samples)
    scale = DETECTOR_PEAK / max(largest - mean, mean - least, 1)
    for samples_at_once in in_blocks(samples, size=SECONDS_AT_ONCE * sample_rate):
        block = torch.from_numpy(samples_at_once).float()
        block = resampled((block - mean) * scale, sample_rate, DETECTOR_RATE)
        padding = -len(block) % DETECTOR_SIZE
        yield from torch.nn.functional.pad(block, (0, padding)).split(DETECTOR_SIZE)


def join_speech(
    samples: Samples,
    sample_rate: int,
    stretches: Sequence[tuple[float, float]],
    min_seconds: float = 0.0,
) -> Samples:
    """Return the stretches of speech in samples [N], in order, end to end, with their
    margins and without an offset: what an encoder should hear.

    Margins grow until there are `min_seconds`, if the samples have as many. Without
    stretches the samples are returned whole.
    """
    margin, least = MARGIN_SECONDS, min(min_seconds, len(samples) / sample_rate)
    runs = [(0, len(samples))]
    while stretches:
        runs = _with_margins(stretches, margin, len(samples), sample_rate)
        if sum(end - begin for begin, end in runs) >= round(least * sample_rate):
            break
        margin *= 2

    def blocks() -> Iterator[NDArray[np.int16]]:
        return chain.from_iterable(in_blocks(samples, *run) for run in runs)

    num_samples = sum(map(len, blocks()))
    offset = round(sum(int(b.sum(dtype=np.int64)) for b in blocks()) / num_samples)
    return end_to_end(_without(block, offset) for block in blocks())


def _with_margins(
    stretches: Sequence[tuple[float, float]],
    margin: float,
    num_samples: int,
    sample_rate: int,
) -> list[tuple[int, int]]:
    """Return begin and end, in samples, of the stretches with a margin around each;
    those that meet are one."""
    runs: list[tuple[int, int]] = []
    for times in stretches:
        begin, end = (
            min(max(0, round(seconds * sample_rate)), num_samples)
            for seconds in (times[0] - margin, times[1] + margin)
        )
        if runs and begin <= runs[-1][1]:
            begin, _ = runs.pop()
        runs.append((begin, end))
    return runs


def centred(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return samples [N] without their mean."""
    return _without(samples, round(float(samples.mean())))


def _without(samples: NDArray[np.int16], offset: int) -> NDArray[np.int16]:
    if not offset:
        return samples
    limits = -FULL_SCALE, FULL_SCALE - 1
    return np.clip(samples.astype(np.int32) - offset, *limits).astype(np.int16)
