"""How the model works: figures for the notebook, players, boxes, and equations that
are checked against `src`.

sounds [N] -> `players` -> HTML; sentences -> `remark` -> HTML
values, values of src, functions -> `agrees` -> Markdown
weights by kernel -> `draw_convolution_costs` -> Figure
fields -> `draw_receptive_fields` -> Figure
layers -> `draw_dvector` -> Figure

M mel bands, T frames, N samples. Nothing is shown or saved.
"""

import base64
import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import ArrayLike, NDArray

from reports.style import BLUE, ORANGE, STYLE
from speech.audio import encode_ogg
from teaching.anatomy import Step

SOURCES = Path(__file__).parents[1]
TOLERANCE = 1e-5
BOX = (
    '<div style="background: #FDF3DD; border-left: 5px solid #E69F00; color: #222; '
    'padding: 0.5em 1em; margin: 0.5em 0"><b>In this run.</b> {}</div>'
)
ROUNDED = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "linewidth": 0.8}


def remark(*sentences: str) -> str:
    """Return HTML: a coloured box with what is true of the run that was executed."""
    return BOX.format(html.escape(" ".join(sentences)))


def agrees(values: ArrayLike, expected: ArrayLike, *things: Callable) -> str:
    """Return Markdown that links the lines of `src` which these values agree with;
    raise `AssertionError` if any is off by more than 1e-5."""
    values, expected = (torch.as_tensor(x).double() for x in (values, expected))
    assert values.shape == expected.shape, (values.shape, expected.shape)
    largest = float((values - expected).abs().max())
    assert largest <= TOLERANCE, f"off by {largest:.2g}"
    links = ", ".join(map(_link, things))
    return f"The same numbers as {links} (largest difference {largest:.0e})."


def _link(thing: Callable) -> str:
    """Return a Markdown link to the lines of a function or class."""
    lines, first = inspect.getsourcelines(inspect.unwrap(thing))
    file = Path(inspect.getsourcefile(inspect.unwrap(thing))).relative_to(SOURCES)
    last = first + len(lines) - 1
    path = f"src/{file.as_posix()}"
    return f"[`{thing.__qualname__}`]({path}#L{first}-L{last}) in `{path}`"


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


def draw_dvector(layers: Sequence[Step], num_bands: int) -> Figure:
    """Draw the d-vector: layers of an LSTM over the frames of a window, of which the
    last output makes the embedding. `layers` are those of `anatomy.layers`."""
    *lstm, embedding = layers
    frames = ("frame 1", "frame 2", "frame 3", "…", embedding.sees.split()[0])
    x = np.arange(len(frames)) * 1.6
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.9 * len(lstm)))
        axes = figure.subplots()
        axes.axis("off")
        axes.set(xlim=(-2.6, x[-1] + 4.2), ylim=(-0.5, len(lstm) + 0.6), aspect="equal")
        axes.text(
            *(-0.8, 0, f"{num_bands} log-mel bands"),
            ha="right",
            va="center",
            fontsize=9,
        )
        for row, layer in enumerate(lstm, 1):
            text = f"{layer.name}\n{layer.weights:,} weights"
            axes.text(-0.8, row, text, ha="right", va="center", fontsize=9)
        for column, (place, frame) in enumerate(zip(x, frames, strict=True)):
            if frame == "…":
                for row in range(len(lstm) + 1):
                    axes.text(place, row, "…", ha="center", va="center")
            else:
                name = frame.replace("frame ", "")
                _box(axes, place, 0, 1.0, f"$x_{{{name}}}$", "0.93")
            for row in range(1, len(lstm) + 1):
                if frame != "…":
                    _box(axes, place, row, 1.0, "LSTM", "#FBE3B8")
                    _arrow(axes, (place, row - 0.75), (place, row - 0.26))
                if column + 1 < len(frames):
                    _arrow(axes, (place + 0.52, row), (x[column + 1] - 0.52, row))
        end = x[-1] + 2.7
        size = f"linear layer\nd-vector, {embedding.shape[0]} numbers"
        _box(axes, end, len(lstm), 2.6, size, ORANGE)
        _arrow(axes, (x[-1] + 0.52, len(lstm)), (end - 1.32, len(lstm)))
    return figure


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """Draw a box of height 0.5 around its centre, with a text."""
    corner = (x - width / 2, y - 0.25)
    axes.add_patch(FancyBboxPatch(corner, width, 0.5, fc=colour, ec="0.3", **ROUNDED))
    axes.text(x, y, text, ha="center", va="center", fontsize=9, parse_math=True)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color="0.3", linewidth=1, **arrow))


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
        figure = Figure(figsize=(9, 4.4))
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        ends = (-min(centre, reach) - 0.5, around.shape[1] - min(centre, reach) - 0.5)
        image = above.imshow(
            around,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(*ends, 0, len(features)),
        )
        figure.colorbar(image, ax=above, label="log-mel", pad=0.01)
        above.set(title="Features", ylabel="mel band")
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
