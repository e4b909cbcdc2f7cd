"""Decode one recording to 16-bit mono, and encode one for a browser.

`Utterance.source` -> `load_recording` -> int16 [N] -> `encode_ogg` -> bytes

N samples. This is the only module that decodes and encodes audio files.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch

from speech.channels import Channels
from speech.synthetic import SyntheticUtterance

MIN_SECONDS = 0.025  # of a recording; a front end may need more
FULL_SCALE = 32768  # of an int16 sample
MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz; any other rate means a damaged header
STREAMED_SIZE = 0x7FFFF000  # bytes; the header of a streamed WAV claims at least this
MAX_OGG_PAGE = 65_307  # bytes
SAMPLES_PER_READ = 2**20  # of all channels
SAMPLES_PER_RESAMPLING = 2**24  # six minutes at 44.1 kHz


class AudioError(Exception):
    """A file that cannot be used. The message gives the reason without the name."""


class ChannelError(AudioError):
    """A file without the channel that was asked for."""

    def __init__(self, channel: int, num_channels: int) -> None:
        super().__init__(
            f"expected a channel from 0 to {num_channels - 1} "
            f"({num_channels} in all), got {channel}"
        )
        self.num_channels = num_channels


@dataclass(frozen=True)
class Segment:
    """A part of an audio file, in seconds.

    Without a duration it reaches to the end. Channels count from 0; without a channel
    `load_recording` chooses.
    """

    path: Path
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Recording:
    """Decoded mono speech."""

    samples: np.ndarray  # int16 [N]
    rate: int  # Hz, of the source
    warning: str | None = None


def load_recording(
    source: Path | Segment | SyntheticUtterance,
    sample_rate: int,
    min_seconds: float = MIN_SECONDS,
) -> Recording:
    """Decode speech to mono int16 [N] at `sample_rate` Hz.

    Channels are averaged unless the segment names one. If only one has sound it is
    taken, and if they cancel each other the first with sound is; a warning says so, and
    also if they differ as those of two people do. Other rates are resampled, peaks
    beyond full scale are clipped. A 16-bit mono file at `sample_rate` comes back bit
    for bit. Only the segment is decoded. A WAV, Ogg or MP3 file that was cut short, or
    that ends within the segment, gives the samples that it has, with a warning. Raises
    `AudioError` if the file is not audio, is a FLAC file cut short, is damaged or
    empty, has no such channel, is shorter than `min_seconds`, or holds samples that are
    not finite.
    """
    if isinstance(source, SyntheticUtterance):
        samples = source.render(sample_rate)
        check_length(len(samples), sample_rate, min_seconds)
        return Recording(samples, sample_rate)
    try:
        segment = Segment(source) if isinstance(source, Path) else source
        waveform, rate, warning = _decode(segment)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from None
    # The filters of unusual rates would fill gigabytes, so such rates are rounded, by
    # less than a thousandth. Usual rates stay exact.
    ratio = Fraction(rate, sample_rate)
    ratio = ratio.limit_denominator(min(1000, 5000 * sample_rate // rate))
    waveform = resampled(waveform, ratio.numerator, ratio.denominator)
    check_length(len(waveform), sample_rate, min_seconds)
    if not waveform.isfinite().all():
        raise AudioError("expected finite samples, found NaN or infinity")
    # In place, since hours of samples are gigabytes.
    samples = waveform.mul_(FULL_SCALE).round_().clamp_(-FULL_SCALE, FULL_SCALE - 1)
    return Recording(samples.to(torch.int16).numpy(), rate, warning)


def check_length(num_samples: int, sample_rate: int, min_seconds: float) -> None:
    """Raise `AudioError` if there are fewer than `min_seconds` of samples."""
    if num_samples < round(min_seconds * sample_rate):
        seconds = num_samples / sample_rate
        raise AudioError(f"expected at least {min_seconds:g} s, found {seconds:.4f} s")


def resampled(waveform: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resample [N] -> [N'] by new / old, stretch by stretch: for an hour at once,
    torchaudio would need five times the memory of its samples."""
    if old == new:
        return waveform
    from torchaudio.functional import resample  # takes a quarter of a second

    size = SAMPLES_PER_RESAMPLING - SAMPLES_PER_RESAMPLING % old
    reach = 8 * old  # longer than half a filter of 6 zero crossings on each side
    stretches = []
    for begin in range(0, len(waveform), size):
        before = min(begin, reach)
        stretch = resample(waveform[begin - before : begin + size + reach], old, new)
        skipped = before // old * new
        stretches.append(stretch[skipped : skipped + size // old * new])
    return torch.cat(stretches)


def encode_ogg(samples: np.ndarray, sample_rate: int) -> bytes:
    """Encode int16 [N], or float32 [N] in [-1, 1], as a small file that browsers
    play."""
    file = io.BytesIO()
    # Opus would take 15 times as long to save a third.
    soundfile.write(
        file, samples, sample_rate, format="OGG", subtype="VORBIS", compression_level=1
    )
    return file.getvalue()


def _decode(segment: Segment) -> tuple[torch.Tensor, int, str | None]:
    """Return one channel or the mean of all, float32 [N], its rate in Hz, and a warning
    if it is cut."""
    if not segment.path.is_file():
        raise AudioError("expected a file, found none")
    problem = "not readable as audio"
    try:
        # libsndfile gets an open file, since it refuses names that are not UTF-8.
        with segment.path.open("rb") as stream:
            ends_early = _ends_early(stream)
            stream.seek(0)
            with soundfile.SoundFile(stream) as file:
                problem = "cut short or damaged"
                promised, rate, container = file.frames, file.samplerate, file.format
                if not MIN_RATE <= rate <= MAX_RATE:
                    raise AudioError(
                        f"expected {MIN_RATE} to {MAX_RATE} Hz, found {rate} Hz"
                    )
                if segment.channel is not None and segment.channel >= file.channels:
                    raise ChannelError(segment.channel, file.channels)
                begin = segment.offset * rate
                if begin:
                    if begin >= promised:
                        raise AudioError(
                            f"expected more than the offset of {segment.offset} s, "
                            f"found {promised / rate:.2f} s"
                        )
                    promised -= file.seek(round(begin))
                if segment.duration is not None:
                    promised = round(min(segment.duration * rate, promised))
                channels = Channels(rate)
                blocks = list(_blocks(file, promised, segment.channel, channels))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{problem}: {error.error_string.rstrip('.')}") from None
    if not blocks:
        raise AudioError("holds no samples")
    chosen, finding = channels.finding()
    if chosen is not None:
        waveform, rate, warning = _decode(replace(segment, channel=chosen))
        return waveform, rate, "; ".join(filter(None, (warning, finding)))
    waveform = torch.cat(blocks)
    seconds = len(waveform) / rate
    if segment.duration is not None:  # shorter than it, by more than rounding explains
        ends_early = seconds + MIN_SECONDS < segment.duration
    if not ends_early and len(waveform) == promised:
        return waveform, rate, finding
    warning = f"cut short: {seconds:.2f} s are left"
    if container == "FLAC" and len(waveform) < promised:
        raise AudioError(warning)
    return waveform, rate, "; ".join(filter(None, (warning, finding)))


def _blocks(
    file: soundfile.SoundFile,
    num_samples: int,
    channel: int | None,
    channels: Channels,
) -> Iterator[torch.Tensor]:
    """Yield blocks of at most `num_samples` samples in all, of one channel or of the
    mean of all channels: a header may promise more than fits into memory. Channels that
    are averaged are added to `channels`."""
    size = max(channels.frame, SAMPLES_PER_READ // file.channels)
    size -= size % channels.frame
    while len(
        block := file.read(min(size, num_samples), dtype="float32", always_2d=True)
    ):
        if channel is not None:
            # A copy, so that the other channels are freed.
            yield torch.from_numpy(block[:, channel].copy())
        else:
            if file.channels > 1:
                channels.add(block)
            yield torch.from_numpy(block).mean(dim=1)
        num_samples -= len(block)


def _ends_early(file: BinaryIO) -> bool:
    """Return whether a WAV or Ogg file is shorter than it claims, which libsndfile does
    not say."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                return length < STREAMED_SIZE and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    if head[:4] == b"OggS":
        file.seek(max(0, size - MAX_OGG_PAGE))
        tail = file.read()
        page = tail[tail.rfind(b"OggS") :]
        if len(page) < 27:
            return True
        length = 27 + page[26] + sum(page[27 : 27 + page[26]])
        return len(page) < length or not page[5] & 4  # 4: end of stream
    return False
