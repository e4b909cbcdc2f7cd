"""Evaluate a model: embed, identify and verify.

model, splits -> `identify` -> `IdentificationReport` by split
scores [K], trials [K] -> `verify` -> `VerificationReport`
model, splits -> `evaluate` -> `Evaluation`

    python src/eval.py --checkpoint RUN_OR_FILE [...] [dataset.name=... ...]
    python src/eval.py --scores scores.txt --trials trials.txt

Identification is closed-set, on validation utterances of the training speakers.
Verification is on development and test speakers, which the model never heard, beside
two references: the same encoder untrained, and the mean log-mel spectrum.

B utterances in a batch, U in all, K trials, N samples, M mel bands.
"""

if __name__ == "__main__":  # before torch is loaded
    from command_lines import eval_options
    from errors import begin_program

    begin_program()
    eval_options()  # answers --help

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from command_lines import eval_options
from dataset import Splits, UtteranceBatches, prepare
from engine.devices import choose_device, errors_of_gpu
from engine.files import atomic_write, file_digest, make_directory
from engine.layers import valid_positions
from engine.parameter_files import (
    SHIPPED,
    check_parameters,
    dump_yaml,
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
from runs.backend import (
    embed_utterances,
    fit_backend,
    make_split_trials,
    speaker_centroids,
)
from runs.heard import refuse_heard
from runs.speaker_model import SpeakerModel, build_model, embed
from transforms import FrontEnd
from verification.metrics import (
    OperatingPoint,
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
from verification.scoring import Calibration, cosine_scores
from verification.trials import Trials, conditions, read_scores, read_trials

LOGITS_AT_ONCE = 2**24  # 64 MB, for any number of utterances and speakers
TOP_RANK = 5  # the last at which the right speaker counts for `top_5_accuracy`


def identify(model: SpeakerModel, splits: Splits) -> dict[str, IdentificationReport]:
    """Return loss and accuracy on the validation utterances, by corpus as
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
    num_classes = len(splits.speakers)
    targets = torch.tensor(splits.classes_of(indices), device=model.device)
    model.eval()
    embeddings = embed_utterances(model, splits, indices).to(model.device)
    centroids = None
    if count := model.criterion.num_enrolled:
        centroids = speaker_centroids(model, splits, count).to(model.device)
    elif (centre := model.backend.centre) is not None:
        # Classifiers learn from embeddings that are not centred.
        embeddings = embeddings + centre.to(embeddings)
    rows = max(1, LOGITS_AT_ONCE // num_classes)
    loss = first = among_top = 0.0  # sums over the utterances
    with torch.inference_mode():
        for part, expected in zip(
            embeddings.split(rows), targets.split(rows), strict=True
        ):
            mean_loss, logits = model.criterion.identify(part, expected, centroids)
            nearest = logits.topk(min(TOP_RANK, num_classes), dim=1).indices  # [B, 5]
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
        num_classes=num_classes,
    )


def verify(
    scores: NDArray[np.float64],
    trials: Trials,
    evaluation: EvaluationParameters,
    speakers: Sequence[str] | None = None,
    calibration: Calibration | None = None,
    seconds: Sequence[float] | None = None,
) -> VerificationReport:
    """Return the metrics of the scores [K] of trials.

    With the speakers [U] of the utterances the report has intervals. With a calibration
    it has the metrics of log likelihood ratios; `seconds` [U] are how long the
    utterances are, which a calibration may need.
    """
    targets = trials.targets
    point = OperatingPoint(evaluation.p_target, evaluation.c_miss, evaluation.c_fa)
    report = VerificationReport(
        num_targets=int(targets.sum()),
        num_non_targets=int((~targets).sum()),
        num_speakers=None,
        eer=equal_error_rate(scores, targets),
        min_dcf=min_dcf(scores, targets, point),
        min_cllr=min_cllr(scores, targets),
    )
    if speakers is not None:
        _, codes = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
        sides = codes[trials.enrolment], codes[trials.test]
        eer_interval, min_dcf_interval = bootstrap_speakers(
            scores, targets, sides, point, evaluation.num_resamples, seed=0
        )
        report = replace(
            report,
            num_speakers=len(np.unique(sides)),
            eer_interval=eer_interval,
            min_dcf_interval=min_dcf_interval,
        )
    if calibration is not None:
        shorter = None if seconds is None else trials.shorter(seconds)
        llrs = calibration.llrs(scores, shorter)
        miss, false_alarm = rates_at(calibration.threshold, llrs, targets)
        report = replace(
            report,
            cllr=cllr(llrs, targets),
            actual_dcf=actual_dcf(llrs, targets, point),
            miss=miss,
            false_alarm=false_alarm,
        )
    return report


def evaluate(model: SpeakerModel, splits: Splits) -> Evaluation:
    """Identify on validation, and verify on development and test.

    Identification is left out if the model was trained on other speakers.
    """
    parameters = model.config
    model.eval()
    identification = {}
    if splits.speakers == model.speakers:
        identification = identify(model, splits)
    untrained = build_model(parameters, model.speakers, model.digests, model.device)
    references = {
        "untrained": untrained.eval(),
        "mean log-mel": mean_log_mel(model.front_end),
    }
    utterances = splits.by_corpus("development") | splits.by_corpus("test")
    verification = {
        name: _verify_split(model, references, splits, name, utterances[name], trials)
        for name, trials in make_split_trials(
            splits, parameters.dataset, parameters.evaluation
        ).items()
    }
    calibrations = model.backend.calibrations
    return Evaluation(
        identification,
        verification,
        model.backend.calibrated_on,
        thresholds={name: c.threshold_of_scores for name, c in calibrations.items()},
        model=parameters.model.name,
        seed=parameters.seed,
    )


def _verify_split(
    model: SpeakerModel,
    references: Mapping[str, Callable],
    splits: Splits,
    name: str,
    indices: list[int],
    trials: Trials,
) -> Verification:
    evaluation, calibrations = model.config.evaluation, model.backend.calibrations
    speakers = splits.speakers_of(indices)
    entries = [splits.pack.entries[i] for i in indices]
    seconds = [entry.samples / splits.pack.sample_rate for entry in entries]
    batches = UtteranceBatches(
        splits.pack, indices, evaluation.batch_seconds, model.device
    )
    began = time.perf_counter()
    embeddings = embed(model, batches)
    speed = sum(seconds) / (time.perf_counter() - began)
    print(f"{name}: {len(entries)} utterances embedded, {speed:.0f} audio s/s")
    scores = model.backend.scores(embeddings, trials, evaluation.as_norm.top)
    reports = {
        scoring: verify(
            values, trials, evaluation, speakers, calibrations.get(scoring), seconds
        )
        for scoring, values in scores.items()
    }
    for system, reference in references.items():
        reference_scores = cosine_scores(embed(reference, batches), trials)
        reports[system] = verify(reference_scores, trials, evaluation, speakers)
    masks = conditions(
        trials,
        [entry.gender for entry in entries],
        [entry.session for entry in entries],
        seconds,
    )
    plain, calibration = scores["trained"], calibrations.get("trained")
    of_conditions = {
        condition: verify(
            plain[mask], trials.where(mask), evaluation, speakers, calibration, seconds
        )
        for condition, mask in masks.items()
        # A report needs targets and non-targets; the one of all trials exists already.
        if 0 < trials.targets[mask].sum() < mask.sum() < len(mask)
    }
    return Verification(
        indices, trials, embeddings.numpy(), scores, reports, of_conditions
    )


def mean_log_mel(front_end: FrontEnd) -> Callable:
    """Return a model whose embedding is the mean log-mel spectrum: [B, N], [B] samples
    -> [B, M]."""

    def mean(waveforms: Tensor, lengths: Tensor) -> Tensor:
        features = front_end.log_mel(waveforms, lengths)  # [B, M, T]
        frames = lengths // front_end.hop
        valid = valid_positions(frames, features.shape[2])[:, None]
        return (features * valid).sum(2) / frames[:, None]

    return mean


# Keys that may be overridden. A checkpoint has its own values for all others.
OVERRIDABLE = ("dataset.", "evaluation.", "training.device=")
OVERRIDABLE_OF_SCORES = tuple(
    f"evaluation.{key}=" for key in ("p_target", "c_miss", "c_fa")
)
# Keys of a corpus that its splits depend on.
SPLIT_KEYS = ("seed", "validation_fraction", "development_fraction", "test_fraction")
# Keys of `evaluation` that a fitted backend depends on.
BACKEND_KEYS = ("centre", "false_alarm_rate")
BACKEND_KEYS += ("as_norm.utterances_per_speaker", "as_norm.top")


def evaluate_checkpoint(path: Path, overrides: Sequence[str]) -> Evaluation:
    """Load a run, checkpoint or `.nemo` file and evaluate it on its training corpus or
    on the one that the overrides name.

    The results are also written to a run's directory, below `evaluations`, with the
    parameters.
    """
    model = load_any_model(path, torch.device("cpu"))
    parameters = check_parameters(override_values(model.config.as_dict(), overrides))
    device = choose_device(parameters.training, parameters.model)
    splits = prepare(parameters.dataset, parameters.front_end)
    print(splits.summary())
    refuse_heard(model, splits, parameters.dataset)
    of_training = _is_split_of_training(model, splits, parameters.dataset)
    if not of_training:  # the model may have been trained on the validation utterances
        splits = replace(splits, validation=[])
    fitted_with, model.config = model.config.evaluation, parameters
    model.to(device)
    _fit_anew(model, fitted_with, splits, of_training)
    evaluation = evaluate(model, splits)
    if path.is_dir():
        name = _name_of(evaluation, splits, parameters, file_digest(path / "best.pt"))
        directory = path / "evaluations" / name
        make_directory(directory)
        with atomic_write(directory / "parameters.yml") as file:
            file.write(dump_yaml(parameters.as_dict()).encode())
        write_evaluation(directory, evaluation, splits)
        print(f"written to {directory}")
    return evaluation


def _name_of(
    evaluation: Evaluation, splits: Splits, parameters: Parameters, model: str
) -> str:
    """Return a name for an evaluation's directory. It is another for other recordings,
    speakers, trials, parameters of evaluation, or another digest of the model."""
    settings = parameters.evaluation.model_dump(exclude={"batch_seconds", "trials"})
    values = [model, splits.pack.digests, splits.validation, settings]
    digest = hashlib.sha256(json.dumps(values).encode())
    for name, test in evaluation.verification.items():
        digest.update(f"{name} {test.indices}".encode())
        for column in (test.trials.enrolment, test.trials.test, test.trials.targets):
            digest.update(column.tobytes())
    return f"{parameters.dataset.name}-{digest.hexdigest()[:8]}"


def _is_split_of_training(
    model: SpeakerModel, splits: Splits, dataset: DatasetParameters
) -> bool:
    now, in_training = (
        [
            [getattr(corpus, key) for key in SPLIT_KEYS]
            for corpus in parameters.corpora.values()
        ]
        for parameters in (dataset, model.config.dataset)
    )
    return splits.pack.digests == model.digests and now == in_training


def _fit_anew(
    model: SpeakerModel,
    fitted_with: EvaluationParameters,
    splits: Splits,
    of_training: bool,
) -> None:
    """Fit the backend again if its parameters have changed; raise `ParameterError` if
    the speakers that this needs are missing.

    `of_training` says whether the splits are those of the model's training.
    """
    before, after = (
        {key: attrgetter(key)(evaluation) for key in BACKEND_KEYS}
        for evaluation in (fitted_with, model.config.evaluation)
    )
    changed = [key for key in BACKEND_KEYS if before[key] != after[key]]
    if not changed:
        return
    if of_training and (splits.development or "false_alarm_rate" not in changed):
        fit_backend(model, splits)
        return
    if len(model.backend.cohort) and not model.backend.calibrations:
        # AS-norm reads `top` at each call: only calibrations depend on the old one.
        changed = [key for key in changed if key != "as_norm.top"]
    for key in changed[:1]:
        raise ParameterError(
            f"evaluation.{key}: expected {before[key]}, which the model was fitted "
            f"with (the speakers to fit it again are missing), got {after[key]}"
        )


def evaluate_scores(
    scores: Path, trials: Path, overrides: Sequence[str]
) -> VerificationReport:
    """Return the metrics of a file of scores and a file of its trials.

    The operating point is that of parameters.yml with these overrides. There are no
    intervals, as the files do not name the speakers.
    """
    parameters = load_parameters(SHIPPED, overrides=overrides).evaluation
    pairs, ids = read_trials(trials)
    report = verify(read_scores(scores, pairs, ids), pairs, parameters)
    if report.eer > 0.5:
        print(
            f"warning: {scores}: the EER is above 50 %; the scores may run the wrong "
            "way: a higher one must mean the same speaker"
        )
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 2 for a user's mistake."""
    options = eval_options(arguments)
    paths, overrides = options.checkpoint, options.overrides

    def command() -> None:
        for override in overrides:
            if paths and not override.startswith(OVERRIDABLE):
                raise ParameterError(
                    f"{override}: expected a key of dataset or evaluation, or "
                    "training.device; a checkpoint has its own for everything else"
                )
            if not paths and not override.startswith(OVERRIDABLE_OF_SCORES):
                raise ParameterError(
                    f"{override}: expected evaluation.p_target, evaluation.c_miss or "
                    "evaluation.c_fa; scores depend on nothing else"
                )
        if paths:
            with errors_of_gpu("--device cpu"):
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
