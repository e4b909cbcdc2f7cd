"""The commands of `voices.py`: what they print and write, what they refuse and load."""

import errno
import json
import os
import re
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
from commands.voices_commands import COMMANDS
from conftest import RATE, REPOSITORY, interrupt, noise, said, write
from recognition.people import load_people
from recognition.vectors import STAMPS, load_vectors
from voices import Voices

PAIR = "people/ann/0.wav people/ben/0.wav"


@pytest.fixture
def command(checkpoint, people, tmp_path, monkeypatch, capsys) -> Callable[..., tuple]:
    """A line for src/voices.py beside `people` and `model.pt`; its exit status, output
    and errors."""
    checkpoint()
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        name, *words = line.split()
        options = [] if name == "forget" else ["--checkpoint", "model.pt"]
        return main([name, *options, *words]), *capsys.readouterr()

    return run


@pytest.fixture
def store(command) -> Path:
    """A store of ann, ben and cy."""
    command("enrol people --store people.npz")
    return Path("people.npz")


def refused(found: tuple[int, str, str], *words: str) -> None:
    """Exit status 2 and, after warnings, one line that has these words."""
    status, out, err = found
    lines = [line.rpartition("\r")[2] for line in err.split("\n")]  # bars are erased
    lines = [x for x in lines if x.strip() and not x.startswith("warning: ")]
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ")
    assert [word for word in words if word not in lines[0]] == []


def rows_of(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# What is loaded

UNUSED = {
    *("plotly", "matplotlib", "sklearn", "scipy", "umap", "pandas", "gradio", "wandb"),
    *("tqdm.notebook", "onnx", "onnxruntime", "torchaudio", "pyarrow", "sympy"),
}


def loaded(*arguments: str) -> set[str]:
    """The modules that `python src/voices.py` imports."""
    words = [sys.executable, "-X", "importtime", REPOSITORY / "src" / "voices.py"]
    done = subprocess.run([*words, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "import time:" in line]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_neither_torch_nor_numpy(name):
    found = loaded(*name.split(), "--help")
    assert "argparse" in found
    assert not {"torch", "numpy", *UNUSED} & found


def test_a_comparison_loads_only_what_it_uses(command):
    found = loaded("compare", *PAIR.split(), "--checkpoint", "model.pt")
    assert {"torch", "soundfile", "silero_vad"} <= found
    assert not UNUSED & found


# Comparing


def test_every_pair_has_a_line_after_the_warnings(command):
    write(Path("short.wav"), said(0, 0)[: RATE // 2])
    status, out, err = command(f"compare short.wav {PAIR}")
    assert status == 0
    assert err.count("warning: short.wav: 0.") == 1
    a, b = PAIR.split()
    pairs = [f"short.wav and {a}", f"short.wav and {b}", f"{a} and {b}"]
    assert [line.split(":")[0] for line in out.splitlines()] == pairs


def test_comparisons_for_programs(command, voices):
    (found,) = json.loads(command(f"compare {PAIR} --json")[1])
    expected = voices.compare(*PAIR.split())
    assert found["cosine"] == pytest.approx(expected.cosine)
    assert found["verdict"] == expected.verdict
    assert found["same_speaker"] == expected.same_speaker
    assert found["threshold"] == asdict(expected.threshold)


def test_recordings_without_speech(command, store):
    write(Path("hiss.wav"), noise())
    status, out, err = command("compare hiss.wav hiss.wav --json")
    assert (status, json.loads(out)[0]["verdict"]) == (2, None)
    assert err == "error: hiss.wav: expected speech, no speech was found\n"
    status, out, _ = command(f"compare hiss.wav {PAIR}")
    assert (status, out.count("no verdict")) == (0, 2)
    for line in ("enrol dan=hiss.wav", "identify hiss.wav"):
        status, out, err = command(f"{line} --store {store}")
        assert (status, "hiss.wav" in out + err) == (2 * ("enrol" in line), True)
    Path("people/ann/hiss.wav").write_bytes(Path("hiss.wav").read_bytes())
    assert "skipped people/ann/hiss.wav: " in command("embed people out.npz")[2]


@pytest.mark.parametrize(
    "line",
    [
        "enrol people dan=short.wav --store p.npz",
        "who short.wav --store people.npz",
        "calibrate people dan=dan.wav,short.wav mine.pt",
        "embed short out.npz",
    ],
)
def test_warnings_for_programs(command, store, line):
    write(Path("short.wav"), said(0, 0)[: RATE // 2])
    write(Path("short/short.wav"), said(0, 0)[: RATE // 2])
    write(Path("dan.wav"), said(3, 0))
    status, out, err = command(f"{line} --json")
    (warning,) = [w for w in json.loads(out)["warnings"] if "short.wav: 0." in w]
    assert (status, err) == (0, "")
    line = line.replace("mine", "b").replace("out", "b")
    assert f"warning: {warning}" in command(line)[2]


def test_few_of_many_warnings_are_printed(command):
    write(Path("short.wav"), said(0, 0)[: RATE // 2])
    files = ",".join(["short.wav"] * 30)
    lines = command(f"enrol ann={files} --store p.npz")[2].splitlines()
    assert lines[0].startswith("warning: short.wav: 0.")
    assert (len(lines), "more" in lines[-1]) == (21, True)


def test_a_comparison_that_cannot_be_made(command, strike):
    refused(command("compare people/ann/0.wav"), "two files or more", "got 1")
    refused(command(f"compare {PAIR} --checkpoint none.pt"), "none.pt")
    strike(Voices, "load", interrupt)
    assert command(f"compare {PAIR}")[:2] == (130, "")


def test_each_side_of_a_call(command):
    """`--channel` chooses one, and leaves a file that has only one as it is."""
    sides = [said(0, 1)[: 2 * RATE], said(3, 0)[: 2 * RATE]]
    write(Path("call.wav"), np.stack(sides, axis=1))
    write(Path("d.wav"), sides[1])
    line = "compare call.wav d.wav --json --channel"
    (found,) = json.loads(command(f"{line} 1")[1])
    assert found["cosine"] == pytest.approx(1, abs=1e-6)
    assert "d.wav: one channel, taken for channel 1" in found["warnings"]
    assert json.loads(command(f"{line} 0")[1])[0]["cosine"] < 1 - 2e-6
    refused(command(f"{line} 2"), "call.wav: ", "from 0 to 1")
    with pytest.raises(SystemExit, match="2"):
        command(f"{line} -1")


def test_files_that_lack_their_decoder_are_named(command, monkeypatch):
    monkeypatch.setenv("PATH", "")
    Path("people/ann/memo.m4a").write_bytes(bytes(99))
    status, _, err = command("enrol people --store p.npz")
    assert status == 0
    assert "warning: people/ann/memo.m4a: left out" in err
    Path("people/ann/memo.m4a").rename("memo.m4a")
    refused(command("enrol d=memo.m4a --store p.npz"), "memo.m4a: ", "x.m4a x.wav")


@pytest.mark.parametrize(
    "line",
    [
        "enrol d=call.wav --store other.npz",
        "identify call.wav --store people.npz",
        "who call.wav --store people.npz",
        "embed calls out.npz",
        "calibrate calls mine.pt",
    ],
)
def test_every_command_listens_to_a_channel(command, store, line):
    calls = (f"calls/{n // 2}/{n}.wav" for n in range(8))
    for n, path in enumerate(("call.wav", *calls)):
        sides = [said(n // 2 % 4, n % 2 + k)[: 2 * RATE] for k in (0, 1)]
        write(Path(path), np.stack(sides, axis=1))
    status, _, err = command(f"{line} --channel 2")
    assert status == 2
    assert "from 0 to 1" in err
    assert command(f"{line} --channel 1")[0] == 0


def test_vectors_of_another_channel_take_the_place_of_the_first(command):
    write(Path("calls/c.wav"), np.stack([said(0, 0)[:RATE], said(1, 0)[:RATE]], axis=1))
    assert command("embed calls out.npz --channel 0")[0] == 0
    of_first = np.load("out.npz")["vector"]
    _, out, _ = command("embed calls out.npz --channel 1")
    assert "1 recordings new, 1 recordings gone" in out
    assert not np.array_equal(np.load("out.npz")["vector"], of_first)


# People


def test_people_are_enrolled_identified_and_forgotten(command):
    found = command("enrol people --store p.npz")
    assert found[:2] == (0, "p.npz: 3 people, 9 clips, 9 of them new\n")
    for name, speaker, index in (("d", 3, 0), ("e", 3, 1), ("f", 0, 3)):
        write(Path(f"{name}.wav"), said(speaker, index))
    found = command("enrol Dé=d.wav,e.wav ann=f.wav --store p.npz")
    assert found[:2] == (0, "p.npz: 4 people, 12 clips, 3 of them new\n")
    status, out, _ = command("identify d.wav --store p.npz")
    assert (status, out[:7]) == (0, "d.wav: ")
    first, second = json.loads(command("identify d.wav e.wav --store p.npz --json")[1])
    assert (first["clip"], second["clip"]) == ("d.wav", "e.wav")
    assert (first["num_people"], len(first["nearest"])) == (4, 3)
    assert first["margin"] >= 0
    found = command("forget Dé --store p.npz")
    assert found[:2] == (0, "p.npz: 2 clips forgotten, 3 people left\n")
    assert "Dé" not in load_people(Path("p.npz")).names


def test_who_speaks_when(command, store):
    write(Path("m.wav"), np.concatenate([said(0, 3), said(1, 3)]))
    options = f"--store {store} --rttm m.rttm --picture m.png"
    status, out, _ = command(f"who m.wav {options}")
    lines = Path("m.rttm").read_text().splitlines()
    assert (status, len(out.splitlines())) == (0, len(lines))
    assert {line[:12] for line in lines} == {"SPEAKER m 1 "}
    assert Path("m.png").read_bytes().startswith(b"\x89PNG")
    hiss = np.random.default_rng(0).integers(-500, 500, 3 * RATE).astype(np.int16)
    write(Path("hiss.wav"), hiss)
    assert command(f"who hiss.wav {options}")[:2] == (0, "no speech was found\n")
    assert Path("m.rttm").read_text() == ""
    refused(command(f"who m.wav --store {store} --picture m.jpg"), "m.jpg", ".png")


def test_an_own_threshold(command):
    for name, index in zip("abcd", (0, 1, 2, 2), strict=True):
        write(Path(f"{name}.wav"), said(3, index))
    line = "calibrate people dan=a.wav,b.wav,c.wav,d.wav mine.pt"
    status, out, err = command(line)
    assert (status, "warning: d.wav: " in err) == (0, True)
    for counted in ("4 people, 12 pairs of one person and 54 of two", "fewer than 20"):
        assert counted in out
    content = Path("mine.pt").read_bytes()
    refused(command(line), "mine.pt", "exists")
    assert Path("mine.pt").read_bytes() == content
    out = command(f"compare {PAIR} --checkpoint mine.pt")[1]
    assert "your own recordings of 4 people" in out


# Vectors of a folder


def test_vectors_of_a_folder(command, voices):
    Path("people/ben/bad.wav").write_text("none")
    status, out, err = command("embed people out.npz")
    counts = "9 vectors of 9 recordings, 9 recordings new, 1 files skipped"
    assert (status, out) == (0, f"out.npz: {counts}\n")
    assert "skipped people/ben/bad.wav: " in err
    rows, home = rows_of("out.npz"), Path("people")
    files = sorted(home.glob("*/?.wav"))
    assert rows["path"].tolist() == [str(file.relative_to(home)) for file in files]
    assert rows["begin"].tolist() == [0] * 9
    assert rows["end"].tolist() == [soundfile.info(file).duration for file in files]
    assert rows["vector"] == pytest.approx(voices.embed(files), abs=1e-5)
    assert (rows["model"], rows["digest"]) == ("model.pt", voices.digest)


def test_a_long_recording_has_a_row_for_each_window(command, monkeypatch, voices):
    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 4.0)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", 2.0)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", 1.5)
    sound = np.concatenate([said(0, 0), said(1, 0)])[: 5 * RATE]
    write(Path("long/a.wav"), sound)
    command("embed long out.npz")
    rows = rows_of("out.npz")
    assert rows["begin"].tolist() == [0, 1.5, 3]
    assert rows["end"].tolist() == [2, 3.5, 5]
    whole = voices.read("a", sound)
    parts = [whole.part(24_000 * n, 24_000 * n + 32_000) for n in range(3)]
    vectors = voices.embed_samples(part.heard(0.3) for part in parts)
    assert rows["vector"] == pytest.approx(vectors, abs=1e-5)


def test_embedding_goes_on_where_it_was_stopped(command, monkeypatch, strike):
    command("embed people whole.npz")
    monkeypatch.setattr(folder, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(folder, "SECONDS_BETWEEN_SAVES", -1.0)
    strike(Voices, "read", interrupt, call=6)
    assert command("embed people out.npz")[0] == 130
    assert len(rows_of("out.npz")["path"]) == 4
    for num_new in (5, 0):
        assert f" {num_new} recordings new" in command("embed people out.npz")[1]
    rows, expected = rows_of("out.npz"), rows_of("whole.npz")
    assert rows["path"].tolist() == expected["path"].tolist()
    assert rows["vector"] == pytest.approx(expected["vector"], abs=1e-5)


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_vectors_are_those_of_the_recordings_as_they_are(command, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out, ann, ben = f"out.{form}", Path("people/ann/0.wav"), Path("people/ben/0.wav")
    command(f"embed people {out}")
    state = ann.stat()
    write(ann, said(0, 0)[::-1])  # other samples, of the same size and time
    os.utime(ann, ns=(state.st_atime_ns, state.st_mtime_ns))
    ben.unlink()
    os.utime(Path("people/cy/0.wav"))  # touched, not changed
    Path("people/cy/\udcff.wav").write_bytes(ann.read_bytes())
    status, said_of, _ = command(f"embed people {out}")
    counts = "9 recordings, 1 recordings new, 1 recordings changed, 1 recordings gone"
    assert (status, counts in said_of) == (0, True)
    assert " 0 recordings new\n" in command(f"embed people {out}")[1]
    command(f"embed people whole.{form}")
    rows, expected = (load_vectors(Path(name)) for name in (out, f"whole.{form}"))
    order = np.argsort(rows["path"])
    assert rows["path"][order].tolist() == sorted(expected["path"].tolist())
    close = pytest.approx(expected["vector"][np.argsort(expected["path"])], abs=1e-5)
    assert rows["vector"][order] == close


def test_a_file_that_cannot_be_read_for_a_moment(command, monkeypatch):
    real, ann = folder.file_digest, Path("people/ann/0.wav")

    def digest(file):
        if file == ann:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file)

    monkeypatch.setattr(folder, "file_digest", digest)
    status, said_of, _ = command("embed people out.npz")
    assert (status, "9 recordings, 9 recordings new" in said_of) == (0, True)
    monkeypatch.setattr(folder, "file_digest", real)
    assert " 1 recordings changed" in command("embed people out.npz")[1]


def test_vectors_of_an_earlier_version_are_computed_anew(command):
    command("embed people out.npz")
    rows = rows_of("out.npz")
    spoilt = rows["vector"][::-1]
    old = {key: rows[key] for key in rows if key not in STAMPS} | {"vector": spoilt}
    np.savez("out.npz", **old)
    assert " 9 recordings changed" in command("embed people out.npz")[1]
    assert rows_of("out.npz")["vector"] == pytest.approx(rows["vector"], abs=1e-5)


def test_vectors_as_parquet(command):
    parquet = pytest.importorskip("pyarrow.parquet")
    last = Path("people/cy/2.wav").rename("2.wav")
    command("embed people out.parquet")
    last.rename("people/cy/2.wav")
    assert " 1 recordings new" in command("embed people out.parquet")[1]
    command("embed people out.npz")
    table, rows = parquet.read_table("out.parquet"), rows_of("out.npz")
    vectors = np.array(table["vector"].to_pylist())
    assert vectors == pytest.approx(rows["vector"], abs=1e-5)  # batched otherwise
    for key in ("path", "begin", "end"):
        assert table[key].to_pylist() == rows[key].tolist()
    assert table.schema.metadata[b"digest"].decode() == str(rows["digest"])


def test_vectors_of_two_models_do_not_mix(command, checkpoint):
    command("embed people out.npz")
    before = Path("out.npz").read_bytes()
    checkpoint("seed=2")
    refused(command("embed people out.npz"), "out.npz", "model.pt")
    assert Path("out.npz").read_bytes() == before


# Bad input: one line, and the files that were there are still there


def test_no_work_is_done_for_a_bad_target(command, monkeypatch):
    monkeypatch.setattr(Voices, "load", interrupt)
    for line in (
        "enrol people --store",
        "who people/ann/0.wav --store people.npz --rttm",
        "calibrate people",
        "export",
    ):
        for target in (".", "nowhere/out.npz"):
            refused(command(f"{line} {target}"), target)


@pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out.csv"])
def test_a_file_that_is_no_vectors(command, name):
    Path(name).write_bytes(b"no vectors")
    refused(command(f"embed people {name}"), name)
    assert Path(name).read_bytes() == b"no vectors"


def test_parquet_without_its_package(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(command("embed people out.parquet"), "pyarrow")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_text("not audio"), "not readable"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: None, "found none"),
        (lambda path: path.mkdir(), "expected a file"),
        (lambda path: write(path, np.zeros(0)), "no samples"),
        (lambda path: write(path, np.zeros(RATE)), "silence"),
        (lambda path: write(path), "0.3 s, found 0.1000 s"),
        (lambda path: write(path, np.full(RATE, np.nan), subtype="FLOAT"), "NaN"),
    ],
)
def test_bad_sounds(command, spoil, words):
    bad = Path("people/ann/a.wav")
    spoil(bad)
    refused(command(f"compare {bad} people/ann/0.wav"), str(bad), words)
    if bad.is_file():
        status, out, err = command("embed people out.npz")
        assert (status, "1 files skipped" in out) == (0, True)
        assert re.search(f"skipped {bad}: .*{words}", err)


@pytest.mark.parametrize(
    "line",
    [
        "enrol dan=bad.wav --store people.npz",
        "identify bad.wav --store people.npz",
        "who bad.wav --store people.npz",
        "calibrate people dan=people/ann/0.wav,bad.wav new.pt",
    ],
)
def test_a_bad_sound_for_any_command(command, store, line):
    before = store.read_bytes()
    Path("bad.wav").write_text("not audio")
    refused(command(line), "bad.wav", "not readable")
    assert store.read_bytes() == before
    assert not Path("new.pt").exists()


def test_a_folder_without_speech(command):
    Path("folder").mkdir()
    Path("folder/a.wav").write_text("none")
    status, _, err = command("embed folder out.npz")
    assert (status, "error: " in err.splitlines()[-1]) == (2, True)
    assert not Path("out.npz").exists()


@pytest.mark.parametrize(
    ("line", "home"),
    [
        ("embed {} out.npz", "empty/ann"),
        ("export out.npz --check {}", "empty/ann"),
        ("enrol {} --store out.npz", "empty"),
        ("calibrate {} out.npz", "empty"),
    ],
)
def test_a_folder_without_audio(command, line, home):
    notes = Path("empty/ann/notes.txt")
    notes.parent.mkdir(parents=True)
    notes.write_text("none")
    refused(command(line.format(home)), "empty/ann", ".wav", "found none")
    for other in (str(notes), "nowhere"):
        refused(command(line.format(other)), other)
    assert not Path("out.npz").exists()


@pytest.mark.parametrize(
    "line", ["enrol people", f"identify {PAIR}", "who people/ann/0.wav", "forget ann"]
)
def test_a_damaged_store(command, store, line):
    content = store.read_bytes()[:1000]
    store.write_bytes(content)
    refused(command(f"{line} --store {store}"), str(store))
    assert store.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("enrol people --store", "p.npz"),
        ("forget ann --store", "people.npz"),
        ("embed people", "out.npz"),
        ("embed people", "out.parquet"),
        ("calibrate people dan=d.wav,e.wav", "mine.pt"),
        ("who people/ann/0.wav --store people.npz --rttm", "m.rttm"),
        ("who people/ann/0.wav --store people.npz --picture", "m.png"),
    ],
)
def test_a_disk_that_is_full(command, store, monkeypatch, line, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    for number, path in enumerate("de"):
        write(Path(f"{path}.wav"), said(3, number))
    reason = os.strerror(errno.ENOSPC)

    def full(_):
        raise OSError(errno.ENOSPC, reason)

    if name not in ("mine.pt", "people.npz"):  # one must be a new file, one is there
        command(f"{line} {name}")
    before = {path: path.read_bytes() for path in Path().glob("*.*")}
    monkeypatch.setattr(os, "fsync", full)
    status, out, err = command(f"{line} {name}")
    assert not out or line.startswith("who")  # which first prints what it found
    refused((status, "", err), name, reason)
    assert {path: path.read_bytes() for path in Path().glob("*.*")} == before
