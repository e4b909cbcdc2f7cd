"""Training curves in a notebook cell, and the panels that compare trainings.

parameters -> `train_live` -> the run's directory; the curves grow with each epoch
metrics of epochs by run -> `draw_panels` -> Figure
table of a study's runs -> `log_comparison` -> a page on W&B
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from engine.files import make_directory
from parameters import Parameters
from reports.figures import draw_curves
from reports.style import STYLE, system_colours
from runs.run_directory import read_metrics
from runs.wandb_mirror import Mirror, new_id
from teaching.studies import train_once

ONLINE = "W&B: logging to"  # how the line that names a page begins
LOSS_NAMES = {"cross_entropy": "cross-entropy", "arcface": "ArcFace"}


class LiveCurves:
    """`draw_curves` in a notebook cell, redrawn after each epoch of a training.

    `handle` is IPython's `DisplayHandle()`.
    """

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self.handle, self.epochs = name, handle, []
        self.began, self.shown = time.perf_counter(), False

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics that `train` reports for an epoch."""
        self._show([*self.epochs, metrics])

    def finish(self, epochs: Sequence[Mapping[str, float]]) -> str:
        """Show all epochs of a run; return a sentence that says how many of them are
        new."""
        num_new, minutes = len(self.epochs), (time.perf_counter() - self.began) / 60
        self._show(epochs)
        if num_new == 0:
            return f"{self.name}: a finished run, loaded"
        before = f", after {len(epochs) - num_new} of an earlier start"
        return (
            f"{self.name}: {num_new} epochs trained and tested in {minutes:.1f} min"
            f"{before if num_new < len(epochs) else ''}"
        )

    def _show(self, epochs: Sequence[Mapping[str, float]]) -> None:
        self.epochs = list(epochs)
        show = self.handle.update if self.shown else self.handle.display
        show(draw_curves({self.name: self.epochs}))
        self.shown = True


def train_live(name: str, parameters: Parameters, handle: Any) -> Path:
    """Train as `train_once` does, with `LiveCurves`; print what was trained and where
    W&B shows it."""
    live = LiveCurves(name, handle)
    with redirect_stdout(StringIO()) as log:  # the curves show what the log says
        run = train_once(parameters, live)
    print(live.finish(read_metrics(run)))
    print(_page_of(run, log.getvalue()))
    return run


def log_comparison(parameters: Parameters, table: str) -> None:
    """Log an HTML table that compares the runs in `run.directory` as one more page of
    their group on W&B; print where it is."""
    directory = parameters.run.directory / "comparison"
    make_directory(directory)
    with redirect_stdout(StringIO()) as log:
        mirror = Mirror(directory, parameters, new_id())
        mirror.log_table("comparison", table)
        mirror.finish()
    print(_page_of(directory, log.getvalue()))


def _page_of(run: Path, log: str) -> str:
    """Return a line on where W&B shows a run, which its log tells if it is online."""
    for line in log.splitlines():
        if line.startswith(ONLINE):
            return line
    if (folder := run / "wandb").is_dir():
        return f"W&B: recorded in {folder}; to see it: wandb leet {folder}"
    return "W&B: disabled"


def draw_panels(
    histories: Mapping[str, Sequence[Mapping[str, float]]], losses: Mapping[str, str]
) -> Figure:
    """Draw loss and accuracy, in training and in validation, of runs by name.

    `losses` names the loss of each run. Each loss has a row of its own, since two
    losses cannot be compared; accuracies share the last row. The axis is the share of
    training where runs have different numbers of epochs.
    """
    rows = [("loss", kind) for kind in dict.fromkeys(losses[n] for n in histories)]
    rows.append(("accuracy", None))
    in_shares = len({len(epochs) for epochs in histories.values()}) > 1
    colours = system_colours(histories)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.6 + 2.4 * len(rows)))
        panels = figure.subplots(len(rows), 2, sharex=True, sharey="row")
        for (key, kind), pair in zip(rows, panels, strict=True):
            for split, axes in zip(("train", "validation"), pair, strict=True):
                for name, epochs in histories.items():
                    if kind not in (None, losses[name]):
                        continue
                    scale = len(epochs) if in_shares else 1
                    x = [epoch["epoch"] / scale for epoch in epochs]
                    y = [epoch.get(f"{split}/{key}", np.nan) for epoch in epochs]
                    axes.plot(x, y, ".-", color=colours[name], label=name)
                title = "training" if split == "train" else "validation"
                what = key if kind is None else f"{LOSS_NAMES.get(kind, kind)} loss"
                axes.set_title(f"{what}, {title}")
                axes.grid(alpha=0.3)
            if kind is None:
                axes.yaxis.set_major_formatter(PercentFormatter(1))
        for axes in panels[-1]:
            axes.set_xlabel("share of training" if in_shares else "epoch")
            if in_shares:
                axes.xaxis.set_major_formatter(PercentFormatter(1))
            else:
                axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(histories),
            frameon=False,
        )
    return figure
