"""What a corpus holds is counted."""

import pytest

from dataset import prepare
from speech.packs import Entry
from teaching import corpora


@pytest.fixture
def entries():
    spoken = [("ann", "f", 60), ("ann", "f", 30), ("bob", "m", 60), ("cat", None, 120)]
    return [
        Entry(f"{number}", speaker, None, gender, None, 0, seconds * 10)
        for number, (speaker, gender, seconds) in enumerate(spoken)
    ]


def test_a_row_for_each_subset(entries):
    head, row = corpora.corpus_table({("one", "train"): entries}, 10)
    assert row == [
        "one",
        "train",
        "3",
        "1",
        "1",
        "4",
        "0.1",
        "1.5",
        "30.0, 60.0, 120.0",
    ]
    assert len(head) == len(row)


def test_subsets_have_the_names_of_the_corpus(miniature, shipped):
    p = miniature()
    splits = prepare(p.dataset, p.front_end)
    libri = shipped("dataset.name=librispeech").dataset
    names = {
        ("librispeech, new", "train (train-clean-100)"): splits.train,
        ("librispeech, new", "validation (train-clean-100)"): splits.validation,
        ("librispeech, new", "test (test-other)"): splits.test,
    }
    subsets = corpora.subsets_of(splits, libri, ", new")
    assert {name: len(entries) for name, entries in subsets.items()} == {
        name: len(indices) for name, indices in names.items()
    }
    (together,) = corpora.entries_by_corpus(subsets).values()
    assert len(together) == len(splits.pack.entries)
    own = corpora.subsets_of(splits, p.dataset)
    assert [*own] == [("synthetic", s) for s in ("train", "validation", "test")]


def test_each_corpus_has_its_histograms(entries):
    figure = corpora.draw_corpora({"one": entries, "two": entries[:1]}, 10)
    one, two = figure.axes[:3], figure.axes[3:]
    heights = [sum(p.get_height() for p in axes.patches) for axes in (*one, *two)]
    assert heights == [4, 3, 3, 1, 1, 1]
    names = [text.get_text() for text in one[1].get_legend().get_texts()]
    assert names == ["1 women", "1 men", "1 gender unknown"]
    assert one[0].get_xlim() == two[0].get_xlim()
