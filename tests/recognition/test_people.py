"""Stores of enrolled people, and how a command names people."""

from pathlib import Path

import numpy as np
import pytest

from conftest import write
from recognition.people import People, checked_name, load_people, read_people
from recognition.sounds import Clip, VoiceError


def clip(name: str) -> Clip:
    return Clip(name, np.eye(1, 4, dtype=np.float32)[0], 3.0, 2.0, name, ())


@pytest.fixture
def people() -> People:
    texts = np.empty(0, "U1")
    vectors = np.empty((0, 4), np.float32)
    nobody = People(
        "model.pt", "digest", "{}", texts, texts, texts, np.empty(0), vectors
    )
    return nobody.with_clips("ann", [clip("a"), clip("b")]).with_clips(
        "ben", [clip("c")]
    )


def test_people_come_and_go(people, tmp_path):
    people.save(tmp_path / "people.npz")
    read = load_people(tmp_path / "people.npz")
    assert [
        key
        for key, value in vars(people).items()
        if np.any(value != getattr(read, key))
    ] == []
    assert people.with_clips("ann", [clip("b")]) is people
    left = people.without("ann")
    assert left.names.tolist() == ["ben"]
    with pytest.raises(VoiceError, match=r"^ann: .*ben"):
        left.without("ann")


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"people",
    "flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_stores(people, tmp_path, kind):
    store = tmp_path / "people.npz"
    people.save(store)
    store.write_bytes(DAMAGES[kind](store.read_bytes()))
    with pytest.raises(VoiceError, match=f"^{store}: not a readable store of people"):
        load_people(store)


@pytest.mark.parametrize(
    "changed",
    [
        {"names": lambda rows: rows["names"][:-1]},
        {"names": lambda rows: rows["seconds"]},
        {"vectors": lambda rows: rows["vectors"][0]},
        {"vectors": lambda rows: np.full_like(rows["vectors"], np.nan)},
        {"vectors": lambda rows: rows["names"]},
        {"version": lambda rows: np.array([{}], object)},  # pickled
        {"version": lambda rows: np.array(99)},
    ],
)
def test_stores_with_other_arrays(people, tmp_path, changed):
    store = tmp_path / "people.npz"
    people.save(store)
    with np.load(store) as file:
        rows = dict(file)
    np.savez(store, **rows | {key: value(rows) for key, value in changed.items()})
    with pytest.raises(VoiceError, match=f"^{store}: "):
        load_people(store)
    np.savez(store, x=np.ones(3))
    with pytest.raises(VoiceError, match=f"^{store}: "):
        load_people(store)
    with pytest.raises(VoiceError, match=r"none\.npz: .*found none"):
        load_people(tmp_path / "none.npz")


def test_names_are_compared_as_they_look():
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    with pytest.raises(VoiceError, match=f"^{composed}: "):
        read_people([f"{composed}=a.wav", f"{decomposed}=b.wav"])
    assert list(read_people([f"{decomposed}=a.wav"])) == [composed]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a=b", " ", "", "a\nb"])
def test_bad_names(name):
    with pytest.raises(VoiceError, match="expected a name"):
        checked_name(name)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("ann=FOLDER/ann/0.wav ann=FOLDER/ben/0.wav", "ann"),
        ("FOLDER ben=FOLDER/ann/0.wav", "ben"),
        ("FOLDER/ann", "FOLDER/ann"),
        ("FOLDER/ann/0.wav", "FOLDER/ann/0.wav"),
        ("FOLDER/nobody", "FOLDER/nobody"),
        ("EMPTY", "EMPTY/dan"),
        ("dan=", "dan"),
        ("dan=,", "dan"),
    ],
)
def test_bad_people(tmp_path, arguments, named):
    folder, empty = tmp_path / "people", tmp_path / "empty"
    for name in ("ann", "ben"):
        write(folder / name / "0.wav")
    (empty / "dan").mkdir(parents=True)
    (empty / "dan" / "notes.txt").write_text("none")

    def filled(text: str) -> str:
        return text.replace("FOLDER", str(folder)).replace("EMPTY", str(empty))

    with pytest.raises(VoiceError, match=f"^{filled(named)}: "):
        read_people(filled(arguments).split())


def test_files_by_person(tmp_path):
    files = [write(tmp_path / "people" / "ann" / f"{n}.wav") for n in range(2)]
    found = read_people([str(tmp_path / "people"), " ben =a.wav,,b.wav"])
    assert found == {"ann": files, "ben": [Path("a.wav"), Path("b.wav")]}
