"""Results of comparing voices, as records and in words.

An encoder's calibration maps a cosine to a log likelihood ratio (LLR): the natural log
of how much likelier the cosine is for two clips of one person than for clips of two
people, so 2.3 is ten times. Clips whose LLR reaches `Threshold` count as one person's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Threshold:
    """Log likelihood ratios from which clips are taken for one person's.

    `strict` has a tenth of the false-alarm rate, `origin` says of whose trials these
    rates are.
    """

    llr: float
    strict: float | None
    false_alarm_rate: float
    origin: str

    def among(self, num_people: int) -> "Threshold":
        """For the nearest of several people, any of whom may be a false alarm.

        Divides the false-alarm rate evenly among the comparisons, taking its log as
        linear in the threshold through `llr` and `strict`. Without `strict` the
        threshold rises by log(num_people): the false-alarm rate of calibrated scores
        at a threshold t never exceeds exp(-t).
        """
        higher = math.log(num_people)
        if self.strict is not None and self.strict > self.llr:
            higher = (self.strict - self.llr) * math.log10(num_people)
        strict = None if self.strict is None else self.strict + higher
        return replace(self, llr=self.llr + higher, strict=strict)

    def __str__(self) -> str:
        rate = 100 * self.false_alarm_rate
        return f"threshold {self.llr:+.1f} for {rate:g} % false alarms on {self.origin}"


@dataclass(frozen=True)
class Comparison:
    """How alike two clips are, and whether they are one person's.

    All but the cosine needs a model with a calibration.
    """

    first: str
    second: str
    cosine: float
    llr: float | None
    threshold: Threshold | None
    speech: tuple[float, float]  # seconds
    warnings: tuple[str, ...]

    @property
    def same_speaker(self) -> bool | None:
        """Whether the log likelihood ratio reaches the threshold."""
        return None if self.llr is None else self.llr >= self.threshold.llr

    @property
    def verdict(self) -> str:
        """The decision in words."""
        if self.llr is None:
            return "no verdict, the model has no calibration"
        strict = self.threshold.strict
        if strict is not None and self.llr >= max(strict, self.threshold.llr):
            return "the same person"
        if self.same_speaker:
            return "probably the same person"
        return "undecided" if self.llr > 0 else "different people"

    def __str__(self) -> str:
        measures = [f"cosine {self.cosine:.3f}"]
        if self.llr is not None:
            measures += [f"log likelihood ratio {self.llr:+.1f} ({self.threshold})"]
        first, second = self.speech
        return (
            f"{self.first} and {self.second}: {self.verdict}; {', '.join(measures)}; "
            f"{first:.1f} and {second:.1f} s of speech"
        )


@dataclass(frozen=True)
class Candidate:
    """An enrolled person beside a clip."""

    name: str
    cosine: float
    llr: float


@dataclass(frozen=True)
class Identification:
    """Which enrolled person a clip is of, None for somebody unknown."""

    clip: str
    name: str | None
    nearest: tuple[Candidate, ...]
    num_people: int
    threshold: Threshold
    speech: float  # seconds
    warnings: tuple[str, ...]

    @property
    def margin(self) -> float | None:
        """By how much the nearest person's log likelihood ratio leads."""
        if len(self.nearest) < 2:
            return None
        return self.nearest[0].llr - self.nearest[1].llr

    def __str__(self) -> str:
        nearest = ", ".join(f"{c.name} {c.llr:+.1f}" for c in self.nearest)
        lead = "" if self.margin is None else f", margin {self.margin:.1f}"
        return (
            f"{self.clip}: {self.name or 'unknown'}; nearest by log likelihood ratio: "
            f"{nearest}{lead}; {self.threshold}, of {self.num_people} people; "
            f"{self.speech:.1f} s of speech"
        )


@dataclass(frozen=True)
class Turn:
    """Speech of one enrolled person, or of somebody unknown, None; in seconds."""

    begin: float
    end: float
    name: str | None
    llr: float  # that of the nearest person

    def __str__(self) -> str:
        name = self.name or "unknown"
        return f"{self.begin:8.2f} {self.end:8.2f}  {self.llr:+5.1f}  {name}"


def as_rttm(turns: Sequence[Turn], recording: str) -> str:
    """Turns in NIST's Rich Transcription Time Marked format, a line for each."""
    recording = "_".join(recording.split())
    return "".join(
        f"SPEAKER {recording} 1 {turn.begin:.3f} {turn.end - turn.begin:.3f} <NA> <NA> "
        f"{'_'.join((turn.name or 'unknown').split())} <NA> <NA>\n"
        for turn in turns
    )
