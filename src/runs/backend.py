"""The trials of a corpus, and a model's backend, fitted to its training corpus.

splits -> `make_split_trials` -> `Trials` by split
model, splits -> `embed_utterances`, `embed_speech` -> embeddings [U, E]
model, splits -> `speaker_centroids` -> [S, E]; `fit_backend` -> the model's `Backend`

U utterances, S training speakers, E embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dataset import Splits, UtteranceBatches
from parameters import DatasetParameters, EvaluationParameters
from runs.speaker_model import SpeakerModel, embed, embed_recordings
from speech.corpora import official_trials, without_label
from speech.examination import find_speech, join_speech
from verification.calibration import CalibrationError, ScoredTrials, calibrate
from verification.scoring import Backend
from verification.trials import TrialError, Trials, make_trials, read_trials

RECORDINGS_AT_ONCE = 256  # whose speech is in memory


def embed_utterances(
    model: SpeakerModel, splits: Splits, indices: Sequence[int]
) -> Tensor:
    """Return the embeddings of these utterances of the pack, [U, E]."""
    seconds = model.config.evaluation.batch_seconds
    return embed(model, UtteranceBatches(splits.pack, indices, seconds, model.device))


def embed_speech(
    model: SpeakerModel, splits: Splits, indices: Sequence[int]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return the embeddings of the speech in these utterances, as `voices.py` embeds
    recordings, [U, E], and the seconds of speech in each, [U]."""
    rate, least = splits.pack.sample_rate, model.config.front_end.min_seconds
    embeddings, seconds = [], []
    for begin in range(0, len(indices), RECORDINGS_AT_ONCE):
        heard = []
        for index in indices[begin : begin + RECORDINGS_AT_ONCE]:
            entry = splits.pack.entries[index]
            end = entry.offset + entry.samples
            samples = splits.pack.samples[entry.offset : end].numpy()
            stretches = find_speech(samples, rate)
            heard.append(join_speech(samples, rate, stretches, least))
            seconds.append(sum(stop - start for start, stop in stretches))
        embeddings.append(embed_recordings(model, heard))
    return torch.cat(embeddings), np.array(seconds)


def speaker_centroids(model: SpeakerModel, splits: Splits, count: int) -> Tensor:
    """Return the mean direction of the first `count` training utterances of each
    training speaker, [S, E]."""
    return _centroids(*_embed_enrolled(model, splits, count))


def _embed_enrolled(
    model: SpeakerModel, splits: Splits, count: int
) -> tuple[Tensor, Tensor]:
    """Return the embeddings [U, E] of the first `count` training utterances of each
    training speaker, and their speakers [U] as numbers from 0."""
    by_speaker: dict[str, list[int]] = {}
    for index in splits.train:
        by_speaker.setdefault(splits.pack.entries[index].speaker, []).append(index)
    enrolled = [index for indices in by_speaker.values() for index in indices[:count]]
    embeddings = embed_utterances(model, splits, enrolled)
    return embeddings, torch.tensor(splits.classes_of(enrolled))


def _speaker_means(vectors: Tensor, speakers: Tensor) -> Tensor:
    """Return the mean of each speaker's vectors, [U, E], [U] -> [S, E]."""
    counts = speakers.bincount()
    sums = vectors.new_zeros(len(counts), vectors.shape[1])
    return sums.index_add_(0, speakers, vectors) / counts[:, None]


def _centroids(embeddings: Tensor, speakers: Tensor) -> Tensor:
    return F.normalize(_speaker_means(F.normalize(embeddings), speakers))


def make_split_trials(
    splits: Splits, dataset: DatasetParameters, evaluation: EvaluationParameters
) -> dict[str, Trials]:
    """Return the trials of development and of test, by split as `Splits.by_corpus`
    names them.

    A test has the trials of `evaluation.trials` or of its corpus's published list, if
    there is one. Otherwise trials are all pairs within a corpus, or `max_trials` of
    them. Raises `TrialError` where utterances cannot be paired or a list does not fit.
    """
    corpora = dataset.corpora
    utterances = splits.by_corpus("development") | splits.by_corpus("test")
    trials = {}
    for name, indices in utterances.items():
        split, _, label = name.partition("/")
        path = evaluation.trials or official_trials(corpora[label])
        speakers = splits.speakers_of(indices)
        if split == "test" and path is not None:
            ids = [without_label(splits.pack.entries[i].id, label) for i in indices]
            trials[name], _ = read_trials(path, ids, speakers)
            continue
        try:
            pairs = make_trials(speakers, evaluation.max_trials, corpora[label].seed)
        except TrialError as error:
            raise TrialError(f"{name}: {error}") from None
        if pairs.targets.all() or not pairs.targets.any():
            raise TrialError(
                f"evaluation.max_trials: expected enough for {name} to have target "
                f"and non-target trials, got {evaluation.max_trials}"
            )
        trials[name] = pairs
    return trials


def as_recorded(
    model: SpeakerModel, splits: Splits, indices: Sequence[int]
) -> tuple[Tensor, None]:
    """Return the embeddings of these utterances as they are, [U, E]; how much speech
    they hold is not known."""
    return embed_utterances(model, splits, indices), None


# Returns the embeddings [U, E] of utterances of the pack in a condition, such as over a
# telephone, and the seconds of speech in each [U], or None.
Condition = Callable[
    [SpeakerModel, Splits, Sequence[int]], tuple[Tensor, NDArray[np.float64] | None]
]


def fit_backend(
    model: SpeakerModel,
    splits: Splits,
    conditions: Sequence[Condition] = (as_recorded,),
) -> Backend:
    """Build the cohort of training speakers and, if there are development speakers,
    calibrate on their trials; put the result in the model, and return it. `splits` are
    those of the model's training.

    With `evaluation.centre`, embeddings are centred by the mean of the training
    speakers, each of whom has equal weight.

    In a mixture all corpora with development speakers have equal weight, whatever their
    size, since one threshold serves recordings of unknown origin; so has each of the
    conditions. A corpus has such speakers if it names them or if its
    `development_fraction` is above 0. Where no calibration can be found, a line says so
    and there is none.
    """
    evaluation = model.config.evaluation
    model.eval()
    model.backend = Backend.unfitted(model.encoder.embedding_size)
    count = evaluation.as_norm.utterances_per_speaker
    embeddings, speakers = _embed_enrolled(model, splits, count)
    if evaluation.centre:
        centre = _speaker_means(embeddings, speakers).mean(0)
        model.backend = replace(model.backend, centre=centre)
    cohort = _centroids(model.backend.centred(embeddings), speakers)
    model.backend = replace(model.backend, cohort=cohort)
    development = splits.by_corpus("development")
    trials = make_split_trials(splits, model.config.dataset, evaluation)
    groups: dict[str, list[ScoredTrials]] = {}  # by scoring
    for name, indices in development.items():
        sides, num_speakers = trials[name], len(set(splits.speakers_of(indices)))
        for condition in conditions:
            embeddings, seconds = condition(model, splits, indices)
            shorter = None if seconds is None else sides.shorter(seconds)
            scores = model.backend.scores(embeddings, sides, evaluation.as_norm.top)
            for scoring, values in scores.items():
                groups.setdefault(scoring, []).append(
                    ScoredTrials(values, sides.targets, num_speakers, shorter)
                )
    calibrations = {}
    for scoring, of_scoring in groups.items():
        try:
            calibrations[scoring] = calibrate(of_scoring, evaluation.false_alarm_rate)
        except CalibrationError as error:
            print(f"warning: no calibration of {scoring!r}: {error}")
    model.backend = replace(
        model.backend, calibrations=calibrations, calibrated_on=list(development)
    )
    return model.backend
