"""Windows of speech."""

import numpy as np
import pytest

from recognition.turns import HOP_SECONDS, WINDOW_SECONDS, as_stretches


@pytest.mark.parametrize("seconds", [0.2, 1.5, 1.6, 7.0])
def test_windows_cover_a_stretch(seconds):
    ((begin, end, centres),) = (
        vars(s).values() for s in as_stretches([(3, 3 + seconds)])
    )
    size = min(WINDOW_SECONDS, seconds)
    assert centres[0] - size / 2 == pytest.approx(begin)
    assert centres[-1] + size / 2 == pytest.approx(end)
    assert (np.diff(centres) <= HOP_SECONDS + 1e-9).all()
