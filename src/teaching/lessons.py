"""How the model works: figures for the notebook, source code, and players.

steps, parts of a block -> `draw_pipeline` -> Figure
weights by kernel -> `draw_convolution_costs` -> Figure
fields -> `draw_receptive_fields` -> Figure
gates [C] of two voices -> `draw_gates` -> Figure
features, frames, attention -> `draw_attention`, `draw_pooling` -> Figure
functions and classes -> `source_of` -> Markdown; sounds [N] -> `players` -> HTML

M mel bands, T frames, C channels, N samples. Nothing is shown or saved.
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
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray

from reports.style import BLUE, GREEN, PINK, SKY, STYLE
from speech.audio import encode_ogg
from teaching.anatomy import Inside, Step

SOURCES = Path(__file__).parents[1]
VOICES = (PINK, SKY)  # two speakers side by side
BOX = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "linewidth": 0.8}
WEIGHTS_COLOUR = "#CFE3F2"  # of a box with weights
NO_WEIGHTS_COLOUR = "0.93"


def source_of(*things: Callable) -> str:
    """Return the source of functions or classes as Markdown, with file and lines."""
    pieces = []
    for thing in things:
        lines, number = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(thing)).relative_to(SOURCES).as_posix()
        last = number + len(lines) - 1
        code = inspect.cleandoc("\n" + "".join(lines))
        pieces.append(
            f"`src/{file}`, lines {number} to {last}:\n\n```python\n{code}\n```"
        )
    return "\n\n".join(pieces)


def players(sounds: Mapping[str, NDArray], sample_rate: int) -> str:
    """Return HTML with a player for each sound [N]."""
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
    """Draw a box of height 0.5 around its centre, with a text."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.25), width, 0.5, fc=colour, ec="0.3", **BOX
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=size)


def _arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through points, with a head at the last."""
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
    """Draw the model from waveform to embedding, and one block opened up.

    On the left, arrows carry the shapes of `steps`. On the right are the `parts` of the
    step that `opened` names, with their numbers of weights, the skip connection last.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 8.2))
        axes = figure.subplots()
        axes.set(xlim=(0, 10.4), ylim=(-0.7, 9.6), aspect="equal")
        axes.axis("off")
        tops = np.linspace(9.1, 0.1, len(steps))
        for step, y in zip(steps, tops, strict=True):
            weights = f"\n{step.weights:,} weights" if step.weights else ""
            colour = WEIGHTS_COLOUR if step.weights else NO_WEIGHTS_COLOUR
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
    """Draw a mega block from top to bottom, within x from 4.4 to 10.4."""
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
        colour = NO_WEIGHTS_COLOUR if weights is None else WEIGHTS_COLOUR
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
    _box(axes, x, last, 3.5, "ReLU, dropout", NO_WEIGHTS_COLOUR, 7.5)
    _arrow(axes, (x, last - 0.26), (x, -0.65))
    side = 9.5
    _arrow(axes, (x, 8.72), (side, 8.72), (side, plus), (x + 0.19, plus))
    label = f"{skip}, {skip_weights:,}".replace(": ", ":\n").replace(", ", ",\n", 2)
    frame = {"boxstyle": "round,pad=0.4", "fc": "#F7E0EC", "ec": "0.3"}
    axes.text(side, 4.6, label, ha="center", va="center", fontsize=7.5, bbox=frame)


def draw_convolution_costs(costs: Mapping[int, tuple[int, int]]) -> Figure:
    """Draw the number of weights of a depthwise and a pointwise convolution, beside
    that of a full convolution, by kernel."""
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
    """Draw features [M, T], and below them how far each convolution sees around the
    middle frame. `fields` are pairs: a kernel, and the number of frames it sees."""
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
    """Draw squeeze-and-excitation gates, [C] for each block, by utterance.

    The first two utterances are of one voice, the third is of another. One row plots
    the gates of the second against those of the first, one row those of the third. Each
    block has a column, with its name from `names`.
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
    """Draw attention over time below the features [M, T] that it belongs to.

    A weight of 1 is an even share. The line is the mean of all channels, and the band
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
    """Draw some channels over time, and what pooling keeps of them: the mean (line) and
    the deviation (band)."""
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
