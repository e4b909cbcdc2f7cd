"""Sums over the steps of an epoch: losses, speed, gradient norms.

`StepReading`s on the device -> `Readings` -> `Tally` -> metrics by name
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dataset import Batch
from errors import UserError
from speech.packs import Pack

SPENT = ("seconds", "audio_seconds", "flop")  # fields of a tally summed over a run
MAX_SKIPPED = 10  # steps in a row without a finite loss and gradient


class NotFiniteError(UserError):
    """A loss or gradient that is not finite and ends the training."""


class StepReading(NamedTuple):
    """The results of a step; its tensors [] stay on the device."""

    loss: Tensor
    gradient_norm: Tensor
    sums: dict[str, Tensor]  # over the batch, by metric; `accuracy` counts hits
    block_norms: dict[str, Tensor]  # of gradients, by block; empty unless measured


@dataclass
class Tally:
    """Sums over the utterances and steps of an epoch so far."""

    utterances: int = 0
    loss: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of other metrics
    audio_seconds: float = 0.0
    seconds: float = 0.0
    flop: float = 0.0  # of the encoder
    block_norms: dict[str, float] = field(default_factory=dict)  # of gradients
    measured: int = 0  # steps that `block_norms` are summed over
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> "Tally":
        """Return the tally of a checkpoint, of any version."""
        values = dict(values)
        if "correct" in values:  # written before there were other sums
            values["sums"] = {"accuracy": values.pop("correct")}
        return cls(**values)

    def add(
        self,
        loss: float,
        sums: Mapping[str, float],
        size: int,
        block_norms: Mapping[str, Tensor],
    ) -> None:
        """Add a step with the mean `loss` and the `sums` of a batch of `size`
        utterances."""
        self.loss += loss * size
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.utterances += size
        self.skipped_in_a_row = 0
        self.measured += bool(block_norms)
        for block, norm in block_norms.items():
            self.block_norms[block] = self.block_norms.get(block, 0.0) + norm.item()

    def metrics(self) -> dict[str, float]:
        """Return means over the utterances, if a step of them had a finite loss and
        gradient, mean gradient norms, and the speed."""
        sums = {"loss": self.loss, **self.sums} if self.utterances else {}
        norms = {
            f"gradient_norm/{block}": total / self.measured
            for block, total in self.block_norms.items()
        }
        return {
            **{f"train/{k}": total / self.utterances for k, total in sums.items()},
            "train/audio_seconds_per_second": self.audio_seconds / self.seconds,
            "train/skipped_steps": self.skipped,
            **norms,
        }

    def __str__(self) -> str:
        if not self.utterances:
            return f"{self.skipped} steps skipped"
        return (
            "loss {train/loss:.3f}, accuracy {train/accuracy:.1%}, "
            "{train/audio_seconds_per_second:.0f} audio s/s"
        ).format_map(self.metrics())


class Readings:
    """The readings of the latest steps, kept on the device until they are read.

    `flop(samples)` is the number of operations of a step on one crop. `skips` says
    whether training continues after a step without a finite loss and gradient.
    """

    def __init__(
        self, tally: Tally, pack: Pack, flop: Callable[[int], float], skips: bool
    ) -> None:
        self.tally, self.pack, self.flop, self.skips = tally, pack, cache(flop), skips
        self.unread: list[tuple[StepReading, Tensor, int]] = []  # with indices, size
        self.began = time.perf_counter()

    def add(self, reading: StepReading, batch: Batch) -> None:
        """Keep the reading of a batch, to be read later."""
        self.tally.audio_seconds += batch.size * batch.crop / self.pack.sample_rate
        self.tally.flop += batch.size * self.flop(batch.crop)
        self.unread.append((reading, batch.indices, batch.size))

    def read(self, step: int) -> None:
        """Add the steps up to `step` to the tally; wait for the device.

        Raises `NotFiniteError` for a step that may not be skipped.
        """
        values = torch.stack([_as_row(reading) for reading, *_ in self.unread])
        first = step - len(self.unread) + 1
        for number, (loss, norm, *sums), (reading, indices, size) in zip(
            range(first, step + 1), values.tolist(), self.unread, strict=True
        ):
            if math.isfinite(loss) and math.isfinite(norm):
                named = dict(zip(reading.sums, sums, strict=True))
                self.tally.add(loss, named, size, reading.block_norms)
            else:
                self._skip(number, loss, norm, indices)
        self.unread.clear()
        now = time.perf_counter()
        self.tally.seconds += now - self.began
        self.began = now

    def _skip(self, step: int, loss: float, norm: float, indices: Tensor) -> None:
        """Count and print a step that changed nothing; raise `NotFiniteError` if it
        ends the run."""
        self.tally.skipped += 1
        self.tally.skipped_in_a_row += 1
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


def _as_row(reading: StepReading) -> Tensor:
    """Return a reading's values in one tensor, to wait for the device only once."""
    loss, norm, sums, _ = reading
    return torch.stack([loss, norm, *sums.values()])


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """Return an epoch's metrics in a line."""
    line = f"epoch {metrics['epoch']}/{epochs}"
    for split in ("train", "validation"):
        if f"{split}/loss" in metrics:
            loss, accuracy = metrics[f"{split}/loss"], metrics[f"{split}/accuracy"]
            line += f"  {split} loss {loss:.3f} accuracy {accuracy:.1%}"
    return f"{line}  {metrics['train/audio_seconds_per_second']:.0f} audio s/s"
