"""Trials made, written and read."""

import os
from itertools import combinations

import numpy as np
import pytest

from errors import UserError
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
IDS = [f"{speaker}/{i}.wav" for i, speaker in enumerate(SPEAKERS)]
ALL_PAIRS = list(combinations(range(len(SPEAKERS)), 2))


def pairs_of(trials: Trials) -> list[tuple[int, int]]:
    return list(zip(trials.enrolment.tolist(), trials.test.tolist(), strict=True))


def assert_equal(a: Trials, b: Trials) -> None:
    for field in ("enrolment", "test", "targets"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), strict=True)


# Making


@pytest.mark.parametrize("max_trials", [21, 22, 1_000_000])
def test_all_pairs_where_they_fit(max_trials):
    trials = make_trials(SPEAKERS, max_trials, seed=1)
    assert pairs_of(trials) == ALL_PAIRS
    assert trials.targets.tolist() == [SPEAKERS[i] == SPEAKERS[j] for i, j in ALL_PAIRS]
    assert trials.enrolment.dtype == trials.test.dtype == np.int64
    assert trials.targets.dtype == bool


@pytest.mark.parametrize("max_trials", [1, 5, 20])
def test_a_sample_is_an_ordered_subset_without_repeats(max_trials):
    trials = make_trials(SPEAKERS, max_trials, seed=1)
    pairs = pairs_of(trials)
    assert len(pairs) == max_trials
    assert pairs == sorted(set(pairs))
    assert set(pairs) <= set(ALL_PAIRS)
    assert trials.targets.tolist() == [SPEAKERS[i] == SPEAKERS[j] for i, j in pairs]


def test_a_sample_depends_on_its_seed_alone():
    assert_equal(make_trials(SPEAKERS, 10, seed=1), make_trials(SPEAKERS, 10, seed=1))
    first, second = (pairs_of(make_trials(SPEAKERS, 10, seed)) for seed in (1, 2))
    assert first != second


def test_a_sample_is_uniform():
    drawn = [pairs_of(make_trials(SPEAKERS, 7, seed)) for seed in range(3000)]
    counts = [sum(pair in pairs for pairs in drawn) for pair in ALL_PAIRS]
    deviation = (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(count - 1000) < 4.5 * deviation for count in counts)


def test_order_of_utterances_does_not_change_the_counts():
    forward, backward = make_trials(SPEAKERS, 99, 1), make_trials(SPEAKERS[::-1], 99, 1)
    assert forward.targets.sum() == backward.targets.sum() == 5
    assert len(forward.targets) == len(backward.targets) == 21


def test_many_utterances_are_sampled_without_all_their_pairs():
    speakers = [str(i % 1000) for i in range(200_000)]  # 2e10 pairs
    trials = make_trials(speakers, 20_000, seed=1)
    assert len(set(pairs_of(trials))) == 20_000
    assert (trials.enrolment < trials.test).all()
    assert trials.test.max() < 200_000
    assert trials.targets.mean() == pytest.approx(1e-3, rel=0.9)


@pytest.mark.parametrize("num_utterances", [2, 3, 1000, 200_000, 3_000_000])
def test_ranks_of_pairs_are_exact(num_utterances):
    num_pairs = num_utterances * (num_utterances - 1) // 2
    members = np.unique(np.geomspace(1, num_utterances - 1, 50).astype(int))
    starts = [i * (2 * num_utterances - i - 1) // 2 for i in members.tolist()]
    near = [start + step for start in starts for step in (-1, 0, 1)]
    ranks = sorted({0, num_pairs - 1, *(r for r in near if 0 <= r < num_pairs)})
    enrolment, test = _pairs(np.array(ranks), num_utterances)
    for rank, i, j in zip(ranks, enrolment.tolist(), test.tolist(), strict=True):
        assert 0 <= i < j < num_utterances
        assert rank == i * (2 * num_utterances - i - 1) // 2 + j - i - 1


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        ([], "at least two speakers, got 0"),
        (["anna"], "at least two speakers, got 1"),
        (["anna", "anna"], "at least two speakers, got 1"),
        (["anna", "ben", "carl"], "at least two utterances, got 3 speakers with one"),
    ],
)
def test_refuses_speakers_without_both_kinds_of_trial(speakers, message):
    with pytest.raises(TrialError, match=message):
        make_trials(speakers, 100, seed=1)


# Files


def pairs_of_names(trials: Trials, ids: list[str]) -> list[tuple[str, str]]:
    return [(ids[i], ids[j]) for i, j in pairs_of(trials)]


def test_round_trip(tmp_path):
    path = tmp_path / "trials.txt"
    trials = make_trials(SPEAKERS, 15, seed=1)
    write_trials(path, trials, IDS)
    assert_equal(read_trials(path, IDS)[0], trials)
    assert_equal(read_trials(path, IDS, SPEAKERS)[0], trials)
    found, ids = read_trials(path)
    assert pairs_of_names(found, ids) == pairs_of_names(trials, IDS)
    assert os.listdir(tmp_path) == ["trials.txt"]


def test_the_format_is_that_of_voxceleb(tmp_path):
    path = tmp_path / "trials.txt"
    indices = np.array([0, 0]), np.array([2, 1])
    write_trials(path, Trials(*indices, np.array([True, False])), IDS)
    expected = b"1 anna/0.wav anna/2.wav\n0 anna/0.wav ben/1.wav\n"
    assert path.read_bytes() == expected


def test_reads_other_line_ends_and_spaces(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_bytes(b"1\tanna/0.wav  anna/2.wav\r\n0 anna/0.wav ben/1.wav")
    trials, _ = read_trials(path, IDS)
    assert pairs_of(trials) == [(0, 2), (0, 1)]
    assert trials.targets.tolist() == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected `1 id id` or `0 id id`, got ''"),
        ("1 anna/0.wav", "expected `1 id id` or `0 id id`, got '1 anna/0.wav'"),
        ("1 a b c", "expected `1 id id` or `0 id id`, got '1 a b c'"),
        ("2 anna/0.wav ben/1.wav", "expected `1 id id` or `0 id id`, got '2 anna/"),
        ("target anna/0.wav ben/1.wav", "expected `1 id id` or `0 id id`, got 'targ"),
        ("1 nobody ben/1.wav", "expected the id of an utterance, got 'nobody'"),
        ("1 ben/1.wav nobody", "expected the id of an utterance, got 'nobody'"),
    ],
)
def test_refuses_lines(tmp_path, line, message):
    path = tmp_path / "trials.txt"
    path.write_text(f"1 anna/0.wav anna/2.wav\n{line}\n0 anna/0.wav ben/1.wav\n")
    with pytest.raises(TrialError) as refusal:
        read_trials(path, IDS)
    assert str(refusal.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 anna/0.wav anna/0.wav", "two recordings"),
        ("0 anna/0.wav anna/0.wav", "two recordings"),
        ("1 anna/0.wav ben/1.wav", "one speaker"),
        ("0 anna/0.wav anna/2.wav", "two speakers"),
    ],
)
def test_refuses_what_the_speakers_contradict(tmp_path, line, expected):
    path = tmp_path / "trials.txt"
    path.write_text(f"1 anna/0.wav anna/2.wav\n{line}\n0 anna/0.wav ben/1.wav\n")
    with pytest.raises(TrialError) as refusal:
        read_trials(path, IDS, SPEAKERS)
    _, first, second = line.split()
    assert str(refusal.value) == (
        f"{path}:2: expected utterances of {expected}, got {first} and {second}"
    )
    assert len(read_trials(path, IDS)[0].targets) == 3  # nobody says who speaks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "got none"),
        (b"1 \xff\xfe a\n", "expected lines of text"),
    ],
)
def test_refuses_files(tmp_path, content, message):
    path = tmp_path / "trials.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        read_trials(path, IDS)
    assert str(refusal.value).startswith(f"{path}: ")


def test_refuses_to_write_what_could_not_be_read(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("kept")
    trials = make_trials(["anna", "ben", "anna"], 9, seed=1)
    for name in ("anna 0.wav", ""):
        with pytest.raises(TrialError, match="ids without white space"):
            write_trials(path, trials, [name, "b", "c"])
    assert path.read_text() == "kept"
    with pytest.raises(TrialError, match="cannot be written"):
        write_trials(tmp_path / "missing" / "trials.txt", trials, IDS)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "trials.txt"
    path.write_text("kept")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TrialError, match="No space left on device"):
        write_trials(path, make_trials(SPEAKERS, 5, seed=1), IDS)
    assert path.read_text() == "kept"


def test_refuses_ids_that_are_not_distinct(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 anna/0.wav anna/2.wav\n")
    with pytest.raises(TrialError, match="expected distinct ids of utterances"):
        read_trials(path, [*IDS, IDS[0]])


def test_scores_come_back_to_their_last_bit(tmp_path):
    trials = make_trials(SPEAKERS, 15, seed=1)
    scores = np.random.default_rng(0).normal(size=15)
    write_scores(tmp_path / "scores.txt", trials, scores, IDS)
    assert np.array_equal(read_scores(tmp_path / "scores.txt", trials, IDS), scores)


def test_kinds_of_trials_by_hand():
    trials = make_trials(["a", "a", "a", "b"], 100, seed=1)
    assert pairs_of(trials) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    found = conditions(
        trials, ["f", "f", "f", None], ["x", "x", "y", "x"], [1.0, 2.0, 3.0, 9.0]
    )
    assert {kind: mask.astype(int).tolist() for kind, mask in found.items()} == {
        "same gender": [1, 1, 0, 1, 0, 0],
        "other session": [0, 1, 1, 1, 1, 1],
        "0 to 2 s": [1, 1, 1, 1, 1, 0],
        "2 to 4 s": [0, 0, 0, 0, 0, 1],
        "over 4 s": [0, 0, 0, 0, 0, 0],
    }
    unknown = conditions(trials, [None] * 4, [None] * 4, [9.0] * 4)
    assert not unknown["same gender"].any()
    assert not unknown["other session"].any()
    assert unknown["over 4 s"].all()


def hardest(order, count: int) -> list[list]:
    ids = ["b/2", "a/1", "a/3", "b/1"]
    trials = make_trials(["b", "a", "a", "b"], 100, seed=1)
    assert pairs_of(trials) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    scores = np.array([0.5, 0.9, 0.25, 0.25, 0.5, 0.5])
    trials = Trials(*(part[order] for part in vars(trials).values()))
    return hardest_trials(trials, scores[order], ids, ["b", "a", "a", "b"], count)


def test_hardest_trials_by_hand():
    found = hardest(np.arange(6), 3)
    assert found == [
        ["enrolment", "test", "enrolment speaker", "test speaker", "score", "error"],
        ["b/2", "a/3", "b", "a", 0.9, "false alarm"],
        ["a/1", "b/1", "a", "b", 0.5, "false alarm"],
        ["a/3", "b/1", "a", "b", 0.5, "false alarm"],
        ["a/1", "a/3", "a", "a", 0.25, "miss"],
        ["b/2", "b/1", "b", "b", 0.25, "miss"],
    ]
    assert hardest(np.arange(6), 1) == [found[0], found[1], found[4]]
    assert len(hardest(np.arange(6), 25)) == 1 + 4 + 2


def test_hardest_trials_do_not_depend_on_the_order_of_trials():
    found = hardest(np.arange(6), 2)
    for seed in range(10):
        assert hardest(np.random.default_rng(seed).permutation(6), 2) == found


def test_a_table_is_lines_with_tabs(tmp_path):
    write_table(tmp_path / "x.tsv", [["id", "score"], ["a", 0.1], ["\u00e9", -2.0]])
    text = (tmp_path / "x.tsv").read_bytes().decode()
    assert text == "id\tscore\na\t0.1\n\u00e9\t-2.0\n"
