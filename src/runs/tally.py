"""What the steps of an epoch add up to.

`StepReading`s on the device -> `Readings` -> `Tally` -> metrics by name
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dataset import Batch
from errors import UserError
from speech.packs import Pack

MAX_SKIPPED = 10  # steps in a row without a finite loss and gradient


class NotFiniteError(UserError):
    """Training that came upon a value that is not finite."""


class StepReading(NamedTuple):
    """What a step says of its batch; tensors [] stay on the device."""

    loss: Tensor
    gradient_norm: Tensor
    hits: Tensor  # predictions that were right
    block_norms: dict[str, Tensor]  # of gradients; empty where they were not asked for


@dataclass
class Tally:
    """Sums over the utterances and steps of an epoch so far."""

    utterances: int = 0
    correct: int = 0
    loss: float = 0.0
    audio_seconds: float = 0.0
    seconds: float = 0.0
    flop: float = 0.0  # of the encoder
    # Gradient norms by block, each the sum over the steps in which it was measured.
    block_norms: dict[str, float] = field(default_factory=dict)
    measured: int = 0  # steps
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0

    def metrics(self) -> dict[str, float]:
        """Means over the utterances and over the steps measured, and the speed."""
        norms = {
            f"gradient_norm/{block}": total / self.measured
            for block, total in self.block_norms.items()
        }
        return {
            "train/loss": self.loss / self.utterances,
            "train/accuracy": self.correct / self.utterances,
            "train/audio_seconds_per_second": self.audio_seconds / self.seconds,
            "train/skipped_steps": self.skipped,
            **norms,
        }

    def __str__(self) -> str:
        return (
            "loss {train/loss:.3f}, accuracy {train/accuracy:.1%}, "
            "{train/audio_seconds_per_second:.0f} audio s/s"
        ).format_map(self.metrics())


SPENT = ("seconds", "audio_seconds", "flop")  # sums of a tally that a run adds up


class Readings:
    """Figures of the latest steps, which stay on the device until they are read.

    `flop` gives the encoder's operations in a step for one crop of so many samples.
    Unless it `skips` them, a step without a finite loss and gradient raises
    `NotFiniteError`.
    """

    def __init__(
        self,
        tally: Tally,
        pack: Pack,
        flop: Callable[[int], float],
        skips: bool,
    ) -> None:
        self.tally, self.pack, self.flop, self.skips = tally, pack, cache(flop), skips
        self.unread: list[tuple[StepReading, Tensor, int]] = []  # with indices, size
        self.began = time.perf_counter()

    def add(self, reading: StepReading, batch: Batch) -> None:
        """Note what `training_step` says of a batch."""
        self.tally.audio_seconds += batch.size * batch.crop / self.pack.sample_rate
        self.tally.flop += batch.size * self.flop(batch.crop)
        self.unread.append((reading, batch.indices, batch.size))

    def read(self, step: int) -> None:
        """Add the steps up to `step` to the tally, which waits for the device; raise
        `NotFiniteError` where a loss or a gradient is not finite and that stops the
        run."""
        tally, first = self.tally, step - len(self.unread) + 1
        rows = torch.stack([torch.stack(reading[:3]) for reading, *_ in self.unread])
        for number, (loss, norm, hits), (reading, indices, size) in zip(
            range(first, step + 1), rows.tolist(), self.unread, strict=True
        ):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                tally.skipped += 1
                tally.skipped_in_a_row += 1
                self._report(number, loss, norm, indices)
                continue
            tally.loss += loss * size
            tally.correct += int(hits)
            tally.utterances += size
            tally.skipped_in_a_row = 0
            tally.measured += bool(reading.block_norms)
            for block, of_block in reading.block_norms.items():
                total = tally.block_norms.get(block, 0.0) + of_block.item()
                tally.block_norms[block] = total
        self.unread.clear()
        now = time.perf_counter()
        tally.seconds, self.began = tally.seconds + now - self.began, now
        if not tally.utterances:
            raise NotFiniteError(
                f"step {step}: no step of the epoch had a finite loss and gradient"
            )

    def _report(self, step: int, loss: float, norm: float, indices: Tensor) -> None:
        """Print a fault, or raise it if it ends the run."""
        names = ", ".join(self.pack.entries[i].id for i in indices.tolist())
        fault = (
            f"step {step}: expected a finite loss and gradient, got loss {loss} "
            f"and gradient norm {norm} of {names}"
        )
        if not self.skips:
            raise NotFiniteError(
                f"{fault}; a lower training.optimizer.lr may help, or "
                "training.on_nonfinite=skip"
            )
        if self.tally.skipped_in_a_row == MAX_SKIPPED:
            raise NotFiniteError(f"{fault}; skipped {MAX_SKIPPED} steps in a row")
        tqdm.write(f"{fault}; skipped")
