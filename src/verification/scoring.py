"""Embeddings and trials to scores, and scores to log likelihood ratios.

embeddings [U, E], trials [K] -> `cosine_scores` -> `as_norm` -> scores [K]
scores [K] -> `Calibration` -> log likelihood ratios [K]

U utterances, K trials, S speakers of the cohort, E embedding size. AS-norm is adaptive
symmetric score normalisation (Matejka et al., Interspeech 2017, section 2.5). Cohort
and calibration come from speakers that are not tested.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from verification.trials import Trials

SCORES_AT_ONCE = 65536  # trials, to bound memory
TYPICAL_SECONDS = 5.0  # of speech, where a threshold is shown without its trials


def unit(vectors: NDArray) -> NDArray:
    """Return the rows scaled to length 1, [U, E] -> [U, E]; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def cosine_scores(embeddings: Tensor, trials: Trials) -> NDArray[np.float64]:
    """Return the cosine of the two embeddings of each trial, [U, E] -> [K]."""
    directions = F.normalize(embeddings.double())
    enrolment, test = torch.from_numpy(trials.enrolment), torch.from_numpy(trials.test)
    return torch.cat(
        [
            (directions[first] * directions[second]).sum(1)
            for first, second in zip(
                enrolment.split(SCORES_AT_ONCE), test.split(SCORES_AT_ONCE), strict=True
            )
        ]
    ).numpy()


def as_norm(
    scores: NDArray[np.float64],
    embeddings: Tensor,
    trials: Trials,
    cohort: Tensor,
    top: int,
) -> NDArray[np.float64]:
    """Return cosines z-normalised by each side's top cohort scores, [K] -> [K].

    For each side of a trial, mean and deviation are those of its `top` highest cosines
    with the cohort [S, E], which has one embedding per speaker. The two z-scores are
    averaged.
    """
    cosines = F.normalize(embeddings.double()) @ F.normalize(cohort.double()).T
    highest = cosines.topk(min(top, len(cohort)), dim=1).values.numpy()  # [U, top]
    mean, deviation = highest.mean(1), np.maximum(highest.std(1), 1e-6)
    z_scores = [
        (scores - mean[side]) / deviation[side]
        for side in (trials.enrolment, trials.test)
    ]
    return sum(z_scores) / 2


def log_seconds(seconds: ArrayLike) -> NDArray[np.float64]:
    """Return logarithms of seconds of speech. Below 1 s and above 20 s they stay as
    there, so that no calibration is stretched to what it was not fitted on."""
    return np.log(np.clip(seconds, 1.0, 20.0))


@dataclass(frozen=True)
class Calibration:
    """A linear map from scores to log likelihood ratios, and decision thresholds.

    Thresholds are log likelihood ratios. `miss` and `false_alarm` are the rates at
    `threshold` on the trials that it was chosen on. `strict` is the threshold for a
    tenth of that false-alarm rate; old checkpoints have none. `duration` is the weight
    of `log_seconds`, a quality measure as in Thienpondt et al. (arXiv 2010.11255).

    A calibration on a user's own recordings has `num_people`, the number of people in
    them. Its rates are cross-validated: the people tested are not those on whom the
    threshold was chosen. They have 95 % intervals (low, high).
    """

    scale: float
    offset: float
    threshold: float
    miss: float
    false_alarm: float
    strict: float | None = None
    num_people: int | None = None
    miss_interval: tuple[float, float] | None = None
    false_alarm_interval: tuple[float, float] | None = None
    duration: float = 0.0

    def llrs(
        self, scores: NDArray[np.float64], seconds: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return natural logarithms of likelihood ratios, [K] -> [K].

        `seconds` [K] are those of speech in the shorter side of each trial. They may be
        None for a calibration without a weight of them; else raises `ValueError`.
        """
        llrs = self.scale * scores + self.offset
        if not self.duration:
            return llrs
        if seconds is None:
            raise ValueError("expected seconds of speech, on which this calibration is")
        return llrs + self.duration * log_seconds(seconds)

    @property
    def threshold_of_scores(self) -> float:
        """Return the threshold as a score, for `TYPICAL_SECONDS` of speech."""
        offset = float(self.llrs(np.float64(0), TYPICAL_SECONDS))
        return (self.threshold - offset) / self.scale


@dataclass(frozen=True)
class Backend:
    """The parts that turn a model's cosines into normalised and calibrated scores.

    It is fitted at the end of training; until then the cohort has no rows. All vectors
    are centred where there is a centre: `SpeakerModel` subtracts it from the encoder's.
    """

    cohort: Tensor  # [S, E], unit directions of the training speakers
    calibrations: dict[str, Calibration]  # by scoring, plain or normalised
    calibrated_on: list[str]  # the splits whose trials were used, such as development
    centre: Tensor | None = None  # [E], the mean of the training speakers

    @classmethod
    def unfitted(cls, embedding_size: int) -> "Backend":
        """Return a backend without cohort and calibrations."""
        return cls(torch.empty(0, embedding_size), {}, [])

    def centred(self, embeddings: Tensor) -> Tensor:
        """Subtract the centre, if there is one, from embeddings [..., E]."""
        if self.centre is None:
            return embeddings
        return embeddings - self.centre.to(embeddings)

    def scores(
        self, embeddings: Tensor, trials: Trials, top: int
    ) -> dict[str, NDArray[np.float64]]:
        """Return the scores [K] of embeddings [U, E] by scoring: plain cosines and,
        where there is a cohort, those that `as_norm` normalises with `top`."""
        cosines = cosine_scores(embeddings, trials)
        scores = {"trained": cosines}
        if len(self.cohort):
            normalised = as_norm(cosines, embeddings, trials, self.cohort, top)
            scores["trained, AS-norm"] = normalised
        return scores

    def as_dict(self) -> dict[str, Any]:
        """Return tensors and plain types, for a checkpoint."""
        calibrations = {name: asdict(c) for name, c in self.calibrations.items()}
        return {
            "cohort": self.cohort,
            "calibrations": calibrations,
            "calibrated_on": self.calibrated_on,
            "centre": self.centre,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Backend":
        """Return the backend that has these values, from `as_dict`."""
        calibrations = {
            name: Calibration(**c) for name, c in values["calibrations"].items()
        }
        # Checkpoints from before mixtures do not name the splits.
        calibrated_on = values.get(
            "calibrated_on", ["development"] if calibrations else []
        )
        centre = values.get("centre")
        return cls(values["cohort"], calibrations, calibrated_on, centre)
