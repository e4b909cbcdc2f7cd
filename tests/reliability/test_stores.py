"""Stores that programs write at once, and that killed ones leave."""

import pytest

from commands import folder, voices_commands
from stores import kill_and_start_again, share_a_store


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(voices_commands, "_load_voices", voices_commands._load_voices)
    for name in ("FILES_AT_ONCE", "SECONDS_BETWEEN_SAVES"):
        monkeypatch.setattr(folder, name, getattr(folder, name))


@pytest.mark.parametrize(
    "rounds", [5, pytest.param(1000, marks=pytest.mark.reliability)]
)
def test_two_writers_and_a_reader_with_kills_lose_nobody(tmp_path, rounds):
    ends = share_a_store(rounds, 1, tmp_path)
    assert sum(ends.values()) == 2 * rounds
    assert len(ends) == 4 or rounds == 5


@pytest.mark.reliability
def test_commands_killed_half_way_end_as_others(tmp_path):
    kills = kill_and_start_again(5, 1, tmp_path)
    assert set(kills) == {"embed", "enrol"}
