"""The trials of a corpus, and a model's backend, fitted to its training corpus.

splits -> `make_split_trials` -> `Trials` by split
model, splits -> `embed_utterances` -> embeddings [U, E]
model, splits -> `speaker_centroids` -> [S, E] -> `fit_backend` -> `Backend`

U utterances, S training speakers, E embedding size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Splits, UtteranceBatches
from parameters import DatasetParameters, EvaluationParameters
from runs.speaker_model import SpeakerModel, embed
from speech.corpora import official_trials, without_label
from verification.calibration import calibrate
from verification.scoring import Backend
from verification.trials import TrialError, Trials, make_trials, read_trials


def embed_utterances(
    model: SpeakerModel, splits: Splits, indices: Sequence[int]
) -> Tensor:
    """Return the embeddings of these utterances of the pack, [U, E]."""
    seconds = model.config.evaluation.batch_seconds
    return embed(model, UtteranceBatches(splits.pack, indices, seconds, model.device))


def speaker_centroids(model: SpeakerModel, splits: Splits, count: int) -> Tensor:
    """Return the mean direction of the first `count` training utterances of each
    training speaker, [S, E]."""
    by_speaker: dict[str, list[int]] = {}
    for index in splits.train:
        by_speaker.setdefault(splits.pack.entries[index].speaker, []).append(index)
    enrolled = [index for indices in by_speaker.values() for index in indices[:count]]
    directions = F.normalize(embed_utterances(model, splits, enrolled))
    centroids = directions.new_zeros(len(splits.speakers), directions.shape[1])
    classes = torch.tensor(splits.classes_of(enrolled))
    return F.normalize(centroids.index_add_(0, classes, directions))


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


def fit_backend(model: SpeakerModel, splits: Splits) -> Backend:
    """Build the cohort of training speakers and, if there are development speakers,
    calibrate on their trials. `splits` are those of the model's training.

    In a mixture all corpora with development speakers have equal weight, whatever their
    size, since one threshold serves recordings of unknown origin. A corpus has such
    speakers if it names them or if its `development_fraction` is above 0.
    """
    evaluation = model.config.evaluation
    model.eval()
    cohort = speaker_centroids(model, splits, evaluation.as_norm.utterances_per_speaker)
    backend = Backend(cohort, {}, [])
    development = splits.by_corpus("development")
    trials = make_split_trials(splits, model.config.dataset, evaluation)
    scored: dict[str, list] = {}  # scores and targets of each corpus, by scoring
    for name, indices in development.items():
        embeddings = embed_utterances(model, splits, indices)
        scores = backend.scores(embeddings, trials[name], evaluation.as_norm.top)
        for scoring, values in scores.items():
            scored.setdefault(scoring, []).append((values, trials[name].targets))
    return replace(
        backend,
        calibrations={
            scoring: calibrate(corpora, evaluation.false_alarm_rate)
            for scoring, corpora in scored.items()
        },
        calibrated_on=list(development),
    )
