"""Run directories."""

from unittest.mock import MagicMock

import pytest

from engine.files import FileError
from engine.parameter_files import load_parameters
from runs import run_directory
from runs.checkpoints import RunError
from runs.run_directory import Run, read_metrics


@pytest.fixture
def run(miniature) -> Run:
    return Run.create(miniature("run.name=mine"))


def test_a_run_holds_its_parameters_and_is_never_overwritten(run, miniature):
    p = miniature("run.name=mine")
    assert run.directory == p.run.directory / "mine"
    run.log_epoch({"epoch": 1})
    with pytest.raises(RunError, match=f"{run.directory}: "):
        Run.create(p)
    assert load_parameters(run.directory / "parameters.yml") == p
    assert read_metrics(run.directory) == [{"epoch": 1}]


def test_name_says_what_is_run(miniature):
    name = Run.create(miniature("model.name=dvector")).directory.name
    assert name.startswith("synthetic-dvector-arcface-")


def test_unnamed_runs_of_one_second_have_two_directories(miniature, monkeypatch):
    monkeypatch.setattr(run_directory, "datetime", clock := MagicMock())
    clock.now.return_value.strftime.return_value = "now"
    names = [Run.create(miniature()).directory.name for _ in range(3)]
    first = "synthetic-titanet-arcface-now"
    assert names == [first, f"{first}-2", f"{first}-3"]
    assert load_parameters(miniature().run.directory / names[1] / "parameters.yml")


def test_directory_that_cannot_be_written(tmp_path, miniature):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(FileError, match=f"{tmp_path / 'runs' / 'mine'}: "):
        Run.create(miniature("run.name=mine"))


def test_reopened_run_forgets_unfinished_epochs(run, miniature):
    for epoch in (1, 2, 3):
        run.log_epoch({"epoch": epoch})
    run = Run.reopen(run.directory, miniature(), 2, run.wandb_id)
    assert run.mirror.step == 3  # W&B has it already
    run.log_epoch({"epoch": 3, "again": True})
    expected = [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "again": True}]
    assert read_metrics(run.directory) == expected


def test_a_run_that_cannot_be_reopened_opens_no_page(run, miniature, monkeypatch):
    monkeypatch.setattr(run_directory, "Mirror", lambda *_: pytest.fail("opened"))
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        Run.reopen(run.directory, miniature(), 2, run.wandb_id)
