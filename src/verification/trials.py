"""Verification trials: pairs of utterances by one speaker or by two.

speakers [U] -> `make_trials` -> `Trials` <-> `write_trials`, `read_trials` <-> file
`Trials`, scores [K] <-> `write_scores`, `read_scores` <-> file
`Trials`, scores [K] -> `hardest_trials` -> table

U utterances, K trials. Files are in VoxCeleb's format (arXiv 1706.08612), one trial a
line: `1 enrolment test` for the same speaker, `0 enrolment test` for different ones.
Scores have their own file with lines `enrolment test score`. Kaldi's trials, `enrolment
test target` or `nontarget`, and scores in the first column are read too.
"""

import itertools
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.files import atomic_write
from errors import UserError


class TrialError(UserError):
    """A list of trials that cannot be made or read, or whose ids cannot be written."""


@dataclass(frozen=True)
class Trials:
    """Pairs of indices into a list of utterances."""

    enrolment: NDArray[np.int64]  # [K]
    test: NDArray[np.int64]  # [K]
    targets: NDArray[np.bool_]  # [K], true for the same speaker

    def where(self, mask: NDArray[np.bool_]) -> "Trials":
        """Return the trials for which a mask [K] is true."""
        return Trials(self.enrolment[mask], self.test[mask], self.targets[mask])

    def shorter(self, seconds: Sequence[float]) -> NDArray[np.float64]:
        """Return the smaller of both sides' seconds, [U] -> [K]."""
        array = np.asarray(seconds, dtype=float)
        return np.minimum(array[self.enrolment], array[self.test])


def _pairs(ranks: NDArray[np.int64], num_utterances: int) -> tuple[NDArray, NDArray]:
    """Return the items of `itertools.combinations(range(num_utterances), 2)` at these
    positions, without making the others."""
    first = np.arange(num_utterances, dtype=np.int64)
    starts = first * (2 * num_utterances - first - 1) // 2  # rank of (i, i + 1)
    # A search is exact; solving the quadratic equation would round a square root.
    enrolment = np.searchsorted(starts, ranks, side="right") - 1
    return enrolment, ranks - starts[enrolment] + enrolment + 1


def make_trials(speakers: Sequence[str], max_trials: int, seed: int) -> Trials:
    """Return every unordered pair of distinct utterances, or a random `max_trials` of
    them.

    `speakers` [U] names the speaker of each utterance. The sample is uniform, without
    replacement and in the order of all pairs; it may hold no target. Raises
    `TrialError` if there are no targets or no non-targets among all pairs.
    """
    _, codes, counts = np.unique(
        np.asarray(speakers, dtype=str), return_inverse=True, return_counts=True
    )
    if len(counts) < 2:
        raise TrialError(
            f"trials: expected utterances of at least two speakers, got {len(counts)}"
        )
    if counts.max() < 2:
        raise TrialError(
            "trials: expected a speaker with at least two utterances, "
            f"got {len(counts)} speakers with one each"
        )
    num_pairs = len(codes) * (len(codes) - 1) // 2
    if num_pairs <= max_trials:
        ranks = np.arange(num_pairs, dtype=np.int64)
    else:
        generator = np.random.default_rng(seed)
        ranks = generator.choice(num_pairs, max_trials, replace=False, shuffle=False)
        ranks.sort()
    enrolment, test = _pairs(ranks, len(codes))
    return Trials(enrolment, test, codes[enrolment] == codes[test])


DURATION_LIMITS = (0.0, 2.0, 4.0, np.inf)  # seconds; each pair bounds a condition


def conditions(
    trials: Trials,
    genders: Sequence[str | None],
    sessions: Sequence[str | None],
    seconds: Sequence[float],
) -> dict[str, NDArray[np.bool_]]:
    """Return masks [K] of the trials in each condition, by its name.

    Same gender: the genders of both utterances are known and equal. Other session:
    targets from two sessions, and all non-targets whose sessions are known. Durations
    are those of the shorter utterance. `genders`, `sessions` and `seconds` have a
    value for each utterance, [U].
    """

    def sides(values: Sequence) -> tuple[NDArray, NDArray]:
        array = np.asarray(values)
        return array[trials.enrolment], array[trials.test]

    (gender, other_gender), (session, other_session) = sides(genders), sides(sessions)
    masks = {
        "same gender": np.equal(gender, other_gender) & np.not_equal(gender, None),
        "other session": (np.not_equal(session, other_session) | ~trials.targets)
        & np.not_equal(session, None)
        & np.not_equal(other_session, None),
    }
    shorter = trials.shorter(seconds)
    for low, high in itertools.pairwise(DURATION_LIMITS):
        name = f"{low:g} to {high:g} s" if np.isfinite(high) else f"over {low:g} s"
        masks[name] = (low < shorter) & (shorter <= high)
    return {name: mask.astype(bool) for name, mask in masks.items()}


def hardest_trials(
    trials: Trials,
    scores: NDArray[np.float64],
    ids: Sequence[str],
    speakers: Sequence[str],
    count: int,
) -> list[list]:
    """Return a table of the worst errors, whose first row names the columns.

    It lists the `count` non-targets with the highest scores, then the `count` targets
    with the lowest. Equal scores are sorted by the ids [U] of the utterances.
    """
    _, id_ranks = np.unique(np.asarray(ids, dtype=str), return_inverse=True)
    ease = np.where(trials.targets, scores, -scores)
    order = np.lexsort((id_ranks[trials.test], id_ranks[trials.enrolment], ease))
    columns = ["enrolment", "test", "enrolment speaker", "test speaker"]
    rows = [[*columns, "score", "error"]]
    for error, is_target in (("false alarm", False), ("miss", True)):
        for k in order[trials.targets[order] == is_target][:count].tolist():
            i, j = trials.enrolment[k], trials.test[k]
            pair = [ids[i], ids[j], speakers[i], speakers[j]]
            rows.append([*pair, float(scores[k]), error])
    return rows


def write_trials(path: Path, trials: Trials, ids: Sequence[str]) -> None:
    """Write trials of the utterances `ids` [U]; raise `TrialError` for an id with white
    space and `FileError` if the file cannot be written."""
    for name in ids:
        if name.split() != [name]:
            raise TrialError(f"{path}: expected ids without white space, got {name!r}")
    columns = trials.targets.tolist(), trials.enrolment.tolist(), trials.test.tolist()
    rows = zip(*columns, strict=True)
    _write_lines(path, (f"{target:d} {ids[i]} {ids[j]}\n" for target, i, j in rows))


def write_scores(
    path: Path, trials: Trials, scores: NDArray[np.float64], ids: Sequence[str]
) -> None:
    """Write scores of trials of the utterances `ids` [U], in full precision."""
    columns = trials.enrolment.tolist(), trials.test.tolist(), scores.tolist()
    rows = zip(*columns, strict=True)
    _write_lines(path, (f"{ids[i]} {ids[j]} {score!r}\n" for i, j, score in rows))


def write_table(path: Path, rows: Iterable[Sequence]) -> None:
    """Write rows as tab-separated lines; no cell may hold a tab."""
    _write_lines(path, ("\t".join(map(str, row)) + "\n" for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path) as file:
        file.writelines(line.encode() for line in lines)


def _read_lines(path: Path, expected: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrialError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrialError(f"{path}: expected lines of text, got other bytes") from None
    if not lines:
        raise TrialError(f"{path}: expected lines {expected}, got none")
    return lines


def _columns(line: str) -> list[str]:
    """Return the columns of a line; between tabs, ids may hold spaces."""
    columns = [column.strip() for column in line.split("\t")]
    return columns if len(columns) > 2 and all(columns) else line.split()


def _parse_score(
    line: str, pairs: Container[tuple[str, str]]
) -> tuple[tuple[str, str], float]:
    """Return a pair and its score, which stands after the pair or before it; raise
    `ValueError` if there is none.

    If it may stand on either side, as ids may be numbers, the pair is one of `pairs`.
    """
    first, second, third, *others = _columns(line)
    if len(others) > 1:  # one is common: the label
        raise ValueError("too many columns")
    readings = []
    for enrolment, test, score in ((first, second, third), (second, third, first)):
        with suppress(ValueError):
            readings.append(((enrolment, test), float(score)))
    if not readings:
        raise ValueError("no score")
    return next((r for r in readings if r[0] in pairs), readings[0])


def read_scores(path: Path, trials: Trials, ids: Sequence[str]) -> NDArray[np.float64]:
    """Read scores of trials of the utterances `ids` [U], in the order of the trials.

    The file may hold other scores too, and the same one again. Raises `TrialError`
    naming file and line for a line that is not a score, a score that is not finite and
    a pair with two scores, and for a trial without a score.
    """
    expected = "`id id score` or `score id id`"
    indices = zip(trials.enrolment.tolist(), trials.test.tolist(), strict=True)
    pairs = [(ids[i], ids[j]) for i, j in indices]
    known = set(pairs)
    scores: dict[tuple[str, str], float] = {}
    for number, line in enumerate(_read_lines(path, expected), start=1):
        try:
            pair, score = _parse_score(line, known)
        except ValueError:
            raise TrialError(
                f"{path}:{number}: expected {expected}, got {line!r}"
            ) from None
        if not np.isfinite(score):
            raise TrialError(f"{path}:{number}: expected a finite score, got {score}")
        if scores.setdefault(pair, score) != score:
            raise TrialError(
                f"{path}:{number}: expected one score for a pair, got another for "
                f"{' '.join(pair)}"
            )
    for pair in pairs:
        if pair not in scores:
            raise TrialError(
                f"{path}: expected a score for each trial, got none for "
                f"{' '.join(pair)}"
            )
    return np.array([scores[pair] for pair in pairs])


def _parse_trial(line: str) -> tuple[bool, str, str] | None:
    """Return whether the speakers are the same, and both ids; None if it is no
    trial."""
    match _columns(line):
        case ["0" | "1" as target, enrolment, test]:
            return target == "1", enrolment, test
        case [enrolment, test, "target" | "nontarget" as label]:  # Kaldi's
            return label == "target", enrolment, test
    return None


def read_trials(
    path: Path, ids: Sequence[str] | None = None, speakers: Sequence[str] | None = None
) -> tuple[Trials, list[str]]:
    """Read trials; return them, each once, and the ids [U] that their indices refer to.

    Without `ids` these are the ids in the file, in order of appearance. `speakers` [U]
    are the speakers of `ids`, if known.

    Raises `TrialError` naming file and line for a line that is not a trial, an id that
    is not among `ids` and a pair that is both target and non-target; if speakers are
    known, also for an utterance paired with itself, a target of two speakers and a
    non-target of one. Raises it without a line for duplicate ids, for a file without
    targets or without non-targets, and for one that is empty or cannot be read.
    """
    expected = "`1 id id`, `0 id id`, `id id target` or `id id nontarget`"
    known = ids is not None
    indices = {name: index for index, name in enumerate(ids or ())}
    if known and len(indices) < len(ids):
        raise TrialError(f"{path}: expected distinct ids of utterances, got duplicates")
    lines = _read_lines(path, expected)
    rows = np.empty((len(lines), 3), dtype=np.int64)
    for number, line in enumerate(lines, start=1):
        trial = _parse_trial(line)
        if trial is None:
            raise TrialError(f"{path}:{number}: expected {expected}, got {line!r}")
        target, *pair = trial
        for name in pair:
            if known and name not in indices:
                raise TrialError(
                    f"{path}:{number}: expected the id of an utterance, got {name!r}"
                )
            indices.setdefault(name, len(indices))
        rows[number - 1] = target, *(indices[name] for name in pair)
    if speakers is not None:
        _refuse_other_speakers(path, rows, ids, speakers)
    names = list(indices)
    _refuse_contradictions(path, rows, names)
    _, once = np.unique(rows, axis=0, return_index=True)
    targets, enrolment, test = rows[np.sort(once)].T
    if targets.all() or not targets.any():
        raise TrialError(
            f"{path}: expected target and non-target trials, got "
            f"{targets.sum()} and {len(targets) - targets.sum()}"
        )
    return Trials(enrolment.copy(), test.copy(), targets.astype(bool)), names


def _refuse_other_speakers(
    path: Path, rows: NDArray[np.int64], ids: Sequence[str], speakers: Sequence[str]
) -> None:
    """Raise `TrialError` for the first row [K, 3] that the speakers contradict."""
    targets, enrolment, test = rows.T
    _, codes = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    same_speaker = codes[enrolment] == codes[test]
    wrong = (enrolment == test) | (same_speaker != targets)
    if wrong.any():
        row = int(wrong.argmax())
        first, second = ids[enrolment[row]], ids[test[row]]
        expected = "one speaker" if targets[row] else "two speakers"
        if first == second:
            expected = "two recordings"
        raise TrialError(
            f"{path}:{row + 1}: expected utterances of {expected}, "
            f"got {first} and {second}"
        )


def _refuse_contradictions(
    path: Path, rows: NDArray[np.int64], ids: Sequence[str]
) -> None:
    """Raise `TrialError` for the first row [K, 3] whose pair, in either order, has the
    other target above."""
    targets, enrolment, test = rows.T
    # A number for each unordered pair.
    pairs = np.minimum(enrolment, test) * len(ids) + np.maximum(enrolment, test)
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    above = first[inverse]  # [K], the first row of the same pair
    if (contradicting := targets != targets[above]).any():
        row = int(contradicting.argmax())
        raise TrialError(
            f"{path}:{row + 1}: expected a pair as target or as non-target, got "
            f"{ids[enrolment[row]]} and {ids[test[row]]} as both; see line "
            f"{above[row] + 1}"
        )
