"""Embed, identify and verify: how well a model tells speakers apart.

checkpoint, corpus -> `evaluate` -> report: accuracy on validation, EER and minDCF on
test

    python src/eval.py --checkpoint RUN_OR_FILE [dataset.name=... ...]

U utterances, K trials, E embedding size, S training speakers. Verification pairs all
utterances of speakers never heard in training; scores are cosines. Beside the model
stand two references: the same encoder untrained, and the mean log-mel spectrum.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dataset import Splits, UtteranceBatches, prepare
from losses import AngularMarginLoss, GE2ELoss
from metrics import equal_error_rate, min_dcf
from nemo_checkpoint import load_any_model
from parameters import (
    DatasetParameters,
    EvaluationParameters,
    ParameterError,
    Parameters,
    UserError,
    check_parameters,
    override_values,
)
from runs import SpeakerModel, build_model, choose_device
from transforms import FrontEnd, valid_positions
from trials import TrialError, Trials, make_trials

SCORES_AT_ONCE = 65536  # trials, to bound memory


@dataclass(frozen=True)
class VerificationReport:
    """Error rates of one list of trials."""

    eer: float
    min_dcf: float
    num_speakers: int
    num_targets: int
    num_non_targets: int


@dataclass(frozen=True)
class IdentificationReport:
    """Closed-set identification of other utterances of training speakers."""

    loss: float
    accuracy: float
    num_utterances: int
    num_speakers: int  # that have any of these utterances
    num_classes: int  # that they are told from


@dataclass(frozen=True)
class Verification:
    """Trials among the utterances of a split, and how each system does on them."""

    trials: Trials
    embeddings: NDArray[np.float32]  # the model's, [U, E]
    reports: dict[str, VerificationReport]  # by system, the model's first


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; what the corpus has no utterances for is missing."""

    identification: IdentificationReport | None
    verification: dict[str, Verification]  # by split, of development and test


@torch.inference_mode()
def embed(front_end: Callable, encoder: Callable, batches: UtteranceBatches) -> Tensor:
    """One forward pass for each utterance, [U, E] float32 in the order of the
    indices."""
    rows = {index: row for row, index in enumerate(batches.indices)}
    embeddings: Tensor | None = None
    for batch in tqdm(batches, desc="embedding", unit="batch", leave=False):
        vectors = encoder(*front_end(batch.waveforms, batch.lengths)).float().cpu()
        if embeddings is None:
            embeddings = vectors.new_empty(len(rows), vectors.shape[1])
        embeddings[[rows[i] for i in batch.indices.tolist()]] = vectors
    return embeddings


def verify(
    embeddings: Tensor,
    speakers: Sequence[str],
    trials: Trials,
    parameters: EvaluationParameters,
) -> VerificationReport:
    """Cosine scores of trials among [U, E] embeddings of [U] speakers, and their error
    rates."""
    directions = F.normalize(embeddings)
    enrolment, test = torch.from_numpy(trials.enrolment), torch.from_numpy(trials.test)
    scores = torch.cat(
        [
            (directions[first] * directions[second]).sum(1)
            for first, second in zip(
                enrolment.split(SCORES_AT_ONCE), test.split(SCORES_AT_ONCE), strict=True
            )
        ]
    ).numpy()
    p = parameters
    return VerificationReport(
        eer=equal_error_rate(scores, trials.targets),
        min_dcf=min_dcf(scores, trials.targets, p.p_target, p.c_miss, p.c_fa),
        num_speakers=len(set(speakers)),
        num_targets=int(trials.targets.sum()),
        num_non_targets=int((~trials.targets).sum()),
    )


def identify(model: SpeakerModel, splits: Splits) -> IdentificationReport | None:
    """Loss and accuracy on the validation utterances; None where there are none.

    GE2E has no classifier: there a speaker is the mean direction of some of its
    training utterances, as many as a batch has of it.
    """
    if not splits.validation:
        return None
    p, device = model.parameters, next(model.encoder.parameters()).device
    entries, seconds = splits.pack.entries, p.evaluation.batch_seconds
    class_of = {speaker: c for c, speaker in enumerate(splits.speakers)}

    def classes(indices: Sequence[int]) -> Tensor:
        return torch.tensor([class_of[entries[i].speaker] for i in indices])

    def vectors(indices: Sequence[int]) -> Tensor:
        batches = UtteranceBatches(splits.pack, indices, seconds, device)
        return embed(model.front_end, model.encoder, batches).to(device)

    model.train(False)
    if isinstance(model.criterion, AngularMarginLoss):
        model.criterion.margin_share.fill_(1)  # so that losses of epochs compare
    embeddings, targets = vectors(splits.validation), classes(splits.validation)
    with torch.inference_mode():
        if isinstance(model.criterion, GE2ELoss):
            enrolled = _first_of_each(splits, p.loss.ge2e.utterances_per_speaker)
            directions = F.normalize(vectors(enrolled))
            centroids = directions.new_zeros(len(class_of), directions.shape[1])
            centroids.index_add_(0, classes(enrolled).to(device), directions)
            logits = model.criterion.logits(embeddings, centroids)
            loss = F.cross_entropy(logits, targets.to(device))
            predictions = logits.argmax(1)
        else:
            loss, predictions = model.criterion(embeddings, targets.to(device))
    return IdentificationReport(
        loss=loss.item(),
        accuracy=(predictions.cpu() == targets).float().mean().item(),
        num_utterances=len(targets),
        num_speakers=len(targets.unique()),
        num_classes=len(class_of),
    )


def _first_of_each(splits: Splits, count: int) -> list[int]:
    """The first `count` training utterances of every training speaker."""
    kept: dict[str, list[int]] = {}
    for index in splits.train:
        own = kept.setdefault(splits.pack.entries[index].speaker, [])
        own += [index] if len(own) < count else []
    return [index for own in kept.values() for index in own]


def mean_log_mel(front_end: FrontEnd) -> tuple[Callable, Callable]:
    """A front end and an encoder whose embedding is the mean log-mel spectrum, [B,
    M]."""

    def features(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return front_end.log_mel(waveforms, lengths), lengths // front_end.hop

    def mean(features: Tensor, frames: Tensor) -> Tensor:
        valid = valid_positions(frames, features.shape[2])[:, None]
        return (features * valid).sum(2) / frames[:, None]

    return features, mean


def make_split_trials(splits: Splits, parameters: Parameters) -> dict[str, Trials]:
    """Trials of development and of test, where they are not empty; raise `TrialError`
    where one's utterances cannot be paired."""
    made, largest = {}, parameters.evaluation.max_trials
    for name in ("development", "test"):
        if indices := getattr(splits, name):
            speakers = splits.speakers_of(indices)
            trials = make_trials(speakers, largest, parameters.dataset.seed)
            if trials.targets.all() or not trials.targets.any():
                raise TrialError(
                    f"evaluation.max_trials: expected enough for {name} to have target "
                    f"and non-target trials, got {largest}"
                )
            made[name] = trials
    return made


def evaluate(model: SpeakerModel, splits: Splits) -> Evaluation:
    """Identification on validation, and verification on development and test beside an
    untrained encoder and the mean log-mel spectrum.

    Only splits of the corpus that the model was trained on have its speakers; on others
    there is no identification.
    """
    p, device = model.parameters, next(model.encoder.parameters()).device
    model.train(False)
    identification = None
    if splits.speakers == model.speakers:
        identification = identify(model, splits)
    untrained = build_model(p, model.speakers, model.corpus, device).train(False)
    systems = {
        "trained": (model.front_end, model.encoder),
        "untrained": (untrained.front_end, untrained.encoder),
        "mean log-mel": mean_log_mel(model.front_end),
    }
    verification = {}
    for name, trials in make_split_trials(splits, p).items():
        indices = getattr(splits, name)
        speakers = splits.speakers_of(indices)
        seconds = p.evaluation.batch_seconds
        batches = UtteranceBatches(splits.pack, indices, seconds, device)
        embeddings = {name: embed(*system, batches) for name, system in systems.items()}
        reports = {
            name: verify(vectors, speakers, trials, p.evaluation)
            for name, vectors in embeddings.items()
        }
        verification[name] = Verification(
            trials, embeddings["trained"].numpy(), reports
        )
    return Evaluation(identification, verification)


def as_report(evaluation: Evaluation) -> dict[str, Any]:
    """Plain types for `report.json`."""
    found = evaluation.identification
    return {
        "identification": asdict(found) if found else None,
        "verification": {
            split: {name: asdict(report) for name, report in found.reports.items()}
            for split, found in evaluation.verification.items()
        },
    }


def as_table(evaluation: Evaluation) -> list[list[str]]:
    """Rows of text, the first naming the columns."""
    rows = [["split", "system", "measure", "value", "on"]]
    if found := evaluation.identification:
        on = (
            f"{found.num_utterances} utterances of {found.num_speakers} speakers, "
            f"among {found.num_classes}"
        )
        rows.append(["validation", "trained", "accuracy", f"{found.accuracy:.2%}", on])
    for split, verification in evaluation.verification.items():
        for system, report in verification.reports.items():
            on = (
                f"{report.num_targets} targets, {report.num_non_targets} non-targets, "
                f"{report.num_speakers} speakers"
            )
            rows.append([split, system, "EER", f"{report.eer:.2%}", on])
            rows.append([split, system, "minDCF", f"{report.min_dcf:.3f}", on])
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Rows of text in columns as wide as their widest cell."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def refuse_heard(model: SpeakerModel, splits: Splits, p: DatasetParameters) -> None:
    """Raise `ParameterError` where speakers to be tested are those that the model was
    trained on; names alone, of another corpus, are only noted."""
    trained_on = model.parameters.dataset
    unseen = set(splits.speakers_of(splits.development + splits.test))
    heard = unseen & set(model.speakers)
    same_names = p.name == trained_on.name and (
        p.name == "librispeech"
        or (p.name == "synthetic" and p.seed == trained_on.seed)
        or (p.name == "folder" and p.root.resolve() == trained_on.root.resolve())
    )
    if heard and (splits.pack.digest == model.corpus or same_names):
        raise ParameterError(
            "dataset: expected to test speakers that the model was not trained on, "
            f"but it heard {len(heard)} of them, {min(heard)} among them"
        )
    if heard:
        print(f"note: {len(heard)} speakers tested have names of training speakers")


def _is_split_of_training(
    model: SpeakerModel, splits: Splits, p: DatasetParameters
) -> bool:
    dealt = ("seed", "validation_fraction", "development_fraction", "test_fraction")
    trained_on = model.parameters.dataset
    return splits.pack.digest == model.corpus and all(
        getattr(p, key) == getattr(trained_on, key) for key in dealt
    )


OVERRIDABLE = ("dataset.", "evaluation.", "training.device=")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="src/eval.py", description="Evaluate a checkpoint on any corpus."
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run, checkpoint or .nemo file"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as dataset.name=folder dataset.root=recordings",
    )
    options = parser.parse_args(arguments)
    try:
        for override in options.overrides:
            if not override.startswith(OVERRIDABLE):
                raise ParameterError(
                    f"{override}: expected a key of dataset or evaluation, or "
                    "training.device; the rest is the checkpoint's own"
                )
        trained = load_any_model(options.checkpoint, torch.device("cpu"))
        values = override_values(trained.parameters.as_dict(), options.overrides)
        parameters = check_parameters(values)
        device = choose_device(parameters)
        model = replace(trained, parameters=parameters).to(device)
        splits = prepare(parameters)
        print(splits.summary())
        refuse_heard(trained, splits, parameters.dataset)
        if not _is_split_of_training(trained, splits, parameters.dataset):
            splits = replace(splits, validation=[])
        print_table(as_table(evaluate(model, splits)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
