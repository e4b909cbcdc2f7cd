"""The utterances that every corpus consists of, each with its speaker and source."""

from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from speech.audio import Segment
from speech.synthetic import SyntheticUtterance

# The splits among which speakers are divided; validation has the speakers of train.
SPEAKER_SPLITS = ("train", "development", "test")


class CorpusError(UserError):
    """A corpus that cannot be used as it is."""


@dataclass(frozen=True)
class Utterance:
    """Speech of one speaker and where to find it."""

    id: str  # unique in its corpus, without whitespace
    speaker: str
    source: Path | Segment | SyntheticUtterance
    split: str | None = None  # of `dataset.Splits`, where the corpus assigns one
    gender: str | None = None  # f or m where known
    session: str | None = None  # chapter, video or day of the speaker, where known
    corpus: str = ""  # its label in a mixture
