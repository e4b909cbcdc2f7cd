"""Damaged files: sound ones, changed at random, are read or refused in one line.

    python experiments/hostile.py COUNT SEED FOLDER    prints `fuzz`'s JSON

Every input depends only on (seed, kind, number). None may raise anything but the
refusal of its kind, in one line, take longer than `MAX_SECONDS`, or make the process
grow by more than `MAX_GROWTH`. The bytes of a sound file are damaged or, in an archive,
those of a member, with correct checksums.
"""

import io
import json
import resource
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # as a command
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import CPU, MINIATURE, RATE, noise, write
from engine.parameter_files import SHIPPED, dump_yaml, load_parameters
from errors import MAX_MESSAGE
from exchange.nemo_archives import CONFIG, WEIGHTS, NemoError
from exchange.nemo_files import load_nemo, save_nemo
from parameters import ParameterError
from runs.checkpoints import RunError, load_model, save_checkpoint
from runs.speaker_model import build_model
from speech.audio import AudioError, Segment, load_recording
from speech.corpora import utterances
from speech.packs import pack
from speech.utterances import CorpusError
from verification.trials import (
    TrialError,
    make_trials,
    read_scores,
    read_trials,
    write_scores,
    write_trials,
)

MAX_SECONDS = 10.0  # of a core, for one input; none has taken nearly as long
MAX_GROWTH = 2**29  # bytes of resident memory, over all inputs of a kind
SPEAKERS = ["ann", "ben", "王", "d e"]

Random = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """Sound files of one kind, and how they are read and refused."""

    files: Sequence[bytes]
    fragments: Sequence[bytes]  # hard to read, to be inserted
    read: Callable[[Path, Random], object]
    refusal: type[Exception]
    share: int  # of the inputs; small where reading is slow
    names_file: bool = True  # in a refusal; audio is named by its id, parameters by key
    rewrap: Callable[[bytes, Random], bytes] | None = None  # damages a member


NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
TEXT = (
    *(b"\0", b"\n", b"\r", b"\t", b" ", b"'", b'"', b"\\", b"\x1b[2J", b"\xff"),
    *("\u2028".encode(), "\ufeff".encode(), "王".encode(), b"\xed\xb0\x80"),
    *(b"-1", b"0", b"nan", b"inf", b"1e999", b"9" * 30, b"9" * 5000, b"x" * 5000),
)
YAML = (
    *TEXT,
    *(b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b"| ", b"> ", b"%", b"@", b"#"),
    *(b"&a ", b"*a", b"<<: *a\n", b"---\n", b"...\n", b"null", b"[]", b"{}"),
    *(b"!!bool x", b"!!int ''", b"!!float ''", b"!!timestamp x", b"!!binary x"),
    *(b"!!set {[a]}", b"!!omap [a]", b"!!pairs [a]", b"!!str [a]", b"!!map [a]"),
    *(b"!!python/name:os.mkdir ", b"!<\n>", b"2026-99-99", b"0o99", b"1:1:1"),
    *(b"&a [*a]", b"&a {b: *a}", b"[" * 3000, b"{a: " * 400, b'"a\\nb": 1\n'),
    b"[&a [x,x,x,x,x,x,x,x,x], "
    + b", ".join(
        b"&%c [%s]" % (98 + level, b",".join([b"*%c" % (97 + level)] * 9))
        for level in range(12)
    )
    + b"]",
)
JSON = (
    *TEXT,
    *(b"[", b"]", b"{", b"}", b":", b",", b"null", b"true", b"NaN", b"Infinity"),
    *(b"[" * 900, b"[" * 900 + b"]" * 900, b"{}", b'"\\u0000"', b'"\\ud800"'),
    *(b'"' + b"a/" * 3000 + b'"', b'"' + b"a" * 300 + b'"', b"..", b"/", b"1e-300"),
)


def damaged(content: bytes, kind: Kind, random: Random) -> bytes:
    """Change a file in one to three places."""
    for _ in range(random.integers(1, 4)):
        size = len(content)
        near = random.random() < 0.5  # headers stand at the beginning or the end
        place = int(random.integers(min(size, 300) if near else size) if size else 0)
        if near and random.random() < 0.3:
            place = size - place
        length = int(random.choice([1, 4, 30, 1000]))
        head, tail = content[:place], content[place:]
        change = random.integers(8)
        if change == 0 and tail:
            tail = bytes([tail[0] ^ 1 << int(random.integers(8))]) + tail[1:]
        elif change == 1:
            tail = random.bytes(length) + tail[length:]
        elif change == 2:
            tail = b""
        elif change == 3:
            tail = tail[length:]
        elif change == 4:
            tail = tail[:length] * int(random.integers(2, 9)) + tail[length:]
        elif change == 5:
            other = kind.files[random.integers(len(kind.files))]
            tail = other[random.integers(len(other) + 1) :]
        elif change == 6:
            width = int(random.choice([1, 2, 4, 8]))
            number = int(random.choice(NUMBERS)) % 256**width
            order = random.choice(["little", "big"])
            tail = number.to_bytes(width, str(order)) + tail[width:]
        elif change == 7 and kind.fragments:
            skipped = int(random.choice([0, 1, length]))
            fragment = kind.fragments[random.integers(len(kind.fragments))]
            tail = fragment + tail[skipped:]
        content = head + tail
    return content


def _audio(folder: Path) -> Kind:
    speech = noise(0.3)
    loud = np.stack([speech / 9000, 3 - speech / 9000], 1)
    files = [
        write(folder / name, samples, rate, **options).read_bytes()
        for name, samples, rate, options in (
            ("a.wav", speech, RATE, {}),
            ("b.wav", loud, 48_000, {"subtype": "FLOAT"}),
            ("c.wav", np.tile(speech[:2400, None], 8), 8_000, {"subtype": "PCM_24"}),
            ("d.wav", speech, 22_050, {"subtype": "MS_ADPCM"}),
            ("e.flac", speech, RATE, {}),
            ("f.flac", np.tile(speech[:, None], 8), 192_000, {"subtype": "PCM_24"}),
            ("g.ogg", speech, RATE, {}),
            ("h.ogg", loud / 4, 48_000, {"format": "OGG", "subtype": "OPUS"}),
            ("i.mp3", speech, 44_100, {}),
        )
    ]

    def read(path: Path, random: Random) -> None:
        source = path
        if random.random() < 0.3:
            source = Segment(path, float(random.choice([0, 0.01, 0.1, 9e9])), 0.1)
        recording = load_recording(source, RATE)
        assert recording.samples.dtype == np.int16
        assert recording.samples.ndim == 1
        assert len(recording.samples) >= 400

    return Kind(files, (), read, AudioError, 6, names_file=False)


def _parameters(_: Path) -> Kind:
    files, read = [SHIPPED.read_bytes()], lambda path, _: load_parameters(path)
    return Kind(files, YAML, read, ParameterError, 2, names_file=False)


def _overrides(folder: Path) -> Kind:
    """Small files after the shipped one."""
    files = [
        b"training: {epochs: 9, batch_size: 5}\n",
        b"dataset:\n  name: folder\n  root: recordings\nloss:\n  name: arcface\n",
        b"loss:\n  arcface: &a {scale: 30.0, margin: 0.2}\n  cosface: *a\n",
    ]
    first = folder / "shipped.yml"
    first.write_text(dump_yaml(load_parameters(SHIPPED).as_dict()))
    read = lambda path, _: load_parameters(first, path)  # noqa: E731
    return Kind(files, YAML, read, ParameterError, 2, names_file=False)


IDS = ["ann/1.wav", "ann/2.wav", "ben/1.wav", "王/1.wav", "d%20e/1.wav"]
TRIALS = make_trials(["a", "a", "b", "c", "d"], 100, seed=1)


def _trials(folder: Path) -> Kind:
    def read(path: Path, random: Random) -> None:
        read_trials(path, IDS if random.random() < 0.5 else None)

    write_trials(folder / "sound.txt", TRIALS, IDS)
    files = [(folder / "sound.txt").read_bytes()]
    return Kind(files, (*TEXT, b"1 a b\n"), read, TrialError, 2)


def _scores(folder: Path) -> Kind:
    def read(path: Path, _: Random) -> None:
        assert np.isfinite(read_scores(path, TRIALS, IDS)).all()

    scores = np.linspace(-1, 1, len(TRIALS.targets))
    write_scores(folder / "sound.txt", TRIALS, scores, IDS)
    files = [(folder / "sound.txt").read_bytes()]
    return Kind(files, (*TEXT, b"1_0", b"a b 1\n"), read, TrialError, 2)


def _manifest(folder: Path) -> Kind:
    def read(path: Path, _: Random) -> None:
        chosen = dataset.manifest.model_copy(update={"train": path})
        rows = utterances(dataset.model_copy(update={"manifest": chosen}))
        pack(rows, folder / "pack", RATE)

    write(folder / "1.wav", noise(0.2))
    dataset = load_parameters(SHIPPED, overrides=["dataset.name=manifest"]).dataset
    rows = [
        {"audio_filepath": "1.wav", "label": speaker, "offset": offset, "duration": 0.1}
        for speaker, offset in zip(SPEAKERS * 2, np.arange(8) / 100, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return Kind([text.encode()], JSON, read, CorpusError, 2)


def _speakers(folder: Path) -> Kind:
    def read(path: Path, _: Random) -> None:
        path.replace(folder / "corpus" / "speakers.csv")
        utterances(dataset)

    for speaker in SPEAKERS:
        write(folder / "corpus" / speaker / "1.wav", noise(0.2))
    overrides = ["dataset.name=folder", f"dataset.root={folder / 'corpus'}"]
    dataset = load_parameters(SHIPPED, overrides=overrides).dataset
    table = "speaker,age,gender\n" + "".join(f"{s},7,f\n" for s in SPEAKERS)
    return Kind([table.encode()], (*TEXT, b",", b'"' * 3), read, CorpusError, 1)


def _built(*overrides: str):
    p = load_parameters(SHIPPED, overrides=[*MINIATURE, *overrides])
    return build_model(p, SPEAKERS, {"": "digest"}, CPU)


def _inside_zip(content: bytes, kind: Kind, random: Random) -> bytes:
    """Damage the pickle or a tensor in a sound zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    names = list(members)
    chosen = next(name for name in names if name.endswith("data.pkl"))
    if random.random() < 0.1:
        chosen = names[random.integers(len(names))]
    members[chosen] = damaged(members[chosen], kind, random)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as new:
        for name, member in members.items():
            new.writestr(name, member)
    return file.getvalue()


PICKLE = (
    *(b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"G" + b"\x7f\xf0" + bytes(6)),
    *(b"N", b"\x88", b"]", b"}", b")", b"(", b"t", b"R", b"b", b"s", b"u", b"."),
    *(b"\x8a\x08" + b"\x7f" * 8, b"cos\nmkdir\n", b"ctorch\nzeros\n", b"Q", b"h\0"),
    *(b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"X\xff\xff\xff\x7f", b"X\1\0\0\0a", b"r\xff\xff\xff\x7f", b"q\xff"),
)


def _checkpoint(folder: Path) -> Kind:
    for name in ("titanet", "dvector"):
        save_checkpoint(folder / f"{name}.pt", _built(f"model.name={name}"))
    files = [path.read_bytes() for path in sorted(folder.glob("*.pt"))]
    read = lambda path, _: load_model(path, CPU)  # noqa: E731
    inner = Kind([b"\x80\x02."], PICKLE, read, RunError, 1)
    rewrap = lambda content, random: _inside_zip(content, inner, random)  # noqa: E731
    return Kind(files, PICKLE, read, RunError, 2, rewrap=rewrap)


def _nemo(folder: Path) -> Kind:
    save_nemo(folder / "sound.nemo", _built())
    content = (folder / "sound.nemo").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        config = archive.extractfile(f"./{CONFIG}").read()
        weights = archive.extractfile(f"./{WEIGHTS}").read()
    read = lambda path, _: load_nemo(path)  # noqa: E731
    text = Kind([config], YAML, read, NemoError, 1)
    inner = Kind([b"\x80\x02."], PICKLE, read, NemoError, 1)

    def rewrap(_: bytes, random: Random) -> bytes:
        members = {CONFIG: config, WEIGHTS: weights}
        if random.random() < 0.5:
            members[CONFIG] = damaged(config, text, random)
        else:
            members[WEIGHTS] = _inside_zip(weights, inner, random)
        with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
            for name, part in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
        return file.getvalue()

    return Kind([content], PICKLE, read, NemoError, 1, rewrap=rewrap)


BUILDERS = (_audio, _parameters, _overrides, _trials, _scores, _manifest, _speakers)
KINDS = {f.__name__[1:]: f for f in (*BUILDERS, _checkpoint, _nemo)}


class HangError(BaseException):
    """An input that is still being read; no reader may catch it."""


def _stop(*_) -> None:
    raise HangError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes


def fuzz(count: int, seed: int, folder: Path) -> dict:
    """Read at least so many damaged files in `folder`, where the last of each kind
    stays; raise `AssertionError` at the first breach.

    Returns for each kind how many were tried, read and refused, the slowest in seconds,
    and the bytes by which the process grew at its peak.
    """
    before = signal.signal(signal.SIGPROF, _stop)
    try:
        kinds = {}
        for name, build in KINDS.items():
            (folder / name).mkdir(parents=True)
            kinds[name] = kind = build(folder / name)
            for content in kind.files:  # sound, and warms up
                assert _outcome(kind, folder / name, content, [seed]) == (False, "")
        shares, outcomes = sum(kind.share for kind in kinds.values()), {}
        for place, (name, kind) in enumerate(kinds.items()):
            number = -(-count * kind.share // shares)
            outcomes[name] = _fuzz_kind(kind, number, [seed, place], folder / name)
        return outcomes
    finally:
        signal.signal(signal.SIGPROF, before)


def _fuzz_kind(kind: Kind, count: int, key: Sequence[int], folder: Path) -> dict:
    num_refused, slowest, start = 0, 0.0, _peak()
    for number in range(count):
        random = np.random.default_rng([*key, number])
        content = kind.files[random.integers(len(kind.files))]
        rewrap = kind.rewrap if random.random() < 0.5 else None
        content = rewrap(content, random) if rewrap else damaged(content, kind, random)
        began = time.process_time()
        refused, breach = _outcome(kind, folder, content, [*key, number])
        num_refused += refused
        seconds, growth = time.process_time() - began, _peak() - start
        slowest = max(slowest, seconds)
        if growth > MAX_GROWTH or seconds > MAX_SECONDS:
            breach = f"{growth} bytes of memory, {seconds:.1f} s"
        assert not breach, f"{folder.name}, seed {key[0]}, number {number}: {breach}"
    return {
        "tried": count,
        "read": count - num_refused,
        "refused": num_refused,
        "slowest_seconds": round(slowest, 3),
        "growth_bytes": _peak() - start,
    }


def _outcome(
    kind: Kind, folder: Path, content: bytes, key: Sequence[int]
) -> tuple[bool, str]:
    """Read an input; return whether it was refused, and what is wrong with that."""
    (folder / "input.bin").write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        kind.read(folder / "input.bin", np.random.default_rng([*key, 0]))
        return False, ""
    except kind.refusal as error:
        message = str(error)
    except (Exception, HangError) as error:
        return False, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    is_one_line = message.isprintable() and len(message) <= 2 * MAX_MESSAGE
    if is_one_line and (message.startswith(f"{folder}") or not kind.names_file):
        return True, ""
    return True, f"expected one line that names the file, got {message[:1000]!r}"


if __name__ == "__main__":
    count, seed, folder = sys.argv[1:]
    print(json.dumps(fuzz(int(count), int(seed), Path(folder)), indent=1))
