"""The kinds of files that a user may give, with sound files and hostile ones of each.

folder -> a function of `KINDS` -> `Kind`
"""

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # as a command
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import CPU, MINIATURE, RATE, noise, said, write
from damage import JSON, TEXT, YAML, Kind, Random, damaged
from dataset import prepare
from engine.parameter_files import SHIPPED, dump_yaml, load_parameters
from errors import UserError
from exchange.nemo_archives import CONFIG, WEIGHTS, NemoError
from exchange.nemo_files import load_nemo, save_nemo
from parameters import ParameterError
from recognition.people import STORE_VERSION, People, load_people
from recognition.sounds import Clip, VoiceError, listen_to
from recognition.vectors import load_vectors, no_vectors, save_vectors
from runs.checkpoints import RunError, load_model, save_checkpoint
from runs.speaker_model import build_model
from speech.audio import AudioError, Segment, load_recording
from speech.corpora import utterances
from speech.packs import open_pack, pack
from speech.utterances import CorpusError
from teacher import load_teacher
from verification.trials import (
    TrialError,
    make_trials,
    read_scores,
    read_trials,
    write_scores,
    write_trials,
)

SPEAKERS = ["ann", "ben", "王", "d e"]
HUGE = 2**26  # bytes; packed they are few
NO_FILES = b"", b"\0", b"<!DOCTYPE html>\n<html></html>\n", bytes(100_000)


# Recordings


def audio(folder: Path) -> Kind:
    """Recordings, read as packing, manifests and `voices.py` do."""
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
            ("j.mp3", loud / 4, 16_000, {}),
            ("k.aiff", speech, RATE, {}),
            ("l.aiff", loud, 44_100, {"subtype": "FLOAT"}),
            ("m.au", speech, 8_000, {"subtype": "ULAW"}),
            ("n.au", loud, RATE, {"subtype": "DOUBLE"}),
            *((f"o.{name}", speech, RATE, {"format": name}) for name in OTHERS),
        )
    ]

    def read(path: Path, random: Random) -> None:
        source = path
        if random.random() < 0.3:
            offset = float(random.choice([0, 0.01, 0.1, 9e9]))
            source = Segment(path, offset, 0.1, random.choice([None, 0, 1]))
        recording = load_recording(source, RATE)
        assert recording.samples.dtype == np.int16
        assert recording.samples.ndim == 1
        assert len(recording.samples) >= 400
        if random.random() < 0.2:
            listen_to("sound", recording, RATE)

    nasties = [*NO_FILES, *_nasty_waves(), *_nasty_joins(files), *_nasty_headers()]
    return Kind(files, SOUND, read, AudioError, names_file=False, nasties=nasties)


OTHERS = "CAF", "W64", "RF64", "VOC", "NIST", "SVX", "PAF", "PVF", "AVR", "IRCAM"
SOUND = (
    *(b"RIFF", b"WAVE", b"fmt ", b"data", b"LIST", b"OggS", b"fLaC", b"ID3", b"TAG"),
    *(b"APETAGEX", b"Xing\0\0\0\x0f", b"FORM", b"AIFC", b"COMM", b"SSND", b".snd"),
    *(b"fLaC\0\0\0\x22", b"data\xff\xff\xff\xff", b"\xff\xfb\x90\x64", b"\xff\xf8"),
    *(bytes(5000), b"\xff" * 5000, b"\x7f\xc0\0\0" * 100, b"\x80" * 400),
)


def _wave(
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    kind: int = 1,
    align: int | None = None,
    claimed: int | None = None,
    data: bytes = bytes(9600),
) -> bytes:
    """Return a WAV file whose header claims these."""
    align = channels * bits // 8 if align is None else align
    shape = struct.pack("<HHIIHH", kind, channels, rate, 0, align & 0xFFFF, bits)
    size = struct.pack("<I", len(data) if claimed is None else claimed)
    chunks = b"WAVEfmt \x10\0\0\0" + shape + b"data" + size + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _nasty_waves() -> Iterator[bytes]:
    for channels in (0, 1, 2, 1024, 65535):
        for rate in (0, 1, 3999, RATE, 383_999, 2**31, 2**32 - 1):
            yield _wave(channels, rate)
    for bits in (0, 1, 7, 8, 12, 32, 64, 255, 65535):
        yield _wave(bits=bits)
    for kind in (0, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0xFFFE, 0xFFFF):
        yield _wave(kind=kind)
        yield _wave(kind=kind, bits=4, align=0)
    for claimed in (0, 1, 2**31 - 1, 2**31, 0x7FFFF000, 2**32 - 2, 2**32 - 1):
        yield _wave(claimed=claimed)
    for value in (np.nan, np.inf, -np.inf, 3e38, 1e-45):
        yield _wave(bits=32, kind=3, data=np.full(4800, value, "<f4").tobytes())
        yield _wave(bits=64, kind=3, data=np.full(4800, value, "<f8").tobytes())
    yield _wave().replace(b"fmt ", b"fmx ")
    yield _wave().replace(b"data", b"dxta")
    yield _wave(data=b"")


def _nasty_joins(files: list[bytes]) -> Iterator[bytes]:
    """Files of very many parts."""
    yield b"RIFF\4\0\0\0WAVE" * 20_000
    yield _wave()[:44] + bytes(9600) + b"LIST\0\0\0\0" * 50_000
    yield _wave(data=bytes(2)) * 5_000
    yield b"OggS" * 200_000
    yield b"OggSx" * 200_000
    yield (b"OggS\0\2" + bytes(21)) * 20_000
    yield (b"OggS\0\4" + bytes(21)) * 20_000
    yield b"fLaC\0\0\0\x22" * 50_000
    tiny = files[4]
    yield tiny[:42] * 10_000
    yield tiny * 100
    one, other = (b"\xff\xf3\x14", b"\xff\xf3\x10")  # MP3 of 8 kbit/s, of two rates
    frames = (one + b"\xc4").ljust(24, b"\0") * 2 + (other + b"\xc4").ljust(
        26, b"\0"
    ) * 2
    yield frames * 5_000
    yield b"ID3\4\0\0\0\0\0\0" * 50_000 + files[8]
    yield b"ID3\4\0\0\x7f\x7f\x7f\x7f" + files[8]
    yield b"\xff\xfb" * 300_000
    yield b"TAG" * 50_000
    for file in files:
        yield file + files[0] + file
        yield file + file[:100]


def _nasty_headers() -> Iterator[bytes]:
    shape = struct.pack(">hIh", 1, 4800, 16)
    sound = b"SSND" + struct.pack(">III", 9608, 0, 0) + bytes(9600)
    for rate in (b"\x7f\xff" + bytes(8), b"\xff" * 10, bytes(10), b"\x40\x1e" * 5):
        yield b"FORM\0\0\x25\xaeAIFFCOMM\0\0\0\x12" + shape + rate + sound
    for numbers in (
        (24, 2**32 - 1, 3, RATE, 0),
        (24, 9600, 3, RATE, 2**32 - 1),
        (2**32 - 1, 9600, 3, RATE, 1),
        (0, 9600, 99, 0, 1),
        (24, 9600, 6, 2**32 - 1, 1024),
    ):
        yield b".snd" + struct.pack(">5I", *numbers) + bytes(9600)
    for rate, channels, samples in ((RATE, 1, 2**36 - 1), (1, 8, 0), (2**20 - 1, 8, 1)):
        numbers = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
        information = (
            b"\x10\0\x10\0" + bytes(6) + numbers.to_bytes(8, "big") + bytes(16)
        )
        yield b"fLaC\x80\0\0\x22" + information
        yield b"fLaC\x80\0\0\x22" + information + b"\xff\xf8\x69\x08" * 5000


# Parameters


def parameters(_: Path) -> Kind:
    """Whole parameter files."""
    files, read = [SHIPPED.read_bytes()], lambda path, _: load_parameters(path)
    return Kind(files, YAML, read, ParameterError, names_file=False, nasties=NASTY_YAML)


def overrides(folder: Path) -> Kind:
    """Small files after the shipped one."""
    files = [
        b"training: {epochs: 9, batch_size: 5}\n",
        b"dataset:\n  name: folder\n  root: recordings\nloss:\n  name: arcface\n",
        b"loss:\n  arcface: &a {scale: 30.0, margin: 0.2}\n  cosface: *a\n",
    ]
    first = folder / "shipped.yml"
    first.write_text(dump_yaml(load_parameters(SHIPPED).as_dict()))
    read = lambda path, _: load_parameters(first, path)  # noqa: E731
    return Kind(files, YAML, read, ParameterError, names_file=False, nasties=NASTY_YAML)


NASTY_YAML = (
    *NO_FILES,
    b"training: {epochs: " + b"9" * 100_000 + b"}\n",
    b"training: {epochs: 0x" + b"f" * 100_000 + b"}\n",
    b"training: {optimizer: {lr: 1" + b"0" * 400 + b"}}\n",
    b"training: " + b"[" * 100_000,
    b"training: " + b"{a: " * 100_000,
    b"a: &a [*a]\n",
    b"run: {name: " + b"x" * 2_000_000 + b"}\n",
    b"version: 99\n",
    b"version: true\n",
    "run: {name: a}\n".encode("utf-16"),
    "run: {name: a}\n".encode("utf-32"),
    b"? {a: b}\n: c\n",
    b"1: 2\nnull: 3\n",
    b"- a\n" * 1000,
    b"x: 1:2:3:4:5:6:7:8:9" + b":59" * 1000,
    b"dataset: {root: '" + b"../" * 10_000 + b"'}\n",
)


# Lists


IDS = ["ann/1.wav", "ann/2.wav", "ben/1.wav", "王/1.wav", "d%20e/1.wav"]
TRIALS = make_trials(["a", "a", "b", "c", "d"], 100, seed=1)
NASTY_LISTS = (
    *NO_FILES,
    b"\n" * 100_000,
    b"1 a b" * 100_000,
    b"1 " + b"a" * 2_000_000 + b" b\n",
    "1 a b\n0 a c\n".encode("utf-16"),
    b"1\ta\tb\t\n0\ta\tc\n",
    b"1 a b\n0 a b\n1 b a\n",
    b"\xef\xbb\xbf1 a b\n0 a c\n",
    b"a b target\n" * 20_000,
    b"".join(b"%d a%d b%d\n" % (n % 2, n, n) for n in range(20_000)),
)


def trials(folder: Path) -> Kind:
    """Lists of trials, VoxCeleb's and Kaldi's."""

    def read(path: Path, random: Random) -> None:
        known = random.random() < 0.5
        read_trials(path, IDS if known else None, [*"aabcd"] if known else None)

    write_trials(folder / "sound.txt", TRIALS, IDS)
    sound = (folder / "sound.txt").read_bytes()
    label = lambda row: (b"nontarget", b"target")[row[0] == b"1"]  # noqa: E731
    rows = [line.split(b" ") for line in sound.splitlines()]
    kaldi = b"".join(b"%s %s %s\n" % (*row[1:], label(row)) for row in rows)
    files = [sound, sound.replace(b" ", b"\t"), kaldi, kaldi.replace(b"\n", b"\r\n")]
    fragments = (*TEXT, b"1 a b\n", b"target", b"nontarget")
    return Kind(files, fragments, read, TrialError, nasties=NASTY_LISTS)


def scores(folder: Path) -> Kind:
    """Lists of scores, in the last column and in the first."""

    def read(path: Path, _: Random) -> None:
        assert np.isfinite(read_scores(path, TRIALS, IDS)).all()

    values = np.linspace(-1, 1, len(TRIALS.targets))
    write_scores(folder / "sound.txt", TRIALS, values, IDS)
    sound = (folder / "sound.txt").read_bytes()
    rows = [line.split(b" ") for line in sound.splitlines()]
    first = b"".join(b"%s\t%s\t%s\n" % (row[2], *row[:2]) for row in rows)
    fragments = (*TEXT, b"1_0", b"a b 1\n", b" target")
    files = [sound, first, sound.replace(b"\n", b" target\n")]
    return Kind(files, fragments, read, TrialError, nasties=NASTY_LISTS)


def manifest(folder: Path) -> Kind:
    """NeMo's manifests."""

    def read(path: Path, _: Random) -> None:
        chosen = dataset.manifest.model_copy(update={"train": path})
        rows = utterances(dataset.model_copy(update={"manifest": chosen}))
        pack(rows, folder / "pack", RATE)

    write(folder / "1.wav", np.stack([noise(0.2)] * 2, 1))
    dataset = load_parameters(SHIPPED, overrides=["dataset.name=manifest"]).dataset
    rows = [
        {"audio_filepath": "1.wav", "label": speaker, "offset": offset, "duration": 0.1}
        for speaker, offset in zip(SPEAKERS * 2, np.arange(8) / 100, strict=True)
    ]
    channels = [row | {"channel": n % 2} for n, row in enumerate(rows)]
    files = [
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in table).encode()
        for table in (rows, channels)
    ]
    row = b'{"audio_filepath": "1.wav", "label": "a"%s}\n'
    nasties = [
        *(
            row % b', "offset": 1e300',
            row % b', "offset": -0.0',
            row % b', "offset": 9',
        ),
        *(row % b', "duration": 1e-300', row % b', "duration": 1e300', row % b""),
        *(
            row % b', "channel": 1e300',
            row % b', "channel": 7',
            row % b', "channel": -1',
        ),
        *(row % b', "offset": NaN', row % b', "duration": true', row * 500),
        *(
            row % (b', "x": ' + b"[" * 100_000),
            row % (b', "offset": ' + b"9" * 100_000),
        ),
        *(
            row.replace(b"1.wav", name) % b""
            for name in (b"", b".", b"/dev/zero", b"~")
        ),
        row.replace(b"1.wav", b"\\u0000") % b"",
        row.replace(b'"a"', b"[]") % b"",
        *NO_FILES,
    ]
    return Kind(files, JSON, read, CorpusError, nasties=nasties)


def speakers(folder: Path) -> Kind:
    """Tables of speakers beside a folder of recordings."""

    def read(path: Path, _: Random) -> None:
        path.replace(folder / "corpus" / "speakers.csv")
        utterances(dataset)

    for speaker in SPEAKERS:
        write(folder / "corpus" / speaker / "1.wav", noise(0.2))
    overrides = ["dataset.name=folder", f"dataset.root={folder / 'corpus'}"]
    dataset = load_parameters(SHIPPED, overrides=overrides).dataset
    table = "speaker,age,gender\n" + "".join(f"{s},7,f\n" for s in SPEAKERS)
    nasties = [
        *NO_FILES,
        b"speaker,gender\n" + b'"' * 200_000,
        b"speaker,gender\nann," + b"x" * 200_000 + b"\n",
        b"speaker," + b"gender," * 50_000 + b"\n",
        b"speaker,speaker,gender,gender\nann,ben,f,m\n",
        table.encode("utf-16"),
    ]
    fragments = (*TEXT, b",", b'"' * 3)
    return Kind([table.encode()], fragments, read, CorpusError, nasties=nasties)


# Stores


def _npz(arrays: Mapping[str, np.ndarray], save: Callable = np.savez) -> bytes:
    save(file := io.BytesIO(), **arrays)
    return file.getvalue()


def _npy(header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def _zip(members: Mapping[str, bytes]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as new:
        for name, member in members.items():
            new.writestr(name, member)
    return file.getvalue()


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        return {name: old.read(name) for name in old.namelist()}


HEADER = b"{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"
ARRAY = (
    *(
        b"'<f4'",
        b"'<f8'",
        b"'|O'",
        b"'<U1'",
        b"'<U0'",
        b"'<M8[ns]'",
        b"'<c16'",
        b"'|b1'",
    ),
    *(
        b"'|V9'",
        b"[('a', '<f4')]",
        b"(6,)",
        b"(0,)",
        b"()",
        b"(6, 0)",
        b"(-6,)",
        b"True",
    ),
    *(b"(%d,)" % 10**12, b"'<U%d'" % 2**28, b"(1,) * 10**9", b"NaN", b"\x93NUMPY"),
    *(b"\x7f\xc0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x11\0"),
)


def _nasty_arrays(sound: bytes, key: str) -> Iterator[bytes]:
    """Files of arrays, of which one, `key`, is hostile."""
    members = _members(sound)
    name = f"{key}.npy"
    with np.load(io.BytesIO(sound)) as file:
        arrays = dict(file)
    yield from NO_FILES
    yield _npz(arrays, np.savez_compressed)
    yield _npz(arrays | {key: np.zeros(HUGE, np.uint8)}, np.savez_compressed)
    yield _npz(arrays | {"more": np.zeros(HUGE, np.uint8)}, np.savez_compressed)
    yield _npz(arrays | {key: np.array([{}] * 6, object)})
    yield _npz(arrays | {key: arrays[key].astype("V8")})
    yield _npz({k: v for k, v in arrays.items() if k != key})
    for other in arrays:
        for shape in (0, (0, 0), (6, 0), (2, 3, 4), ()):
            yield _npz(arrays | {other: np.zeros(shape, arrays[other].dtype)})
    wide = {
        k: _npy(HEADER % (b"<U%d" % (2**31 // 4 - 1), b"False", b"(0,)"))
        for k, v in members.items()
        if b"'shape': ()" not in v[:128]
    }
    yield _zip(members | wide)  # no rows, each of two gigabytes
    yield _zip(
        members | dict.fromkeys(wide, _npy(HEADER % (b"<U0", b"False", b"(6,)")))
    )
    for dtype in (b"<f4", b"<U9", b"|O", b"<f2", b"<q8"):
        for shape in (b"(6,)", b"(%d,)" % 10**12, b"(%d, 0)" % 10**12, b"(-6, -4)"):
            for order in (b"False", b"True", b"3"):
                header = HEADER % (dtype, order, shape)
                yield _zip(members | {name: _npy(header, bytes(96))})
    for version in (b"\2\0", b"\3\0", b"\x09\0"):
        header = HEADER % (b"<f4", b"False", b"(6, 4)")
        yield _zip(members | {name: _npy(header, bytes(96), version)})
    for header in (b"{" * 60_000, b"[" * 9000, b"(" * 300 + b")" * 300, b"", b"\0"):
        yield _zip(members | {name: _npy(header)})
    yield _zip({f"{n}.npy": members["version.npy"] for n in range(20_000)} | members)
    yield sound + sound
    yield b"x" * 1000 + sound
    yield _zip({"people.npz": sound})


def _in_member(content: bytes, random: Random, likely: str = "") -> bytes:
    """Damage a member of a sound zip, most often one whose name ends in `likely`."""
    members = _members(content)
    names = [name for name in members if name.endswith(likely)]
    if random.random() < 0.1:
        names = list(members)
    chosen = names[random.integers(len(names))]
    fragments = PICKLE if likely else ARRAY
    inner = Kind([b"\x80\x02.", members[chosen]], fragments, print, UserError)
    return _zip(members | {chosen: damaged(members[chosen], inner, random)})


def store(folder: Path) -> Kind:
    """People's stores, read, searched and added to."""
    clips = [
        Clip(f"{n}.wav", np.eye(1, 4, n % 4, dtype=np.float32)[0], 3.0, 2.0, f"{n}", ())
        for n in range(6)
    ]
    other = Clip("x.wav", clips[0].vector, 3.0, 2.0, "other", ())
    texts, vectors = np.empty(0, "U1"), np.empty((0, 4), np.float32)
    nobody = People("m.pt", "digest", "{}", texts, texts, texts, np.empty(0), vectors)
    some = nobody.with_clips("ann", clips[:3]).with_clips("王", clips[3:])
    files = []
    for people in (some, nobody):
        people.save(folder / "sound.npz")
        files.append((folder / "sound.npz").read_bytes())

    def read(path: Path, _: Random) -> None:
        people = load_people(path)
        names, centroids = people.centroids()
        assert len(names) == len(people.speech()) == len(centroids)
        assert np.isfinite(centroids).all()
        if people.vectors.shape[1] == 4:  # as of the model
            assert "cy" in people.with_clips("cy", [other]).names

    nasties = [*_nasty_arrays(files[0], "names"), *_nasty_arrays(files[0], "vectors")]
    return Kind(files, ARRAY, read, VoiceError, rewrap=_in_member, nasties=nasties)


def _rows(num_rows: int, size: int) -> dict[str, np.ndarray]:
    numbers = np.arange(num_rows)
    return no_vectors("m.pt", "digest", size) | {
        "path": np.array([f"{n // 2}/王{n}.wav" for n in numbers]),
        "begin": numbers * 1.0,
        "end": numbers + 1.0,
        "bytes": numbers,
        "changed": numbers,
        "digest_of_file": np.array([f"{n}" for n in numbers]),
        "vector": np.eye(num_rows, size, dtype=np.float32),
    }


def _saved(path: Path, rows: dict[str, np.ndarray]) -> bytes:
    save_vectors(path, [rows])
    return path.read_bytes()


def _read_vectors(path: Path, random: Random) -> None:
    rows = load_vectors(path)
    assert np.isfinite(rows["vector"]).all()
    assert len({len(array) for array in rows.values() if array.ndim}) == 1
    if random.random() < 0.1:
        empty = no_vectors("m.pt", "digest", rows["vector"].shape[1])
        save_vectors(path.with_name(f"saved{path.suffix}"), [empty, rows])


def vectors(folder: Path) -> Kind:
    """Files of vectors that `voices.py embed` goes on with."""
    rows = _rows(6, 4)
    files = [_saved(folder / "sound.npz", rows)]
    old = {k: v for k, v in rows.items() if k not in ("bytes", "changed")}
    del old["digest_of_file"]
    files.append(_npz(old | {"version": STORE_VERSION}))
    nasties = [*_nasty_arrays(files[0], "path"), *_nasty_arrays(files[0], "vector")]
    return Kind(
        *(files, ARRAY, _read_vectors, VoiceError),
        rewrap=_in_member,
        nasties=nasties,
        suffix=".npz",
    )


def parquet(folder: Path) -> Kind:
    """The same as tables of Parquet, also those that other programs changed."""
    files = [
        _saved(folder / "sound.parquet", _rows(num_rows, size))
        for num_rows, size in ((6, 4), (0, 4), (200, 16))
    ]
    spoilt = np.full((6, 4), np.nan, np.float32)
    nasties = [
        *NO_FILES,
        _saved(folder / "sound.parquet", _rows(6, 4) | {"vector": spoilt}),
        *_other_tables(),
    ]
    return Kind(
        *(files, (*TEXT, b"PAR1"), _read_vectors, VoiceError),
        nasties=nasties,
        suffix=".parquet",
    )


def _other_tables() -> Iterator[bytes]:
    """Tables that are like those of `save_vectors`, except for one thing."""
    import pyarrow
    from pyarrow import parquet

    columns = {
        "path": pyarrow.array(["a", "b"]),
        "begin": pyarrow.array([0.0, 1.0]),
        "end": pyarrow.array([1.0, 2.0]),
        "vector": pyarrow.array([[1.0, 0.0], [0.0, 1.0]]),
    }
    description = {"model": "m", "digest": "d", "size": "2"}
    texts, nulls = pyarrow.array(["x", "y"]), pyarrow.nulls(2)
    numbers, ragged = pyarrow.array([1, 2]), pyarrow.array([[1.0], [1.0, 2.0]])
    changes = [{}, {"vector": ragged}]
    for key in (*columns, "bytes", "changed", "digest_of_file"):
        changes += [{key: value} for value in (texts, nulls, numbers, ragged)]
    descriptions = [
        {**description, "size": size}
        for size in ("0", "-1", "3", "x", "9" * 30, "4294967296")
    ]
    tables = [
        pyarrow.table(columns | change).replace_schema_metadata(description)
        for change in changes
    ]
    whole = tables[0]
    tables += [whole.replace_schema_metadata(changed) for changed in descriptions]
    tables += [whole.replace_schema_metadata(), whole.slice(0, 0), whole.drop(["path"])]
    bomb = pyarrow.table({"path": pyarrow.array(["x" * 10**6] * 200)})
    for table in (*tables, bomb):
        parquet.write_table(table, file := io.BytesIO(), compression="zstd")
        yield file.getvalue()


def teacher(folder: Path) -> Kind:
    """Files of vectors, also of other programs, for `training.teacher`."""
    corpus, names = folder / "corpus", ("x/1", "x/2", "y/1", "y/2")
    for n, name in enumerate(names):
        write(corpus / f"{name}.wav", said(n // 2, n % 2))
    chosen = load_parameters(
        SHIPPED,
        overrides=[
            *(*MINIATURE, "dataset.name=folder", f"dataset.root={corpus}"),
            *("dataset.test_fraction=0", "dataset.validation_fraction=0"),
            *(f"dataset.packs={folder / 'packs'}", "training.teacher.vectors=[x]"),
        ],
    )
    splits = prepare(chosen.dataset, chosen.front_end)

    def read(path: Path, _: Random) -> None:
        teacher = chosen.training.teacher.model_copy(update={"vectors": [path]})
        training = chosen.training.model_copy(update={"teacher": teacher})
        p = chosen.model_copy(update={"training": training})
        assert load_teacher(p, splits).isfinite().all()

    paths = np.array([f"{name}.wav" for name in names])
    files = [_npz({"path": paths, "vector": np.eye(4, size)}) for size in (4, 30)]
    files.append(_npz({"path": np.append(paths, paths), "vector": np.ones((8, 4))}))
    nasties = [
        *_nasty_arrays(_npz({**np.load(io.BytesIO(files[0])), "version": 1}), "vector"),
        _npz({"path": paths, "vector": np.full((4, 4), np.nan)}),
        _npz({"path": paths, "vector": np.full((4, 4), 1e308)}),
        _npz({"path": paths, "vector": np.full((4, 4), "x")}),
        _npz({"path": paths, "vector": np.full((4, 4), 1j)}),
        _npz({"path": paths, "vector": np.ones(4)}),
        _npz({"path": paths, "vector": np.ones((5, 4))}),
        _npz({"path": np.arange(4), "vector": np.ones((4, 4))}),
        _npz({"path": paths[:, None], "vector": np.ones((4, 4))}),
        _npz({"path": paths[:0], "vector": np.ones((0, 4))}),
        _npz({"path": np.array(["\0"] * 4), "vector": np.ones((4, 4))}),
    ]
    return Kind(
        *(files, ARRAY, read, UserError),
        names_file=False,
        rewrap=_in_member,
        nasties=nasties,
        suffix=".npz",
    )


def packs(folder: Path) -> Kind:
    """The index of a pack; a pack that cannot be used is packed again."""

    class NoPackError(UserError):
        pass

    def read(path: Path, _: Random) -> None:
        path.replace(home / "index.json")
        if open_pack(home) is None:
            raise NoPackError("no pack")

    for speaker in SPEAKERS:
        write(folder / "corpus" / speaker / "1.wav", noise(0.2))
    overrides = ["dataset.name=folder", f"dataset.root={folder / 'corpus'}"]
    dataset = load_parameters(SHIPPED, overrides=overrides).dataset
    pack(utterances(dataset), folder / "pack", RATE)
    (home,) = folder.glob("pack-*")
    files = [(home / "index.json").read_bytes()]
    nasties = [*NO_FILES, b"[" * 100_000, b"[]", b"9" * 5000, b'{"entries": []}']
    return Kind(files, JSON, read, NoPackError, names_file=False, nasties=nasties)


# Models


def _built(*overrides: str):
    p = load_parameters(SHIPPED, overrides=[*MINIATURE, *overrides])
    return build_model(p, SPEAKERS, {"": "digest"}, CPU)


PICKLE = (
    *(b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"G" + b"\x7f\xf0" + bytes(6)),
    *(b"N", b"\x88", b"]", b"}", b")", b"(", b"t", b"R", b"b", b"s", b"u", b"."),
    *(b"\x8a\x08" + b"\x7f" * 8, b"cos\nmkdir\n", b"ctorch\nzeros\n", b"Q", b"h\0"),
    *(b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"X\xff\xff\xff\x7f", b"X\1\0\0\0a", b"r\xff\xff\xff\x7f", b"q\xff"),
)


def _nasty_zips(sound: bytes) -> Iterator[bytes]:
    """Checkpoints whose zip is hostile."""
    members = _members(sound)
    pickle = next(name for name in members if name.endswith("data.pkl"))
    yield from NO_FILES
    yield _zip({})
    for content in (
        *(b"", b".", b"\x80\x02N.", b"\x80\x02}.", b"cos\nsystem\n(S'true'\ntR."),
        *(b"]" + b"]" * 100_000 + b"a" * 100_000 + b".", b"(" * 100_000),
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
    ):
        yield _zip(members | {pickle: content})
        yield content
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new:
        for name, member in (members | {"archive/more": bytes(HUGE)}).items():
            new.writestr(name, member)
    yield file.getvalue()
    yield _zip({f"archive/{n}": b"" for n in range(20_000)} | members)
    yield sound + sound


def checkpoint(folder: Path) -> Kind:
    """Checkpoints of both encoders."""
    for name in ("titanet", "dvector"):
        save_checkpoint(folder / f"{name}.pt", _built(f"model.name={name}"))
    files = [path.read_bytes() for path in sorted(folder.glob("*.pt"))]
    read = lambda path, _: load_model(path, CPU)  # noqa: E731
    rewrap = lambda content, random: _in_member(content, random, "data.pkl")  # noqa: E731
    nasties = [*_nasty_zips(files[0])]
    return Kind(files, PICKLE, read, RunError, rewrap=rewrap, nasties=nasties)


def nemo(folder: Path) -> Kind:
    """NeMo's archives."""
    save_nemo(folder / "sound.nemo", _built())
    content = (folder / "sound.nemo").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        config = archive.extractfile(f"./{CONFIG}").read()
        weights = archive.extractfile(f"./{WEIGHTS}").read()
    read = lambda path, _: load_nemo(path)  # noqa: E731
    text = Kind([config], YAML, read, NemoError)

    def rewrap(_: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return _tar({CONFIG: damaged(config, text, random), WEIGHTS: weights})
        changed = _in_member(weights, random, "data.pkl")
        return _tar({CONFIG: config, WEIGHTS: changed})

    nasties = [
        *(_tar({CONFIG: config, WEIGHTS: other}) for other in _nasty_zips(weights)),
        *(_tar({CONFIG: other, WEIGHTS: weights}) for other in NASTY_YAML),
        gzip.compress(_tar({"zeros": bytes(HUGE), CONFIG: config}) + content),
        gzip.compress(content)[:-100],
        gzip.compress(gzip.compress(content)),
        content + content,
        _tar({f"{n}": b"" for n in range(5000)}),
        *NO_FILES,
    ]
    files = [content, gzip.compress(content)]
    return Kind(files, PICKLE, read, NemoError, rewrap=rewrap, nasties=nasties)


def _tar(members: Mapping[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        for name, part in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    return file.getvalue()


SHARES = {  # of the inputs; small where reading is slow
    audio: 34,
    parameters: 3,
    overrides: 4,
    trials: 11,
    scores: 11,
    manifest: 6,
    speakers: 4,
    store: 9,
    vectors: 5,
    parquet: 4,
    teacher: 3,
    packs: 3,
    checkpoint: 2,
    nemo: 2,
}
