"""Training curves in a notebook cell, redrawn after each epoch."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from reports.figures import draw_curves


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
