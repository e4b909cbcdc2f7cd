"""What an evaluation found, as tables, files and figures.

`Evaluation` -> `write_evaluation` -> trials.txt scores.txt errors.tsv det.png
scores.png embeddings.png map.html report.json
`Evaluation` -> `as_table` -> `print_table`
`Evaluation`s by model -> `compare_models` -> HTML

U utterances, K trials, E embedding size.
"""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset import Splits
from reports.figures import (
    Figure,
    draw_det,
    draw_embeddings,
    draw_scores,
    map_embeddings,
    project_umap,
)
from runs.checkpoints import SpeakerModel, atomic_write, make_directory
from speech.audio import encode_ogg
from verification.metrics import Interval, det_points
from verification.trials import (
    Trials,
    hardest_trials,
    write_scores,
    write_table,
    write_trials,
)

FEW_SPEAKERS = 20  # with fewer, an interval over speakers is rough
REPORT_COLUMNS = ("EER", "minDCF", "Cllr", "on")  # as `report_cells` fills them
MIN_DRAWN = 10  # utterances; with fewer, UMAP has nothing to show
NUM_HARDEST = 25  # trials of each kind that are listed
UNHEARD = "Utterances of speakers never heard in training"  # a figure's title
MAPPED_UTTERANCES = 400  # in a map, not counting those of its errors
MAPPED_SECONDS = 3  # of each mapped utterance; a map then has about 10 MB


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

    @property
    def tests(self) -> dict[str, Verification]:
        """Tests by the folder, inside the run's, that their files are written to."""
        return {
            "" if name == "test" else name: verification
            for name, verification in self.verification.items()
            if name.partition("/")[0] == "test"
        }


def write_evaluation(
    directory: Path, evaluation: Evaluation, splits: Splits, model: SpeakerModel
) -> None:
    """Write all files of an evaluation into an existing directory.

    `report.json` comes last: if it is there, all others are.
    """
    for folder, test in evaluation.tests.items():
        home = directory / folder
        if folder:
            make_directory(home)
        write_trials_and_scores(home, test, splits)
        for name, figure in draw_verification(test, splits, model).items():
            with atomic_write(home / f"{name}.png") as file:
                figure.savefig(file)
        name = "/".join(filter(None, (directory.name, folder)))
        write_map(home, test, splits, model, name)
    with atomic_write(directory / "report.json") as file:
        file.write(json.dumps(as_report(evaluation), indent=2).encode())


def write_trials_and_scores(
    directory: Path, test: Verification, splits: Splits
) -> None:
    """Write a test's `trials.txt` and `scores.txt`, from which its metrics can be
    recomputed, and its hardest trials, `errors.tsv`."""
    ids = [splits.pack.entries[i].id for i in test.indices]
    write_trials(directory / "trials.txt", test.trials, ids)
    write_scores(directory / "scores.txt", test.trials, test.scores["trained"], ids)
    write_table(directory / "errors.tsv", as_errors(test, splits))


def draw_verification(
    test: Verification, splits: Splits, model: SpeakerModel
) -> dict[str, Figure]:
    """Figures of a test by name: DET curves, scores, and the embeddings."""
    targets = test.trials.targets
    curves = {name: det_points(scores, targets) for name, scores in test.scores.items()}
    calibrations = model.backend.calibrations if model.backend else {}
    thresholds = {name: c.threshold_of_scores for name, c in calibrations.items()}
    figures = {
        "det": draw_det(curves),
        "scores": draw_scores(test.scores, targets, thresholds),
    }
    if len(test.indices) >= MIN_DRAWN:
        figures["embeddings"] = draw_embeddings(
            {model.config.model.name: test.embeddings},
            splits.speakers_of(test.indices),
            UNHEARD,
            model.config.seed,
        )
    return figures


def write_map(
    directory: Path, test: Verification, splits: Splits, model: SpeakerModel, name: str
) -> None:
    """`map.html`: the UMAP of a test's embeddings to explore and, cut short, to hear.

    It holds people's voices, so it is only written here and never uploaded. Its title
    begins with `name`.
    """
    if len(test.indices) < MIN_DRAWN:
        return
    entries = [splits.pack.entries[i] for i in test.indices]
    speakers = np.array(splits.speakers_of(test.indices))
    _, *errors = as_errors(test, splits)
    rows_of_ids = {entry.id: row for row, entry in enumerate(entries)}
    rows = {rows_of_ids[name] for error in errors for name in error[:2]}
    people = np.unique(speakers)
    of_each = max(1, MAPPED_UTTERANCES // len(people))
    for speaker in people[:MAPPED_UTTERANCES]:
        of_speaker = np.flatnonzero(speakers == speaker)
        step = -(-len(of_speaker) // of_each)  # rounded up
        rows |= set(of_speaker[::step].tolist())
    mapped = sorted(rows)
    rate, sounds = splits.pack.sample_rate, {}
    for entry in (entries[row] for row in mapped):
        end = entry.offset + min(entry.samples, MAPPED_SECONDS * rate)
        samples = splits.pack.samples[entry.offset : end].numpy()
        sounds[entry.id] = encode_ogg(samples, rate)
    shown = len(set(speakers[mapped]))
    title = (
        f"{name}: UMAP, EER {test.reports['trained'].eer:.2%}\n"
        f"{len(mapped):,} of {len(speakers):,} utterances "
        f"of {shown:,} of {len(people):,} speakers never heard in training"
    )
    page = map_embeddings(
        project_umap(test.embeddings[mapped], model.config.seed),
        speakers[mapped].tolist(),
        [entries[row].id for row in mapped],
        title,
        sounds,
        [
            (one, other, f"{what}, {score:.2f}")
            for one, other, _, _, score, what in errors
        ],
        offline=True,
    )
    with atomic_write(directory / "map.html") as file:
        file.write(page.encode())


def as_report(evaluation: Evaluation) -> dict[str, Any]:
    """Plain types for `report.json`."""
    identification = {
        name: asdict(report) for name, report in evaluation.identification.items()
    }
    return {
        # of one corpus the report itself
        "identification": identification.get("validation", identification or None),
        "calibrated_on": evaluation.calibrated_on,
        "verification": {
            split: {
                kind: {name: asdict(report) for name, report in reports.items()}
                for kind, reports in (
                    ("systems", verification.reports),
                    ("conditions", verification.conditions),
                )
            }
            for split, verification in evaluation.verification.items()
        },
    }


def as_summary(evaluation: Evaluation) -> dict[str, float]:
    """The model's main metrics, by names such as `test/eer`."""
    figures = {}
    for split, report in evaluation.identification.items():
        for name in ("loss", "accuracy", "top_5_accuracy"):
            figures[f"{split}/{name}"] = getattr(report, name)
    for split, verification in evaluation.verification.items():
        for name in ("eer", "min_dcf", "cllr"):
            figures[f"{split}/{name}"] = getattr(verification.reports["trained"], name)
    return {name: figure for name, figure in figures.items() if figure is not None}


def as_errors(test: Verification, splits: Splits) -> list[list]:
    """The hardest trials of a test, as `hardest_trials` has them."""
    ids = [splits.pack.entries[i].id for i in test.indices]
    speakers = splits.speakers_of(test.indices)
    return hardest_trials(
        test.trials, test.scores["trained"], ids, speakers, NUM_HARDEST
    )


def as_table(evaluation: Evaluation) -> list[list[str]]:
    """Rows of text, the first naming the columns; intervals of 95 % in brackets."""
    rows = [["split", "system", *REPORT_COLUMNS]]
    for split, report in evaluation.identification.items():
        system = f"accuracy {report.accuracy:.2%}, top 5 {report.top_5_accuracy:.2%}"
        on = (
            f"{report.num_utterances} utterances of {report.num_speakers} speakers, "
            f"among {report.num_classes}"
        )
        rows.append([split, system, *[""] * (len(REPORT_COLUMNS) - 1), on])
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
    for name, (header, *body) in tables.items():
        rows += [] if rows else [[title, *header]]
        rows += [[name, *row] for row in body]
    return rows


def report_cells(report: VerificationReport) -> list[str]:
    """A table's cells below `REPORT_COLUMNS`: metrics, and what they are of."""
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


def html_table(rows: list[list[str]]) -> str:
    """Rows of text, the first naming the columns, as an HTML table."""
    header, *body = [[html.escape(cell) for cell in row] for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    name = '<td style="text-align: left">'
    lines = [f"<tr>{name}{'</td><td>'.join(cells)}</td></tr>" for cells in body]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def compare_models(
    evaluations: Mapping[str, Evaluation], references: Mapping[str, str]
) -> str:
    """A short HTML table of models: accuracy if known, EER and minDCF with intervals.

    For a mixture, accuracy is the mean over its corpora, and each corpus has its own
    EER and minDCF. The full tables (`as_table`) are folded away below.

    `references` maps systems of the last model's evaluation to their labels.
    """
    systems = {
        name: ("trained", evaluation) for name, evaluation in evaluations.items()
    }
    last = list(evaluations.values())[-1]
    systems |= {label: (system, last) for system, label in references.items()}
    labels = [folder.partition("/")[2] for folder in last.tests]
    metrics = [f"{label} {of}".strip() for label in labels for of in ("EER", "minDCF")]
    rows = [["", "accuracy", *metrics]]
    for name, (system, evaluation) in systems.items():
        accuracies = [
            report.accuracy
            for report in evaluation.identification.values()
            if system == "trained"
        ]
        accuracy = f"{mean(accuracies):.1%}" if accuracies else ""
        reports = [test.reports[system] for test in evaluation.tests.values()]
        cells = [cell for report in reports for cell in report_cells(report)[:2]]
        rows.append([name, accuracy, *cells])
    if not any(row[1] for row in rows[1:]):
        rows = [[name, *cells] for name, _, *cells in rows]
    trials = [
        f"{label}: {report_cells(test.reports['trained'])[-1]}".removeprefix(": ")
        for label, test in zip(labels, last.tests.values(), strict=True)
    ]
    details = {name: as_table(e) for name, e in evaluations.items()}
    return (
        f"{html_table(rows)}<p>{'; '.join(trials)}</p>"
        "<details><summary>All scorings, conditions and references</summary>"
        f"{html_table(joint_table(details, 'model'))}</details>"
    )
