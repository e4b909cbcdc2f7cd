"""What a run shows, in sentences that are computed from it.

results -> `on_journey`, `on_changes`, ... -> a sentence

The prose of the notebook holds in every study; these hold in the run at hand.
"""

from collections.abc import Mapping, Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

from reports.tables import as_summary
from teaching.anatomy import Inside
from teaching.changes import num_beyond
from teaching.following import Journey, gate_distances
from verification.metrics import Interval, equal_error_rate, error_rates
from verification.records import Evaluation, VerificationReport


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def spoken(model: str) -> str:
    """Return a model's name for a sentence, such as TitaNet with CE."""
    return model.replace(", ", " with ")


def on_changes(cosines: Mapping[str, Mapping[str, float]], other: str) -> str:
    """Say how many changes move A farther than another person is, by model."""
    said = []
    for model, by_sound in cosines.items():
        beyond, count = num_beyond(by_sound, other)
        said.append(f"{model}, {beyond} of {count} changes")
    return f"{listed(said)} make A less like A than B is."


def on_journey(journey: Journey) -> str:
    """Say how far A again and B stand from the others, at the first stage and at the
    last."""
    first, *_, last = journey.again
    said = [
        f"at {stage} A again is at {journey.again[stage]:.2f} and B at "
        f"{journey.other[stage]:.2f}"
        for stage in (first, last)
    ]
    heights = []
    for stage in (first, last):
        others = journey.strangers[stage]
        heights.append((journey.again[stage] - others.mean()) / others.std())
    return (
        f"Cosines to A: {said[0]}; {said[1]}. Measured by the spread of the other "
        f"people, A again stands {heights[0]:.1f} deviations above them at {first} and "
        f"{heights[1]:.1f} at {last}."
    )


def on_gates(insides: Mapping[str, Inside], names: Sequence[str]) -> str:
    """Say in which blocks A's gates are closer to those of A again than to B's."""
    closer = []
    for block, name in enumerate(names):
        again, other = gate_distances(insides, block)
        if again < other:
            closer.append(name)
    where = listed(closer) if closer else "no block"
    return f"A's gates are closer to those of A again than to B's in {where}."


def on_attention(
    features: Mapping[str, NDArray[np.float32]], insides: Mapping[str, Inside]
) -> str:
    """Say how much attention the loudest and the quietest third of the frames get."""
    loud, quiet = [], []
    for name, inside in insides.items():
        shares = inside.attention.mean(1) * len(inside.attention)  # [T]
        order = np.argsort(features[name].mean(0)[: len(shares)])
        third = len(order) // 3
        quiet.append(shares[order[:third]].mean())
        loud.append(shares[order[-third:]].mean())
    return (
        f"On average over the three, the loudest third of the frames gets "
        f"{np.mean(loud):.2f} even shares, the quietest third {np.mean(quiet):.2f}."
    )


def on_pooling(insides: Mapping[str, Inside], channels: Sequence[int]) -> str:
    """Say in how many channels A's mean is closer to that of A again than to B's."""
    a, again, b = (inside.pooled[list(channels)] for inside in insides.values())
    closer = int((np.abs(a - again) < np.abs(a - b)).sum())
    return (
        f"In {closer} of these {len(channels)} channels A's mean is closer to that of "
        "A again than to B's."
    )


def on_errors(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> str:
    """Say what the EER is, in rates and in numbers of errors."""
    rate = equal_error_rate(scores, targets)
    _, miss, false_alarm = error_rates(scores, targets)
    at = np.argmin(np.abs(miss - false_alarm))
    misses, alarms = miss[at] * targets.sum(), false_alarm[at] * (~targets).sum()
    return (
        f"The EER is {rate:.1%}: {misses:,.0f} of {targets.sum():,} target trials are "
        f"missed, and {alarms:,.0f} of {(~targets).sum():,} non-target trials accepted."
    )


def on_calibration(cost: float, least: float) -> str:
    """Say how much of Cllr the calibration adds."""
    return (
        f"Cllr is {cost:.3f}. The best map that keeps the order of these very scores "
        f"would have {least:.3f}; the rest is the price of a calibration that was "
        "fitted on other people's recordings."
    )


def on_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], num_speakers: int
) -> str:
    """Say what the last epochs' accuracies are, and what guessing would give."""
    said = []
    for name, epochs in histories.items():
        last = epochs[-1]
        text = (
            f"{spoken(name)} names {last['train/accuracy']:.0%} of its training crops"
        )
        if "validation/accuracy" in last:
            text += f" and {last['validation/accuracy']:.0%} of the validation"
        said.append(f"{text} ({last['epoch']} epochs)")
    return (
        f"In the end {listed(said)}. Guessing among {num_speakers:,} speakers has an "
        f"accuracy of {1 / num_speakers:.1%} and a loss of ln {num_speakers} = "
        f"{log(num_speakers):.1f}."
    )


def on_tests(
    evaluations: Mapping[str, Evaluation], references: Mapping[str, str]
) -> str:
    """Say for each test which models' EERs are below the mean spectrum's, and which
    below another's, by more than their intervals."""
    said = []
    last = [*evaluations.values()][-1]
    for folder, test in last.tests.items():
        where = f"EER on {folder.partition('/')[2] or 'the test speakers'}: "
        reports = {
            spoken(name): evaluation.tests[folder].reports["trained"]
            for name, evaluation in evaluations.items()
        }
        floor = test.reports["mean log-mel"]
        better = [n for n, r in reports.items() if _below(r, floor)]
        label = references["mean log-mel"]
        who = listed(better) if better else "no model"
        verb = "are" if len(better) > 1 else "is"
        said.append(f"{where}{who} {verb} below the {label}.")
        pairs = [
            f"{one} is below {other}"
            for one, a in reports.items()
            for other, b in reports.items()
            if _below(a, b)
        ]
        said.append(
            f"Of the models, {listed(pairs)}; the intervals of other pairs overlap."
            if pairs
            else "The models' intervals overlap, so the table does not rank them."
        )
    return " ".join(said)


def _below(report: VerificationReport, other: VerificationReport) -> bool:
    """Return whether the EER's interval ends before the other's begins."""
    first: Interval | None = report.eer_interval
    second: Interval | None = other.eer_interval
    return first is not None and second is not None and first.high < second.low


def on_change_of_corpus(
    here: Mapping[str, Evaluation], there: Mapping[str, Evaluation]
) -> str:
    """Say each model's mean EER on its own corpora and on the unseen one."""
    said = [
        f"{spoken(name)} {_mean_eer(here[name]):.1%} and {_mean_eer(evaluation):.1%}"
        for name, evaluation in there.items()
    ]
    return (
        f"EER on the corpora it was trained on, and on the unseen one: {listed(said)}."
    )


def _mean_eer(evaluation: Evaluation) -> float:
    summary = as_summary(evaluation)
    eers = [
        v for k, v in summary.items() if k.startswith("test") and k.endswith("/eer")
    ]
    return sum(eers) / len(eers)


def on_ranges(
    scores: Mapping[str, NDArray[np.float64]], targets: NDArray[np.bool_]
) -> str:
    """Say how high the highest of 20 non-target scores is, by model."""
    said = [
        f"{np.quantile(values[~targets], 0.95):.2f} for {spoken(name)}"
        for name, values in scores.items()
    ]
    return (
        f"One in twenty pairs of two people has a cosine above {listed(said)}: a "
        "threshold belongs to one model."
    )
