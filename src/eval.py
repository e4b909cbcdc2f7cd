"""Embed, identify and verify: how well a model tells speakers apart.

checkpoint, corpus -> `evaluate` -> `Evaluation`: identification on validation,
verification on development and test

    python src/eval.py --checkpoint RUN_OR_FILE [...] [dataset.name=... ...]
    python src/eval.py --scores scores.txt --trials trials.txt

U utterances, K trials, E embedding size, S training speakers. Verification pairs
utterances of speakers never heard in training. Beside the model stand two references:
the same encoder untrained, and the mean log-mel spectrum.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from audio import AudioError, encode_ogg, load_recording
from checkpoints import RunError, SpeakerModel, atomic_write, build_model, choose_device
from corpora import CorpusError, official_trials
from dataset import Entry, Pack, Splits, UtteranceBatches, prepare
from figures import (
    Figure,
    draw_det,
    draw_embeddings,
    draw_scores,
    map_embeddings,
    project_umap,
    speaker_looks,
)
from layers import valid_positions
from losses import AngularMarginLoss, GE2ELoss
from metrics import (
    Interval,
    actual_dcf,
    bootstrap_speakers,
    cllr,
    det_points,
    equal_error_rate,
    min_cllr,
    min_dcf,
    rates_at,
)
from nemo_checkpoint import load_any_model
from parallel import gather_lists, progress_options
from parameters import (
    SHIPPED,
    DatasetParameters,
    EvaluationParameters,
    ParameterError,
    Parameters,
    UserError,
    check_parameters,
    load_parameters,
    override_values,
)
from scoring import Backend, Calibration, as_norm, calibrate, cosine_scores
from transforms import FrontEnd
from trials import (
    TrialError,
    Trials,
    conditions,
    hardest_trials,
    make_trials,
    read_scores,
    read_trials,
    write_scores,
    write_table,
    write_trials,
)

FEW_SPEAKERS = 20  # below which an interval over speakers is rough
MIN_DRAWN = 10  # utterances, below which UMAP has nothing to show
NUM_HARDEST = 25  # trials of each kind that are listed
UNHEARD = "Utterances of speakers never heard in training"  # a figure's title
MAPPED_UTTERANCES = 16  # of a speaker, and
MAPPED_SECONDS = 3  # of each, so that a map has some 10 MB
TOP = 5  # places of a speaker that count as a hit of the second kind


@dataclass(frozen=True)
class VerificationReport:
    """What the scores of a list of trials are worth.

    Intervals are of 95 %. Log likelihood ratios have costs of their own, and rates at
    the threshold that was stored with the calibration.
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
    num_speakers: int  # that have any of these utterances
    num_classes: int  # that they are told from


@dataclass(frozen=True)
class Verification:
    """Trials among the utterances of a split, and how each system does on them."""

    trials: Trials
    embeddings: NDArray[np.float32]  # the model's, [U, E]
    scores: dict[str, NDArray[np.float64]]  # the model's, by scoring, [K]
    reports: dict[str, VerificationReport]  # by system, the model's first
    conditions: dict[str, VerificationReport]  # of cosines, by kind of trial


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; what the corpus has no utterances for is missing."""

    identification: IdentificationReport | None
    verification: dict[str, Verification]  # by split, of development and test


@torch.inference_mode()
def embed(front_end: Callable, encoder: Callable, batches: UtteranceBatches) -> Tensor:
    """One forward pass for each utterance, [U, E] float32 in the order of the indices;
    a long one has the mean of its windows' embeddings. Shared out among the ranks, all
    of which have the result."""
    found = []
    for batch in tqdm(
        batches, desc="embedding", unit="batch", leave=False, **progress_options()
    ):
        vectors = encoder(*front_end(batch.waveforms, batch.lengths)).float().cpu()
        found.append((batch.indices, vectors))
    indices, vectors = map(torch.cat, zip(*gather_lists(found), strict=True))
    utterances, rows, counts = indices.unique(return_inverse=True, return_counts=True)
    means = vectors.new_zeros(len(utterances), vectors.shape[1])
    means.index_add_(0, rows, vectors).div_(counts[:, None])
    return means[torch.searchsorted(utterances, torch.tensor(batches.indices))]


def verify(
    scores: NDArray[np.float64],
    trials: Trials,
    p: EvaluationParameters,
    speakers: Sequence[str] | None = None,
    calibration: Calibration | None = None,
) -> VerificationReport:
    """What scores [K] of trials are worth; with intervals where the speakers [U] of the
    utterances are given."""
    targets, point = trials.targets, (p.p_target, p.c_miss, p.c_fa)
    report = VerificationReport(
        num_targets=int(targets.sum()),
        num_non_targets=int((~targets).sum()),
        num_speakers=None,
        eer=equal_error_rate(scores, targets),
        min_dcf=min_dcf(scores, targets, *point),
        min_cllr=min_cllr(scores, targets),
    )
    if speakers is not None:
        _, codes = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
        sides = codes[trials.enrolment], codes[trials.test]
        of_eer, of_dcf = bootstrap_speakers(
            scores, targets, sides, *point, p.num_resamples, seed=0
        )
        report = replace(
            report,
            num_speakers=len(np.unique(sides)),
            eer_interval=of_eer,
            min_dcf_interval=of_dcf,
        )
    if calibration is not None:
        llrs = calibration.llrs(scores)
        miss, false_alarm = rates_at(calibration.threshold, llrs, targets)
        report = replace(
            report,
            cllr=cllr(llrs, targets),
            actual_dcf=actual_dcf(llrs, targets, *point),
            miss=miss,
            false_alarm=false_alarm,
        )
    return report


def _vectors(model: SpeakerModel, splits: Splits, indices: Sequence[int]) -> Tensor:
    device = next(model.encoder.parameters()).device
    seconds = model.parameters.evaluation.batch_seconds
    batches = UtteranceBatches(splits.pack, indices, seconds, device)
    return embed(model.front_end, model.encoder, batches)


def _centroids(model: SpeakerModel, splits: Splits, count: int) -> Tensor:
    """Mean direction of the first `count` training utterances of each speaker,
    [S, E]."""
    enrolled = _first_of_each(splits, count)
    directions = F.normalize(_vectors(model, splits, enrolled))
    class_of = {speaker: c for c, speaker in enumerate(splits.speakers)}
    classes = [class_of[speaker] for speaker in splits.speakers_of(enrolled)]
    centroids = directions.new_zeros(len(class_of), directions.shape[1])
    return F.normalize(centroids.index_add_(0, torch.tensor(classes), directions))


def _first_of_each(splits: Splits, count: int) -> list[int]:
    """The first `count` training utterances of every training speaker."""
    kept: dict[str, list[int]] = {}
    for index in splits.train:
        own = kept.setdefault(splits.pack.entries[index].speaker, [])
        own += [index] if len(own) < count else []
    return [index for own in kept.values() for index in own]


def identify(model: SpeakerModel, splits: Splits) -> IdentificationReport | None:
    """Loss and accuracy on the validation utterances; None where there are none.

    GE2E has no classifier: there a speaker is the mean direction of some of its
    training utterances, as many as a batch has of it.
    """
    if not splits.validation:
        return None
    device = next(model.encoder.parameters()).device
    class_of = {speaker: c for c, speaker in enumerate(splits.speakers)}
    classes = [class_of[speaker] for speaker in splits.speakers_of(splits.validation)]
    targets = torch.tensor(classes, device=device)
    model.train(False)
    if isinstance(model.criterion, AngularMarginLoss):
        model.criterion.margin_share.fill_(1)  # so that losses of epochs compare
    embeddings = _vectors(model, splits, splits.validation).to(device)
    with torch.inference_mode():
        if isinstance(model.criterion, GE2ELoss):
            count = model.parameters.loss.ge2e.utterances_per_speaker
            centroids = _centroids(model, splits, count).to(device)
            logits = model.criterion.logits(embeddings, centroids)
            loss = F.cross_entropy(logits, targets)
        else:
            logits = model.criterion.logits(embeddings)
            loss = model.criterion(embeddings, targets).loss
    places = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # [B, 5]
    hits = places == targets[:, None]
    return IdentificationReport(
        loss=loss.item(),
        accuracy=hits[:, 0].float().mean().item(),
        top_5_accuracy=hits.any(1).float().mean().item(),
        num_utterances=len(targets),
        num_speakers=len(targets.unique()),
        num_classes=len(class_of),
    )


@dataclass(frozen=True)
class Comparison:
    """How alike two recordings are, and whether that is enough to be one person's.

    The decision is at the threshold that the calibration stored; a model without one
    has none to offer.
    """

    cosine: float
    llr: float | None
    same_speaker: bool | None


@torch.inference_mode()
def compare_recordings(model: SpeakerModel, first: Path, second: Path) -> Comparison:
    """Two audio files, whoever speaks in them; raises `CorpusError` for unreadable
    ones."""
    model.train(False)
    front_end = model.parameters.front_end
    rate, min_seconds = front_end.sample_rate, front_end.min_seconds
    device = next(model.encoder.parameters()).device
    seconds = model.parameters.evaluation.batch_seconds
    entries, recordings, offset = [], [], 0
    for path in (first, second):
        try:
            samples = torch.from_numpy(load_recording(path, rate, min_seconds).samples)
        except AudioError as error:
            raise CorpusError(f"{path}: {error}") from None
        entries.append(Entry(str(path), "", None, None, None, offset, len(samples)))
        recordings.append(samples)
        offset += len(samples)
    packed = Pack(torch.cat(recordings), entries, rate, warnings=[], digest="")
    batches = UtteranceBatches(packed, range(2), seconds, device)
    embeddings = embed(model.front_end, model.encoder, batches).double()
    cosine = F.cosine_similarity(*embeddings[:, None]).numpy()
    calibration = model.backend and model.backend.calibrations.get("trained")
    if not calibration:
        return Comparison(cosine.item(), None, None)
    llr = calibration.llrs(cosine).item()
    return Comparison(cosine.item(), llr, llr >= calibration.threshold)


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
    """Trials of development and of test, where they are not empty: all pairs, or for
    the test those of `evaluation.trials` or of the corpus's own list.

    Raises `TrialError` where utterances cannot be paired or a list does not fit.
    """
    p = parameters.evaluation
    made, largest = {}, p.max_trials
    for name in ("development", "test"):
        if indices := getattr(splits, name):
            path = p.trials or official_trials(parameters.dataset)
            if name == "test" and path is not None:
                ids = [splits.pack.entries[i].id for i in indices]
                made[name], _ = read_trials(path, ids)
                continue
            speakers = splits.speakers_of(indices)
            trials = make_trials(speakers, largest, parameters.dataset.seed)
            if trials.targets.all() or not trials.targets.any():
                raise TrialError(
                    f"evaluation.max_trials: expected enough for {name} to have target "
                    f"and non-target trials, got {largest}"
                )
            made[name] = trials
    return made


def fit_backend(model: SpeakerModel, splits: Splits) -> Backend:
    """A cohort of the training speakers and, where there are development speakers,
    calibrations on their trials; of the corpus that the model was trained on."""
    p = model.parameters.evaluation
    model.train(False)
    backend = Backend(_centroids(model, splits, p.as_norm.utterances_per_speaker), {})
    if "development" not in (made := make_split_trials(splits, model.parameters)):
        return backend
    trials = made["development"]
    embeddings = _vectors(model, splits, splits.development)
    scores = _system_scores(embeddings, trials, backend, p)
    return replace(
        backend,
        calibrations={
            name: calibrate(found, trials.targets, p.false_alarm_rate)
            for name, found in scores.items()
        },
    )


def _system_scores(
    embeddings: Tensor, trials: Trials, backend: Backend | None, p: EvaluationParameters
) -> dict[str, NDArray[np.float64]]:
    """The model's scores, plain and, where there is a cohort, normalised."""
    cosines = cosine_scores(embeddings, trials)
    if backend is None:
        return {"trained": cosines}
    normalised = as_norm(cosines, embeddings, trials, backend.cohort, p.as_norm.top)
    return {"trained": cosines, "trained, AS-norm": normalised}


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
    references = {
        "untrained": (untrained.front_end, untrained.encoder),
        "mean log-mel": mean_log_mel(model.front_end),
    }
    verification = {}
    for name, trials in make_split_trials(splits, p).items():
        indices = getattr(splits, name)
        speakers = splits.speakers_of(indices)
        began = time.perf_counter()
        embeddings = _vectors(model, splits, indices)
        seconds = time.perf_counter() - began
        entries = [splits.pack.entries[i] for i in indices]
        durations = [entry.samples / splits.pack.sample_rate for entry in entries]
        print(
            f"{name}: {len(entries)} utterances embedded, "
            f"{sum(durations) / seconds:.0f} audio s/s"
        )
        scores = _system_scores(embeddings, trials, model.backend, p.evaluation)
        calibrations = model.backend.calibrations if model.backend else {}
        reports = {
            system: verify(
                found, trials, p.evaluation, speakers, calibrations.get(system)
            )
            for system, found in scores.items()
        }
        batches = UtteranceBatches(
            splits.pack, indices, p.evaluation.batch_seconds, device
        )
        for system, (front_end, encoder) in references.items():
            found = cosine_scores(embed(front_end, encoder, batches), trials)
            reports[system] = verify(found, trials, p.evaluation, speakers)
        kinds = conditions(
            trials,
            [entry.gender for entry in entries],
            [entry.session for entry in entries],
            durations,
        )
        of_kinds = {
            kind: verify(
                scores["trained"][mask],
                trials.where(mask),
                p.evaluation,
                speakers,
                calibrations.get("trained"),
            )
            for kind, mask in kinds.items()
            if 0 < trials.targets[mask].sum() < mask.sum() < len(mask)
        }
        verification[name] = Verification(
            trials, embeddings.numpy(), scores, reports, of_kinds
        )
    return Evaluation(identification, verification)


def write_trials_and_scores(
    directory: Path, evaluation: Evaluation, splits: Splits
) -> None:
    """`trials.txt` and `scores.txt` of the test, from which its figures can be had
    again, and the hardest of them in `errors.tsv`."""
    if test := evaluation.verification.get("test"):
        ids = [splits.pack.entries[i].id for i in splits.test]
        write_trials(directory / "trials.txt", test.trials, ids)
        write_scores(directory / "scores.txt", test.trials, test.scores["trained"], ids)
        write_table(directory / "errors.tsv", as_errors(evaluation, splits))


def draw_evaluation(
    evaluation: Evaluation, splits: Splits, model: SpeakerModel
) -> dict[str, Figure]:
    """Figures of the test by name: DET curves, scores, and the embeddings."""
    test = evaluation.verification.get("test")
    if test is None:
        return {}
    targets = test.trials.targets
    curves = {name: det_points(found, targets) for name, found in test.scores.items()}
    calibrations = model.backend.calibrations if model.backend else {}
    thresholds = {name: c.threshold_of_scores for name, c in calibrations.items()}
    figures = {
        "det": draw_det(curves),
        "scores": draw_scores(test.scores, targets, thresholds),
    }
    if len(splits.test) >= MIN_DRAWN:
        figures["embeddings"] = draw_embeddings(
            {model.parameters.model.name: test.embeddings},
            splits.speakers_of(splits.test),
            UNHEARD,
            model.parameters.seed,
        )
    return figures


def write_map(
    directory: Path, evaluation: Evaluation, splits: Splits, model: SpeakerModel
) -> None:
    """`map.html`: the UMAP of the test's embeddings to explore and, cut short, to hear.

    It holds people's voices: it is written here and handed to nobody.
    """
    test = evaluation.verification.get("test")
    if test is None or len(splits.test) < MIN_DRAWN:
        return
    speakers = np.array(splits.speakers_of(splits.test))
    drawn = np.isin(speakers, list(looks := speaker_looks(speakers)))
    plane = np.empty((len(speakers), 2), np.float32)
    plane[drawn] = project_umap(test.embeddings[drawn], model.parameters.seed)
    rows = []
    for name in looks:
        own = np.flatnonzero(speakers == name)
        rows += own[:: -(-len(own) // MAPPED_UTTERANCES)].tolist()
    entries = [splits.pack.entries[splits.test[row]] for row in rows]
    rate = splits.pack.sample_rate
    sounds = {}
    for entry in entries:
        end = entry.offset + min(entry.samples, MAPPED_SECONDS * rate)
        samples = splits.pack.samples[entry.offset : end].numpy()
        sounds[entry.id] = encode_ogg(samples, rate)
    ids = [entry.id for entry in entries]
    page = map_embeddings(
        plane[rows], speakers[rows], ids, UNHEARD, sounds, offline=True
    )
    with atomic_write(directory / "map.html") as file:
        file.write(page.encode())


def as_report(evaluation: Evaluation) -> dict[str, Any]:
    """Plain types for `report.json`."""
    found = evaluation.identification
    return {
        "identification": asdict(found) if found else None,
        "verification": {
            split: {
                kind: {name: asdict(report) for name, report in reports.items()}
                for kind, reports in (
                    ("systems", found.reports),
                    ("conditions", found.conditions),
                )
            }
            for split, found in evaluation.verification.items()
        },
    }


def as_summary(evaluation: Evaluation) -> dict[str, float]:
    """The model's main figures by names such as `test/eer`, as far as there are any."""
    figures = {}
    if found := evaluation.identification:
        for name in ("loss", "accuracy", "top_5_accuracy"):
            figures[f"validation/{name}"] = getattr(found, name)
    for split, verification in evaluation.verification.items():
        for name in ("eer", "min_dcf", "cllr"):
            figures[f"{split}/{name}"] = getattr(verification.reports["trained"], name)
    return {name: figure for name, figure in figures.items() if figure is not None}


def as_errors(evaluation: Evaluation, splits: Splits) -> list[list]:
    """The hardest trials of the test, which there must be, as `hardest_trials` has
    them."""
    test = evaluation.verification["test"]
    ids = [splits.pack.entries[i].id for i in splits.test]
    speakers = splits.speakers_of(splits.test)
    return hardest_trials(
        test.trials, test.scores["trained"], ids, speakers, NUM_HARDEST
    )


def as_table(evaluation: Evaluation) -> list[list[str]]:
    """Rows of text, the first naming the columns; intervals of 95 % in brackets."""
    rows = [["split", "system", "EER", "minDCF", "Cllr", "on"]]
    if found := evaluation.identification:
        system = f"accuracy {found.accuracy:.2%}, top 5 {found.top_5_accuracy:.2%}"
        on = (
            f"{found.num_utterances} utterances of {found.num_speakers} speakers, "
            f"among {found.num_classes}"
        )
        rows.append(["validation", system, "", "", "", on])
    for split, verification in evaluation.verification.items():
        of_conditions = {
            f"  {name}": report for name, report in verification.conditions.items()
        }
        first, *others = verification.reports.items()
        for system, report in (first, *of_conditions.items(), *others):
            rows.append([split, system, *report_cells(report)])
    return rows


def joint_table(tables: Mapping[str, list[list[str]]], title: str) -> list[list[str]]:
    """Tables of the same columns in one, with their names in a first column."""
    rows: list[list[str]] = []
    for name, (header, *found) in tables.items():
        rows += [] if rows else [[title, *header]]
        rows += [[name, *row] for row in found]
    return rows


def report_cells(report: VerificationReport) -> list[str]:
    """EER, minDCF, Cllr and what they are of, as a table shows them."""
    eer, dcf = f"{report.eer:.2%}", f"{report.min_dcf:.3f}"
    if report.eer_interval is not None:
        low, high = report.eer_interval.low, report.eer_interval.high
        eer += f" [{100 * low:.2f}, {100 * high:.2f}]"
        low, high = report.min_dcf_interval.low, report.min_dcf_interval.high
        dcf += f" [{low:.3f}, {high:.3f}]"
    on = f"{report.num_targets} targets, {report.num_non_targets} non-targets"
    if report.num_speakers is not None:
        on += f", {report.num_speakers} speakers"
        if report.num_speakers < FEW_SPEAKERS:
            on += ": few, intervals are rough"
    cost = "" if report.cllr is None else f"{report.cllr:.3f}"
    return [eer, dcf, cost, on]


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
        p.name in ("librispeech", "vctk", "voxceleb1")
        or (p.name == "synthetic" and p.seed == trained_on.seed)
        or (p.name == "folder" and p.root.resolve() == trained_on.root.resolve())
        or (
            p.name == "manifest"
            and p.manifest.train.resolve() == trained_on.manifest.train.resolve()
        )
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


def evaluate_checkpoint(path: Path, overrides: Sequence[str]) -> Evaluation:
    """Load a run, checkpoint or `.nemo` file and evaluate it on a corpus, that of its
    training unless the overrides name another.

    What was found is also written into a run, below `evaluations`.
    """
    trained = load_any_model(path, torch.device("cpu"))
    values = override_values(trained.parameters.as_dict(), overrides)
    parameters = check_parameters(values)
    model = replace(trained, parameters=parameters).to(choose_device(parameters))
    splits = prepare(parameters)
    print(splits.summary())
    refuse_heard(trained, splits, parameters.dataset)
    if not _is_split_of_training(trained, splits, parameters.dataset):
        splits = replace(splits, validation=[])
    evaluation = evaluate(model, splits)
    if path.is_dir():
        corpus = f"{parameters.dataset.name}-{splits.pack.digest[:8]}"
        _write_evaluation(path / "evaluations" / corpus, evaluation, splits, model)
    return evaluation


def _write_evaluation(
    directory: Path, evaluation: Evaluation, splits: Splits, model: SpeakerModel
) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{directory}: cannot be written: {error}") from None
    for name, figure in draw_evaluation(evaluation, splits, model).items():
        with atomic_write(directory / f"{name}.png") as file:
            figure.savefig(file)
    write_map(directory, evaluation, splits, model)
    write_trials_and_scores(directory, evaluation, splits)
    with atomic_write(directory / "report.json") as file:
        file.write(json.dumps(as_report(evaluation), indent=2).encode())
    print(f"written to {directory}")


def evaluate_scores(
    scores: Path, trials: Path, overrides: Sequence[str]
) -> VerificationReport:
    """What two files say, at the shipped operating point unless the overrides name
    another; without intervals, since they do not name the speakers."""
    parameters = load_parameters(SHIPPED, overrides=overrides).evaluation
    pairs, ids = read_trials(trials)
    return verify(read_scores(scores, pairs, ids), pairs, parameters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="src/eval.py", description="Evaluate checkpoints on any corpus."
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="RUN_OR_FILE",
        help="runs, checkpoints or .nemo files",
    )
    parser.add_argument("--scores", type=Path, help="a file of scores, with --trials")
    parser.add_argument("--trials", type=Path, help="the trials that were scored")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as dataset.name=folder dataset.root=recordings",
    )
    options = parser.parse_args(arguments)
    given = [*options.checkpoint, *options.overrides]
    paths = [word for word in given if "=" not in word]
    overrides = [word for word in given if "=" in word]
    files = (options.scores, options.trials)
    if bool(paths) == all(files) or bool(paths) == any(files):
        parser.error("expected either --checkpoint or --scores and --trials")
    try:
        for override in overrides:
            if not override.startswith(OVERRIDABLE):
                raise ParameterError(
                    f"{override}: expected a key of dataset or evaluation, or "
                    "training.device; the rest is the checkpoint's own"
                )
        if paths:
            tables = {
                path: as_table(evaluate_checkpoint(Path(path), overrides))
                for path in paths
            }
            rows = joint_table(tables, "checkpoint")
        else:
            report = evaluate_scores(*files, overrides)
            rows = [["EER", "minDCF", "Cllr", "on"], report_cells(report)]
        print_table(rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
