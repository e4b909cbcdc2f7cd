"""Records of what an evaluation found.

U utterances, K trials, E embedding size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verification.metrics import Interval
from verification.trials import Trials


@dataclass(frozen=True)
class VerificationReport:
    """Metrics of the scores of a list of trials.

    Intervals are 95 %. From `cllr` on, metrics need a calibration; miss and false alarm
    are the rates at its threshold.
    """

    num_targets: int
    num_non_targets: int
    num_speakers: int | None  # where they are known
    eer: float
    min_dcf: float
    min_cllr: float
    eer_interval: Interval | None = None
    min_dcf_interval: Interval | None = None
    cllr: float | None = None
    actual_dcf: float | None = None
    miss: float | None = None
    false_alarm: float | None = None


@dataclass(frozen=True)
class IdentificationReport:
    """Closed-set identification of other utterances of training speakers."""

    loss: float
    accuracy: float
    top_5_accuracy: float
    num_utterances: int
    num_speakers: int  # of these utterances
    num_classes: int  # speakers that the model knows


@dataclass(frozen=True)
class Verification:
    """Trials among the utterances of a split, and how each system does on them."""

    indices: list[int]  # of the utterances in their pack, [U]
    trials: Trials
    embeddings: NDArray[np.float32]  # the model's, [U, E]
    scores: dict[str, NDArray[np.float64]]  # the model's, by scoring, [K]
    reports: dict[str, VerificationReport]  # by system, the model's first
    conditions: dict[str, VerificationReport]  # of cosines, by kind of trial


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate` by split; splits without utterances are left out.

    Splits are validation, development and test. Each corpus of a mixture has its own,
    such as `test/label`; results are not pooled.
    """

    identification: dict[str, IdentificationReport]
    verification: dict[str, Verification]
    calibrated_on: list[str]  # splits of the model's training
    thresholds: dict[str, float]  # of scores, by scoring, where there is a calibration
    model: str  # its name
    seed: int  # of projections

    @property
    def tests(self) -> dict[str, Verification]:
        """Tests by the folder, inside the run's, that their files are written to."""
        return {
            "" if name == "test" else name: verification
            for name, verification in self.verification.items()
            if name.partition("/")[0] == "test"
        }
