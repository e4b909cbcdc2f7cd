"""Results of comparing voices, as records and as sentences.

An encoder's calibration maps a cosine to a log likelihood ratio (LLR), the natural log
of a quotient: how likely the cosine is if one person spoke, over how likely it is if
two people did. 2.3 means ten times as likely. If the ratio reaches `Threshold`, the
clips count as one person's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from speech.folders import quoted

UNKNOWN = "unknown"  # how results name a speaker who is not enrolled


@dataclass(frozen=True)
class Threshold:
    """The log likelihood ratio at which clips count as one person's.

    `strict` is the threshold for a tenth of the false-alarm rate. `origin` names the
    trials that the rates were measured on.
    """

    llr: float
    strict: float | None
    false_alarm_rate: float
    origin: str

    def among(self, num_people: int) -> "Threshold":
        """Return the threshold for the nearest of P people. It allows 1/P of the
        false-alarm rate, since each of the P may cause a false alarm.

        The log of the false-alarm rate is taken as linear in the threshold, through
        `llr` and `strict`. Without `strict` the threshold rises by log P: the
        false-alarm rate of calibrated scores at a threshold t never exceeds exp(-t).
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

    Without a calibration there is only the cosine; without speech not even that.
    """

    first: str
    second: str
    cosine: float | None
    llr: float | None
    threshold: Threshold | None
    speech: tuple[float, float]  # seconds
    warnings: tuple[str, ...]

    @property
    def same_speaker(self) -> bool | None:
        """Return whether the log likelihood ratio reaches the threshold."""
        return None if self.llr is None else self.llr >= self.threshold.llr

    @property
    def verdict(self) -> str | None:
        """Return the decision in words, or None without speech in both clips."""
        if self.cosine is None:
            return None
        if self.llr is None:
            return "no verdict, the model has no calibration"
        strict = self.threshold.strict
        if strict is not None and self.llr >= max(strict, self.threshold.llr):
            return "the same person"
        if self.same_speaker:
            return "probably the same person"
        return "undecided" if self.llr > 0 else "different people"

    def __str__(self) -> str:
        first, second = self.speech
        amounts = f"{first:.1f} and {second:.1f} s of speech"
        if self.cosine is None:
            return f"{self.first} and {self.second}: no verdict, {amounts}"
        measures = [f"cosine {self.cosine:.3f}"]
        if self.llr is not None:
            measures += [f"log likelihood ratio {self.llr:+.1f} ({self.threshold})"]
        return (
            f"{self.first} and {self.second}: {self.verdict}; {', '.join(measures)}; "
            f"{amounts}"
        )


@dataclass(frozen=True)
class Candidate:
    """An enrolled person, and how alike this person and a clip are."""

    name: str
    cosine: float
    llr: float


@dataclass(frozen=True)
class Identification:
    """The enrolled person who speaks in a clip; the name is None for an unknown
    speaker, and if nobody speaks, which leaves `nearest` empty."""

    clip: str
    name: str | None
    nearest: tuple[Candidate, ...]
    num_people: int
    threshold: Threshold
    speech: float  # seconds
    warnings: tuple[str, ...]

    @property
    def margin(self) -> float | None:
        """Return the nearest person's log likelihood ratio minus the second's."""
        if len(self.nearest) < 2:
            return None
        return self.nearest[0].llr - self.nearest[1].llr

    def __str__(self) -> str:
        if not self.nearest:
            return f"{self.clip}: nobody, {self.speech:.1f} s of speech"
        nearest = ", ".join(f"{c.name} {c.llr:+.1f}" for c in self.nearest)
        lead = "" if self.margin is None else f", margin {self.margin:.1f}"
        return (
            f"{self.clip}: {self.name or UNKNOWN}; nearest by log likelihood ratio: "
            f"{nearest}{lead}; {self.threshold}, of {self.num_people} people; "
            f"{self.speech:.1f} s of speech"
        )


@dataclass(frozen=True)
class Turn:
    """Speech of one person, in seconds; the name is None for an unknown speaker."""

    begin: float
    end: float
    name: str | None
    llr: float  # of the nearest person

    def __str__(self) -> str:
        name = self.name or UNKNOWN
        return f"{self.begin:8.2f} {self.end:8.2f}  {self.llr:+5.1f}  {name}"


def as_rttm(turns: Sequence[Turn], recording: str, enrolled: Iterable[str] = ()) -> str:
    """Return turns in NIST's Rich Transcription Time Marked format, a line each.

    Blanks become underscores, since they separate fields. If that would make one name
    of two, of these turns or of enrolled people, names are percent-encoded instead.
    """
    names = {turn.name for turn in turns if turn.name is not None}.union(enrolled)
    written = {name: "_".join(name.split()) for name in names}
    if len({*written.values(), UNKNOWN}) <= len(names):
        written = {name: quoted(name) for name in names}
    recording = "_".join(recording.split())
    return "".join(
        f"SPEAKER {recording} 1 {turn.begin:.3f} {turn.end - turn.begin:.3f} <NA> <NA> "
        f"{written.get(turn.name, UNKNOWN)} <NA> <NA>\n"
        for turn in turns
    )
