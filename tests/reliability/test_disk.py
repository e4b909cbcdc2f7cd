"""Disks that are full, read-only or taken away: what was finished stays whole."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import train as training
from dataset import prepare
from engine.files import FileError
from engine.parameter_files import dump_yaml
from reports import evaluation_files
from runs.checkpoints import load_checkpoint, save_checkpoint
from runs.run_directory import Run, read_metrics
from speech import packs

pytestmark = pytest.mark.reliability

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
AT_END = "report.json", "trials.txt", "scores.txt", "errors.tsv", "det.png", "map.html"


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of a megabyte and a half."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", path]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system cannot be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (2**12, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.fixture
def command(tmp_path, capsys, monkeypatch) -> Callable[..., str]:
    """Train, or resume a run; return the error, which must be one line."""
    # Figures and maps are slow, and no matter here.
    plane, figures = (lambda x, _: np.zeros((len(x), 2))), {"det": Figure()}
    monkeypatch.setattr(evaluation_files, "draw_verification", lambda *_: figures)
    monkeypatch.setattr(evaluation_files, "project_umap", plane)

    def run(*arguments) -> str:
        if not isinstance(arguments[0], str):
            (tmp_path / "p.yml").write_text(dump_yaml(arguments[0].as_dict()))
            arguments = "-p", str(tmp_path / "p.yml")
        status = training.main(arguments)
        *lines, last = ["", *capsys.readouterr().err.splitlines()]
        assert not any(line.startswith(("error: ", "Traceback")) for line in lines)
        assert status == (2 if last.startswith("error: ") else 0)
        return last if status else ""

    return run


def finished_epochs(run: Path) -> tuple[int, int]:
    """Those in the last and in the best checkpoint."""
    return tuple(load_checkpoint(run / f"{n}.pt")["epoch"] for n in ("last", "best"))


@pytest.mark.parametrize("spoil", [fill, make_read_only])
def test_checkpoint_survives_a_disk_that_fails(disk, model, spoil):
    save_checkpoint(disk / "x.pt", model, epoch=1)
    spoil(disk)
    reason = os.strerror(errno.ENOSPC if spoil is fill else errno.EROFS)
    with pytest.raises(FileError, match=f"{disk / 'x.pt'}: .*{reason}"):
        save_checkpoint(disk / "x.pt", model, epoch=2)
    assert load_checkpoint(disk / "x.pt")["epoch"] == 1
    assert not list(disk.rglob("*partial*"))


@pytest.mark.parametrize("large", [0, 10**5, 10**6])
def test_torch_does_not_hide_what_the_disk_said(disk, model, large):
    fill(disk)
    with pytest.raises(FileError, match=os.strerror(errno.ENOSPC)):
        save_checkpoint(disk / "x.pt", model, more=torch.rand(large))
    assert os.listdir(disk) == ["filler"]


@pytest.mark.parametrize("spoil", [fill, make_read_only, lambda disk: None])
def test_packing_where_there_is_no_room(disk, miniature, command, spoil):
    spoil(disk)  # the corpus needs 2.5 MB
    error = command(miniature(f"dataset.packs={disk / 'packs'}"))
    assert f"{disk / 'packs'}/synthetic-" in error
    assert not list(disk.glob("packs/*"))


@pytest.mark.parametrize("spoil", [fill, make_read_only])
def test_run_that_cannot_begin_takes_no_name(disk, miniature, spoil):
    p = miniature("run.name=mine", f"run.directory={disk}")
    spoil(disk)
    with pytest.raises(FileError, match=f"{disk / 'mine'}.*: "):
        Run.create(p)
    assert not (disk / "mine").exists()


@pytest.mark.parametrize("spoil", [fill, make_read_only])
def test_training_goes_on_a_recovered_disk(disk, miniature, command, strike, spoil):
    p = miniature("run.name=mine", f"run.directory={disk}", "training.epochs=3")
    run = disk / "mine"
    strike(training, "identify", lambda: spoil(disk), call=2)
    assert command(p).startswith(f"error: {run}/")
    assert finished_epochs(run) == (1, 1)
    assert not list(run.rglob("*partial*"))
    subprocess.run(["mount", "-o", "remount,rw,size=64m", disk], check=True)
    assert command("--resume", str(run)) == ""
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["parameters.yml", "best.pt", "last.pt", *AT_END])
def test_every_file_is_written_whole_or_named(miniature, command, monkeypatch, name):
    p = miniature("run.name=mine", "training.epochs=1")
    run, real_open = p.run.directory / "mine", open

    def full_open(file, *arguments, **options):
        if Path(str(file)).name.endswith(f".{name}.partial"):
            Path(file).write_bytes(b"half")
            raise FULL
        return real_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", full_open)
    error = command(p)
    monkeypatch.setattr("builtins.open", real_open)
    assert error.startswith(f"error: {run / name}: ")
    assert FULL.strerror in error
    assert not (run / name).exists()
    assert not list(p.run.directory.rglob("*partial*"))
    assert run.exists() == (name != "parameters.yml")
    if name in AT_END:
        assert finished_epochs(run) == (1, 1)


def test_metrics_that_cannot_be_appended(miniature, command, strike):
    p = miniature("run.name=mine", "training.epochs=3")
    path = p.run.directory / "mine" / "metrics.jsonl"

    def append_half():
        with open(path, "a") as file:
            file.write('{"epoch": 2, "tra')
        raise FileError(f"{path}: {FULL}")

    strike(Run, "log_epoch", append_half, call=2)
    assert f"{path}: " in command(p)
    assert load_checkpoint(path.parent / "last.pt")["epoch"] == 1
    assert command("--resume", str(path.parent)) == ""
    assert [row["epoch"] for row in read_metrics(path.parent)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("place", "call", "named"),
    [
        ("training_epoch", 2, "metrics.jsonl"),
        ("epoch_line", 1, "last.pt"),
        ("evaluate", 1, "best.pt"),
        ("as_report", 1, "report.json"),
        ("write_trials_and_scores", 1, "trials.txt"),
        ("draw_verification", 1, "det.png"),
        ("write_map", 1, "map.html"),
    ],
)
def test_run_directory_that_goes_away(miniature, command, strike, place, call, named):
    p = miniature("run.name=mine")
    run = p.run.directory / "mine"
    module = training if hasattr(training, place) else evaluation_files
    strike(module, place, lambda: shutil.rmtree(run), call)
    assert command(p).startswith(f"error: {run / named}: ")
    assert not run.exists()


def test_pack_that_goes_away_while_packing(miniature, command, strike):
    folder = (p := miniature()).dataset.packs
    strike(packs, "load_recording", lambda: shutil.rmtree(folder), call=9)
    assert f"{folder}/synthetic-" in command(p)
    assert len(prepare(p.dataset, p.front_end).pack.entries) == 40
