"""What the corpora of a study hold, each by itself.

splits -> `subsets_of` -> entries by (corpus, subset) -> `corpus_table` -> rows of text
entries by (corpus, subset) -> `entries_by_corpus` -> `draw_corpora` -> Figure
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dataset import SPLIT_NAMES, Splits
from parameters import DatasetParameters
from reports.style import STYLE
from speech.packs import Entry

GENDERS = {  # of entries: what figures call them, and their greys
    "f": ("women", "0.25"),
    "m": ("men", "0.65"),
    None: ("gender unknown", "0.87"),
}
NUM_BINS = 24
COLUMNS = ["corpus", "subset", "speakers", "women", "men", "utterances", "hours"]
COLUMNS += ["minutes a speaker (median)"]
COLUMNS += ["seconds an utterance (shortest, median, longest)"]


def subsets_of(
    splits: Splits, dataset: DatasetParameters, note: str = ""
) -> dict[tuple[str, str], list[Entry]]:
    """Return the entries of each split of each corpus, by the names of both; `note`
    ends the corpora's names. LibriSpeech's own subsets are named, too."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for split in SPLIT_NAMES:
        for name, indices in splits.by_corpus(split).items():
            label = name.partition("/")[2]
            corpus, subset = dataset.corpora[label], split
            if corpus.name == "librispeech":
                held_out = split in ("development", "test")
                subsets = held_out and getattr(corpus.librispeech, split)
                subset += f" ({', '.join(subsets or corpus.librispeech.train)})"
            entries = [splits.pack.entries[i] for i in indices]
            found[(label or dataset.name) + note, subset] = entries
    return found


def entries_by_corpus(
    subsets: Mapping[tuple[str, str], Sequence[Entry]],
) -> dict[str, list[Entry]]:
    """Return the entries of all subsets of each corpus."""
    found: dict[str, list[Entry]] = {}
    for (corpus, _), entries in subsets.items():
        found.setdefault(corpus, []).extend(entries)
    return found


def corpus_table(
    subsets: Mapping[tuple[str, str], Sequence[Entry]], sample_rate: int
) -> list[list[str]]:
    """Return rows of text: for each subset its speakers, how many of them are women and
    men, its utterances, hours, and durations."""
    rows = [COLUMNS]
    for (corpus, subset), entries in sorted(subsets.items(), key=lambda x: x[0][0]):
        seconds = np.array([entry.samples for entry in entries]) / sample_rate
        genders = Counter({e.speaker: e.gender for e in entries}.values())
        minutes = list(minutes_by_speaker(entries, sample_rate).values())
        low, middle, high = np.quantile(seconds, (0, 0.5, 1))
        rows.append(
            [
                *(corpus, subset, f"{genders.total():,}"),
                *(f"{genders[gender]:,}" if genders[gender] else "" for gender in "fm"),
                *(f"{len(entries):,}", f"{seconds.sum() / 3600:.1f}"),
                f"{np.median(minutes):.1f}",
                f"{low:.1f}, {middle:.1f}, {high:.1f}",
            ]
        )
    return rows


def minutes_by_speaker(entries: Sequence[Entry], sample_rate: int) -> dict[str, float]:
    """Return the minutes that each speaker says."""
    minutes: dict[str, float] = {}
    for entry in entries:
        so_far = minutes.get(entry.speaker, 0.0)
        minutes[entry.speaker] = so_far + entry.samples / sample_rate / 60
    return minutes


def draw_corpora(corpora: Mapping[str, Sequence[Entry]], sample_rate: int) -> Figure:
    """Draw a row for each corpus: histograms of the utterances' seconds, of the
    speakers' minutes by gender, and of the speakers' numbers of utterances.

    Columns share their axis, whose end the longest one in 200 may exceed: these count
    in the last bar.
    """
    measured = {
        name: _measures(entries, sample_rate) for name, entries in corpora.items()
    }
    units = ("seconds of an utterance", "minutes of a speaker")
    units += ("utterances of a speaker",)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.7 + 2.1 * len(corpora)))
        rows = figure.subplots(len(corpora), 3, sharex="col", squeeze=False)
        for column, unit in enumerate(units):
            together = np.concatenate(
                [x for values in measured.values() for x in values[column].values()]
            )
            end = np.quantile(together, 0.995)
            edges = np.linspace(0, end, NUM_BINS + 1)
            if column == 2:  # whole numbers: a bar each, or each few
                step = max(1, round(end / NUM_BINS))
                edges = np.arange(0.5, end + step + 0.5, step)
            for (name, values), axes in zip(
                measured.items(), rows[:, column], strict=True
            ):
                kinds = values[column]
                axes.hist(
                    [x.clip(max=edges[-1] - 1e-9) for x in kinds.values()],
                    edges,
                    stacked=True,
                    color=["0.45"]
                    if column == 0
                    else [GENDERS[kind][1] for kind in kinds],
                    label=[
                        f"{len(x):,} {GENDERS[kind][0]}" for kind, x in kinds.items()
                    ],
                )
                axes.set_ylabel("speakers" if column else "utterances")
                if column == 0:
                    axes.set_title(name)
                if column == 1:
                    axes.legend(frameon=False, fontsize=8)
            rows[-1, column].set_xlabel(unit)
    return figure


def _measures(
    entries: Sequence[Entry], sample_rate: int
) -> tuple[dict[str | None, np.ndarray], ...]:
    """Return seconds of utterances, then minutes and utterances of speakers, each by
    gender where speakers are counted."""
    seconds = np.array([entry.samples for entry in entries]) / sample_rate
    minutes = minutes_by_speaker(entries, sample_rate)
    counts = Counter(entry.speaker for entry in entries)
    gender_of = {entry.speaker: entry.gender for entry in entries}
    by_gender = {
        gender: [speaker for speaker in minutes if gender_of[speaker] == gender]
        for gender in GENDERS
    }
    by_gender = {gender: speakers for gender, speakers in by_gender.items() if speakers}
    return (
        {None: seconds},
        {g: np.array([minutes[s] for s in names]) for g, names in by_gender.items()},
        {g: np.array([counts[s] for s in names]) for g, names in by_gender.items()},
    )
