"""Samples in a file are those that an array would hold."""

import numpy as np
import pytest

from speech import samples
from speech.samples import StoredSamples, end_to_end, extent, in_blocks


@pytest.mark.parametrize("most", [6, 7])
def test_samples_in_a_file_are_those_of_an_array(monkeypatch, most):
    monkeypatch.setattr(samples, "SAMPLES_IN_MEMORY", most)
    values = np.int16([-32768, -4, 5, 3, 32767, 1, -2])
    joined = end_to_end(iter([values[:2], values[2:2], values[2:]]))
    assert isinstance(joined, StoredSamples) == (most < len(values))
    assert len(joined) == 7
    for part in (slice(7), slice(2, 5), slice(5, 99), slice(8, 9), slice(-3, None)):
        assert joined[part].tolist() == values[part].tolist()
    blocks = [block.tolist() for block in in_blocks(joined, 1, 6, size=2)]
    assert blocks == [[-4, 5], [3, 32767], [1]]
    assert extent(joined) == (2 / 7, -32768, 32767)
