"""NeMo's manifests: a JSON object a line, as its documentation has them."""

import json
import math

import numpy as np
import pytest
from layouts import dataset, details, refuse, scanned

from conftest import RATE, noise, write
from speech.audio import Segment, load_recording
from speech.packs import pack


def row(audio, label="a", **others) -> dict:
    return {"audio_filepath": str(audio), "label": label, **others}


@pytest.fixture
def manifest(tmp_path):
    def make(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        text = "".join(f"{line}\n" for line in lines)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return path

    return make


def test_lines(tmp_path, manifest):
    long = write(tmp_path / "elsewhere" / "long one.flac", noise())
    near = write(tmp_path / "lists" / "wavs" / "1.wav", noise())
    path = manifest(
        "lists/train.json",
        row("wavs/1.wav"),
        row("wavs/1.wav", offset=1, text="an unused key"),
        row("wavs/1.wav", offset=0, duration=1.5),
        row(long, "Ann Lee", offset=1.5, duration=0.25),
        row("../elsewhere/long one.flac", "Ann Lee", duration=None),
    )
    found = scanned("manifest", train=path)
    assert details(found) == [
        ("../elsewhere/long%20one.flac", "Ann%20Lee", None, None, None),
        ("../elsewhere/long%20one.flac@1.5+0.25", "Ann%20Lee", None, None, None),
        ("wavs/1.wav", "a", None, None, None),
        ("wavs/1.wav@0.0+1.5", "a", None, None, None),
        ("wavs/1.wav@1.0", "a", None, None, None),
    ]
    assert found[1].source == Segment(long, 1.5, 0.25)
    assert found[3].source == Segment(near, 0.0, 1.5)
    whole = noise()
    pieces = whole, whole[24_000:28_000], whole, whole[:24_000], whole[16_000:]
    for utterance, piece in zip(found, pieces, strict=True):
        recording = load_recording(utterance.source, RATE)
        assert recording.warning is None
        np.testing.assert_array_equal(recording.samples, piece)


def test_a_person_on_each_channel(tmp_path, manifest):
    channels = np.stack([noise(), noise()[::-1]], axis=1)
    call = write(tmp_path / "call.wav", channels)
    agent, customer = row(call, channel=0), row(call, "b", offset=1, channel=1)
    path = manifest("train.json", agent, customer, row(call, "c", channel=None))
    found = scanned("manifest", train=path)
    assert [u.id for u in found] == ["call.wav", "call.wav#0", "call.wav@1.0#1"]
    packed = pack(found, tmp_path / "pack", RATE)
    pieces = packed.samples.numpy()[len(noise()) :]
    np.testing.assert_array_equal(pieces, [*channels[:, 0], *channels[RATE:, 1]])
    assert packed.warnings[0].startswith("call.wav: channels differ")
    assert sum("channels" in line for line in packed.warnings) == 1


def test_splits_and_names_in_any_script(manifest):
    first = json.dumps(row("Žofie\u2028.wav"), ensure_ascii=False)
    chosen = {
        "train": manifest("train.json", f"\ufeff{first}"),
        "development": manifest("development.json", row("\udcff.wav", "王")),
    }
    expected = [
        ("%FF.wav", "王", "development", None, None),
        ("Žofie%E2%80%A8.wav", "a", None, None, None),
    ]
    assert details(scanned("manifest", **chosen)) == expected
    chosen["test"] = manifest("test.json", row("x.wav", "b"))
    found = [u.split for u in scanned("manifest", **chosen)]
    assert found == ["development", "test", "train"]


@pytest.mark.parametrize(
    ("line", "key", "actual"),
    [
        ("{", "JSON", "'{'"),
        ("", "JSON", "''"),
        ("\udcff\udcfe", "JSON", r"'\udcff\udcfe'"),
        ("[" * 9999, "JSON", repr("[" * 80)),
        ("[1]", "JSON", "'[1]'"),
        ({"audio_filepath": "a.wav"}, "label", "none"),
        ({"label": "a"}, "audio_filepath", "none"),
        (row(""), "audio_filepath", "''"),
        ({"audio_filepath": ["a"]}, "audio_filepath", "['a']"),
        (row("\ud800"), "audio_filepath", r"'\ud800'"),
        (row("a", 7), "label", "7.0"),
        (row("a", None), "label", "None"),
        (row("a", offset=-1.5), "offset", "-1.5"),
        (row("a", offset="1"), "offset", "'1'"),
        (row("a", offset=True), "offset", "True"),
        (row("a", offset=math.nan), "offset", "nan"),
        (row("a", offset=10**999), "offset", "inf"),
        (row("a", duration=0), "duration", "0.0"),
        (row("a", duration=-2), "duration", "-2.0"),
        (row("a", duration="x"), "duration", "'x'"),
        (row("a", channel=-1), "channel", "-1.0"),
        (row("a", channel=0.5), "channel", "0.5"),
        (row("a", channel=[0, 1]), "channel", "[0.0, 1.0]"),
    ],
)
def test_bad_lines(manifest, line, key, actual):
    path = manifest("train.json", row("b.wav"), line)
    refuse(dataset("manifest", train=path), f"{path}:2: ", key, f"found {actual}")


def test_refusals(tmp_path, manifest):
    path, empty = manifest("train.json", row("1.wav")), manifest("empty.json")
    twice = manifest("twice.json", row("1.wav", offset=0), row("1.wav"))
    two, missing = manifest("two.json", row("1"), row("1", "b")), tmp_path / "missing"
    for chosen, where, said in (
        ({"train": path}, path, "found a"),
        ({"train": missing}, missing, "No such file"),
        ({"train": path, "test": empty}, empty, "none"),
        ({"train": path, "test": path}, path, "speaker a"),
        ({"train": twice}, twice, "1.wav once"),
        ({"train": two}, two, "1 once"),
    ):
        refuse(dataset("manifest", **chosen), f"{where}: ", said)


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a/" * 3000, "a\0.wav"])
def test_names_that_the_disk_refuses_are_skipped(tmp_path, manifest, name):
    write(tmp_path / "1.wav")
    path = manifest("train.json", row("1.wav"), row(name, "b"))
    packed = pack(scanned("manifest", train=path), tmp_path / "pack", RATE)
    assert [entry.id for entry in packed.entries] == ["1.wav"]
    (warning,) = packed.warnings
    assert warning.startswith("skipped ")
