"""A killed training loses nothing that was finished."""

import pytest

from kills import kill_and_go_on


@pytest.mark.reliability
def test_killed_at_random_moments_and_gone_on_with(tmp_path):
    kills = kill_and_go_on(5, seed=1, folder=tmp_path)
    assert sum(kills.values()) == 5
    assert len(kills) > 1  # kinds of moments
