"""The results of an evaluation as tables and plain values.

`Evaluation` -> `as_table` -> `print_table`
`Evaluation`s by model -> `compare_models` -> HTML

The first row of a table names its columns.
"""

import html
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import mean
from typing import Any

from dataset import Splits
from verification.metrics import Interval
from verification.records import Evaluation, Verification, VerificationReport
from verification.trials import hardest_trials

FEW_SPEAKERS = 20  # with fewer, intervals are rough
NUM_HARDEST = 25  # trials of each kind in a list of errors


def as_report(evaluation: Evaluation) -> dict[str, Any]:
    """Return plain types for `report.json`."""
    identification = {
        name: asdict(report) for name, report in evaluation.identification.items()
    }
    return {
        # A report, or in a mixture the reports by split.
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
    """Return the model's main metrics, by names such as `test/eer`."""
    metrics = {}
    for split, report in evaluation.identification.items():
        for name in ("loss", "accuracy", "top_5_accuracy"):
            metrics[f"{split}/{name}"] = getattr(report, name)
    for split, verification in evaluation.verification.items():
        for name in ("eer", "min_dcf", "cllr"):
            metrics[f"{split}/{name}"] = getattr(verification.reports["trained"], name)
    return {name: value for name, value in metrics.items() if value is not None}


def as_errors(test: Verification, splits: Splits) -> list[list]:
    """Return the table that `hardest_trials` makes of a test."""
    ids = [splits.pack.entries[i].id for i in test.indices]
    speakers = splits.speakers_of(test.indices)
    return hardest_trials(
        test.trials, test.scores["trained"], ids, speakers, NUM_HARDEST
    )


def as_table(evaluation: Evaluation) -> list[list[str]]:
    """Return a table of text, with 95 % intervals in brackets."""
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
    """Join tables of the same columns; a new first column holds their names."""
    rows: list[list[str]] = []
    for name, (header, *body) in tables.items():
        rows += [] if rows else [[title, *header]]
        rows += [[name, *row] for row in body]
    return rows


def _with_interval(value: str, interval: Interval | None, scale: float, to: str) -> str:
    if interval is None:
        return value
    low, high = scale * interval.low, scale * interval.high
    return f"{value} [{low:{to}}, {high:{to}}]"


def _eer(report: VerificationReport) -> str:
    return _with_interval(f"{report.eer:.2%}", report.eer_interval, 100, ".2f")


def _min_dcf(report: VerificationReport) -> str:
    return _with_interval(f"{report.min_dcf:.3f}", report.min_dcf_interval, 1, ".3f")


def _cllr(report: VerificationReport) -> str:
    return "" if report.cllr is None else f"{report.cllr:.3f}"


def _trials(report: VerificationReport) -> str:
    """Return the counts of the trials and speakers that a report is of."""
    text = f"{report.num_targets} targets, {report.num_non_targets} non-targets"
    if report.num_speakers is not None:
        text += f", {report.num_speakers} speakers"
        if report.num_speakers < FEW_SPEAKERS:
            text += ": few, intervals are rough"
    return text


# The columns of verification, by their titles.
REPORT_COLUMNS = {"EER": _eer, "minDCF": _min_dcf, "Cllr": _cllr, "on": _trials}


def report_cells(
    report: VerificationReport, columns: Iterable[str] = REPORT_COLUMNS
) -> list[str]:
    """Return the cells of a report in these columns of `REPORT_COLUMNS`."""
    return [REPORT_COLUMNS[column](report) for column in columns]


def print_table(rows: list[list[str]]) -> None:
    """Print a table of text in columns as wide as their widest cell."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


class Markup(str):
    """A cell that is HTML."""

    __slots__ = ()


def html_table(rows: list[list[str]]) -> str:
    """Return a table of text, and of `Markup`, as HTML."""
    header, *body = [
        [cell if isinstance(cell, Markup) else html.escape(cell) for cell in row]
        for row in rows
    ]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    name = '<td style="text-align: left">'
    lines = [f"<tr>{name}{'</td><td>'.join(cells)}</td></tr>" for cells in body]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def compare_models(
    evaluations: Mapping[str, Evaluation], references: Mapping[str, str]
) -> str:
    """Return a short HTML table of models: accuracy if known, EER and minDCF.

    In a mixture, accuracy is the mean over the corpora, and each corpus has its own EER
    and minDCF. The full tables (`as_table`) are folded away below. `references` maps
    systems of the last model's evaluation to their labels.
    """
    systems = {
        name: ("trained", evaluation) for name, evaluation in evaluations.items()
    }
    last = list(evaluations.values())[-1]
    systems |= {label: (system, last) for system, label in references.items()}
    labels = [folder.partition("/")[2] for folder in last.tests]
    columns = ("EER", "minDCF")
    metrics = [f"{label} {column}".strip() for label in labels for column in columns]
    rows = [["", "accuracy", *metrics]]
    for name, (system, evaluation) in systems.items():
        accuracies = [
            report.accuracy
            for report in evaluation.identification.values()
            if system == "trained"
        ]
        accuracy = f"{mean(accuracies):.1%}" if accuracies else ""
        reports = [test.reports[system] for test in evaluation.tests.values()]
        cells = [cell for report in reports for cell in report_cells(report, columns)]
        rows.append([name, accuracy, *cells])
    if not any(row[1] for row in rows[1:]):
        rows = [[name, *cells] for name, _, *cells in rows]
    trials = [
        f"{label}: {_trials(test.reports['trained'])}".removeprefix(": ")
        for label, test in zip(labels, last.tests.values(), strict=True)
    ]
    details = {name: as_table(e) for name, e in evaluations.items()}
    return (
        f"{html_table(rows)}<p>{'; '.join(trials)}</p>"
        "<details><summary>All scorings, conditions and references</summary>"
        f"{html_table(joint_table(details, 'model'))}</details>"
    )
