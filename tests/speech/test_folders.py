"""Folders of speakers: names of every kind, links, genders, refusals."""

import os

import pytest
from layouts import dataset, refuse, scanned, tree

from conftest import RATE, write
from speech.audio import load_recording
from speech.packs import pack
from verification.trials import make_trials, read_trials, write_trials


def found_in(root) -> list[tuple]:
    return [(u.id, u.speaker, u.split) for u in scanned("folder", root)]


def test_speakers_at_the_first_level(tmp_path):
    tree(tmp_path, "b/2.flac", "b/deep/er/1.WAV", "a/x.ogg", "a/y.mp3", ".c/z.wav")
    write(tmp_path / "a" / "v.opus", format="OGG", subtype="OPUS")
    for name in ("readme.txt", "a/notes.txt", "a/.hidden.wav", "loose.wav"):
        (tmp_path / name).write_text("no speech")
    ids = ["a/v.opus", "a/x.ogg", "a/y.mp3", "b/2.flac", "b/deep/er/1.WAV"]
    assert found_in(tmp_path) == [(name, name[0], None) for name in ids]
    for utterance in scanned("folder", tmp_path):
        assert len(load_recording(utterance.source, RATE).samples) >= 1600


def test_no_audio_file_is_passed_over(tmp_path, monkeypatch):
    """What libsndfile reads is read; the rest is listed where there is no ffmpeg."""
    monkeypatch.setenv("PATH", "")
    tree(tmp_path, "a/1.aiff", "a/2.au", "a/3.caf", "a/4.W64")
    tree(tmp_path, "b/1.wav")
    names = ("2.m4a", "3.WebM", "4.mp4", "5.amr", "6.wma")
    for name in names:
        (tmp_path / "b" / name).write_bytes(b"\0\0\0\x20ftypM4A " + bytes(999))
    packed = pack(scanned("folder", tmp_path), tmp_path / "pack", RATE)
    assert [entry.id for entry in packed.entries] == [
        *("a/1.aiff", "a/2.au", "a/3.caf", "a/4.W64", "b/1.wav")
    ]
    skipped = [line.split(":")[0] for line in packed.warnings]
    assert skipped == [f"skipped b/{name}" for name in names]
    assert packed.warnings[1].endswith("ffmpeg -i x.webm x.wav")


def test_named_splits(tmp_path):
    tree(tmp_path, "train/a/1.wav", "development/b/1.wav", "train/c/1.wav")
    (tmp_path / "notes.txt").write_text("ignored")
    # Without a test folder the split of the others is open.
    assert [split for *_, split in found_in(tmp_path)] == ["development", None, None]
    (tmp_path / "train" / "c").rename(tree(tmp_path, "test/d/1.wav") / "test" / "c")
    assert found_in(tmp_path) == [
        ("development/b/1.wav", "b", "development"),
        ("test/c/1.wav", "c", "test"),
        ("test/d/1.wav", "d", "test"),
        ("train/a/1.wav", "a", "train"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows forbids such names")
def test_names_of_every_kind_survive_a_trial_list_and_a_pack(tmp_path):
    names = ("it's", 'a "b"', "new\nline", "tab\t", "\x1b[2J", "Жан", "山 本", "-x")
    names += ("A B", "A%20B", "a")
    tree(tmp_path, *(f"{name}/5% \u3000a.wav" for name in names))
    try:
        os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    found = scanned("folder", tmp_path)
    assert {"山%20本", "A%20B", "A%2520B", "%FF"} < {u.speaker for u in found}
    ids = [u.id for u in found]
    assert {name.partition("/")[2] for name in ids} == {"5%25%20%E3%80%80a.wav"}
    assert len(found) == len(names)
    assert all(name.split() == [name] for name in ids)
    trials = make_trials([u.speaker for u in found[1:]] + ["-x"], 100, seed=1)
    write_trials(tmp_path / "trials.txt", trials, ids)
    assert read_trials(tmp_path / "trials.txt", ids)[0].targets.sum() == 1
    packed = pack(found, tmp_path / "pack", RATE)
    assert [entry.id for entry in packed.entries] == ids
    assert packed.warnings == []


def test_links_are_followed_and_loops_are_not(tmp_path):
    elsewhere = tree(tmp_path / "elsewhere", "1.wav")
    root = tree(tmp_path / "root", "a/1.wav", "a/deep/2.wav")
    try:
        (root / "b").symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("symbolic links are not permitted here")
    (root / "a" / "deep" / "loop").symlink_to(root, target_is_directory=True)
    for name in ("loop", "a/loop", "a/3.wav"):
        (root / name).symlink_to(root / name)
    found = scanned("folder", root)
    ids = [u.id for u in found]
    assert ids == ["a/1.wav", "a/3.wav", "a/deep/2.wav", "b/1.wav"]
    packed = pack(found, tmp_path / "pack", RATE)
    assert packed.warnings == ["skipped a/3.wav: expected a file, found none"]


def test_genders(tmp_path):
    tree(tmp_path, *(f"{speaker}/1.wav" for speaker in ("a", "b c", "d", "e", "f")))
    table = "speaker,age,gender\na,6,F\nb c,7,m\nd,8,\ne\n"
    (tmp_path / "speakers.csv").write_text(table, encoding="utf-8-sig")
    genders = [u.gender for u in scanned("folder", tmp_path)]
    assert genders == ["f", "m", None, None, None]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"name,sex\n", "name, sex"),
        (b"", "none"),
        (b"speaker,gender\n\xff,f\n", "UTF-8"),
    ],
)
def test_bad_speaker_tables(tmp_path, table, said):
    tree(tmp_path, "a/1.wav", "b/1.wav")
    (tmp_path / "speakers.csv").write_bytes(table)
    refuse(dataset("folder", tmp_path), tmp_path / "speakers.csv", said)


@pytest.mark.parametrize(
    ("files", "where", "said"),
    [
        ("", "none", ["dataset.root", "nothing"]),
        ("a.wav", "a.wav", ["dataset.root", "a file"]),
        ("a.wav b.wav", ".", ["<speaker>/**", ".wav, .flac, .ogg, .opus, .mp3"]),
        ("a/1.wav", ".", ["two speakers", "found a"]),
        ("new\nline/a/1.wav", "new\nline", ["two speakers", "found a"]),
        ("train/a/1.wav test/b/1.wav valid/c/1.wav", ".", ["beside test", "valid"]),
        ("train/a/1.wav train/b/1.wav test/b/1.wav", ".", ["speaker b", "test"]),
        ("train/a/1.wav train/b/1.wav test/1.wav", ".", ["/test: ", "<speaker>/**"]),
    ],
)
def test_refusals(tmp_path, files, where, said):
    tree(tmp_path, *filter(None, files.split(" ")))
    refuse(dataset("folder", tmp_path / where), tmp_path / where, *said)
