"""Trials made, written and read."""

import os
from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest

from engine.files import FileError
from verification.trials import (
    TrialError,
    Trials,
    _pairs,
    conditions,
    hardest_trials,
    make_trials,
    read_scores,
    read_trials,
    write_scores,
    write_table,
    write_trials,
)

SPEAKERS = ["anna", "ben", "anna", "carl", "ben", "anna", "carl"]
IDS = [f"{speaker}/{i}" for i, speaker in enumerate(SPEAKERS)]
ALL_PAIRS = list(combinations(range(len(SPEAKERS)), 2))


def pairs_of(trials: Trials) -> list[tuple[int, int]]:
    return list(zip(trials.enrolment.tolist(), trials.test.tolist(), strict=True))


def assert_equal(a: Trials, b: Trials) -> None:
    for field in ("enrolment", "test", "targets"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), strict=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.txt"


@pytest.mark.parametrize("max_trials", [1, 5, 20, 21, 22, 1_000_000])
def test_trials_are_all_pairs_or_an_ordered_subset(max_trials):
    trials = make_trials(SPEAKERS, max_trials, seed=1)
    pairs = pairs_of(trials)
    assert len(pairs) == min(max_trials, 21)
    assert pairs == sorted(set(pairs) & set(ALL_PAIRS))
    assert trials.targets.tolist() == [SPEAKERS[i] == SPEAKERS[j] for i, j in pairs]
    assert trials.enrolment.dtype == trials.test.dtype == np.int64
    assert trials.targets.dtype == bool


def test_a_sample_is_uniform_and_depends_on_its_seed_alone():
    first, again, other = (make_trials(SPEAKERS, 10, seed) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert pairs_of(first) != pairs_of(other)
    samples = [pairs_of(make_trials(SPEAKERS, 7, seed)) for seed in range(3000)]
    counts = [sum(pair in pairs for pairs in samples) for pair in ALL_PAIRS]
    deviation = (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(count - 1000) < 4.5 * deviation for count in counts)


def test_many_utterances_are_sampled_without_all_their_pairs():
    speakers = [str(i % 1000) for i in range(200_000)]  # 2e10 pairs
    trials = make_trials(speakers, 20_000, seed=1)
    assert len(set(pairs_of(trials))) == 20_000
    assert trials.targets.mean() == pytest.approx(1e-3, rel=0.9)


@pytest.mark.parametrize("n", [2, 3, 1000, 200_000, 3_000_000])
def test_ranks_of_pairs_are_exact(n):
    members = np.unique(np.geomspace(1, n - 1, 50).astype(int)).tolist()
    starts = [i * (2 * n - i - 1) // 2 for i in members]
    near = {start + step for start in starts for step in (-1, 0, 1)}
    ranks = sorted({0, *(rank for rank in near if rank < n * (n - 1) // 2)})
    enrolment, test = _pairs(np.array(ranks), n)
    for rank, i, j in zip(ranks, enrolment.tolist(), test.tolist(), strict=True):
        assert 0 <= i < j < n
        assert rank == i * (2 * n - i - 1) // 2 + j - i - 1


@pytest.mark.parametrize("speakers", [[], ["a"], ["a", "a"], ["a", "b", "c"]])
def test_refuses_speakers_without_both_kinds_of_trial(speakers):
    with pytest.raises(TrialError, match=f"got {len(set(speakers))}"):
        make_trials(speakers, 100, seed=1)


def test_round_trip(path, tmp_path):
    trials = make_trials(SPEAKERS, 15, seed=1)
    write_trials(path, trials, IDS)
    assert_equal(read_trials(path, IDS)[0], trials)
    assert_equal(read_trials(path, IDS, SPEAKERS)[0], trials)
    again, ids = read_trials(path)
    names = [(ids[i], ids[j]) for i, j in pairs_of(again)]
    assert names == [(IDS[i], IDS[j]) for i, j in pairs_of(trials)]
    scores = np.random.default_rng(0).normal(size=15)
    write_scores(tmp_path / "scores.txt", trials, scores, IDS)
    assert np.array_equal(read_scores(tmp_path / "scores.txt", trials, IDS), scores)
    assert set(os.listdir(tmp_path)) == {"trials.txt", "scores.txt"}


def test_the_format_is_that_of_voxceleb(path):
    trials = Trials(np.array([0, 0]), np.array([2, 1]), np.array([True, False]))
    write_trials(path, trials, IDS)
    assert path.read_bytes() == b"1 anna/0 anna/2\n0 anna/0 ben/1\n"
    path.write_bytes(b"1\tanna/0  anna/2\r\n0 anna/0 ben/1")
    assert_equal(read_trials(path, IDS)[0], trials)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("", "''"),
        ("1 anna/0", "'1 anna/0'"),
        ("1 a b c", "'1 a b c'"),
        ("2 anna/0 ben/1", "'2 anna/0 ben/1'"),
        ("target anna/0 ben/1", "'target anna/0 ben/1'"),
        ("1 nobody ben/1", "'nobody'"),
        ("1 ben/1 nobody", "'nobody'"),
        ("1 anna/0 anna/0", "anna/0 and anna/0"),
        ("0 anna/0 anna/0", "anna/0 and anna/0"),
        ("1 anna/0 ben/1", "anna/0 and ben/1"),
        ("0 anna/0 anna/2", "anna/0 and anna/2"),
    ],
)
def test_refuses_lines(path, line, value):
    path.write_text(f"1 anna/0 anna/2\n{line}\n0 anna/0 ben/1\n")
    with pytest.raises(TrialError, match=f"^{path}:2: expected .*, got {value}$"):
        read_trials(path, IDS, SPEAKERS)
    if "anna/0 and anna/0" in value:  # which nothing but the speakers contradicts
        assert len(read_trials(path, IDS)[0].targets) == 3


@pytest.mark.parametrize("again", ["0 a b", "0 b a", "b a nontarget"])
def test_a_pair_is_target_or_non_target_and_a_trial_counts_once(path, again):
    path.write_text("1 a b\n0 a c\n1 b a\n0 a c\na b target\n")
    trials, ids = read_trials(path)
    assert ids == ["a", "b", "c"]
    assert pairs_of(trials) == [(0, 1), (0, 2), (1, 0)]
    assert trials.targets.tolist() == [True, False, True]
    path.write_text(f"0 a c\n1 a b\n{again}\n")
    with pytest.raises(TrialError, match=f"^{path}:3: .* got . and . .* line 2$"):
        read_trials(path)


@pytest.mark.parametrize(
    ("lines", "scores"),
    [
        ("a b target\na c nontarget", "0.5 a b\n-1 a c\nx y 3"),
        ("1\ta\tb\n0\ta\tc", "a b 0.5 target\na\tc\t-1\tnontarget"),
        ("1 7 8\n0 7 9", "0.5 7 8\n-1 7 9 0\n-1 7 9"),  # ids that may be scores
        ("1\tan a\tb c\n0\tan a\td e", "an a\tb c\t0.5\n-1\tan a\td e"),
    ],
)
def test_lists_of_other_programs(path, tmp_path, lines, scores):
    path.write_text(lines)
    (tmp_path / "scores.txt").write_text(scores)
    trials, ids = read_trials(path)
    assert trials.targets.tolist() == [True, False]
    assert read_scores(tmp_path / "scores.txt", trials, ids).tolist() == [0.5, -1]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (None, "No such file"),
        (b"", "got none"),
        (b"1 \xff\xfe a\n", "other bytes"),
        (b"1 anna/0 anna/2\n", "1 and 0"),
        (b"0 anna/0 ben/1\n", "0 and 1"),
    ],
)
def test_refuses_files(path, content, value):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrialError, match=f"^{path}: .*{value}"):
        read_trials(path, IDS)
    with pytest.raises(TrialError, match="got duplicates"):
        read_trials(path, [*IDS, IDS[0]])


@pytest.mark.parametrize(
    ("lines", "where", "value"),
    [
        ("a b 1", "", "b a"),
        ("a b 1\nb a 2\na b 3", ":3", "a b"),
        ("a b 1 2 3", ":1", "'a b 1 2 3'"),
        ("a b nan", ":1", "nan"),
        ("a b x", ":1", "'a b x'"),
        ("a 0.5", ":1", "'a 0.5'"),
        ("", "", "none"),
    ],
)
def test_refuses_scores(path, lines, where, value):
    path.write_text(lines)
    trials = Trials(np.array([0, 1]), np.array([1, 0]), np.array([True, True]))
    with pytest.raises(TrialError, match=f"^{path}{where}: expected .* {value}$"):
        read_scores(path, trials, ["a", "b"])


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    path.write_text("kept")
    trials = make_trials(["anna", "ben", "anna"], 9, seed=1)
    for name in ("anna 0.wav", ""):
        with pytest.raises(TrialError, match=f"got {name!r}"):
            write_trials(path, trials, [name, "b", "c"])

    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_trials(path, trials, IDS)
    assert path.read_text() == "kept"
    assert os.listdir(path.parent) == ["trials.txt"]


def test_conditions_by_hand():
    trials = make_trials(["a", "a", "a", "b"], 100, seed=1)
    assert pairs_of(trials) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    genders, sessions = ["f", "f", "f", None], ["x", "x", "y", "x"]
    masks = conditions(trials, genders, sessions, [1.0, 2.0, 3.0, 9.0])
    assert {kind: mask.astype(int).tolist() for kind, mask in masks.items()} == {
        "same gender": [1, 1, 0, 1, 0, 0],
        "other session": [0, 1, 1, 1, 1, 1],
        "0 to 2 s": [1, 1, 1, 1, 1, 0],
        "2 to 4 s": [0, 0, 0, 0, 0, 1],
        "over 4 s": [0, 0, 0, 0, 0, 0],
    }
    unknown = conditions(trials, [None] * 4, [None] * 4, [9.0] * 4)
    assert not (unknown["same gender"] | unknown["other session"]).any()
    assert unknown["over 4 s"].all()


def hardest(order, count: int) -> list[list]:
    speakers, ids = [*"baab"], ["b/2", "a/1", "a/3", "b/1"]
    trials = make_trials(speakers, 100, seed=1)
    scores = np.array([0.5, 0.9, 0.25, 0.25, 0.5, 0.5])
    trials = Trials(*(part[order] for part in vars(trials).values()))
    return hardest_trials(trials, scores[order], ids, speakers, count)


def test_hardest_trials_by_hand():
    table = hardest(np.arange(6), 3)
    assert table == [
        ["enrolment", "test", "enrolment speaker", "test speaker", "score", "error"],
        ["b/2", "a/3", "b", "a", 0.9, "false alarm"],
        ["a/1", "b/1", "a", "b", 0.5, "false alarm"],
        ["a/3", "b/1", "a", "b", 0.5, "false alarm"],
        ["a/1", "a/3", "a", "a", 0.25, "miss"],
        ["b/2", "b/1", "b", "b", 0.25, "miss"],
    ]
    assert hardest(np.arange(6), 1) == [table[0], table[1], table[4]]
    assert len(hardest(np.arange(6), 25)) == 1 + 4 + 2
    for seed in range(10):  # in whichever order the trials are
        assert hardest(np.random.default_rng(seed).permutation(6), 3) == table


def test_a_table_is_lines_with_tabs(path):
    write_table(path, [["id", "score"], ["a", 0.1], ["\u00e9", -2.0]])
    assert path.read_bytes().decode() == "id\tscore\na\t0.1\n\u00e9\t-2.0\n"
