"""Splits and batches: laws, hand-made cases, refusals."""

import itertools
import json
import math
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import dataset
from conftest import CPU, MIXTURE, noise, write
from dataset import Splits, TrainingBatches, UtteranceBatches, prepare, split
from parameters import ParameterError, Parameters
from speech import packs
from speech.packs import Entry, Pack
from speech.utterances import CorpusError
from transforms import FrontEnd


def pack_of(lengths: dict[str, int], rate: int = 16_000, **splits: str) -> Pack:
    """A pack of utterances named `<speaker>-<number>`; its sample values are their own
    places, so that crops can be traced. `splits` are of utterances or of speakers."""
    entries, offset = [], 0
    for name, samples in lengths.items():
        speaker = name.rpartition("-")[0]
        chosen = splits.get(name) or splits.get(speaker)
        entries.append(Entry(name, speaker, chosen, None, None, offset, samples))
        offset += samples
    values = torch.arange(offset).remainder(29_989).to(torch.int16)
    return Pack(values, entries, rate, [], {})


def made_up_pack(counts: dict[str, int], samples: int = 1000, **splits: str) -> Pack:
    """A pack of so many utterances of each speaker, all of one length."""
    names = [f"{speaker}-{n}" for speaker in counts for n in range(counts[speaker])]
    return pack_of(dict.fromkeys(names, samples), **splits)


@pytest.fixture
def folder(tmp_path, shipped):
    """Prepare a folder of speakers, none held out."""

    def run(**front_end: float) -> tuple[Parameters, Pack]:
        p = shipped(
            "dataset.name=folder",
            f"dataset.root={tmp_path / 'corpus'}",
            f"dataset.packs={tmp_path / 'packs'}",
            "dataset.test_fraction=0",
            *(f"front_end.{name}={value}" for name, value in front_end.items()),
        )
        return p, prepare(p.dataset, p.front_end).pack

    return run


def test_each_corpus_is_packed_once(miniature, monkeypatch):
    p = miniature()
    splits = prepare(p.dataset, p.front_end)
    assert len(splits.speakers) == 6
    assert len(splits.test) == 10
    monkeypatch.setattr(packs, "load_recording", None)
    assert prepare(p.dataset, p.front_end).train == splits.train
    assert len(os.listdir(p.dataset.packs)) == 1
    index = next(p.dataset.packs.glob("*/index.json"))
    assert len(json.loads(index.read_text())["entries"]) == 40


def test_pack_follows_the_corpus_from_run_to_run(tmp_path, folder):
    root = tmp_path / "corpus"
    one, *_ = (
        write(root / speaker / "x.wav", noise()[number : 4000 + number])
        for number, speaker in enumerate("abc")
    )
    elsewhere = write(tmp_path / "x.wav", noise()[9:4009])
    other, digests = one.with_name("y.wav"), []
    for change in (
        lambda: None,
        lambda: shutil.copy(one, other),
        lambda: one.unlink(),
        lambda: other.rename(one),  # as at first
        lambda: os.truncate(one, 4000),
        lambda: (one.unlink(), one.symlink_to(elsewhere)),
    ):
        change()
        _, packed = folder()
        files = {path.relative_to(root).as_posix() for path in root.glob("*/*.wav")}
        assert {entry.id for entry in packed.entries} == files
        assert len(os.listdir(tmp_path / "packs")) == 1
        digests.append(packed.digest)
    assert digests[0] == digests[3]
    assert len(set(digests)) == 5


# One frame alone has no deviation, and a part of a hop is no frame: in ms and samples.
@pytest.mark.parametrize(
    ("window", "hop", "least"),
    [(25, 10, 400), (64, 32, 1024), (64, 64, 2048), (20, 10.11, 324)],
)
def test_too_short_for_the_front_end_is_skipped(tmp_path, folder, window, hop, least):
    for begin, (speaker, size) in enumerate(
        (("a", least), ("b", least), ("b", least - 1))
    ):
        sound = noise()[begin : begin + size]
        write(tmp_path / "corpus" / speaker / f"{size}.wav", sound)
    p, packed = folder(window_seconds=window / 1e3, hop_seconds=hop / 1e3, n_fft=2048)
    assert [entry.samples for entry in packed.entries] == [least, least]
    assert packed.warnings[0].startswith(f"skipped b/{least - 1}.wav: ")
    batch = next(iter(UtteranceBatches(packed, range(2), 10, CPU)))
    features, frames = FrontEnd(p.front_end)(batch.waveforms, batch.lengths)
    assert frames.min() >= 2
    assert features.isfinite().all()


def test_synthetic_utterances_too_short_for_the_front_end_are_refused(miniature):
    p = miniature(
        "dataset.synthetic={min_seconds: 0.5, max_seconds: 0.6}",
        "front_end={window_seconds: 0.7, hop_seconds: 0.6, n_fft: 16384}",
        "model.titanet.crop_seconds=[1.5]",
    )
    with pytest.raises(CorpusError, match=r"at least 1\.2 s, found 0\.5"):
        prepare(p.dataset, p.front_end)


@pytest.fixture
def split_pack(shipped):
    """Split a pack, with no test speakers unless asked for."""

    def run(packed: Pack, **changes: float) -> Splits:
        changes = {"test_fraction": 0} | changes
        overrides = [f"dataset.{name}={value}" for name, value in changes.items()]
        return split(packed, shipped(*overrides).dataset)

    return run


def test_split_deals_speakers_and_utterances(split_pack):
    packed = made_up_pack({f"s{n:02}": 10 for n in range(20)})
    fractions = {"test_fraction": 0.2, "development_fraction": 0.1}
    splits = split_pack(packed, **fractions)
    assert len(set(splits.speakers_of(splits.test))) == 4
    assert len(set(splits.speakers_of(splits.development))) == 2
    assert len(splits.speakers) == 14
    assert set(splits.speakers_of(splits.train)) == set(splits.speakers)
    assert sorted(splits.speakers_of(splits.validation)) == splits.speakers
    classes = [splits.speakers.index(s) for s in splits.speakers_of(splits.train)]
    assert splits.classes_of(splits.train) == classes
    dealt = splits.train + splits.validation + splits.development + splits.test
    assert sorted(dealt) == list(range(200))
    assert split_pack(packed, **fractions) == splits
    other = split_pack(packed, **fractions, seed=2)
    assert set(other.speakers).symmetric_difference(splits.speakers)


@pytest.mark.parametrize(
    ("fraction", "validated"),
    [(0, {}), (0.1, {"two": 1, "many": 3}), (1, {"two": 1, "many": 29})],
)
def test_validation_leaves_something_to_train_on(split_pack, fraction, validated):
    packed = made_up_pack({"one": 1, "two": 2, "many": 30})
    splits = split_pack(packed, validation_fraction=fraction)
    assert Counter(splits.speakers_of(splits.validation)) == validated
    assert set(splits.speakers_of(splits.train)) == {"one", "two", "many"}


def test_speakers_that_the_corpus_names_stay_where_they_are(split_pack):
    named = {"s0": "test", "s1": "test", "s2": "development", "s3": "train"}
    packed = made_up_pack({f"s{n}": 4 for n in range(10)}, **named)
    splits = split_pack(packed, test_fraction=0.2, development_fraction=0.5)
    assert set(splits.speakers_of(splits.test)) == {"s0", "s1"}
    assert set(splits.speakers_of(splits.development)) == {"s2"}
    assert splits.speakers == [f"s{n}" for n in range(3, 10)]


@pytest.mark.parametrize("fraction", [0, 0.5])
def test_utterances_that_the_corpus_names_are_the_validation(split_pack, fraction):
    named = {"a-1": "validation", "a-2": "validation", "c": "test"}
    packed = made_up_pack({"a": 4, "b": 4, "c": 4}, **named)
    splits = split_pack(packed, test_fraction=0.2, validation_fraction=fraction)
    found = [sorted(i) for i in (splits.train, splits.validation, splits.test)]
    assert found == [[0, 3, 4, 5, 6, 7], [1, 2], [8, 9, 10, 11]]
    # Everybody is trained on, or held out, whatever is named for validation.
    named = dict.fromkeys(("a-0", "a-1", "a-2", "b-0"), "validation")
    splits = split_pack(made_up_pack({"a": 3, "b": 1, "c": 2}, **named))
    assert set(splits.speakers_of(splits.train)) == {"a", "b", "c"}
    assert len(splits.validation) == 2
    named = {f"{speaker}-0": "validation" for speaker in "abcdef"}
    packed = made_up_pack(dict.fromkeys("abcdef", 2), **named)
    splits = split_pack(packed, test_fraction=0.5)
    assert [len(splits.test), len(splits.validation), len(splits.train)] == [6, 3, 3]


def test_the_same_recording_counts_once(split_pack, shipped):
    whole = made_up_pack(dict.fromkeys("abcd", 3))
    entries, samples = whole.entries, whole.samples.clone()
    for copy, first in ((1, 0), (8, 7)):
        place = slice(entries[copy].offset, entries[copy].offset + 1000)
        samples[place] = samples[entries[first].offset :][:1000]
    splits = split_pack(replace(whole, samples=samples), test_fraction=0.5)
    dealt = splits.train + splits.validation + splits.test
    assert sorted(dealt) == [0, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert [line.split(":")[0] for line in splits.pack.warnings] == ["a-1", "c-2"]
    speakers = [replace(entry, speaker=entry.id) for entry in entries]
    with pytest.raises(CorpusError, match=r"2 under two: a-0 .* a-1, c-1 .* c-2; "):
        split_pack(replace(whole, samples=samples, entries=speakers))
    whole = replace(whole, samples=samples, entries=speakers)
    unlabelled = shipped().dataset.model_copy(update={"labelled": False})
    assert len(split(whole, unlabelled).unlabelled) == 10


@pytest.mark.parametrize("name", ["development", "test"])
def test_no_unseen_speaker_is_in_training(name):
    indices = {"train": [0, 2], "validation": [1], "development": [], "test": []}
    with pytest.raises(CorpusError, match=r"got b$"):
        Splits(made_up_pack({"a": 2, "b": 2}), ["a", "b"], **{**indices, name: [3]})


@pytest.fixture
def batches(shipped):
    def build(counts: dict[str, int], samples: int, *overrides: str) -> TrainingBatches:
        p = shipped("dataset.test_fraction=0", "training.batch_size=4", *overrides)
        return TrainingBatches(split(made_up_pack(counts, samples), p.dataset), p, CPU)

    return build


def test_epoch_is_one_crop_of_every_training_utterance_in_equal_batches(batches):
    b = batches({f"s{n}": 11 for n in range(5)}, 60_000)
    for epoch in (0, 1):
        order = np.random.default_rng([1, epoch]).permutation(len(b.splits.train))
        plan = np.concatenate(b._plan(epoch))
        assert np.array_equal(plan, np.resize(order, len(plan)))
        drawn = [batch.indices.tolist() for batch in b.epoch(epoch)]
        assert len({len(indices) for indices in drawn}) == 1
        seen = Counter(itertools.chain(*drawn))
        assert set(seen) == set(b.splits.train)
        # The last batch is filled up by as few as it takes, none of them its own.
        assert seen.total() - len(seen) < len(drawn)
        assert max(Counter(drawn[-1]).values()) == 1


def test_crops_are_stretches_of_their_own_utterance(batches):
    b = batches({"a": 8, "b": 8}, 60_000, "model.titanet.crop_seconds=[1.5, 2.0, 3.0]")
    entries, durations = b.splits.pack.entries, set()
    for batch in (batch for epoch in range(10) for batch in b.epoch(epoch)):
        assert batch.lengths is None
        durations.add(batch.crop)
        assert batch.waveforms.shape[1] == round(batch.crop * 1.05)
        for waveform, index in zip(batch.waveforms, batch.indices, strict=True):
            values = (waveform * 32768).int()
            assert (values.diff().remainder(29_989) == 1).all()
            offset = (values[0] - entries[index].offset).remainder(29_989)
            assert offset + len(values) <= 60_000
    assert durations == {24_000, 32_000, 48_000}


def test_short_utterances_repeat_to_fill_a_crop_of_their_speaker(batches):
    """The crop is no longer than needed where speed stays."""
    b = batches({"a": 8, "b": 8, "c": 8}, 1000, "augmentation.speed.probability=0")
    for batch in b.epoch(0):
        assert batch.waveforms.shape[1] == batch.crop
        periods = batch.waveforms.unfold(1, 1000, 1000)
        assert torch.equal(periods, periods[:, :1].expand_as(periods))
        expected = b.splits.speakers_of(batch.indices)
        assert [b.splits.speakers[c] for c in batch.speakers] == expected


def test_batches_are_a_function_of_seed_epoch_and_number(batches):
    counts = {"a": 20, "b": 20}
    b, same, other = (batches(counts, 60_000, f"seed={seed}") for seed in (1, 1, 2))
    list(b.epoch(0))  # what was drawn before must not matter
    first, second = list(b.epoch(3)), list(same.epoch(3))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.waveforms, two.waveforms)
        assert one.seed == two.seed
    assert torch.equal(next(b.epoch(3, first=2)).waveforms, first[2].waveforms)
    assert first[0].seed != next(other.epoch(3)).seed
    assert len({batch.seed for batch in first}) == len(first)
    assert first[0].indices.tolist() != next(b.epoch(4)).indices.tolist()


@pytest.mark.parametrize("count", range(2, 20))
@pytest.mark.parametrize("batch_size", [2, 3, 4, 7])
def test_no_batch_of_one(count, batch_size):
    parts = dataset._even_parts(np.arange(count), batch_size)
    assert np.array_equal(np.concatenate(parts), np.arange(count))
    assert min(map(len, parts)) >= 2
    assert max(map(len, parts)) <= max(batch_size, 3)


def test_ge2e_batches_hold_several_utterances_of_each_speaker(batches):
    sizes = "loss.ge2e={speakers_per_batch: 4, utterances_per_speaker: 3}"
    b = batches({f"s{n}": 7 + n for n in range(9)}, 1000, "loss.name=ge2e", sizes)
    seen = set()
    for batch in b.epoch(0):
        found = Counter(batch.speakers.tolist())
        assert set(found.values()) == {3}
        assert 2 <= len(found) <= 4
        seen |= set(batch.indices.tolist())
    assert seen == set(b.splits.train)
    assert len(list(b.epoch(0))) == len(b)


@pytest.mark.parametrize("loss", ["arcface", "ge2e"])
def test_an_epoch_is_planned_once(batches, monkeypatch, loss):
    b = batches({f"s{n}": 6 + n for n in range(4)}, 1000, f"loss.name={loss}")
    plan, epochs = b._plan, []
    monkeypatch.setattr(b, "_plan", lambda epoch: epochs.append(epoch) or plan(epoch))
    lengths = [len(b) for _ in b.epoch(3)]
    assert lengths == [len(lengths)] * len(lengths)
    assert epochs == [3]


def rows_of(batch):
    return zip(batch.waveforms * 32768, batch.lengths, batch.indices, strict=True)


def test_whole_utterances_by_length():
    lengths = np.random.default_rng(0).integers(1000, 90_000, 40).tolist()
    packed = pack_of({f"a-{number}": size for number, size in enumerate(lengths)})
    seen = []
    for batch in UtteranceBatches(packed, range(5, 40), 10, CPU):
        assert batch.waveforms.numel() <= 160_000
        for row, length, index in rows_of(batch):
            entry = packed.entries[index]
            expected = packed.samples[entry.offset :][: entry.samples]
            assert torch.equal(row[:length], expected.float())
            assert not row[length:].any()
            seen.append(int(index))
    assert sorted(seen) == list(range(5, 40))
    assert len(UtteranceBatches(packed, range(40), 0.01, CPU)) == 40


def test_windows_of_long_utterances_cover_them_and_overlap():
    rate, durations = 2, [5, 120, 121, 171, 10_800]  # Hz, seconds
    packed = pack_of({f"a-{n}": rate * s for n, s in enumerate(durations)}, rate)
    begins = [[] for _ in durations]
    for batch in UtteranceBatches(packed, range(len(durations)), 130, CPU):
        assert batch.waveforms.numel() <= rate * 130
        for row, length, index in rows_of(batch):
            assert torch.equal(row[:length], row[0] + torch.arange(length))
            assert length == rate * (60 if durations[index] > 120 else durations[index])
            begins[index].append(int(row[0]) - packed.entries[index].offset)
    assert begins[:4] == [[0], [0], [0, 61, 122], [0, 74, 148, 222]]
    gaps = np.diff(begins[4])
    assert (begins[4][0], begins[4][-1]) == (0, rate * (10_800 - 60))
    assert gaps.min() > 0
    assert gaps.max() <= rate * 50


def test_each_corpus_is_packed_and_split_as_it_is_alone(miniature):
    p = miniature(*MIXTURE)
    splits = prepare(p.dataset, p.front_end)
    entries, samples = splits.pack.entries, splits.pack.samples
    assert len(os.listdir(p.dataset.packs)) == 1
    assert {entry.corpus for entry in entries} == {"one", "two"}
    ends = [0, *(entry.offset + entry.samples for entry in entries)]
    assert ends == [*(entry.offset for entry in entries), len(samples)]
    for label, corpus in p.dataset.corpora.items():
        expected = prepare(corpus, p.front_end)
        assert splits.pack.digests[label] == expected.pack.digest
        labelled = [s for s in splits.speakers if s.startswith(f"{label}/")]
        assert labelled == [f"{label}/{s}" for s in expected.speakers]
        for name in ("train", "validation", "development", "test"):
            indices = splits.by_corpus(name).get(f"{name}/{label}", [])
            unlabelled = expected.by_corpus(name).get(name, [])
            for i, j in zip(indices, unlabelled, strict=True):
                a, b = entries[i], expected.pack.entries[j]
                assert (a.id, a.speaker) == (f"{label}/{b.id}", f"{label}/{b.speaker}")
                alone = expected.pack.samples[b.offset :][: b.samples]
                assert torch.equal(samples[a.offset :][: a.samples], alone)
    assert [*splits.by_corpus("development")] == ["development/two"]
    assert [*splits.by_corpus("test")] == ["test/one", "test/two"]
    assert "\ntest/two" in splits.summary()


def test_digest_changes_with_each_corpus(miniature):
    digests = set()
    for label, weight, seed in (("a", 1, 1), ("a", 2, 1), ("b", 1, 1), ("a", 1, 2)):
        corpus = f"label: {label}, weight: {weight}, name: synthetic, seed: {seed}"
        p = miniature(*MIXTURE, f"dataset.mixture=[{{{corpus}}}]")
        digests.add(prepare(p.dataset, p.front_end).pack.digest)
    assert len(digests) == 3  # the weight changes nothing


@pytest.mark.parametrize("weight", [0.25, 1, 2, 2.5])
def test_an_epoch_draws_an_utterance_as_often_as_it_weighs(shipped, weight):
    p = shipped(
        "dataset.name=mixture",
        "dataset.test_fraction=0",
        "training.batch_size=4",
        "dataset.mixture=[{label: a, weight: 1, name: folder},"
        f"{{label: b, weight: {weight}, name: folder}}]",
    )
    packed = made_up_pack({"a/x": 12, "a/y": 12, "b/x": 15, "b/y": 15})
    entries = [replace(e, corpus=e.id[0]) for e in packed.entries]
    splits = split(replace(packed, entries=entries), p.dataset)
    batches = TrainingBatches(splits, p, CPU)
    assert len(splits.train) == 2 * 11 + 2 * 13
    often = []
    for epoch in range(40):
        plan = batches._plan(epoch)
        order = np.concatenate(plan)[: 22 + round(weight * 26)]  # then again
        drawn = Counter(splits.train[i] for i in order)
        assert len(plan) == len(batches)
        assert all(drawn[i] == 1 for i in splits.train if entries[i].corpus == "a")
        weighted = [drawn[i] for i in splits.train if entries[i].corpus == "b"]
        assert set(weighted) <= {math.floor(weight), math.ceil(weight)}
        often.append(weighted)
    assert np.abs(np.mean(often, 0) - weight).max() < 0.3  # nobody is left out


def test_whole_weights_under_ge2e(miniature):
    p = miniature(*MIXTURE, "loss.name=ge2e", MIXTURE[-1].replace("1.5", "2"))
    splits = prepare(p.dataset, p.front_end)
    plan = TrainingBatches(splits, p, CPU)._plan(0)
    drawn = Counter(splits.train[i] for i in np.concatenate(plan))
    in_second = splits.by_corpus("train")["train/two"]
    assert min(drawn[i] for i in in_second) == 2  # groups are filled up
    with pytest.raises(ParameterError, match=r"mixture: .*1\.5"):
        miniature(*MIXTURE, "loss.name=ge2e")


def test_who_is_held_out_does_not_depend_on_a_file_that_cannot_be_used(shipped):
    p = shipped("dataset.test_fraction=0.3", "dataset.development_fraction=0.2").dataset
    counts = {f"s{n}": 3 for n in range(12)}
    whole = split(made_up_pack(counts), p)
    (*_, silent) = whole.speakers
    del counts[silent]
    left = replace(made_up_pack(counts), skipped=[("", silent, None)] * 3)
    found = split(left, p)
    assert found.speakers == whole.speakers[:-1]
    for name in ("development", "test"):
        speakers = [set(s.speakers_of(getattr(s, name))) for s in (found, whole)]
        assert speakers[0] == speakers[1]
