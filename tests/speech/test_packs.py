"""Packs: decoded once, made again when a source changes, whole or not there."""

import errno
import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from conftest import CPU, RATE, interrupt, noise, write
from speech import packs
from speech.audio import Segment
from speech.packs import Pack, SoundBank, pack
from speech.utterances import CorpusError, Utterance


@pytest.fixture
def corpus(tmp_path) -> list[Utterance]:
    """Three files of three speakers, of 4000, 4001 and 4002 samples."""
    made = []
    for number, name in enumerate("abc"):
        samples = noise()[number : 4000 + 2 * number]
        path = write(tmp_path / "corpus" / name / "x.wav", samples)
        made.append(Utterance(f"{name}/x.wav", name, path, None, "f", f"day {number}"))
    return made


@pytest.fixture
def home(tmp_path):
    return tmp_path / "packs"


@pytest.fixture
def place(home):
    """Where a pack named x lies."""
    return home / f"x-{RATE}-0.025"


@pytest.fixture
def index(place):
    return place / "index.json"


@pytest.fixture
def packed(home):
    """Pack a corpus, always into the same folder."""

    def run(corpus: list[Utterance], **changes: float) -> Pack:
        return pack(corpus, home / "x", **({"sample_rate": RATE} | changes))

    return run


def test_every_sample_and_every_field(corpus, packed):
    made = packed(corpus)
    assert [entry.samples for entry in made.entries] == [4000, 4001, 4002]
    for utterance, entry in zip(corpus, made.entries, strict=True):
        expected, _ = soundfile.read(utterance.source, dtype="int16")
        stored = made.samples[entry.offset : entry.offset + entry.samples]
        assert np.array_equal(stored.numpy(), expected)
        for name in ("id", "speaker", "split", "gender", "session"):
            assert getattr(entry, name) == getattr(utterance, name)


def test_opened_not_made_again_and_packed_one_after_another(
    corpus, packed, monkeypatch
):
    decoded, load = [], packs.load_recording

    def noted(source, *options):
        decoded.append(source)
        time.sleep(0.1)
        return load(source, *options)

    monkeypatch.setattr(packs, "load_recording", noted)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(packed, [corpus] * 4))
    made.append(packed(corpus))
    assert sorted(decoded) == sorted(u.source for u in corpus)  # once each
    for other in made[1:]:
        assert other.entries == made[0].entries
        assert torch.equal(other.samples, made[0].samples)


def test_made_again_when_a_source_changes(corpus, packed, home):
    first, *others = corpus
    segment = Segment(first.source, 0.05, 0.1)
    fingerprints = []
    for change in (
        lambda: packed(corpus),
        lambda: packed(others),
        lambda: packed(corpus, sample_rate=8000),
        lambda: packed(corpus, min_seconds=4001 / RATE),
        lambda: packed([replace(first, speaker="d"), *others]),
        lambda: packed([replace(first, session="d"), *others]),
        lambda: packed([replace(first, source=segment), *others]),
        lambda: packed([replace(first, source=replace(segment, offset=0)), *others]),
        lambda: packed([replace(first, source=replace(segment, duration=1)), *others]),
        lambda: (write(first.source, np.zeros(5000, np.int16)), packed(corpus)),
        lambda: (os.utime(first.source, (1, 1)), packed(corpus)),
    ):
        change()
        written = max(
            home.glob("x-*/index.json"), key=lambda path: path.stat().st_mtime_ns
        )
        fingerprints.append(json.loads(written.read_text())["fingerprint"])
    assert len(set(fingerprints)) == 11


def test_bad_files_are_skipped_and_listed(tmp_path, corpus, packed):
    corpus[0].source.write_text("no audio")
    corpus[1].source.unlink()
    corpus[1].source.symlink_to(tmp_path / "nowhere")
    made = packed(corpus)
    assert [entry.speaker for entry in made.entries] == ["c"]
    for name, warning in zip("ab", made.warnings, strict=True):
        assert warning.startswith(f"skipped {name}/x.wav: ")
    assert packed(corpus).warnings == made.warnings


def test_silence_is_skipped_and_doubts_are_listed_by_kind(tmp_path, corpus, packed):
    before = packed(corpus[1:]).digest
    write(corpus[0].source, np.zeros(4000, np.int16))
    assert packed(corpus).digest == before
    assert packed(corpus).warnings == ["skipped a/x.wav: expected sound, found silence"]
    with pytest.raises(CorpusError, match="silence"):
        pack(corpus[:1], tmp_path / "noise", RATE, is_speech=False)
    for name in "bd":
        path = write(corpus[0].source.with_name(f"{name}.wav"), noise() + 9000)
        corpus.append(replace(corpus[0], id=name, source=path))
    _skipped, *doubts = packed(corpus).warnings
    assert [line[:14] for line in doubts] == [
        *("b: DC offset, ", "b: steady like"),
        *("d: DC offset, ", "d: steady like"),
    ]


@pytest.mark.parametrize("segment", [False, True])
def test_digest_is_that_of_what_is_said(tmp_path, corpus, packed, segment):
    if segment:
        corpus = [replace(u, source=Segment(u.source, 0.05, 0.1)) for u in corpus]
    made = packed(corpus)
    assert pack(corpus, tmp_path / "other", RATE).digest == made.digest
    assert pack(corpus[1:], tmp_path / "other", RATE).digest != made.digest
    source = corpus[0].source
    write(source.path if segment else source, noise()[::-1][:4000])
    after = packed(corpus)
    assert after.entries == made.entries
    assert after.digest != made.digest


@pytest.mark.parametrize(
    ("labels", "splits", "bad", "said"),
    [
        (["", "", ""], [None] * 3, "abc", "none of the 3 files"),
        (["x", "x", "y"], [None] * 3, "c", r"1 files of y .* skipped c/x\.wav"),
        (["", "", ""], ["train", "test", "test"], "bc", "2 files .* for test "),
        (["x", "x", "y"], [None, "development", None], "b", "of x for development "),
    ],
)
def test_a_corpus_or_split_without_any_audio_leaves_nothing(
    home, corpus, packed, labels, splits, bad, said
):
    corpus = [
        replace(u, corpus=label, split=split)
        for u, label, split in zip(corpus, labels, splits, strict=True)
    ]
    for utterance in corpus:
        if utterance.speaker in bad:
            utterance.source.write_bytes(b"")
    with pytest.raises(CorpusError, match=said):
        packed(corpus)
    assert os.listdir(home) == []


def test_an_interruption_and_a_disk_that_refuses(home, corpus, packed, strike):
    strike(packs, "load_recording", interrupt, call=3)
    with pytest.raises(KeyboardInterrupt):
        packed(corpus)
    assert os.listdir(home) == []
    home.rmdir()
    home.write_text("in the way")
    with pytest.raises(CorpusError, match="cannot pack the corpus"):
        packed(corpus)


def test_a_pack_keeps_its_mode_and_its_link(home, place, tmp_path, corpus, packed):
    packed(corpus)
    assert place.stat().st_mode == home.stat().st_mode  # of any new folder
    target = place.rename(tmp_path / "elsewhere")
    target.chmod(0o750)
    place.symlink_to(target)
    assert len(packed(corpus[1:]).entries) == 2
    assert place.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o750


def test_packs_of_two_rates_stay(corpus, packed, monkeypatch):
    made = packed(corpus)
    packed(corpus, sample_rate=8000)
    packed(corpus, min_seconds=0.1)
    monkeypatch.setattr(packs, "load_recording", None)
    assert packed(corpus).entries == made.entries


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_packing_left_is_removed_under_the_lock(
    home, corpus, packed, monkeypatch, capsys, locks
):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    for name in (
        ".x-0badcafe/samples.int16",
        ".y-tmp_7w4x/samples.int16",
        ".z-0badcafe/x",
    ):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("left")
    assert len(packed(corpus).entries) == 3
    assert (f"warning: {home}: " in capsys.readouterr().err) == (not locks)
    # Without a lock another program may be writing them.
    remains = set() if locks else {".x-0badcafe", ".y-tmp_7w4x"}
    assert {path.name for path in home.glob(".*")} == {".z-0badcafe", *remains}


@pytest.mark.parametrize(
    "damage",
    [
        lambda pack: os.truncate(pack / "samples.int16", 100),
        lambda pack: os.truncate(pack / "index.json", 100),
        lambda pack: (pack / "samples.int16").unlink(),
        {"entries": []},
        {"entries": [[1]]},
        {"entries": None},
        {"entries": [["a/x.wav", "a", None, None, None, "0", 1]]},
        {"entries": {"a": 1}},
        {"warnings": "gone"},
    ],
)
def test_a_damaged_pack_is_made_again(place, corpus, packed, index, damage):
    before = packed(corpus)
    samples = before.samples.clone()
    if isinstance(damage, dict):
        values = json.loads(index.read_text()) | damage
        index.write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))
    else:
        damage(place)
    again = packed(corpus)
    assert again.entries == before.entries
    assert torch.equal(again.samples, samples)


def test_a_pack_from_before_there_were_mixtures_is_opened(corpus, packed, index):
    made, values = packed(corpus), json.loads(index.read_text())
    values["digest"] = values.pop("digests")[""]
    values["entries"] = [row[:-1] for row in values["entries"]]
    index.write_text(json.dumps(values))
    opened = packed(corpus)
    assert (opened.entries, opened.digest) == (made.entries, made.digest)
    assert json.loads(index.read_text()) == values


def test_pieces_are_cut_where_they_are_and_repeated_where_they_end():
    clips = SoundBank(torch.arange(-5, 15).short(), [0, 5], [5, 15], CPU)
    cut = clips.cut(np.array([0, 1, 1]), np.array([0.9, 0.0, 0.999]), 12) * 32768
    assert cut.int().tolist() == [
        [-5, -4, -3, -2, -1, -5, -4, -3, -2, -1, -5, -4],
        list(range(12)),
        list(range(3, 15)),
    ]
    whole = clips.whole(np.array([1, 0]), 7) * 32768
    assert whole.int().tolist() == [list(range(7)), [-5, -4, -3, -2, -1, 0, 0]]


def test_simulated_sounds_fill_their_scale_and_survive_silence():
    clips = SoundBank.simulated(torch.tensor([[0.0, 0.1, -0.2], [0, 0, 0]]), CPU)
    expected = torch.tensor([[0, 0.5, -1], [0, 0, 0]])
    assert torch.allclose(clips.whole(np.arange(2), 3), expected, atol=1e-4)
