"""Sounds as callers have them: files, contents of files, or samples.

sounds -> `with_names` -> sound -> `load_sound` -> `Recording`

N samples, C channels.
"""

import io
import os
import shutil
import tempfile
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from speech.audio import (
    FULL_SCALE,
    MAX_RATE,
    MIN_RATE,
    AudioError,
    ChannelError,
    Recording,
    Segment,
    check_length,
    load_recording,
)

MAX_CHANNELS = 64  # an axis that is longer holds samples
Contents = bytes | bytearray | memoryview
Samples = np.ndarray | torch.Tensor
Sound = str | os.PathLike | Contents | BinaryIO | Samples | tuple[Samples, int]


def with_names(sounds: Sequence[Sound] | Sound) -> list[tuple[str, Sound]]:
    """Name each sound, or a single one: files by their paths, others by their
    positions."""
    return [(_name(sound, place), sound) for place, sound in enumerate(as_list(sounds))]


def as_list(sounds: Sequence[Sound] | Sound) -> list[Sound]:
    """Return a single sound as a list of it: a path is one file, not letters."""
    if isinstance(sounds, str | os.PathLike | Contents | Samples):
        return [sounds]
    if hasattr(sounds, "read") or _has_rate(sounds) or not isinstance(sounds, Iterable):
        return [sounds]
    return list(sounds)


def _has_rate(sound: Any) -> bool:
    is_pair = isinstance(sound, tuple | list) and len(sound) == 2
    return is_pair and sum(isinstance(one, Real) for one in sound) == 1


def _name(sound: Any, place: int) -> str:
    if isinstance(sound, str | os.PathLike):
        return str(sound)
    if isinstance(name := getattr(sound, "name", None), str):  # of an open file
        return name
    if isinstance(sound, Samples) or _has_rate(sound):
        return f"array {place}"
    return f"sound {place}"


def load_sound(
    sound: Sound, sample_rate: int, min_seconds: float, channel: int | None = None
) -> Recording:
    """Return a sound as int16 samples [N] at `sample_rate`, with the warning of
    `load_recording`.

    A sound is the path of an audio file, its content as bytes, the file opened for
    bytes, or (samples, rate), an array or tensor [N], [C, N] or [N, C] and its rate in
    Hz, in either order. Samples are int16 or floating point in [-1, 1]. Samples [N]
    without a rate have `sample_rate`; nothing tells if they do not. `channel` is that
    of a sound with several. Raises `AudioError` if the sound cannot be decoded or is
    too short.
    """
    if isinstance(sound, str | os.PathLike):
        return _load_file(Path(sound), sample_rate, min_seconds, channel)
    if isinstance(sound, Contents) or hasattr(sound, "read"):
        write = _writer_of_content(sound)
    else:
        samples, rate = _samples_and_rate(sound, sample_rate)
        if samples.ndim == 1 and rate == sample_rate:
            check_length(len(samples), sample_rate, min_seconds)
            return Recording(samples, sample_rate)
        write = _writer_of_samples(samples, rate)
    with tempfile.NamedTemporaryFile() as file:
        write(file)
        file.flush()
        return _load_file(Path(file.name), sample_rate, min_seconds, channel)


def _load_file(
    path: Path, sample_rate: int, min_seconds: float, channel: int | None
) -> Recording:
    """Decode a file; take a file's only channel whatever `channel` is, and say so."""
    try:
        segment = Segment(path, channel=channel)
        return load_recording(segment, sample_rate, min_seconds)
    except ChannelError as error:
        if error.num_channels > 1:
            raise
        recording = load_recording(path, sample_rate, min_seconds)
        faults = f"one channel, taken for channel {channel}", recording.warning
        return replace(recording, warning="; ".join(filter(None, faults)))


def _writer_of_content(sound: Contents | BinaryIO) -> Callable[[BinaryIO], None]:
    stream = io.BytesIO(sound) if isinstance(sound, Contents) else sound

    def write(file: BinaryIO) -> None:
        try:
            shutil.copyfileobj(stream, file)
        except (TypeError, ValueError) as error:  # it gives text, or is closed
            raise AudioError(f"expected a file opened for bytes: {error}") from None

    return write


def _writer_of_samples(
    samples: NDArray[np.int16], rate: int
) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
            sound.setsampwidth(samples.itemsize)
            sound.setframerate(rate)
            sound.writeframes(samples.astype("<i2").tobytes())

    return write


def _samples_and_rate(sound: Any, sample_rate: int) -> tuple[NDArray[np.int16], int]:
    """Return samples, [N] or [N, C], and their rate."""
    rate: Any = sample_rate
    if has_rate := _has_rate(sound):
        sound, rate = sound[::-1] if isinstance(sound[0], Real) else sound
        if not (MIN_RATE <= rate <= MAX_RATE and rate == int(rate)):
            raise AudioError(f"expected {MIN_RATE} to {MAX_RATE} Hz, got {rate} Hz")
    if isinstance(sound, torch.Tensor):
        sound = sound.detach().cpu()
        sound = (sound.float() if sound.is_floating_point() else sound).numpy()
    if not isinstance(sound, np.ndarray):
        raise AudioError(
            "expected a file, its bytes, samples [N] or (samples, rate), got "
            f"{type(sound).__name__}"
        )
    if has_rate and sound.ndim == 2:
        sound = _with_channels_last(sound)
    elif sound.ndim != 1:
        raise AudioError(
            f"expected samples [N], or those of channels with their rate, got "
            f"{sound.dtype} {list(sound.shape)}"
        )
    return _as_int16(sound), int(rate)


def _with_channels_last(samples: np.ndarray) -> np.ndarray:
    """Return [C, N] or [N, C] as [N, C]."""
    shorter, longer = sorted(samples.shape)
    if not 0 < shorter <= MAX_CHANNELS < longer:
        raise AudioError(
            f"expected [channels, samples] or [samples, channels] of at most "
            f"{MAX_CHANNELS} channels, got {list(samples.shape)}"
        )
    return samples if samples.shape[0] == longer else samples.T


def _as_int16(samples: np.ndarray) -> NDArray[np.int16]:
    if samples.dtype == np.int16:
        return samples
    if samples.dtype.kind != "f":
        raise AudioError(f"expected int16 or floating point, got {samples.dtype}")
    if not np.isfinite(samples).all():
        raise AudioError("expected finite samples, found NaN or infinity")
    peak = np.abs(samples).max(initial=0)
    if peak > 2:  # between 1 and 2 it is clipped, as in files
        raise AudioError(f"expected samples in [-1, 1], got {peak:g}")
    scaled = (samples * FULL_SCALE).round()
    return scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
