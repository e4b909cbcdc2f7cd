"""Decode one recording to 16-bit mono, and encode one for a browser.

`Utterance.source` -> `load_recording` -> int16 [N] -> `encode_ogg` -> bytes

N samples. This is the only module that decodes and encodes audio files.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch

from speech.channels import Channels
from speech.ffmpeg import FfmpegError, FfmpegSound, has_ffmpeg
from speech.quiet import without_remarks
from speech.samples import Samples, end_to_end, in_blocks
from speech.streams import Part, parts_of
from speech.synthetic import SyntheticUtterance

MIN_SECONDS = 0.025  # of a recording; a front end may need more
FULL_SCALE = 32768  # of an int16 sample
MIN_RATE, MAX_RATE = 4_000, 384_000  # Hz; any other rate means a damaged header
MAX_PARTS = 1000  # of a file; more are damage, and would take minutes
SAMPLES_PER_READ = 2**20  # of all channels
SAMPLES_PER_RESAMPLING = 2**20  # 24 s at 44.1 kHz
# Formats by their extensions: what libsndfile reads, and what ffmpeg does, with videos.
NATIVE = """wav flac ogg opus mp3 wave bwf rf64 w64 oga mp1 mp2 mpa aif aiff aifc au snd
caf sph nist voc sf ircam paf pvf svx 8svx avr"""
FOREIGN = """m4a m4b m4r aac adts mp4 m4v mov 3gp 3ga 3g2 amr awb webm weba mka mkv wma
wmv asf avi ogv ogx spx flv f4a f4v ac3 eac3 ec3 dts mlp thd wv ape tta tak mpc ofr shn
alac ra rm qcp g722 mpg mpeg vob m2ts mts dsf dff aa aax"""
NATIVE_EXTENSIONS = tuple(f".{name}" for name in NATIVE.split())
EXTENSIONS = NATIVE_EXTENSIONS + tuple(f".{name}" for name in FOREIGN.split())


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

    samples: Samples  # int16 [N]
    rate: int  # Hz, of the source
    warning: str | None = None


def load_recording(
    source: Path | Segment | SyntheticUtterance,
    sample_rate: int,
    min_seconds: float = MIN_SECONDS,
) -> Recording:
    """Decode speech to mono int16 [N] at `sample_rate` Hz; hours of it lie in a
    temporary file.

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
        recording = _decode(segment, sample_rate)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from None
    check_length(len(recording.samples), sample_rate, min_seconds)
    return recording


def lacks_decoder(path: Path) -> bool:
    """Return whether files of this extension need ffmpeg, which is not on the path."""
    suffix = path.suffix.lower()
    is_foreign = suffix in EXTENSIONS and suffix not in NATIVE_EXTENSIONS
    return is_foreign and not has_ffmpeg()


def check_length(num_samples: int, sample_rate: int, min_seconds: float) -> None:
    """Raise `AudioError` if there are fewer than `min_seconds` of samples."""
    if num_samples < round(min_seconds * sample_rate):
        seconds = num_samples / sample_rate
        raise AudioError(f"expected at least {min_seconds:g} s, found {seconds:.4f} s")


def resampled(waveform: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resample [N] -> [N'] by new / old."""
    return torch.cat([*_resampled([waveform], old, new)])


def _resampled(
    blocks: Iterable[torch.Tensor], old: int, new: int
) -> Iterator[torch.Tensor]:
    """Resample [N] in blocks by new / old, stretch by stretch: for an hour at once,
    torchaudio would need five times the memory of its samples."""
    if old == new:
        yield from blocks
        return
    from torchaudio.functional import resample  # takes a quarter of a second

    size = SAMPLES_PER_RESAMPLING - SAMPLES_PER_RESAMPLING % old
    reach = 8 * old  # longer than half a filter of 6 zero crossings on each side
    waiting, before = torch.empty(0), 0  # `before` samples were resampled already

    def stretch(end: int) -> torch.Tensor:
        skipped = before // old * new
        return resample(waiting[:end], old, new)[skipped:]

    for block in blocks:
        waiting = torch.cat([waiting, block])
        while len(waiting) >= before + size + reach:
            yield stretch(before + size + reach)[: size // old * new]
            kept = before + size - reach
            waiting, before = waiting[max(0, kept) :], min(reach, before + size)
    if len(waiting) > before:
        yield stretch(len(waiting))


def encode_ogg(samples: np.ndarray, sample_rate: int) -> bytes:
    """Encode int16 [N], or float32 [N] in [-1, 1], as a small file that browsers
    play."""
    file = io.BytesIO()
    # Opus would take 15 times as long to save a third.
    soundfile.write(
        file, samples, sample_rate, format="OGG", subtype="VORBIS", compression_level=1
    )
    return file.getvalue()


@dataclass
class _Passage:
    """What was decoded of a part of a file."""

    samples: Samples  # int16
    rate: int  # Hz, of the source
    seconds: float
    is_cut: bool
    faults: tuple[str, ...]


class _UnknownFormatError(AudioError):
    """A file that libsndfile does not read."""


class _BeyondEndError(AudioError):
    """An offset beyond the end of a part of a file."""

    def __init__(self, offset: float, seconds: float) -> None:
        super().__init__(
            f"expected more than the offset of {offset} s, found {seconds:.2f} s"
        )
        self.seconds = seconds


def _decode(segment: Segment, sample_rate: int) -> Recording:
    """Return a segment of a file as `load_recording` does."""
    if not segment.path.is_file():
        raise AudioError("expected a file, found none")
    # libsndfile gets an open file, since it refuses names that are not UTF-8.
    with segment.path.open("rb") as file:
        try:
            passages = _passages(file, segment, sample_rate)
        except _UnknownFormatError as error:
            passages = [_foreign_passage(segment, sample_rate, error)]
    samples = end_to_end(chain(*(in_blocks(passage.samples) for passage in passages)))
    if not len(samples):
        raise AudioError("holds no samples")
    seconds = sum(passage.seconds for passage in passages)
    is_cut = any(passage.is_cut for passage in passages)
    if segment.duration is not None:  # shorter than it, by more than rounding explains
        is_cut |= seconds + MIN_SECONDS < segment.duration
    faults = [f"cut short: {seconds:.2f} s are left"] if is_cut else []
    if len(passages) > 1:
        faults.append(f"{len(passages)} recordings joined in one file")
    faults += dict.fromkeys(fault for passage in passages for fault in passage.faults)
    rate = min(passage.rate for passage in passages)
    return Recording(samples, rate, "; ".join(faults) or None)


def _passages(file: BinaryIO, segment: Segment, sample_rate: int) -> list[_Passage]:
    """Return what the parts of a file that libsndfile reads hold of a segment."""
    passages, beyond, parts = [], None, parts_of(segment.path)
    if len(parts) > MAX_PARTS:
        raise AudioError(f"expected at most {MAX_PARTS} recordings, got {len(parts)}")
    offset, left = segment.offset, segment.duration
    for part in parts:
        opened = partial(_opened, file, part, offset, left)
        try:
            passage = _read(opened, segment.channel, sample_rate)
        except _BeyondEndError as error:
            offset, beyond = offset - error.seconds, error
            continue
        is_cut = passage.is_cut or (part.is_cut and left is None)
        faults = part.faults + passage.faults
        passages.append(replace(passage, is_cut=is_cut, faults=faults))
        offset = 0.0
        if left is not None:
            left -= passage.seconds
            if left < MIN_SECONDS:
                break
    if not passages and beyond:
        raise beyond
    return passages


def _foreign_passage(
    segment: Segment, sample_rate: int, error: _UnknownFormatError
) -> _Passage:
    """Return what ffmpeg decodes of a segment; raise `AudioError` if there is none."""
    if lacks_decoder(segment.path):
        formats, suffix = ", ".join(NATIVE_EXTENSIONS[:5]), segment.path.suffix.lower()
        raise AudioError(
            f"{error}; {formats} files are read, and others if ffmpeg is on the path; "
            f"to convert one: ffmpeg -i x{suffix} x.wav"
        )
    if not has_ffmpeg():
        raise error
    opened = partial(FfmpegSound, segment.path, segment.offset, segment.duration)
    try:
        return _read(opened, segment.channel, sample_rate)
    except FfmpegError as failure:
        raise AudioError(f"not readable as audio: {failure}") from None


class _NativeSound:
    """What libsndfile reads of a part of a file, from an offset on, in seconds."""

    faults = ()

    def __init__(
        self, file: soundfile.SoundFile, offset: float, duration: float | None
    ) -> None:
        self.file, self.num_read = file, 0
        self.samplerate, self.channels = file.samplerate, file.channels
        begin = offset * self.samplerate
        if begin and begin >= file.frames:
            raise _BeyondEndError(offset, file.frames / self.samplerate)
        self.left = file.frames - (file.seek(round(begin)) if begin else 0)
        if duration is not None:
            self.left = round(min(duration * self.samplerate, self.left))

    def read(self, num_samples: int) -> np.ndarray:
        """Return the next samples, float32 [N, C]; fewer than asked for at the end."""
        size = min(num_samples, self.left)
        block = self.file.read(size, dtype="float32", always_2d=True)
        self.num_read += len(block)
        self.left -= len(block)
        return block


@contextmanager
def _opened(
    file: BinaryIO, part: Part, offset: float, duration: float | None
) -> Iterator[_NativeSound]:
    """Open a part of a file with libsndfile."""
    problem: type[AudioError] = _UnknownFormatError
    with without_remarks() if part.is_mp3 else nullcontext():
        try:
            with soundfile.SoundFile(part.open(file)) as decoder:
                problem = AudioError
                sound = _NativeSound(decoder, offset, duration)
                yield sound
                is_cut = sound.left and decoder.format == "FLAC"
        except soundfile.LibsndfileError as error:
            words = "cut short or damaged", "not readable as audio"
            said = words[problem is _UnknownFormatError]
            raise problem(f"{said}: {error.error_string.rstrip('.')}") from None
    if is_cut:
        seconds = sound.num_read / sound.samplerate
        raise AudioError(f"cut short: {seconds:.2f} s are left")


def _read(
    opened: Callable[[], AbstractContextManager[_NativeSound | FfmpegSound]],
    channel: int | None,
    sample_rate: int,
) -> _Passage:
    """Decode one channel, or the mean of all if they have it in common."""
    with opened() as sound:
        rate = sound.samplerate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"expected {MIN_RATE} to {MAX_RATE} Hz, found {rate} Hz")
        if channel is not None and channel >= sound.channels:
            raise ChannelError(channel, sound.channels)
        # The filters of unusual rates would fill gigabytes, so such rates are rounded,
        # by less than a thousandth. Usual rates stay exact.
        ratio = Fraction(rate, sample_rate)
        ratio = ratio.limit_denominator(min(1000, 5000 * sample_rate // rate))
        channels = Channels(rate)
        blocks = _blocks(sound, channel, channels)
        resampling = _resampled(blocks, ratio.numerator, ratio.denominator)
        samples = end_to_end(map(_as_int16, resampling))
        seconds, is_cut = sound.num_read / rate, sound.left > 0
        passage = _Passage(samples, rate, seconds, is_cut, sound.faults)
    chosen, finding = channels.finding()
    if chosen is not None:
        passage = _read(opened, chosen, sample_rate)
    if finding:
        passage.faults = (*passage.faults, finding)
    return passage


def _as_int16(waveform: torch.Tensor) -> np.ndarray:
    if not waveform.isfinite().all():
        raise AudioError("expected finite samples, found NaN or infinity")
    scaled = (waveform * FULL_SCALE).round_().clamp_(-FULL_SCALE, FULL_SCALE - 1)
    return scaled.to(torch.int16).numpy()


def _blocks(
    sound: _NativeSound | FfmpegSound, channel: int | None, channels: Channels
) -> Iterator[torch.Tensor]:
    """Yield the samples of one channel, or the mean of all, block by block: a header
    may promise more than fits into memory. What is averaged is added to `channels`."""
    size = max(channels.frame, SAMPLES_PER_READ // sound.channels)
    size -= size % channels.frame
    while len(block := sound.read(size)):
        if channel is not None:
            # A copy, so that the other channels are freed.
            yield torch.from_numpy(block[:, channel].copy())
        else:
            if sound.channels > 1:
                channels.add(block)
            yield torch.from_numpy(block).mean(dim=1)
