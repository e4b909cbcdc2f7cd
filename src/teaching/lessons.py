"""What the notebook teaches with: figures of how things work, their source, players.

steps, parts of a block -> `draw_pipeline` -> Figure
weights by kernel -> `draw_convolution_costs` -> Figure
fields -> `draw_receptive_fields` -> Figure
gates [C] of two voices -> `draw_gates` -> Figure
features, frames, attention -> `draw_attention`, `draw_pooling` -> Figure
target cosines [K], losses [K, 2] on a circle -> `draw_margins` -> Figure
scores [K], targets [K] -> `draw_error_rates`, `draw_costs`, `draw_llr_costs` -> Figure
cohort scores -> `draw_normalisation` -> Figure
functions and classes -> `source_of` -> Markdown; sounds [N] -> `players` -> HTML

M mel bands, T frames, C channels, P channels of the epilog, K angles or trials, N
samples. Style and colours are those of `figures`. Nothing is shown or saved here.
"""

import base64
import html
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Wedge
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from reports.figures import BLUE, GREEN, NON_TARGET, PINK, SKY, STYLE, TARGET
from speech.audio import encode_ogg
from teaching.anatomy import Inside, Step
from verification.metrics import error_rates

VOICES = (PINK, SKY)  # two speakers, wherever two are set side by side
BOX = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "linewidth": 0.8}
MASK_COLOUR = "0.93"  # of a box that holds no weights


def source_of(*things: Callable) -> str:
    """The source of functions or classes as Markdown, each with the file it is in."""
    pieces = []
    for thing in things:
        lines, number = inspect.getsourcelines(thing)
        name = Path(inspect.getsourcefile(thing)).name
        last = number + len(lines) - 1
        code = inspect.cleandoc("\n" + "".join(lines))
        pieces.append(
            f"`src/{name}`, lines {number} to {last}:\n\n```python\n{code}\n```"
        )
    return "\n\n".join(pieces)


def players(sounds: Mapping[str, NDArray], sample_rate: int) -> str:
    """HTML with a player for each sound [N]."""
    items = []
    for name, samples in sounds.items():
        encoded = base64.b64encode(encode_ogg(samples, sample_rate)).decode()
        items.append(
            '<figure style="display: inline-block; margin: 0 1em 0.5em 0">'
            f"<figcaption>{html.escape(name)}</figcaption>"
            f'<audio controls src="data:audio/ogg;base64,{encoded}"></audio></figure>'
        )
    return "".join(items)


def _box(
    axes: Axes, x: float, y: float, width: float, text: str, colour: str, size: float
) -> None:
    """A box of height 0.5 around its centre, with a text."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.25), width, 0.5, fc=colour, ec="0.3", **BOX
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=size)


def _arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through points, with a head at the last."""
    for start, end in itertools.pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color="0.3", linewidth=1)
    axes.add_patch(
        FancyArrowPatch(
            *points[-2:],
            arrowstyle="-|>",
            mutation_scale=9,
            color="0.3",
            linewidth=1,
            shrinkA=0,
            shrinkB=0,
        )
    )


def draw_pipeline(
    steps: Sequence[Step], opened: str, parts: Sequence[tuple[str, int]]
) -> Figure:
    """The model from waveform to embedding, and one block opened up.

    Arrows of the left column carry the shapes of `steps`; the right column has the
    `parts` of the step that `opened` names, with their weights, the skip connection
    last.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 8.2))
        axes = figure.subplots()
        axes.set(xlim=(0, 10.4), ylim=(-0.7, 9.6), aspect="equal")
        axes.axis("off")
        tops = np.linspace(9.1, 0.1, len(steps))
        for step, y in zip(steps, tops, strict=True):
            weights = f"\n{step.weights:,} weights" if step.weights else ""
            colour = "#CFE3F2" if step.weights else MASK_COLOUR
            _box(axes, 1.7, y, 3.0, step.name + weights, colour, 8)
        for step, (y, below) in zip(
            steps, itertools.pairwise([*tops, tops[-1] - 1.1]), strict=True
        ):
            _arrow(axes, (1.7, y - 0.27), (1.7, below + 0.27))
            axes.text(
                1.82, (y + below) / 2, str(list(step.shape)), fontsize=8, va="center"
            )
        centre = tops[[step.name for step in steps].index(opened)]
        _draw_block(axes, parts)
        for corner in (9.35, -0.5):
            end = centre + (0.25 if corner > centre else -0.25)
            axes.plot((3.25, 4.4), (end, corner), color="0.6", linewidth=0.8, ls="--")
        axes.text(7.4, 9.13, opened, ha="center", va="center", fontsize=10)
    return figure


def _draw_block(axes: Axes, parts: Sequence[tuple[str, int]]) -> None:
    """A mega block from top to bottom, within x from 4.4 to 10.4."""
    axes.add_patch(
        FancyBboxPatch((4.45, -0.45), 5.85, 9.75, fc="white", ec="0.6", ls="--", **BOX)
    )
    *inner, excitation, (skip, skip_weights) = parts
    rows: list[tuple[str, int | None]] = []
    for number in range(0, len(inner), 3):
        rows += inner[number : number + 3]
        rows.append(("ReLU, dropout", None) if number + 3 < len(inner) else excitation)
    x, step = 6.75, 0.62
    tops = 8.3 - step * np.arange(len(rows))
    _arrow(axes, (x, 8.98), (x, tops[0] + 0.27))
    for (name, weights), y, above in zip(
        rows, tops, [tops[0] + step, *tops], strict=False
    ):
        if y < above - 1e-9 and y < tops[0]:
            _arrow(axes, (x, above - 0.26), (x, y + 0.26))
        label = name if weights is None else f"{name}: {weights:,}"
        colour = MASK_COLOUR if weights is None else "#CFE3F2"
        if name == excitation[0]:
            colour = "#D5EDE4"
        _box(axes, x, y, 3.5, label, colour, 7.5)
    for number in range(len(inner) // 3):
        middle = tops[4 * number + 1]
        axes.text(
            4.6, middle, f"sub-block {number + 1}", rotation=90, va="center", fontsize=8
        )
    plus = tops[-1] - 0.72
    _arrow(axes, (x, tops[-1] - 0.26), (x, plus + 0.17))
    ring = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "0.3"}
    axes.text(x, plus, "+", ha="center", va="center", fontsize=12, bbox=ring)
    last = plus - 0.72
    _arrow(axes, (x, plus - 0.17), (x, last + 0.26))
    _box(axes, x, last, 3.5, "ReLU, dropout", MASK_COLOUR, 7.5)
    _arrow(axes, (x, last - 0.26), (x, -0.65))
    side = 9.5
    _arrow(axes, (x, 8.72), (side, 8.72), (side, plus), (x + 0.19, plus))
    label = f"{skip}, {skip_weights:,}".replace(": ", ":\n").replace(", ", ",\n", 2)
    frame = {"boxstyle": "round,pad=0.4", "fc": "#F7E0EC", "ec": "0.3"}
    axes.text(side, 4.6, label, ha="center", va="center", fontsize=7.5, bbox=frame)


def draw_convolution_costs(costs: Mapping[int, tuple[int, int]]) -> Figure:
    """By kernel, the weights of a depthwise and a pointwise convolution beside those of
    a full one."""
    rows = np.arange(len(costs))
    separable, full = np.array(list(costs.values())).T
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.8))
        axes = figure.subplots()
        axes.barh(rows - 0.2, full / 1e3, 0.4, color="0.75", label="full")
        axes.barh(
            rows + 0.2,
            separable / 1e3,
            0.4,
            color=BLUE,
            label="depthwise and pointwise",
        )
        for row, less, more in zip(rows, separable, full, strict=True):
            axes.text(more / 1e3, row - 0.2, f" {more:,}", va="center", fontsize=8)
            axes.text(
                *(less / 1e3, row + 0.2, f" {less:,}, {more / less:.1f} times fewer"),
                va="center",
                fontsize=8,
            )
        axes.set_yticks(rows, [f"kernel {kernel}" for kernel in costs])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title="Weights of one convolution", xlabel="weights (thousands)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_receptive_fields(
    fields: Sequence[tuple[int, int]], features: NDArray[np.float32], hop_seconds: float
) -> Figure:
    """Above, features [M, T]; below, how far each convolution sees around the frame in
    the middle. `fields` are pairs of a kernel and the frames seen after it."""
    reach = max(seen for _, seen in fields) // 2 + 30  # the texts need space
    centre = features.shape[1] // 2
    around = features[:, max(0, centre - reach) : centre + reach + 1]
    milliseconds = 1000 * hop_seconds
    kernels = [kernel for kernel, _ in fields]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4))
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        ends = (-min(centre, reach) - 0.5, around.shape[1] - min(centre, reach) - 0.5)
        above.imshow(
            around,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(*ends, 0, len(features)),
        )
        above.set(title="Features", ylabel="band")
        for row, (kernel, seen) in enumerate(fields):
            new = row == 0 or kernels[row - 1] != kernel
            below.barh(row, seen, 0.75, -seen / 2, color=BLUE, alpha=0.35 + 0.4 * new)
            text = f"{seen} frames, {seen * milliseconds:.0f} ms"
            below.text(seen / 2 + 1, row, text, va="center", fontsize=7)
        below.set_yticks(
            range(len(fields)), [f"kernel {k}" for k in kernels], fontsize=8
        )
        below.invert_yaxis()
        below.set(
            title="What one frame depends on after each convolution along time",
            xlabel=f"frames from the middle one, {milliseconds:.0f} ms each",
            xlim=ends,
        )
    return figure


def draw_gates(
    gates: Mapping[str, Sequence[NDArray[np.float32]]], names: Sequence[str]
) -> Figure:
    """Squeeze-and-excitation gates, [C] for each block, by utterance.

    The utterances are two of one voice, then one of another. Each row plots the gates
    of the second or third against those of the first, one column per block of `names`.
    """
    first, *others = gates.items()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(names), 2.6 * len(others)))
        rows = figure.subplots(len(others), len(names), squeeze=False)
        for (other, values), panels, colour in zip(others, rows, VOICES, strict=True):
            for block, (axes, name) in enumerate(zip(panels, names, strict=True)):
                x, y = first[1][block], values[block]
                axes.plot((0, 1), (0, 1), color="0.8", linewidth=0.8)
                axes.scatter(x, y, s=6, color=colour, alpha=0.6, linewidths=0)
                title = f"{name}\nmean difference {np.abs(x - y).mean():.3f}"
                axes.set_title(title, fontsize=8)
                axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            panels[0].set_ylabel(f"gate, {other}")
        for axes in rows[-1]:
            axes.set_xlabel(f"gate, {first[0]}")
    return figure


def draw_attention(
    features: NDArray[np.float32], inside: Inside, hop_seconds: float
) -> Figure:
    """Attention over time under the features [M, T] that it belongs to.

    A weight of 1 is an even share. The line is the mean over all channels, the band
    holds the middle half of them.
    """
    num_frames = len(inside.attention)
    seconds = (np.arange(num_frames) + 0.5) * hop_seconds
    shares = inside.attention * num_frames  # [T, P]
    low, high = np.quantile(shares, (0.25, 0.75), axis=1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.8))
        above, below = figure.subplots(2, sharex=True)
        above.imshow(
            features,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, num_frames * hop_seconds, 0, len(features)),
        )
        above.set(title="Features", ylabel="band")
        below.plot(seconds, shares.mean(1), color=GREEN, label="mean of all channels")
        band = {"color": GREEN, "alpha": 0.3, "linewidth": 0}
        below.fill_between(seconds, low, high, **band, label="middle half of them")
        below.axhline(1, color="0.6", linewidth=0.8, label="even share")
        below.set(title="Attention", ylabel="even shares", xlabel="time (s)")
        below.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_pooling(inside: Inside, channels: Sequence[int], hop_seconds: float) -> Figure:
    """What pooling keeps of some channels: of a curve over time, a mean (line) and a
    deviation (band)."""
    num_frames, num_channels = inside.frames.shape
    seconds = (np.arange(num_frames) + 0.5) * hop_seconds
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 1 + 1.1 * len(channels)))
        rows = figure.subplots(len(channels), sharex=True, squeeze=False)[:, 0]
        for channel, axes in zip(channels, rows, strict=True):
            mean = inside.pooled[channel]
            deviation = inside.pooled[num_channels + channel]
            axes.axhspan(
                mean - deviation, mean + deviation, color=GREEN, alpha=0.25, lw=0
            )
            axes.axhline(mean, color=GREEN)
            axes.plot(seconds, inside.frames[:, channel], color="0.3", linewidth=0.8)
            axes.set_title(
                f"channel {channel}: mean {mean:.2f}, deviation {deviation:.2f}",
                fontsize=9,
            )
        rows[-1].set_xlabel("time (s)")
    return figure


def draw_target_cosines(
    degrees: NDArray[np.float64],
    cosines: Mapping[str, NDArray[np.float64]],
    bends: Mapping[str, float],
) -> Figure:
    """What each loss uses for the target speaker's cosine, [K] by loss, over the angle
    to the class vector. A dot marks the angle, from `bends` in degrees, where a curve
    continues as a flipped cosine."""
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
    """The losses of two speakers around a circle, [K, 2] by name at [K] radians.

    Below, the losses; above, the arcs on which each is below ln 2, where its speaker is
    the likelier one. The gap between the arcs is the margin. Arrows are the class
    vectors [2, 2].
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
            content = (pair < np.log(2)).tolist()
            pieces = zip(degrees, content, strict=True)
            for (first, second), piece in itertools.groupby(pieces, lambda p: p[1]):
                colour = VOICES[0] if first else VOICES[1] if second else "0.85"
                within = [degree for degree, _ in piece]
                ends = (within[0] - half_step, within[-1] + half_step)
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


def _draw_rates(axes: Axes, scores: NDArray, targets: NDArray) -> tuple:
    thresholds, miss, false_alarm = error_rates(scores, targets)
    inner = slice(0, -1)  # the last threshold is infinite
    axes.plot(thresholds[inner], miss[inner], color=TARGET, label="misses")
    axes.plot(
        thresholds[inner], false_alarm[inner], color=NON_TARGET, label="false alarms"
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return thresholds[inner], miss[inner], false_alarm[inner]


def draw_error_rates(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> Figure:
    """Where scores [K] fall, and the rates of both errors at each threshold, with the
    threshold at which the rates are equal."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8))
        above, below = figure.subplots(2, sharex=True)
        thresholds, miss, false_alarm = _draw_rates(below, scores, targets)
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
    """Normalised detection cost over the threshold, for priors of a target, with the
    lowest of each marked."""
    thresholds, miss, false_alarm = error_rates(scores, targets)
    thresholds, miss, false_alarm = thresholds[:-1], miss[:-1], false_alarm[:-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.2))
        axes = figure.subplots()
        for prior, line in zip(priors, ("-", "--", ":"), strict=False):
            cost = prior * miss + (1 - prior) * false_alarm
            cost = cost / min(prior, 1 - prior)
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
    """What a log likelihood ratio costs, and how often each is given to trials [K]."""
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


def draw_normalisation(
    cohorts: Mapping[str, NDArray[np.float64]], score: float, top: int
) -> Figure:
    """How two utterances score with a cohort, [S] each by name: their highest `top`
    scores, mean and deviation of these, and the score of the trial of both."""
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
