"""One recording: its samples, its speech, and what makes a verdict on it less sure.

`Recording` -> `listen_to` -> `Spoken` -> what is embedded

N samples, E embedding size.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from speech.audio import Recording
from speech.examination import examine, find_speech, join_speech
from speech.samples import Samples, in_blocks

MIN_SECONDS = 0.3  # the shortest sound; a shorter one holds no voice
LITTLE_SPEECH = 2.0  # seconds; verdicts on less speech are less sure
NO_SPEECH = "no speech was found"


class VoiceError(UserError):
    """A sound, a name or a store of people that cannot be used."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """A recording, where it holds speech, and what makes a verdict on it less sure."""

    name: str
    samples: Samples  # [N]
    sample_rate: int
    stretches: list[tuple[float, float]]  # begin and end of speech, in seconds
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Return how long the recording is."""
        return len(self.samples) / self.sample_rate

    @property
    def speech(self) -> float:
        """Return how many seconds of it are speech."""
        return math.fsum(end - begin for begin, end in self.stretches)

    @property
    def digest(self) -> str:
        """Return the digest of the samples."""
        digest = hashlib.sha256()
        for block in in_blocks(self.samples):
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()

    def part(self, begin: int, end: int) -> "Spoken":
        """Return the samples from `begin` to `end`, and where they hold speech."""
        first, last = begin / self.sample_rate, end / self.sample_rate
        stretches = [
            (max(start, first) - first, min(stop, last) - first)
            for start, stop in self.stretches
            if start < last and stop > first
        ]
        return replace(self, samples=self.samples[begin:end], stretches=stretches)

    def heard(self, min_seconds: float) -> Samples:
        """Return what the model is to hear, at least `min_seconds` of samples."""
        rate, stretches = self.sample_rate, self.stretches
        return join_speech(self.samples, rate, stretches, min_seconds)


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording as the model hears it: its speech, or all of its sound if there is no
    speech, which gives a vector but no verdict."""

    name: str
    vector: NDArray[np.float32]  # [E], of length 1
    seconds: float
    speech: float  # seconds
    digest: str  # of its samples
    warnings: tuple[str, ...]


def refuse_without_speech(clips: Sequence[Clip]) -> None:
    """Raise `VoiceError` with the name of the first clip without speech."""
    for clip in clips:
        if not clip.speech:
            raise VoiceError(f"{clip.name}: expected speech, {NO_SPEECH}")


def listen_to(name: str, recording: Recording, sample_rate: int) -> Spoken:
    """Examine a recording and find its speech; raise `AudioError` if it cannot be used.

    Without speech it can be used: the warnings say so.
    """
    doubts = examine(recording, sample_rate)
    stretches = find_speech(recording.samples, sample_rate)
    spoken = Spoken(name, recording.samples, sample_rate, stretches, ())
    if not stretches:
        doubts.append(NO_SPEECH)
    elif spoken.speech < LITTLE_SPEECH:
        doubts.append(f"{spoken.speech:.1f} s of speech, less than {LITTLE_SPEECH:g} s")
    return replace(spoken, warnings=tuple(f"{name}: {doubt}" for doubt in doubts))
