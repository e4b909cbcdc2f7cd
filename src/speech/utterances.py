"""What every corpus consists of: utterances, each with its speaker and its source."""

from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from speech.audio import Segment
from speech.synthetic import SyntheticUtterance

# Splits between which speakers are dealt out; validation shares those of train.
SPEAKER_SPLITS = ("train", "development", "test")


class CorpusError(UserError):
    """A corpus that cannot be used as it is."""


@dataclass(frozen=True)
class Utterance:
    """Speech of one speaker and where to find it."""

    id: str  # unique in its corpus, without whitespace
    speaker: str
    source: Path | Segment | SyntheticUtterance
    split: str | None = None  # of `dataset.Splits`, where the corpus says so
    gender: str | None = None  # f or m where known
    session: str | None = None  # chapter, video or day of the speaker, where known
    corpus: str = ""  # its label in a mixture
