"""Samples of a recording, however long it is.

blocks [N] -> `end_to_end` -> samples [N] -> `in_blocks` -> blocks [N]

N samples, int16. Those of hours lie in a temporary file instead of memory.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

SAMPLES_IN_MEMORY = 2**24  # of a recording, 32 MiB; 17 minutes at 16 kHz
SAMPLES_AT_ONCE = 2**20


class StoredSamples:
    """Samples [N] in a temporary file, which goes with them; a slice of them is read
    as an array."""

    def __init__(self, blocks: Iterable[NDArray[np.int16]]) -> None:
        self.file, self.size = tempfile.TemporaryFile(), 0  # noqa: SIM115
        for block in blocks:
            self.file.write(np.ascontiguousarray(block))
            self.size += len(block)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> NDArray[np.int16]:
        begin, end, _ = part.indices(self.size)
        samples = np.empty(max(0, end - begin), np.int16)
        self.file.seek(samples.itemsize * begin)
        self.file.readinto(samples)
        return samples


Samples = NDArray[np.int16] | StoredSamples


def end_to_end(blocks: Iterable[NDArray[np.int16]]) -> Samples:
    """Join blocks [N]: an array, or a file if they are more than
    `SAMPLES_IN_MEMORY`."""
    blocks, first, size = iter(blocks), [np.empty(0, np.int16)], 0
    for block in blocks:
        first.append(block)
        size += len(block)
        if size > SAMPLES_IN_MEMORY:
            return StoredSamples(chain(first, blocks))
    return np.concatenate(first)


def in_blocks(
    samples: Samples, begin: int = 0, end: int | None = None, size: int | None = None
) -> Iterator[NDArray[np.int16]]:
    """Yield samples from `begin` to `end` in blocks of `size`."""
    end, size = len(samples) if end is None else end, size or SAMPLES_AT_ONCE
    for first in range(begin, end, size):
        yield samples[first : min(first + size, end)]


def extent(samples: Samples) -> tuple[float, int, int]:
    """Return the mean, the least and the largest of samples [N]."""
    total, lows, highs = 0, [], []
    for block in in_blocks(samples):
        total += int(block.sum(dtype=np.int64))
        lows.append(int(block.min()))
        highs.append(int(block.max()))
    return total / len(samples), min(lows), max(highs)
