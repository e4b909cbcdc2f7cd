"""The commands of `voices.py`: what they print and write, what they refuse and load."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

import dataset
from commands import folder
from commands.parser import main
from conftest import CALIBRATION, RATE, REPOSITORY, interrupt, said, write
from recognition.people import load_people
from voices import Voices

EXTRA = {"dan": (3, 0), "d": (3, 1), "f": (0, 3)}  # speaker and index of files


@pytest.fixture
def command(checkpoint, capsys) -> Callable[..., tuple[int, str, str]]:
    """src/voices.py with the model; its exit status, output and errors."""
    model = checkpoint()

    def run(name, *arguments):
        options = [] if name == "forget" else ["--checkpoint", str(model)]
        status = main([name, *map(str, arguments), *options])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def store(command, people, tmp_path) -> Path:
    """A store of ann, ben and cy."""
    command("enrol", people, "--store", tmp_path / "people.npz")
    return tmp_path / "people.npz"


def refused(found: tuple[int, str, str], *words: object) -> None:
    """Exit status 2 and one line that has these words."""
    status, out, err = found
    lines = [line.rpartition("\r")[2] for line in err.split("\n")]  # bars are erased
    lines = [line for line in lines if line.strip()]
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ")
    assert [word for word in map(str, words) if word not in lines[0]] == []


def rows_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# What is loaded

UNUSED = {
    *("plotly", "matplotlib", "sklearn", "scipy", "umap", "pandas", "gradio", "wandb"),
    *("tqdm.notebook", "onnx", "onnxruntime", "torchaudio", "pyarrow", "sympy"),
}
COMMANDS = ["compare", "enrol", "identify", "who", "forget", "calibrate"]
COMMANDS += ["demo", "embed", "export"]


def loaded(*arguments: object) -> set[str]:
    """The modules that `python src/voices.py` imports."""
    words = [sys.executable, "-X", "importtime", REPOSITORY / "src" / "voices.py"]
    done = subprocess.run([*words, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "import time:" in line]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_neither_torch_nor_numpy(command):
    found = loaded(*command, "--help")
    assert "argparse" in found
    assert not {"torch", "numpy", *UNUSED} & found


def test_a_comparison_loads_only_what_it_uses(people, checkpoint):
    files = people / "ann" / "0.wav", people / "ben" / "0.wav"
    found = loaded("compare", *files, "--checkpoint", checkpoint())
    assert {"torch", "soundfile", "silero_vad"} <= found
    assert not UNUSED & found


# Comparing


def test_every_pair_has_a_line_after_the_warnings(command, people, tmp_path):
    short = write(tmp_path / "short.wav", said(0, 0)[: RATE // 2])
    files = [short, *sorted(people.glob("*/0.wav"))[:2]]
    status, out, err = command("compare", *files)
    assert status == 0
    assert err.count(f"warning: {short}: 0.") == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"{files[i]} and {files[j]}" for i, j in ((0, 1), (0, 2), (1, 2))
    ]


def test_comparisons_for_programs(command, people, voices):
    files = [people / "ann" / "0.wav", people / "ben" / "0.wav"]
    status, out, _ = command("compare", *files, "--json")
    (found,) = json.loads(out)
    expected = voices.compare(*files)
    assert status == 0
    assert found.pop("cosine") == pytest.approx(expected.cosine)
    for key in ("verdict", "same_speaker"):
        assert found[key] == getattr(expected, key)
    assert found["threshold"] == asdict(expected.threshold)


def test_one_file_is_no_pair(command, people):
    refused(command("compare", people / "ann" / "0.wav"), "two files or more", "got 1")


def test_no_such_checkpoint(people, tmp_path, capsys):
    files = map(str, sorted(people.glob("*/0.wav")))
    status = main(["compare", *files, "--checkpoint", str(tmp_path / "none.pt")])
    refused((status, *capsys.readouterr()), tmp_path / "none.pt")


def test_a_stopped_command(command, people, strike):
    strike(Voices, "load", interrupt)
    assert command("compare", *people.glob("*/0.wav"))[:2] == (130, "")


# People


def test_people_are_enrolled_identified_and_forgotten(command, people, tmp_path):
    store = tmp_path / "people.npz"
    status, out, _ = command("enrol", people, "--store", store)
    assert (status, out) == (0, f"{store}: 3 people, 9 clips, 9 of them new\n")
    d, e, f = (
        write(tmp_path / f"{n}.wav", said(*said_by)) for n, said_by in EXTRA.items()
    )
    status, out, _ = command("enrol", f"Dé={d},{e}", f"ann={f}", "--store", store)
    assert (status, out) == (0, f"{store}: 4 people, 12 clips, 3 of them new\n")
    status, out, _ = command("identify", d, "--store", store)
    assert (status, out.startswith(f"{d}: ")) == (0, True)
    status, out, _ = command("identify", d, e, "--store", store, "--json")
    found = json.loads(out)
    assert [one["clip"] for one in found] == [str(d), str(e)]
    assert found[0]["num_people"] == 4
    assert len(found[0]["nearest"]) == 3
    assert found[0]["margin"] >= 0
    status, out, _ = command("forget", "Dé", "--store", store)
    assert (status, out) == (0, f"{store}: 2 clips forgotten, 3 people left\n")
    assert "Dé" not in load_people(store).names


def test_who_speaks_when(command, store, tmp_path):
    rttm, picture = tmp_path / "m.rttm", tmp_path / "m.png"
    meeting = write(tmp_path / "m.wav", np.concatenate([said(0, 3), said(1, 3)]))
    options = ["--store", store, "--rttm", rttm, "--picture", picture]
    status, out, _ = command("who", meeting, *options)
    lines = rttm.read_text().splitlines()
    assert (status, len(out.splitlines())) == (0, len(lines))
    assert lines
    assert all(line.startswith("SPEAKER m 1 ") for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")
    hiss = np.random.default_rng(0).integers(-500, 500, 3 * RATE).astype(np.int16)
    status, out, _ = command("who", write(tmp_path / "hiss.wav", hiss), *options)
    assert (status, out) == (0, "no speech was found\n")
    assert rttm.read_text() == ""
    options[-1] = tmp_path / "m.jpg"
    refused(command("who", meeting, *options), tmp_path / "m.jpg", ".png")


def test_an_own_threshold(command, people, tmp_path, voices):
    files = [write(tmp_path / f"d{index}.wav", said(3, index)) for index in range(3)]
    mine = tmp_path / "mine.pt"
    given = [people, f"dan={files[0]},{files[1]},{files[2]}", mine]
    status, out, _ = command("calibrate", *given)
    assert status == 0
    for counted in ("4 people, 12 pairs of one person and 54 of two", "fewer than 20"):
        assert counted in out
    found = Voices.load(mine)
    assert found.digest == voices.digest
    assert found.calibration.num_people == 4
    assert found.calibration.miss_interval is not None
    assert found.model.backend.calibrations["trained"] == CALIBRATION
    assert "your own recordings of 4 people" in str(found.compare(*files[:2]))
    content = mine.read_bytes()
    refused(command("calibrate", *given), mine, "exists")
    assert mine.read_bytes() == content
    refused(command("calibrate", people, tmp_path / "new.pt"), "got 3")
    assert not (tmp_path / "new.pt").exists()


# Vectors of a folder


def test_vectors_of_a_folder(command, people, tmp_path, voices):
    bad, out = people / "ben" / "bad.wav", tmp_path / "out.npz"
    bad.write_text("none")
    status, printed, err = command("embed", people, out)
    assert (status, printed) == (
        0,
        f"{out}: 9 vectors of 9 recordings, 9 recordings new, 1 files skipped\n",
    )
    assert f"skipped {bad}: " in err
    rows = rows_of(out)
    files = sorted({*people.glob("*/*.wav")} - {bad})
    assert rows["path"].tolist() == [str(f.relative_to(people)) for f in files]
    assert rows["begin"].tolist() == [0] * 9
    assert rows["end"].tolist() == [soundfile.info(f).duration for f in files]
    assert rows["vector"] == pytest.approx(voices.embed(files), abs=1e-5)
    assert (rows["model"], rows["digest"]) == ("model.pt", voices.digest)


def test_a_long_recording_has_a_row_for_each_window(
    command, tmp_path, monkeypatch, voices
):
    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 4.0)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", 2.0)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", 1.5)
    sound = np.concatenate([said(0, 0), said(1, 0)])[: 5 * RATE]
    write(tmp_path / "long" / "a.wav", sound)
    command("embed", tmp_path / "long", tmp_path / "out.npz")
    rows = rows_of(tmp_path / "out.npz")
    assert rows["begin"].tolist() == [0, 1.5, 3]
    assert rows["end"].tolist() == [2, 3.5, 5]
    windows = [sound[24_000 * n : 24_000 * n + 32_000] for n in range(3)]
    assert rows["vector"] == pytest.approx(voices.embed(windows), abs=1e-5)


def test_embedding_goes_on_where_it_was_stopped(
    command, people, tmp_path, monkeypatch, strike
):
    out, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    command("embed", people, whole)
    monkeypatch.setattr(folder, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(folder, "SECONDS_BETWEEN_SAVES", -1.0)
    strike(Voices, "read", interrupt, call=6)
    assert command("embed", people, out)[0] == 130
    assert len(rows_of(out)["path"]) == 4
    for num_new in (5, 0):
        status, printed, _ = command("embed", people, out)
        assert (status, f" {num_new} recordings new" in printed) == (0, True)
    rows, expected = rows_of(out), rows_of(whole)
    assert rows["path"].tolist() == expected["path"].tolist()
    assert rows["vector"] == pytest.approx(expected["vector"], abs=1e-5)


def test_vectors_as_parquet(command, people, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    last, out = people / "cy" / "2.wav", tmp_path / "out.parquet"
    content = last.read_bytes()
    last.unlink()
    command("embed", people, out)
    last.write_bytes(content)
    status, printed, _ = command("embed", people, out)
    assert (status, " 1 recordings new" in printed) == (0, True)
    command("embed", people, tmp_path / "out.npz")
    table, rows = parquet.read_table(out), rows_of(tmp_path / "out.npz")
    vectors = np.array(table["vector"].to_pylist())
    assert vectors == pytest.approx(rows["vector"], abs=1e-5)  # batched otherwise
    for key in ("path", "begin", "end"):
        assert table[key].to_pylist() == rows[key].tolist()
    assert table.schema.metadata[b"digest"].decode() == str(rows["digest"])


def test_vectors_of_two_models_do_not_mix(command, checkpoint, people, tmp_path):
    out = tmp_path / "out.npz"
    command("embed", people, out)
    before = out.read_bytes()
    checkpoint("seed=2")
    refused(command("embed", people, out), out, "model.pt")
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out.csv"])
def test_a_file_that_is_no_vectors(command, people, tmp_path, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / name
    out.write_bytes(b"no vectors")
    refused(command("embed", people, out), out)
    assert out.read_bytes() == b"no vectors"


def test_a_folder_without_speech(command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.wav").write_text("none")
    status, _, err = command("embed", tmp_path / "folder", tmp_path / "out.npz")
    assert (status, "error: " in err.splitlines()[-1]) == (2, True)
    assert not (tmp_path / "out.npz").exists()


def test_parquet_without_its_package(command, monkeypatch, people, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(command("embed", people, tmp_path / "out.parquet"), "pyarrow")


# Bad input: one line, and the files that were there are still there


BAD_SOUNDS = {
    "text": (lambda path: path.write_text("not audio"), "not readable"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "nothing": (lambda path: None, "found none"),
    "folder": (lambda path: path.mkdir(), "expected a file"),
    "no samples": (lambda path: write(path, np.zeros(0)), "no samples"),
    "silence": (lambda path: write(path, np.zeros(RATE)), "silence"),
    "0.1 s": (lambda path: write(path), "0.3 s, found 0.1000 s"),
    "NaN": (lambda path: write(path, np.full(RATE, np.nan), subtype="FLOAT"), "NaN"),
}


@pytest.mark.parametrize("kind", BAD_SOUNDS)
def test_bad_sounds(command, people, tmp_path, kind):
    spoil, words = BAD_SOUNDS[kind]
    for bad in (tmp_path / "a.wav", people / "ann" / "a.wav"):
        spoil(bad)
    found = command("compare", people / "ann" / "0.wav", tmp_path / "a.wav")
    refused(found, tmp_path / "a.wav", words)
    if kind not in ("nothing", "folder"):
        status, out, err = command("embed", people, tmp_path / "out.npz")
        assert (status, "1 files skipped" in out) == (0, True)
        (line,) = [line for line in err.splitlines() if "skipped" in line]
        assert f"skipped {people / 'ann' / 'a.wav'}: " in line
        assert words in line


@pytest.mark.parametrize(
    "words",
    [
        "enrol dan=BAD --store STORE",
        "identify BAD --store STORE",
        "who BAD --store STORE",
        "calibrate PEOPLE dan=PEOPLE/ann/0.wav,BAD NEW",
        "compare PEOPLE/ann/0.wav BAD",
    ],
)
def test_a_bad_sound_for_any_command(command, people, store, tmp_path, words):
    bad, new, before = tmp_path / "bad.wav", tmp_path / "new", store.read_bytes()
    bad.write_text("not audio")
    for name, path in (
        ("PEOPLE", people),
        ("STORE", store),
        ("BAD", bad),
        ("NEW", new),
    ):
        words = words.replace(name, str(path))
    refused(command(*words.split()), bad, "not readable")
    assert store.read_bytes() == before
    assert not new.exists()


@pytest.mark.parametrize("name", ["embed", "export", "enrol", "calibrate"])
def test_a_folder_without_audio(command, tmp_path, name):
    empty, out = tmp_path / "people" / "ann", tmp_path / "out.npz"
    empty.mkdir(parents=True)
    (empty / "notes.txt").write_text("none")
    arguments = {
        "embed": [empty, out],
        "export": [out, "--check", empty],
        "enrol": [empty.parent, "--store", out],
        "calibrate": [empty.parent, out],
    }[name]
    refused(command(name, *arguments), empty, ".wav", "found none")
    for other in (empty / "notes.txt", tmp_path / "nowhere"):
        given = [other if one in (empty, empty.parent) else one for one in arguments]
        refused(command(name, *given), other)
    assert not out.exists()


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], None])
def test_a_store_that_cannot_be_used(command, checkpoint, people, store, damage):
    if damage is None:
        checkpoint("seed=2")  # the store is of another model
    else:
        store.write_bytes(damage(store.read_bytes()))
    before, clip = store.read_bytes(), people / "ann" / "0.wav"
    commands = [["enrol", people], ["identify", clip], ["who", clip]]
    for words in commands if damage is None else [*commands, ["forget", "ann"]]:
        named = "model.pt" if damage is None else store
        refused(command(*words, "--store", store), named)
        assert store.read_bytes() == before


OUTPUTS = {
    "p.npz": "enrol PEOPLE --store",
    "out.npz": "embed PEOPLE",
    "out.parquet": "embed PEOPLE",
    "mine.pt": "calibrate PEOPLE dan=PEOPLE/ann/0.wav,PEOPLE/ben/0.wav",
    "m.rttm": "who PEOPLE/ann/0.wav --store STORE --rttm",
    "m.png": "who PEOPLE/ann/0.wav --store STORE --picture",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_disk_that_is_full(command, people, store, tmp_path, monkeypatch, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    out, real_open, reason = tmp_path / name, open, os.strerror(errno.ENOSPC)
    words = OUTPUTS[name].replace("PEOPLE", str(people)).replace("STORE", str(store))
    if name != "mine.pt":  # which must be a new file
        command(*words.split(), out)
    before = out.read_bytes() if out.exists() else None

    def full_open(file, *arguments, **options):
        if str(file) == f"{out}.partial":
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, reason)
        return real_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", full_open)
    refused(command(*words.split(), out), out, reason)
    if name == "p.npz":
        refused(command("forget", "ann", "--store", out), out, reason)
    assert (out.read_bytes() if out.exists() else None) == before
    assert not list(tmp_path.glob("*.partial"))
