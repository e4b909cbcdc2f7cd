"""Windows of speech."""

import numpy as np
import pytest

from recognition.turns import HOP_SECONDS, WINDOW_SECONDS, as_stretches


@pytest.mark.parametrize("seconds", [0.2, 1.5, 1.6, 7.0])
def test_windows_cover_a_stretch(seconds):
    (stretch,) = as_stretches([(3, 3 + seconds)])
    half, centres = min(WINDOW_SECONDS, seconds) / 2, stretch.centres
    ends = centres[0] - half, centres[-1] + half
    assert ends == pytest.approx((stretch.begin, stretch.end))
    assert (np.diff(centres) <= HOP_SECONDS + 1e-9).all()
