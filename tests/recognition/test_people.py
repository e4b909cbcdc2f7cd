"""Stores of enrolled people, and how a command names people."""

import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from commands import voices_commands
from conftest import write
from recognition.people import People, checked_name, load_people, read_people
from recognition.sounds import Clip, VoiceError


@pytest.fixture
def people() -> People:
    """Two clips of ann, one of ben."""
    texts, vectors = np.empty(0, "U1"), np.empty((0, 4), np.float32)
    columns = texts, texts, texts, np.empty(0), vectors
    vector = np.eye(1, 4, dtype=np.float32)[0]
    a, b, c = (Clip(name, vector, 3.0, 2.0, name, ()) for name in "abc")
    ann = People("model.pt", "digest", "{}", *columns).with_clips("ann", [a, b])
    assert ann.with_clips("ann", [b]) is ann
    return ann.with_clips("ben", [c])


def test_people_come_and_go(people, tmp_path):
    store = tmp_path / "people.npz"
    people.save(store)
    np.testing.assert_equal(vars(load_people(store)), vars(people))
    with pytest.raises(VoiceError, match=r"^c: the same recording as one of ben"):
        people.with_clips("ann", [Clip("c", people.vectors[0], 3.0, 2.0, "c", ())])
    left = people.without("ann")
    assert left.names.tolist() == ["ben"]
    with pytest.raises(VoiceError, match=r"^ann: .*ben"):
        left.without("ann")


def test_writers_at_once_lose_nobody(people, tmp_path, monkeypatch):
    def load_slowly(path: Path) -> People:
        loaded = load_people(path)
        time.sleep(0.05)
        return loaded

    def enrol(sounds: dict, enrolled: People) -> People:
        (name,) = sounds
        clip = Clip("d", people.vectors[0], 3.0, 2.0, f"of {name}", ())
        return enrolled.with_clips(name, [clip])

    voices = Namespace(enrol=enrol, disagreements=lambda *_: [])
    monkeypatch.setattr(voices_commands, "load_people", load_slowly)
    monkeypatch.setattr(voices_commands, "_load_voices", lambda _: voices)
    store, link = tmp_path / "people.npz", tmp_path / "folder" / "link.npz"
    link.parent.mkdir()
    link.symlink_to(store)
    people.save(store)
    calls = [
        (voices_commands.forget, Namespace(name="ann", store=link)),
        (voices_commands.forget, Namespace(name="ben", store=store)),
        (voices_commands.enrol, Namespace(people=["cy=a.wav"], store=link, json=False)),
        (
            voices_commands.enrol,
            Namespace(people=["dan=a.wav"], store=store, json=False),
        ),
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda call: call[0](call[1]), calls))
    assert set(load_people(store).names) == {"cy", "dan"}
    assert link.is_symlink()


def change(store: Path, **arrays) -> None:
    with np.load(store) as file:
        np.savez(store, **(dict(file) | arrays))


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"people"),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"a\0", b"b\0")),
        lambda path: np.savez(path, version=1),
        lambda path: np.savez_compressed(path, **dict(np.load(path))),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(3,)", b"(9,)")),
        lambda path: change(path, version=99),
        lambda path: change(path, version=np.array([{}], object)),  # pickled
        lambda path: change(path, names=np.array(["ann", "ben"])),
        lambda path: change(path, names=np.ones(3)),
        lambda path: change(path, vectors=np.ones(3, np.float32)),
        lambda path: change(path, vectors=np.full((3, 4), np.nan)),
        lambda path: change(path, vectors=np.full((3, 4), "ann")),
    ],
)
def test_bad_stores(people, tmp_path, spoil):
    store = tmp_path / "people.npz"
    people.save(store)
    spoil(store)
    with pytest.raises(VoiceError, match=f"^{store}: .*store of people"):
        load_people(store)


def test_names_are_compared_as_they_look():
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    with pytest.raises(VoiceError, match=f"^{composed}: "):
        read_people([f"{composed}=a.wav", f"{decomposed}=b.wav"])
    assert list(read_people([f" {decomposed}  x=a.wav"])) == [f"{composed} x"]
    persian = "\u0646\u06cc\u200c\u0644\u0627"  # with a joiner
    assert checked_name(persian) == persian


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b", "a=b", " ", "", "a\0b", "\u200d", "\udcff", "Unknown"]
)
def test_bad_names(name):
    with pytest.raises(VoiceError, match="expected a name"):
        checked_name(name)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("ann=people/ann/0.wav ann=people/ben/0.wav", "ann"),
        ("people ben=people/ann/0.wav", "ben"),
        ("people/ann", "people/ann"),
        ("people/ann/0.wav", "people/ann/0.wav"),
        ("people/nobody", "people/nobody"),
        ("empty", "empty/dan"),
        ("dan=,", "dan"),
    ],
)
def test_bad_people(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    for name in ("ann", "ben"):
        write(Path("people", name, "0.wav"))
    Path("empty/dan").mkdir(parents=True)
    Path("empty/dan/notes.txt").write_text("none")
    with pytest.raises(VoiceError, match=f"^{named}: "):
        read_people(arguments.split())


def test_files_by_person(tmp_path):
    files = [write(tmp_path / "people" / "ann" / f"{n}.wav") for n in range(2)]
    many = [f"{'a' * 250}{n}.wav" for n in range(20)]
    found = read_people(
        [str(tmp_path / "people"), " ben =a.wav,,b.wav", f"c={','.join(many)}"]
    )
    assert found == {
        "ann": files,
        "ben": [Path("a.wav"), Path("b.wav")],
        "c": list(map(Path, many)),
    }
