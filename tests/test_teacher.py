"""A teacher's vectors find their recordings, and pull embeddings to themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import NO_CHANCE, said, write
from dataset import prepare
from parameters import ParameterError, Parameters
from runs.run_directory import read_metrics
from teacher import load_teacher
from train import main, train


def vectors_file(path: Path, **vectors: np.ndarray) -> Path:
    """A file of vectors by path, in which `__` stands for `/`."""
    names = [name.replace("__", "/") + ".wav" for name in vectors]
    vectors = np.stack([*vectors.values()])
    np.savez_compressed(path, path=np.array(names), vector=vectors)
    return path


@pytest.fixture
def recordings(tmp_path, miniature):
    """Parameters of a folder of two labelled people, and one without labels."""
    for n, place in enumerate(("a/x/1", "a/x/2", "a/y/1", "a/y/2", "b/deep/1", "b/2")):
        write(tmp_path / f"{place}.wav", said(n // 2, n % 2))
    corpora = (
        f"{{label: a, weight: 10, name: folder, root: {tmp_path}/a}}, "
        f"{{label: b, weight: 10, name: folder, root: {tmp_path}/b, labelled: false}}"
    )

    def load(vectors: Path, *overrides: str) -> Parameters:
        return miniature(
            "dataset.name=mixture",
            f"dataset.mixture=[{corpora}]",
            "dataset.test_fraction=0",
            "dataset.validation_fraction=0",
            f"training.teacher.vectors=[{vectors}]",
            *overrides,
        )

    return load


def six_vectors(size: int) -> dict[str, np.ndarray]:
    names = ("x__1", "x__2", "y__1", "y__2", "b__deep__1", "b__2")
    random = np.random.default_rng(1)
    return {name: random.normal(size=size) for name in names}


def expected_cosines(vectors: dict[str, np.ndarray]) -> np.ndarray:
    """Between the six, after their mean direction is subtracted."""
    units = F.normalize(torch.from_numpy(np.stack([*vectors.values()])))
    centred = F.normalize(units - units.mean(0))
    return (centred @ centred.T).numpy()


@pytest.mark.parametrize("size", [7, 24, 192])
def test_vectors_of_any_size_find_their_recordings_and_keep_their_cosines(
    recordings, tmp_path, size
):
    vectors = six_vectors(size)
    shuffled = dict(sorted(vectors.items(), key=lambda item: item[0][::-1]))
    p = recordings(vectors_file(tmp_path / "v.npz", **shuffled))
    splits = prepare(p.dataset, p.front_end)
    ids = [splits.pack.entries[i].id for i in splits.trained]
    order = [ids.index(f"a/{n}.wav") for n in ("x/1", "x/2", "y/1", "y/2")]
    order += [ids.index("b/deep/1.wav"), ids.index("b/2.wav")]
    targets = load_teacher(p, splits)[order].double()
    assert targets.shape == (6, 24)
    found = (targets @ targets.T).numpy()
    assert np.abs(found - expected_cosines(vectors)).max() < 1e-6


def test_windows_of_a_recording_are_averaged(recordings, tmp_path):
    vectors = six_vectors(24)
    whole = vectors_file(tmp_path / "v.npz", **vectors)
    p = recordings(whole)
    splits = prepare(p.dataset, p.front_end)
    expected = load_teacher(p, splits)
    unit = vectors["x__1"] / np.linalg.norm(vectors["x__1"])
    aside = np.random.default_rng(2).normal(size=24)
    aside -= aside @ unit * unit
    paths, rows = np.load(whole)["path"], np.load(whole)["vector"]
    windows = np.stack([unit + aside, 3 * (unit - aside)])  # of one angle to their mean
    np.savez(
        whole,
        path=np.append(np.repeat(paths[:1], 2), paths[1:]),
        vector=np.concatenate([windows, rows[1:]]),
    )
    assert not np.allclose(windows[0], rows[0])
    found = load_teacher(p, splits)
    assert (F.cosine_similarity(found, expected) > 1 - 1e-3).all()


def test_what_vectors_are_refused(recordings, tmp_path):
    vectors = six_vectors(8)
    short = {k: v for k, v in vectors.items() if k != "y__2"}
    shared = {k: v for k, v in vectors.items() if k[0] != "b"} | {"1": vectors["x__1"]}
    shared |= {"2": vectors["x__2"]}
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, path=np.array(["x"]), vector=np.zeros((1, 10**6)))
    splits = prepare(recordings(text).dataset, recordings(text).front_end)
    for file, message in (
        (vectors_file(tmp_path / "a.npz", **short), r"for .*y/2.wav, found none"),
        (
            vectors_file(tmp_path / "b.npz", **{"1": shared["1"], "2": shared["2"]}),
            r"one recording named (.).wav, got .*x/\1.wav and .*y/\1.wav",
        ),
        (text, "not a readable file of vectors"),
        (bomb, "unpacks to over 100 times its size"),
        (tmp_path / "none.npz", "expected a file of vectors, found none"),
    ):
        with pytest.raises(ParameterError, match=message):
            load_teacher(recordings(file), splits)


def test_unlabelled_recordings_need_a_teacher(recordings, tmp_path):
    with pytest.raises(ParameterError, match="labelled: expected true without"):
        recordings(tmp_path / "v.npz", "training.teacher.vectors=[]")


def test_a_student_learns_its_teachers_vectors_and_resumes(
    recordings, tmp_path, capsys
):
    file = vectors_file(tmp_path / "v.npz", **six_vectors(24))
    p = recordings(
        file,
        "run.name=r",
        "training.teacher.weight=1",
        "training.epochs=8",
        *NO_CHANCE,
    )
    run = train(p)
    cosines = [row["train/teacher_cosine"] for row in read_metrics(run)]
    assert cosines[0] < 0.4 < 0.7 < cosines[-1]
    vectors_file(tmp_path / "v.npz", **six_vectors(25))
    assert main(["--resume", str(run), "training.epochs=9"]) == 2
    assert "training.teacher.vectors.0 have changed" in capsys.readouterr().err
