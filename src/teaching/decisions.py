"""How losses and scores decide: figures for the notebook.

target cosines [K] by loss -> `draw_target_cosines` -> Figure
class vectors [2, 2], angles [K] -> `losses_on_circle` -> `draw_margins` -> Figure
scores [K], targets [K] -> `draw_error_rates`, `draw_costs`, `draw_llr_costs` -> Figure
scores [K] by model, targets [K] -> `draw_ranges` -> Figure
cohort scores [S] -> `draw_normalisation` -> Figure

K angles or trials, S speakers of a cohort. Nothing is shown or saved.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from reports.style import GREEN, NON_TARGET, PINK, SKY, STYLE, TARGET
from verification.metrics import OperatingPoint, error_rates

VOICES = (PINK, SKY)  # two speakers side by side


@torch.no_grad()
def losses_on_circle(
    criterion: nn.Module, class_vectors: Tensor, angles: Tensor
) -> Tensor:
    """Return two losses of a unit embedding at each angle, one if it is the first
    speaker's and one if it is the second's: [K] radians -> [K, 2].

    `class_vectors` [2, 2] become the classifier's rows.
    """
    criterion.classifier.weight.copy_(class_vectors)
    if criterion.classifier.bias is not None:
        criterion.classifier.bias.zero_()
    embeddings = torch.stack([angles.cos(), angles.sin()], 1).float()[:, None]
    speakers = torch.arange(2)[:, None]
    return torch.tensor([[criterion(e, s).loss for s in speakers] for e in embeddings])


def draw_target_cosines(
    degrees: NDArray[np.float64],
    cosines: Mapping[str, NDArray[np.float64]],
    bends: Mapping[str, float],
) -> Figure:
    """Draw what each loss puts in place of the target speaker's cosine, [K] by loss,
    over the angle to the class vector.

    Dots mark `bends`, the angles in degrees beyond which a curve is a flipped cosine.
    """
    looks = {"cosine": ("0.3", "-")} | dict(
        zip(
            [name for name in cosines if name != "cosine"],
            ((GREEN, "-"), (GREEN, "--"), (GREEN, ":")),
            strict=True,
        )
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6))
        axes = figure.subplots()
        for name, values in cosines.items():
            colour, line = looks[name]
            axes.plot(degrees, values, line, color=colour, label=name)
        for name, bend in bends.items():
            axes.plot(bend, np.interp(bend, degrees, cosines[name]), "o", color=GREEN)
        axes.set(
            title="What the target speaker is scored with",
            xlabel="angle between embedding and class vector (degrees)",
            ylabel="cosine, or what stands for it",
            xticks=range(0, 181, 30),
        )
        axes.legend(frameon=False)
    return figure


def draw_margins(
    angles: NDArray[np.float64],
    losses: Mapping[str, NDArray[np.float64]],
    class_vectors: NDArray[np.float32],
) -> Figure:
    """Draw the losses of two speakers around a circle, [K, 2] by name at [K] radians.

    Below are the losses. Above are the arcs on which a loss is under ln 2, which means
    that its speaker is the likelier one. The gap between the arcs is the margin. Arrows
    are the class vectors [2, 2].
    """
    degrees = np.degrees(angles)
    half_step = (degrees[1] - degrees[0]) / 2
    arrows = 0.7 * class_vectors / np.linalg.norm(class_vectors, axis=1).max()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(losses), 4.8))
        circles, curves = figure.subplots(
            2, len(losses), squeeze=False, height_ratios=(3, 2)
        )
        for (name, pair), circle, curve in zip(
            losses.items(), circles, curves, strict=True
        ):
            likelier = zip(degrees, (pair < np.log(2)).tolist(), strict=True)
            for (first, second), arc in itertools.groupby(likelier, lambda x: x[1]):
                colour = VOICES[0] if first else VOICES[1] if second else "0.85"
                on_arc = [degree for degree, _ in arc]
                ends = (on_arc[0] - half_step, on_arc[-1] + half_step)
                circle.add_patch(Wedge((0, 0), 1, *ends, width=0.25, fc=colour, lw=0))
            circle.set_title(name, fontsize=9)
            circle.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
            circle.axis("off")
            for speaker, colour in enumerate(VOICES):
                circle.quiver(
                    *(0, 0, *arrows[speaker]),
                    color=colour,
                    angles="xy",
                    scale_units="xy",
                    scale=1,
                )
                label = f"speaker {speaker + 1}"
                curve.plot(degrees, pair[:, speaker], color=colour, label=label)
            curve.axhline(np.log(2), color="0.6", linewidth=0.8, label="ln 2")
            curve.set(xlabel="angle (degrees)", xticks=range(-180, 181, 90))
        curves[0].set_ylabel("loss")
        figure.legend(
            *curve.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    return figure


def _finite_error_rates(scores: NDArray, targets: NDArray) -> tuple[NDArray, ...]:
    """Return what `error_rates` does without the last threshold, infinity."""
    return tuple(values[:-1] for values in error_rates(scores, targets))


def draw_error_rates(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> Figure:
    """Draw where scores [K] fall, the rates of both errors at each threshold, and the
    threshold at which the rates are equal."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8))
        above, below = figure.subplots(2, sharex=True)
        thresholds, miss, false_alarm = _finite_error_rates(scores, targets)
        below.plot(thresholds, miss, color=TARGET, label="misses")
        below.plot(thresholds, false_alarm, color=NON_TARGET, label="false alarms")
        below.yaxis.set_major_formatter(PercentFormatter(1))
        equal = np.argmin(np.abs(miss - false_alarm))
        threshold, rate = thresholds[equal], (miss + false_alarm)[equal] / 2
        edges = np.linspace(scores.min(), scores.max(), 80)
        for name, mask, colour, beyond in (
            ("non-target trials", ~targets, NON_TARGET, scores >= threshold),
            ("target trials", targets, TARGET, scores < threshold),
        ):
            share = np.full(mask.sum(), 1 / mask.sum())
            above.hist(
                scores[mask], edges, weights=share, color=colour, alpha=0.4, label=name
            )
            wrong = mask & beyond
            share = share[: wrong.sum()]
            above.hist(scores[wrong], edges, weights=share, color=colour, zorder=3)
        for axes in (above, below):
            axes.axvline(threshold, color="0.2", linewidth=0.8, ls="--")
        above.yaxis.set_major_formatter(PercentFormatter(1))
        above.set(title="Trials; full colour: errors", ylabel="share of the trials")
        above.legend(frameon=False, fontsize=8)
        below.plot(threshold, rate, "o", color="0.2")
        below.annotate(
            f"EER {rate:.1%}",
            (threshold, rate),
            (threshold, 0.5),
            arrowprops={"arrowstyle": "->", "color": "0.2"},
            ha="center",
            bbox={"fc": "white", "ec": "none"},
        )
        below.set(title="Rates of both errors", xlabel="threshold", ylabel="rate")
        below.legend(frameon=False, fontsize=8)
    return figure


def draw_costs(
    scores: NDArray[np.float64], targets: NDArray[np.bool_], priors: Sequence[float]
) -> Figure:
    """Draw the detection cost over the threshold, a curve for each prior of a target;
    mark the lowest cost of each curve."""
    thresholds, miss, false_alarm = _finite_error_rates(scores, targets)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.2))
        axes = figure.subplots()
        for prior, line in zip(priors, ("-", "--", ":"), strict=False):
            cost = OperatingPoint(prior).cost(miss, false_alarm)
            label = f"prior {prior:g}: minDCF {min(cost.min(), 1):.3f}"
            axes.plot(thresholds, cost, line, color="0.2", label=label)
            axes.plot(thresholds[cost.argmin()], cost.min(), "o", color="0.2")
        axes.axhline(1, color="0.8", linewidth=0.8)
        axes.set(
            title="Detection cost",
            xlabel="threshold",
            ylabel="cost (1: useless)",
            ylim=(0, 2),
        )
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_llr_costs(llrs: NDArray[np.float64], targets: NDArray[np.bool_]) -> Figure:
    """Draw what a log likelihood ratio costs, and the ratios of the trials [K]."""
    grid = np.linspace(min(llrs.min(), -6), max(llrs.max(), 6), 200)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4))
        above, below = figure.subplots(2, sharex=True)
        for name, mask, colour, sign in (
            ("non-target trials", ~targets, NON_TARGET, 1),
            ("target trials", targets, TARGET, -1),
        ):
            bits = np.logaddexp(0, sign * grid) / np.log(2)
            above.plot(grid, bits, color=colour, label=name)
            below.hist(
                llrs[mask], 60, density=True, color=colour, alpha=0.6, label=name
            )
        above.axhline(1, color="0.8", linewidth=0.8)
        above.set(title="Cost of a log likelihood ratio", ylabel="bits", ylim=(0, 8))
        above.legend(frameon=False, fontsize=8)
        below.set(title="Trials", xlabel="log likelihood ratio", ylabel="density")
    return figure


def draw_ranges(
    scores: Mapping[str, NDArray[np.float64]], targets: NDArray[np.bool_]
) -> Figure:
    """Draw histograms of the target and non-target cosines [K] of each model, a row
    each, on one axis."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.8 + 1.4 * len(scores)))
        rows = figure.subplots(len(scores), sharex=True)
        lowest = min(values.min() for values in scores.values())
        edges = np.linspace(lowest, 1, 121)
        for (model, values), axes in zip(scores.items(), rows, strict=True):
            for name, mask, colour in (
                ("non-target trials", ~targets, NON_TARGET),
                ("target trials", targets, TARGET),
            ):
                share = np.full(mask.sum(), 1 / mask.sum())
                look = {"color": colour, "alpha": 0.6, "label": name}
                axes.hist(values[mask], edges, weights=share, **look)
            axes.set(title=model, ylabel="share")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        rows[0].legend(frameon=False, fontsize=9)
        rows[-1].set_xlabel("cosine")
    return figure


def draw_normalisation(
    cohorts: Mapping[str, NDArray[np.float64]], score: float, top: int
) -> Figure:
    """Draw the scores [S] of two utterances with a cohort, by the utterance's name.

    For each it shows the `top` highest scores, their mean and deviation, and the score
    of the trial that pairs the two utterances.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6))
        rows = figure.subplots(len(cohorts), sharex=True)
        for (name, values), axes in zip(cohorts.items(), rows, strict=True):
            nearest = np.sort(values)[-top:]
            mean, deviation = nearest.mean(), nearest.std()
            edges = np.linspace(
                min(values.min(), score) - 0.02, max(values.max(), score), 60
            )
            axes.hist(values, edges, color="0.8", label="whole cohort")
            axes.hist(nearest, edges, color="0.45", label=f"highest {top}")
            axes.axvline(score, color=TARGET, label="the trial's score")
            normalised = (score - mean) / deviation
            axes.set_title(
                f"{name}: mean {mean:.2f}, deviation {deviation:.3f}; the trial is at "
                f"{normalised:+.1f} deviations",
                fontsize=9,
            )
            axes.set_ylabel("speakers")
        rows[0].legend(frameon=False, fontsize=8)
        rows[-1].set_xlabel("cosine")
    return figure
