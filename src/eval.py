"""Evaluate a model: embed, identify and verify.

checkpoint, corpus -> `evaluate` -> `Evaluation`: identification on validation,
verification on development and test

    python src/eval.py --checkpoint RUN_OR_FILE [...] [dataset.name=... ...]
    python src/eval.py --scores scores.txt --trials trials.txt

U utterances, K trials, E embedding size, S training speakers. Verification tests the
model on speakers it never heard, beside two references: the same encoder untrained, and
the mean log-mel spectrum.
"""

if __name__ == "__main__":  # --help is answered before torch is loaded
    from command_lines import eval_options

    eval_options()

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from command_lines import eval_options
from dataset import Splits, UtteranceBatches, prepare
from engine.devices import choose_device
from engine.files import make_directory
from engine.layers import valid_positions
from engine.parameter_files import (
    SHIPPED,
    check_parameters,
    load_parameters,
    override_values,
)
from errors import run_command
from exchange.nemo_files import load_any_model
from parameters import (
    DatasetParameters,
    EvaluationParameters,
    ParameterError,
    Parameters,
)
from reports.evaluation_files import write_evaluation
from reports.tables import (
    REPORT_COLUMNS,
    as_table,
    joint_table,
    print_table,
    report_cells,
)
from runs.speaker_model import SpeakerModel, build_model, embed
from speech.corpora import official_trials, people_key, without_label
from transforms import FrontEnd
from verification.calibration import calibrate
from verification.metrics import (
    actual_dcf,
    bootstrap_speakers,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
    rates_at,
)
from verification.records import (
    Evaluation,
    IdentificationReport,
    Verification,
    VerificationReport,
)
from verification.scoring import Backend, Calibration, as_norm, cosine_scores
from verification.trials import (
    TrialError,
    Trials,
    conditions,
    make_trials,
    read_scores,
    read_trials,
)

OVERRIDABLE = ("dataset.", "evaluation.", "training.device=")
OVERRIDABLE_OF_SCORES = (
    "evaluation.p_target=",
    "evaluation.c_miss=",
    "evaluation.c_fa=",
)
FITTED_WITH = ("false_alarm_rate", "as_norm.utterances_per_speaker", "as_norm.top")
LOGITS_AT_ONCE = 2**24  # 64 MB, whatever the number of utterances and speakers
TOP = 5  # ranks that count for `top_5_accuracy`


def verify(
    scores: NDArray[np.float64],
    trials: Trials,
    evaluation: EvaluationParameters,
    speakers: Sequence[str] | None = None,
    calibration: Calibration | None = None,
) -> VerificationReport:
    """Metrics of the scores [K] of trials.

    With intervals if the speakers [U] of the utterances are given, and with the metrics
    of log likelihood ratios if a calibration is.
    """
    targets = trials.targets
    point = evaluation.p_target, evaluation.c_miss, evaluation.c_fa
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
            scores, targets, sides, *point, evaluation.num_resamples, seed=0
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
    device = model.device
    seconds = model.config.evaluation.batch_seconds
    batches = UtteranceBatches(splits.pack, indices, seconds, device)
    return embed(model, batches)


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
    by_speaker: dict[str, list[int]] = {}
    for index in splits.train:
        of_speaker = by_speaker.setdefault(splits.pack.entries[index].speaker, [])
        of_speaker += [index] if len(of_speaker) < count else []
    return [index for of_speaker in by_speaker.values() for index in of_speaker]


def identify(model: SpeakerModel, splits: Splits) -> dict[str, IdentificationReport]:
    """Loss and accuracy on the validation utterances of each corpus, as
    `Splits.by_corpus` names them.

    The classes are the training speakers of all corpora. Without a classifier, a class
    is the mean direction of the speaker's first `num_enrolled` training utterances.
    """
    return {
        name: _identify(model, splits, indices)
        for name, indices in splits.by_corpus("validation").items()
    }


def _identify(
    model: SpeakerModel, splits: Splits, indices: Sequence[int]
) -> IdentificationReport:
    device = model.device
    class_of = {speaker: c for c, speaker in enumerate(splits.speakers)}
    classes = [class_of[speaker] for speaker in splits.speakers_of(indices)]
    targets = torch.tensor(classes, device=device)
    model.eval()
    embeddings = _vectors(model, splits, indices).to(device)
    centroids = None
    if count := model.criterion.num_enrolled:
        centroids = _centroids(model, splits, count).to(device)
    rows = max(1, LOGITS_AT_ONCE // len(class_of))
    loss = first = among_top = 0.0  # sums over the utterances
    with torch.inference_mode():
        for part, expected in zip(
            embeddings.split(rows), targets.split(rows), strict=True
        ):
            mean_loss, logits = model.criterion.identify(part, expected, centroids)
            nearest = logits.topk(min(TOP, len(class_of)), dim=1).indices  # [B, 5]
            hits = nearest == expected[:, None]
            loss += mean_loss.item() * len(part)
            first += hits[:, 0].sum().item()
            among_top += hits.sum().item()
    return IdentificationReport(
        loss=loss / len(targets),
        accuracy=first / len(targets),
        top_5_accuracy=among_top / len(targets),
        num_utterances=len(targets),
        num_speakers=len(targets.unique()),
        num_classes=len(class_of),
    )


def mean_log_mel(front_end: FrontEnd) -> Callable:
    """A model whose embedding is the mean log-mel spectrum, [B, N], [B] -> [B, M]."""

    def mean(waveforms: Tensor, lengths: Tensor) -> Tensor:
        features = front_end.log_mel(waveforms, lengths)  # [B, M, T]
        frames = lengths // front_end.hop
        valid = valid_positions(frames, features.shape[2])[:, None]
        return (features * valid).sum(2) / frames[:, None]

    return mean


def make_split_trials(splits: Splits, parameters: Parameters) -> dict[str, Trials]:
    """Trials of development and of test, within each corpus as `Splits.by_corpus` names
    them: all pairs, or for a test those of `evaluation.trials` or of the corpus's list.

    Raises `TrialError` where utterances cannot be paired or a list does not fit.
    """
    evaluation, entries = parameters.evaluation, splits.pack.entries
    corpora, made = parameters.dataset.corpora, {}
    parts = splits.by_corpus("development") | splits.by_corpus("test")
    for name, indices in parts.items():
        split, _, label = name.partition("/")
        path = evaluation.trials or official_trials(corpora[label])
        speakers = splits.speakers_of(indices)
        if split == "test" and path is not None:
            ids = [without_label(entries[i].id, label) for i in indices]
            made[name], _ = read_trials(path, ids, speakers)
            continue
        try:
            trials = make_trials(speakers, evaluation.max_trials, corpora[label].seed)
        except TrialError as error:
            raise TrialError(f"{name}: {error}") from None
        if trials.targets.all() or not trials.targets.any():
            raise TrialError(
                f"evaluation.max_trials: expected enough for {name} to have target "
                f"and non-target trials, got {evaluation.max_trials}"
            )
        made[name] = trials
    return made


def fit_backend(model: SpeakerModel, splits: Splits) -> Backend:
    """Build the cohort of training speakers and, if there are development speakers,
    calibrate on their trials. `splits` are of the model's training corpus.

    In a mixture every corpus with development speakers has equal weight, whatever its
    size: one threshold serves recordings of unknown origin. Set a corpus's
    `development_fraction` to choose whether it counts.
    """
    evaluation = model.config.evaluation
    model.eval()
    cohort = _centroids(model, splits, evaluation.as_norm.utterances_per_speaker)
    backend = Backend(cohort, {}, [])
    made = make_split_trials(splits, model.config)
    parts: dict[str, list] = {}
    for name, indices in splits.by_corpus("development").items():
        embeddings, trials = _vectors(model, splits, indices), made[name]
        scores = _system_scores(embeddings, trials, backend, evaluation)
        for system, system_scores in scores.items():
            parts.setdefault(system, []).append((system_scores, trials.targets))
    return replace(
        backend,
        calibrations={
            system: calibrate(scored, evaluation.false_alarm_rate)
            for system, scored in parts.items()
        },
        calibrated_on=list(splits.by_corpus("development")),
    )


def _system_scores(
    embeddings: Tensor,
    trials: Trials,
    backend: Backend | None,
    evaluation: EvaluationParameters,
) -> dict[str, NDArray[np.float64]]:
    """The model's scores, plain and, where there is a cohort, normalised."""
    cosines = cosine_scores(embeddings, trials)
    if backend is None:
        return {"trained": cosines}
    normalised = as_norm(
        cosines, embeddings, trials, backend.cohort, evaluation.as_norm.top
    )
    return {"trained": cosines, "trained, AS-norm": normalised}


def evaluate(model: SpeakerModel, splits: Splits) -> Evaluation:
    """Identification on validation, and verification on development and test beside an
    untrained encoder and the mean log-mel spectrum.

    Identification needs the model's training speakers, so on other corpora there is
    none.
    """
    parameters, device = model.config, model.device
    model.eval()
    identification = {}
    if splits.speakers == model.speakers:
        identification = identify(model, splits)
    untrained = build_model(parameters, model.speakers, model.digests, device).eval()
    references = {
        "untrained": untrained,
        "mean log-mel": mean_log_mel(model.front_end),
    }
    calibrations = model.backend.calibrations if model.backend else {}
    verification = {}
    parts = splits.by_corpus("development") | splits.by_corpus("test")
    for name, trials in make_split_trials(splits, parameters).items():
        indices = parts[name]
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
        scores = _system_scores(
            embeddings, trials, model.backend, parameters.evaluation
        )
        reports = {
            system: verify(
                system_scores,
                trials,
                parameters.evaluation,
                speakers,
                calibrations.get(system),
            )
            for system, system_scores in scores.items()
        }
        batches = UtteranceBatches(
            splits.pack, indices, parameters.evaluation.batch_seconds, device
        )
        for system, reference in references.items():
            system_scores = cosine_scores(embed(reference, batches), trials)
            reports[system] = verify(
                system_scores, trials, parameters.evaluation, speakers
            )
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
                parameters.evaluation,
                speakers,
                calibrations.get("trained"),
            )
            for kind, mask in kinds.items()
            if 0 < trials.targets[mask].sum() < mask.sum() < len(mask)
        }
        verification[name] = Verification(
            indices, trials, embeddings.numpy(), scores, reports, of_kinds
        )
    calibrated_on = model.backend.calibrated_on if model.backend else []
    return Evaluation(
        identification,
        verification,
        calibrated_on,
        thresholds={name: c.threshold_of_scores for name, c in calibrations.items()},
        model=parameters.model.name,
        seed=parameters.seed,
    )


def refuse_heard(
    model: SpeakerModel, splits: Splits, dataset: DatasetParameters
) -> None:
    """Raise `ParameterError` if the model, or one whose weights it started from, was
    trained on development or test speakers. Equal names in another corpus only print
    a note."""
    noted: set[str] = set()
    for label, corpus in dataset.corpora.items():
        unseen = {
            without_label(splits.pack.entries[i].speaker, label)
            for i in splits.development + splits.test
            if splits.pack.entries[i].corpus == label
        }
        for heard in model.heard:
            names = unseen & set(heard.speakers)
            same_corpus = splits.pack.digests.get(label) == heard.digest
            if names and (same_corpus or people_key(corpus) == heard.people):
                raise ParameterError(
                    "dataset: expected to test speakers that the model was not trained "
                    f"on, but it heard {len(names)} of them, {min(names)} among them"
                )
            noted |= names
    if noted:
        print(f"note: {len(noted)} speakers tested have names of training speakers")


def _is_split_of_training(
    model: SpeakerModel, splits: Splits, dataset: DatasetParameters
) -> bool:
    def dealt_by(parameters: DatasetParameters) -> list:
        keys = "seed", "validation_fraction", "development_fraction", "test_fraction"
        corpora = parameters.corpora.values()
        return [[getattr(corpus, key) for key in keys] for corpus in corpora]

    same_audio = splits.pack.digests == model.digests
    return same_audio and dealt_by(dataset) == dealt_by(model.config.dataset)


def _fit_anew(
    model: SpeakerModel, old: EvaluationParameters, splits: Splits, of_training: bool
) -> None:
    """Refit the backend if the parameters that it was fitted with have changed; raise
    `ParameterError` if the speakers needed are not available.

    `of_training` says whether the splits are those of the model's training.
    """
    new, uncalibrated = model.config.evaluation, ()
    if model.backend is not None and not model.backend.calibrations:
        uncalibrated = ("as_norm.top",)  # which then nothing was fitted with
    changed = [k for k in FITTED_WITH if attrgetter(k)(old) != attrgetter(k)(new)]
    can_fit = of_training and (splits.development or "false_alarm_rate" not in changed)
    for key in changed:
        if not can_fit and key not in uncalibrated:
            before, after = attrgetter(key)(old), attrgetter(key)(new)
            raise ParameterError(
                f"evaluation.{key}: expected {before}, as the model was fitted, since "
                f"the speakers to fit it anew are not at hand, got {after}"
            )
    if changed and can_fit:
        model.backend = fit_backend(model, splits)


def evaluate_checkpoint(path: Path, overrides: Sequence[str]) -> Evaluation:
    """Load a run, checkpoint or `.nemo` file and evaluate it on a corpus, that of its
    training unless the overrides name another.

    What was found is also written into a run, below `evaluations`.
    """
    model = load_any_model(path, torch.device("cpu"))
    parameters = check_parameters(override_values(model.config.as_dict(), overrides))
    device = choose_device(parameters.training, parameters.model)
    splits = prepare(parameters.dataset, parameters.front_end)
    print(splits.summary())
    refuse_heard(model, splits, parameters.dataset)
    of_training = _is_split_of_training(model, splits, parameters.dataset)
    if not of_training:
        splits = replace(splits, validation=[])
    fitted_with, model.config = model.config.evaluation, parameters
    model.to(device)
    _fit_anew(model, fitted_with, splits, of_training)
    evaluation = evaluate(model, splits)
    if path.is_dir():
        corpus = f"{parameters.dataset.name}-{splits.pack.digest[:8]}"
        directory = path / "evaluations" / corpus
        make_directory(directory)
        write_evaluation(directory, evaluation, splits)
        print(f"written to {directory}")
    return evaluation


def evaluate_scores(
    scores: Path, trials: Path, overrides: Sequence[str]
) -> VerificationReport:
    """Metrics of a file of scores and its trials, at the shipped operating point unless
    overridden. No intervals: the files do not name the speakers."""
    parameters = load_parameters(SHIPPED, overrides=overrides).evaluation
    pairs, ids = read_trials(trials)
    return verify(read_scores(scores, pairs, ids), pairs, parameters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's."""
    options = eval_options(arguments)
    paths, overrides = options.checkpoint, options.overrides

    def command() -> None:
        for override in overrides:
            if paths and not override.startswith(OVERRIDABLE):
                raise ParameterError(
                    f"{override}: expected a key of dataset or evaluation, or "
                    "training.device; the rest is the checkpoint's own"
                )
            if not paths and not override.startswith(OVERRIDABLE_OF_SCORES):
                raise ParameterError(
                    f"{override}: expected evaluation.p_target, evaluation.c_miss or "
                    "evaluation.c_fa; nothing else matters to scores"
                )
        if paths:
            tables = {
                str(path): as_table(evaluate_checkpoint(path, overrides))
                for path in paths
            }
            print_table(joint_table(tables, "checkpoint"))
        else:
            report = evaluate_scores(options.scores, options.trials, overrides)
            print_table([[*REPORT_COLUMNS], report_cells(report)])

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
