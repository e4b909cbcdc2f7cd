"""Packing, splitting and batches: laws, hand-made cases, refusals."""

import itertools
import json
import math
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import dataset
from conftest import MIXTURE, SHARED, noise, write
from dataset import Splits, TrainingBatches, UtteranceBatches, prepare, split
from parameters import ParameterError, Parameters
from speech import packs
from speech.corpora import pack_key, utterances
from speech.packs import Entry, Pack
from speech.utterances import CorpusError
from transforms import FrontEnd

CPU = torch.device("cpu")


def made_up_pack(counts: dict[str, int], samples: int = 1000, **splits: str) -> Pack:
    """A pack whose sample values are their own places, so that crops can be traced."""
    entries, offset = [], 0
    for speaker, count in counts.items():
        for number in range(count):
            name = f"{speaker}-{number}"
            entries.append(
                Entry(name, speaker, splits.get(speaker), None, None, offset, samples)
            )
            offset += samples
    values = torch.arange(offset).remainder(30_000).to(torch.int16)
    return Pack(values, entries, 16_000, [], {})


@pytest.mark.parametrize("change", ["more", "renamed", "gone", "cut", "link"])
def test_pack_follows_the_corpus_from_run_to_run(tmp_path, shipped, change):
    root = tmp_path / "corpus"
    first, second, _ = (
        write(root / speaker / "x.wav", noise()[number : 4000 + number])
        for number, speaker in enumerate("abc")
    )
    p = shipped(
        "dataset.name=folder",
        f"dataset.root={root}",
        f"dataset.packs={tmp_path / 'packs'}",
        "dataset.test_fraction=0",
    )
    before = prepare(p.dataset, p.front_end).pack
    match change:
        case "more":
            shutil.copy(first, first.with_name("y.wav"))
        case "renamed":
            first.rename(first.with_name("y.wav"))
        case "cut":
            os.truncate(first, 4000)
        case _:
            first.unlink()
    if change == "link":
        first.symlink_to(second)
    after = prepare(p.dataset, p.front_end).pack
    assert after.digest != before.digest
    assert {entry.id for entry in after.entries} == {
        path.relative_to(root).as_posix() for path in root.glob("*/*.wav")
    }
    assert len(os.listdir(tmp_path / "packs")) == 1


def test_each_corpus_has_a_pack_of_its_own(shipped):
    keys = [
        pack_key(shipped(*overrides).dataset)
        for overrides in (
            ["dataset.name=synthetic"],
            ["dataset.name=librispeech"],
            ["dataset.name=vctk"],
            ["dataset.name=vctk", "dataset.vctk.microphone=mic1"],
            ["dataset.name=commonvoice"],
            ["dataset.name=commonvoice", "dataset.commonvoice.locales=[en]"],
            ["dataset.name=commonvoice", "dataset.commonvoice.min_utterances=3"],
            ["dataset.name=voxceleb1"],
            ["dataset.name=voxceleb1", "dataset.root=elsewhere"],
            ["dataset.name=folder"],
            ["dataset.name=manifest"],
            ["dataset.name=manifest", "dataset.manifest.train=other.json"],
            ["dataset.name=manifest", "dataset.manifest.test=other.json"],
        )
    ]
    assert len(set(map(json.dumps, keys))) == len(keys)


# One frame alone has no deviation, and a part of a hop is no frame.
@pytest.mark.parametrize(
    ("rate", "window", "hop", "shortest"),
    [
        (16_000, 0.025, 0.01, 400),
        (16_000, 0.064, 0.032, 1024),
        (16_000, 0.064, 0.064, 2048),
        (16_000, 0.02, 0.01011, 324),  # a hop of 161.76 samples
    ],
)
def test_utterances_too_short_for_the_front_end_are_skipped(
    tmp_path, shipped, rate, window, hop, shortest
):
    root = tmp_path / "corpus"
    for speaker, size in (("a", shortest), ("b", shortest), ("b", shortest - 1)):
        (root / speaker).mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(0).integers(-9000, 9000, size).astype(np.int16)
        soundfile.write(root / speaker / f"{size}.wav", samples, rate)
    p = shipped(
        "dataset.name=folder",
        f"dataset.root={root}",
        f"dataset.packs={tmp_path / 'packs'}",
        f"front_end.window_seconds={window}",
        f"front_end.hop_seconds={hop}",
        "front_end.n_fft=2048",
        "dataset.test_fraction=0",
    )
    packed = prepare(p.dataset, p.front_end).pack
    assert [entry.samples for entry in packed.entries] == [shortest, shortest]
    assert packed.warnings[0].startswith(f"skipped b/{shortest - 1}.wav: ")
    batches = UtteranceBatches(packed, range(2), 10, CPU)
    batch = next(iter(batches))
    features, frames = FrontEnd(p.front_end)(batch.waveforms, batch.lengths)
    assert frames.min() >= 2
    assert features.isfinite().all()


def test_synthetic_utterances_too_short_for_the_front_end_are_refused(miniature):
    p = miniature(
        "dataset.synthetic.min_seconds=0.5",
        "dataset.synthetic.max_seconds=0.6",
        "front_end.window_seconds=0.7",
        "front_end.hop_seconds=0.6",
        "front_end.n_fft=16384",
        "model.titanet.crop_seconds=[1.5]",
    )
    with pytest.raises(CorpusError, match=r"expected at least 1\.2 s, found 0\.5"):
        prepare(p.dataset, p.front_end)


def names(packed: Pack, indices: list[int]) -> set[str]:
    return {packed.entries[i].speaker for i in indices}


def test_split_deals_speakers_and_utterances(shipped):
    packed = made_up_pack({f"s{n:02}": 10 for n in range(20)})
    p = shipped("dataset.development_fraction=0.1").dataset
    splits = split(packed, p)
    assert len(names(packed, splits.test)) == 4
    assert len(names(packed, splits.development)) == 2
    assert len(splits.speakers) == 14
    assert names(packed, splits.train) == set(splits.speakers)
    assert names(packed, splits.validation) == set(splits.speakers)
    assert Counter(packed.entries[i].speaker for i in splits.validation) == Counter(
        splits.speakers
    )
    dealt = splits.train + splits.validation + splits.development + splits.test
    assert sorted(dealt) == list(range(200))
    assert split(packed, p) == splits


def test_validation_is_a_tenth_at_least_one_of_two_or_more(shipped):
    packed = made_up_pack({"one": 1, "two": 2, "thirty": 30})
    splits = split(packed, shipped("dataset.test_fraction=0").dataset)
    found = Counter(packed.entries[i].speaker for i in splits.validation)
    assert found == {"two": 1, "thirty": 3}


@pytest.mark.parametrize(("fraction", "validated"), [(0, 0), (0.5, 2), (1, 3)])
def test_validation_leaves_something_to_train_on(shipped, fraction, validated):
    packed = made_up_pack({"a": 4, "b": 4})
    overrides = f"dataset.validation_fraction={fraction}", "dataset.test_fraction=0"
    splits = split(packed, shipped(*overrides).dataset)
    assert len(splits.validation) == 2 * validated
    assert names(packed, splits.train) == {"a", "b"}


def test_speakers_that_the_corpus_names_stay_where_they_are(shipped):
    counts = {f"s{n}": 4 for n in range(10)}
    packed = made_up_pack(counts, s0="test", s1="test", s2="development", s3="train")
    splits = split(packed, shipped("dataset.development_fraction=0.5").dataset)
    assert names(packed, splits.test) == {"s0", "s1"}
    assert names(packed, splits.development) == {"s2"}
    assert splits.speakers == [f"s{n}" for n in range(3, 10)]


def named_for_validation(packed: Pack, *chosen: int) -> Pack:
    entries = [
        replace(entry, split="validation") if i in chosen else entry
        for i, entry in enumerate(packed.entries)
    ]
    return replace(packed, entries=entries)


def test_utterances_that_the_corpus_names_are_the_validation(shipped):
    packed = made_up_pack({"a": 4, "b": 4, "c": 4, "d": 2}, c="test", d="test")
    packed = named_for_validation(packed, 1, 2)
    for fraction in (0, 0.5):
        p = shipped(f"dataset.validation_fraction={fraction}").dataset
        splits = split(packed, p)
        assert sorted(splits.validation) == [1, 2]
        assert sorted(splits.train) == [0, 3, 4, 5, 6, 7]
        assert sorted(splits.test) == [8, 9, 10, 11, 12, 13]


def test_a_speaker_named_for_validation_alone_keeps_something_to_train_on(shipped):
    packed = named_for_validation(made_up_pack({"a": 3, "b": 1, "c": 2}), 0, 1, 2, 3)
    splits = split(packed, shipped("dataset.test_fraction=0").dataset)
    assert names(packed, splits.train) == {"a", "b", "c"}
    assert len(splits.validation) == 2


def test_speakers_held_out_are_held_out_whatever_is_named_for_validation(shipped):
    packed = made_up_pack(dict.fromkeys("abcdef", 2))
    packed = named_for_validation(packed, *range(0, 12, 2))
    splits = split(packed, shipped("dataset.test_fraction=0.5").dataset)
    assert len(splits.test) == 6
    assert len(splits.validation) == len(splits.train) == 3


def test_seed_of_the_dataset_chooses_who_is_held_out(shipped):
    packed = made_up_pack({f"s{n:02}": 4 for n in range(40)})
    held_out = [
        names(packed, split(packed, shipped(f"dataset.seed={seed}").dataset).test)
        for seed in (1, 2)
    ]
    assert held_out[0] != held_out[1]


@pytest.mark.parametrize("part", ["development", "test"])
def test_no_unseen_speaker_is_in_training(part):
    packed = made_up_pack({"a": 2, "b": 2})
    parts = {"train": [0, 2], "validation": [1], "development": [], "test": []}
    with pytest.raises(CorpusError, match="must not be in training, but b are"):
        Splits(packed, ["a", "b"], **{**parts, part: [3]})


@pytest.fixture
def batches(shipped):
    def build(counts: dict[str, int], samples: int, *overrides: str) -> TrainingBatches:
        p = shipped("dataset.test_fraction=0", "training.batch_size=4", *overrides)
        return TrainingBatches(split(made_up_pack(counts, samples), p.dataset), p, CPU)

    return build


def test_epoch_is_one_crop_of_every_training_utterance_in_equal_batches(batches):
    b = batches({f"s{n}": 11 for n in range(5)}, 60_000)
    for epoch in (0, 1):
        drawn = [batch.indices.tolist() for batch in b.epoch(epoch)]
        assert len({len(indices) for indices in drawn}) == 1
        seen = Counter(itertools.chain(*drawn))
        assert set(seen) == set(b.splits.train)
        # The last batch is filled up by as few as it takes, none of them its own.
        assert seen.total() - len(seen) < len(drawn)
        assert max(Counter(drawn[-1]).values()) == 1


def test_crops_are_stretches_of_their_own_utterance(batches):
    several = "model.titanet.crop_seconds=[1.5, 2.0, 3.0]"
    b = batches({"a": 8, "b": 8}, 60_000, several)
    entries, durations = b.splits.pack.entries, set()
    for epoch in range(10):
        for batch in b.epoch(epoch):
            assert batch.lengths is None
            durations.add(batch.crop)
            assert batch.waveforms.shape[1] == round(batch.crop * 1.05)
            for waveform, index in zip(batch.waveforms, batch.indices, strict=True):
                values = (waveform * 32768).int()
                assert (values.diff().remainder(30_000) == 1).all()
                offset = (values[0] - entries[index].offset).remainder(30_000)
                assert offset + len(values) <= 60_000
    assert durations == {24_000, 32_000, 48_000}


def test_crops_are_no_longer_than_needed_where_speed_stays(batches):
    b = batches({"a": 8, "b": 8}, 60_000, "augmentation.speed.probability=0")
    assert all(batch.waveforms.shape[1] == batch.crop for batch in b.epoch(0))


def test_speakers_are_places_in_the_list_of_speakers(batches):
    b = batches({"a": 8, "b": 8, "c": 8}, 1000)
    for batch in b.epoch(0):
        expected = [b.splits.pack.entries[i].speaker for i in batch.indices]
        assert [b.splits.speakers[c] for c in batch.speakers] == expected


def test_short_utterances_repeat_to_fill_a_crop(batches):
    b = batches({"a": 8, "b": 8}, 1000)
    for batch in b.epoch(0):
        periods = batch.waveforms.unfold(1, 1000, 1000)
        assert torch.equal(periods, periods[:, :1].expand_as(periods))


def test_batches_are_a_function_of_seed_epoch_and_number(batches):
    counts = {"a": 20, "b": 20}
    b, same = batches(counts, 60_000), batches(counts, 60_000)
    other = batches(counts, 60_000, "seed=2")
    list(b.epoch(0))  # what was drawn before must not matter
    first, second = list(b.epoch(3)), list(same.epoch(3))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.waveforms, two.waveforms)
        assert one.seed == two.seed
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
    counts = {f"s{n}": 7 + n for n in range(9)}
    b = batches(
        counts,
        1000,
        "loss.name=ge2e",
        "loss.ge2e.speakers_per_batch=4",
        "loss.ge2e.utterances_per_speaker=3",
    )
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
    plan, epochs = TrainingBatches._plan, []

    def counted(self, epoch: int) -> list:
        epochs.append(epoch)
        return plan(self, epoch)

    monkeypatch.setattr(TrainingBatches, "_plan", counted)
    lengths = [len(b) for _ in b.epoch(3)]
    assert lengths == [len(lengths)] * len(lengths)
    assert epochs == [3]


def test_whole_utterances_by_length(shipped):
    rng = np.random.default_rng(0)
    entries, offset = [], 0
    for number, samples in enumerate(rng.integers(1000, 90_000, 40).tolist()):
        entries.append(Entry(str(number), "a", None, None, None, offset, samples))
        offset += samples
    samples = torch.from_numpy(rng.integers(-99, 99, offset).astype(np.int16))
    packed = Pack(samples, entries, 16_000, [], {})
    batches = UtteranceBatches(packed, range(5, 40), 10, CPU)
    seen = []
    for batch in batches:
        assert batch.waveforms.numel() <= 160_000
        for row, length, index in zip(
            batch.waveforms, batch.lengths, batch.indices, strict=True
        ):
            entry = entries[index]
            expected = samples[entry.offset :][: entry.samples] / 32768
            assert torch.equal(row[:length], expected)
            assert not row[length:].any()
            seen.append(int(index))
    assert sorted(seen) == list(range(5, 40))
    assert len(UtteranceBatches(packed, range(40), 0.01, CPU)) == 40


def test_windows_of_long_utterances_cover_them_and_overlap():
    rate, durations = 2, [5, 120, 121, 171, 10_800]  # Hz, seconds
    entries, places = [], []
    for number, seconds in enumerate(durations):
        offset = sum(map(len, places))
        entries.append(
            Entry(f"{number}", "a", None, None, None, offset, rate * seconds)
        )
        places.append(torch.arange(rate * seconds))
    packed = Pack(torch.cat(places).short(), entries, rate, [], {})
    begins = [[] for _ in durations]
    for batch in UtteranceBatches(packed, range(len(durations)), 130, CPU):
        assert batch.waveforms.numel() <= rate * 130
        for row, length, index in zip(
            batch.waveforms * 32768, batch.lengths, batch.indices, strict=True
        ):
            assert torch.equal(row[:length], row[0] + torch.arange(length))
            assert length == rate * (60 if durations[index] > 120 else durations[index])
            begins[index].append(int(row[0]))
    assert begins[:3] == [[0], [0], [0, 61, 122]]
    assert begins[3] == [0, 74, 148, 222]
    gaps = np.diff(begins[4])
    assert (begins[4][0], begins[4][-1]) == (0, rate * (10_800 - 60))
    assert gaps.min() > 0
    assert gaps.max() <= rate * 50


def test_prepare_packs_each_corpus_once(miniature, monkeypatch):
    p = miniature()
    splits = prepare(p.dataset, p.front_end)
    assert len(splits.speakers) == 6
    assert len(splits.test) == 10
    monkeypatch.setattr(packs, "load_recording", None)
    assert prepare(p.dataset, p.front_end).train == splits.train
    assert len(os.listdir(p.dataset.packs)) == 1
    index = next(p.dataset.packs.glob("*/index.json"))
    assert len(json.loads(index.read_text())["entries"]) == 40


class TestMixture:
    @pytest.fixture
    def mixture(self, miniature):
        """Parameters of a mixture, and of each of its corpora alone."""

        def load(*overrides: str) -> tuple[Parameters, dict[str, Parameters]]:
            whole = miniature(*MIXTURE, *overrides)
            alone = {
                label: whole.model_copy(update={"dataset": corpus})
                for label, corpus in whole.dataset.corpora.items()
            }
            return whole, alone

        return load

    def test_each_corpus_is_packed_and_split_as_it_is_alone(self, mixture):
        whole, alone = mixture()
        splits = prepare(whole.dataset, whole.front_end)
        entries = splits.pack.entries
        assert len(os.listdir(whole.dataset.packs)) == 1
        assert {entry.corpus for entry in entries} == {"one", "two"}
        ends = [entry.offset + entry.samples for entry in entries]
        assert [0, *ends] == [
            *(entry.offset for entry in entries),
            len(splits.pack.samples),
        ]
        for label, p in alone.items():
            expected = prepare(p.dataset, p.front_end)
            assert splits.pack.digests[label] == expected.pack.digest
            own = [s for s in splits.speakers if s.startswith(f"{label}/")]
            assert own == [f"{label}/{s}" for s in expected.speakers]
            for name in ("train", "validation", "development", "test"):
                indices = splits.by_corpus(name).get(f"{name}/{label}", [])
                unlabelled = expected.by_corpus(name).get(name, [])
                assert len(indices) == len(unlabelled)
                for i, j in zip(indices, unlabelled, strict=True):
                    a, b = entries[i], expected.pack.entries[j]
                    assert a.id == f"{label}/{b.id}"
                    assert a.speaker == f"{label}/{b.speaker}"
                    assert torch.equal(
                        splits.pack.samples[a.offset : a.offset + a.samples],
                        expected.pack.samples[b.offset : b.offset + b.samples],
                    )
        assert [*splits.by_corpus("development")] == ["development/two"]
        assert [*splits.by_corpus("test")] == ["test/one", "test/two"]
        assert "\ntest/two" in splits.summary()

    def test_digest_changes_with_each_corpus(self, mixture):
        digests = set()
        for label, weight, seed in (("a", 1, 1), ("a", 2, 1), ("b", 1, 1), ("a", 1, 2)):
            corpus = f"label: {label}, weight: {weight}, name: synthetic, seed: {seed}"
            p, _ = mixture(f"dataset.mixture=[{{{corpus}}}]")
            digests.add(prepare(p.dataset, p.front_end).pack.digest)
        assert len(digests) == 3

    @pytest.mark.parametrize("weight", [0.25, 1, 2, 2.5])
    def test_an_epoch_draws_an_utterance_as_often_as_it_weighs(self, shipped, weight):
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
            own = [drawn[i] for i in splits.train if entries[i].corpus == "b"]
            assert set(own) <= {math.floor(weight), math.ceil(weight)}
            often.append(own)
        assert np.abs(np.mean(often, 0) - weight).max() < 0.3  # nobody is left out

    def test_equal_weights_are_the_plan_of_one_corpus(self, shipped, batches):
        b = batches({"a": 8, "b": 9}, 60_000)
        for epoch in range(3):
            order = np.random.default_rng([1, epoch]).permutation(len(b.splits.train))
            plan = np.concatenate(b._plan(epoch))
            assert np.array_equal(plan, np.resize(order, len(plan)))

    def test_whole_weights_under_ge2e(self, mixture):
        corpora = (
            "[{label: one, weight: 1, name: synthetic},"
            "{label: two, weight: 2, name: synthetic, seed: 2}]"
        )
        p, _ = mixture("loss.name=ge2e", f"dataset.mixture={corpora}")
        splits = prepare(p.dataset, p.front_end)
        batches = TrainingBatches(splits, p, CPU)
        drawn = Counter(splits.train[i] for i in np.concatenate(batches._plan(0)))
        own = [drawn[i] for i in splits.train if splits.pack.entries[i].corpus == "two"]
        assert min(own) == 2  # groups are filled up
        with pytest.raises(ParameterError, match="mixture: expected whole weights"):
            mixture(
                "loss.name=ge2e", f"dataset.mixture={corpora.replace('2,', '1.5,')}"
            )


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="wants ../shared/data")
def test_three_corpora_of_real_speech(tmp_path, shipped):
    data = SHARED / "data"
    p = shipped(
        "dataset.name=mixture",
        f"dataset.root={data}",
        f"dataset.packs={tmp_path}",
        "dataset.mixture=[{label: libri, weight: 1, name: librispeech},"
        f"{{label: so, weight: 1, name: folder, root: {data / 'speechocean762'}}},"
        f"{{label: cv, weight: 2, name: folder, root: {data / 'commonvoice'},"
        "development_fraction: 0.05}]",
    )
    found = utterances(p.dataset)
    speakers = {
        (label, name): len(
            {u.speaker for u in found if (u.corpus, u.split) == (label, name)}
        )
        for label in ("libri", "so", "cv")
        for name in ("train", "test")
    }
    assert list(speakers.values()) == [251, 10, 125, 62, 983, 129]
    assert len({u.id for u in found}) == len(found)
