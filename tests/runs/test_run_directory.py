"""Run directories."""

import json

import pytest

from engine.parameter_files import load_parameters
from runs.checkpoints import RunError
from runs.run_directory import Run


def test_run_directory_holds_the_parameters(miniature):
    p = miniature("run.name=mine")
    run = Run.create(p)
    assert run.directory == p.run.directory / "mine"
    assert load_parameters(run.directory / "parameters.yml") == p


def test_name_says_what_is_run(miniature):
    name = Run.create(miniature("model.name=dvector")).directory.name
    assert name.startswith("synthetic-dvector-arcface-")


def test_existing_run_is_never_overwritten(miniature):
    p = miniature("run.name=mine")
    Run.create(p).log_epoch({"epoch": 1})
    with pytest.raises(RunError, match="this run exists; choose another"):
        Run.create(p)
    assert (p.run.directory / "mine" / "metrics.jsonl").read_text()


def test_directory_that_cannot_be_written(tmp_path, miniature):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Run.create(miniature("run.name=mine"))


def test_reopened_run_forgets_unfinished_epochs(miniature):
    p = miniature("run.name=mine")
    run = Run.create(p)
    for epoch in (1, 2, 3):
        run.log_epoch({"epoch": epoch})
    run = Run.reopen(run.directory, p, 2, run.mirror.wandb_id)
    run.log_epoch({"epoch": 3, "again": True})
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[2])["again"]
