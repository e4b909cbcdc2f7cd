"""The table of corpora, and mixtures of several."""

import json
import shutil
from collections import Counter
from typing import get_args

import numpy as np
from layouts import DATASET, dataset, refuse, scanned, splits, tree

from conftest import RATE
from parameters import CorpusName
from speech.audio import load_recording
from speech.corpora import CORPORA, pack_key, utterances


def test_every_corpus_of_the_schema_has_a_record():
    assert set(get_args(CorpusName)) == set(CORPORA)


def test_each_corpus_has_a_pack_of_its_own(shipped):
    keys = [
        pack_key(shipped(*(f"dataset.{change}" for change in changes.split())).dataset)
        for changes in (
            *(f"name={name}" for name in CORPORA),
            "name=vctk vctk.microphone=mic1",
            "name=commonvoice commonvoice.locales=[en]",
            "name=commonvoice commonvoice.min_utterances=3",
            "name=voxceleb1 root=elsewhere",
            "name=manifest manifest.train=other.json",
            "name=manifest manifest.test=other.json",
        )
    ]
    assert len(set(map(json.dumps, keys))) == len(keys)


def test_synthetic_utterances_are_wrapped_and_rendered():
    found, sizes = scanned("synthetic"), DATASET.synthetic
    assert splits(found) == {None: sizes.num_speakers * sizes.utterances_per_speaker}
    assert len({u.speaker for u in found}) == sizes.num_speakers
    assert {u.gender for u in found} == {"f", "m"}
    recording = load_recording(found[0].source, RATE)
    assert recording.samples.dtype == np.int16
    assert recording.warning is None
    np.testing.assert_array_equal(recording.samples, found[0].source.render(RATE))


def mixture(**corpora):
    """A mixture of corpora by their labels."""
    rows = [{"label": label, "weight": 1, **c} for label, c in corpora.items()]
    values = DATASET.model_dump(mode="json") | {"name": "mixture", "mixture": rows}
    return DATASET.model_validate(values)


def folder(root):
    return {"name": "folder", "root": str(root)}


def test_corpora_are_told_apart_by_their_labels(tmp_path):
    home = tmp_path / "LibriSpeech"
    tree(home / "test-other", "3/1/3-1-0.flac", "4/1/4-1-0.flac")
    tree(home / "train-clean-100", "1/1/1-1-0.flac", "2/1/2-1-0.flac")
    tree(tmp_path / "own", "1/a.wav", "2/a.wav")
    copied = shutil.copytree(home, tmp_path / "copied" / "LibriSpeech").parent
    libri = {"name": "librispeech", "root": str(tmp_path)}
    chosen = {"train": ["train-clean-100"], "development": []}
    found = utterances(
        mixture(
            libri=libri | {"librispeech": chosen | {"test": ["test-other"]}},
            open=libri | {"root": str(copied), "librispeech": chosen | {"test": []}},
            own=folder(tmp_path / "own"),
        )
    )
    assert [(u.id, u.speaker, u.split) for u in found] == [
        ("libri/1-1-0", "libri/1", "train"),
        ("libri/2-1-0", "libri/2", "train"),
        ("libri/3-1-0", "libri/3", "test"),
        ("libri/4-1-0", "libri/4", "test"),
        ("open/1-1-0", "open/1", None),
        ("open/2-1-0", "open/2", None),
        ("own/1/a.wav", "own/1", None),
        ("own/2/a.wav", "own/2", None),
    ]
    assert [u.corpus for u in found] == [u.id.partition("/")[0] for u in found]


def test_a_file_that_two_names_lead_to_is_refused(tmp_path):
    root = tree(tmp_path / "own", "a/1.wav", "b/deep/2.wav")
    (again := root / "c").symlink_to(root / "b")
    refuse(dataset("folder", root), root, "b/deep/2.wav of b", "c/deep/2.wav of c")
    again.unlink()
    (again := root / "a" / "3.wav").symlink_to(root / "a" / "1.wav")
    refuse(dataset("folder", root), root, "a/1.wav of a", "a/3.wav of a")
    again.unlink()
    (linked := tmp_path / "linked").symlink_to(root)
    twice = mixture(x=folder(root), y=folder(linked))
    refuse(twice, "dataset.mixture", "x/a/1.wav of x/a", "y/a/1.wav of y/a")
    # A linked folder is followed, once; so is one that leads back.
    for link, to in (("a/deep", "b/deep"), ("b/same", "b/deep"), ("b/back", ".")):
        (root / link).symlink_to(root / to)
    refuse(dataset("folder", root), root, "a/deep/2.wav of a", "b/deep/2.wav of b")
    (root / "a" / "deep").unlink()
    assert [u.id for u in scanned("folder", root)] == ["a/1.wav", "b/deep/2.wav"]


def test_a_refusal_names_the_corpus(tmp_path):
    good, bad = tree(tmp_path / "own", "a/a.wav", "b/a.wav"), tmp_path / "none"
    refuse(mixture(a=folder(good), b=folder(bad)), f"dataset.mixture.1: {bad}: ")


def test_three_corpora_of_real_speech(shared):
    data = shared / "data"
    libri = {"name": "librispeech", "root": str(data)}
    so, cv = (folder(data / name) for name in ("speechocean762", "commonvoice"))
    found = utterances(mixture(libri=libri, so=so, cv=cv))
    assert len({u.id for u in found}) == len(found)
    speakers = {(u.corpus, u.split, u.speaker) for u in found}
    num_speakers = Counter((corpus, split) for corpus, split, _ in speakers)
    num_utterances = Counter((u.corpus, u.split) for u in found)
    names = [(label, s) for label in ("libri", "so", "cv") for s in ("train", "test")]
    assert [num_speakers[name] for name in names] == [251, 10, 125, 62, 983, 129]
    assert [num_utterances[name] for name in names[:4]] == [796, 100, 2500, 1240]
    assert {u.gender for u in found if u.corpus != "cv"} == {"f", "m"}
    for utterance in found[::300]:
        recording = load_recording(utterance.source, RATE)
        assert recording.warning is None
        assert len(recording.samples) > RATE // 2
