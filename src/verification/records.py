"""The results of an evaluation.

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

    Intervals are 95 %. The fields from `cllr` on need a calibration; `miss` and
    `false_alarm` are the rates at its threshold.
    """

    num_targets: int
    num_non_targets: int
    num_speakers: int | None  # None if unknown
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
    """Closed-set identification of training speakers, on utterances not trained on."""

    loss: float
    accuracy: float
    top_5_accuracy: float
    num_utterances: int
    num_speakers: int  # in these utterances
    num_classes: int  # training speakers


@dataclass(frozen=True)
class Verification:
    """Trials among the utterances of a split, and how each system does on them."""

    indices: list[int]  # the utterances' positions in their pack, [U]
    trials: Trials
    embeddings: NDArray[np.float32]  # the model's, [U, E]
    scores: dict[str, NDArray[np.float64]]  # the model's, by scoring, [K]
    reports: dict[str, VerificationReport]  # by system, the model's first
    conditions: dict[str, VerificationReport]  # of the plain scores, by condition


@dataclass(frozen=True)
class Evaluation:
    """The results of `eval.evaluate` by split, for splits that have utterances.

    Splits are validation, development and test. Each corpus of a mixture has its own,
    such as `test/label`; results are not pooled.
    """

    identification: dict[str, IdentificationReport]
    verification: dict[str, Verification]
    calibrated_on: list[str]  # splits of the corpora that the model was trained on
    thresholds: dict[str, float]  # scores, by the name of a calibrated scoring
    model: str  # its name
    seed: int  # for UMAP

    @property
    def tests(self) -> dict[str, Verification]:
        """Return the tests by the folder of their files in the run's directory; "" is
        that directory itself."""
        return {
            "" if name == "test" else name: verification
            for name, verification in self.verification.items()
            if name.partition("/")[0] == "test"
        }
