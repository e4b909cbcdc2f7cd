"""Resuming a run, extending it, and starting from another model."""

import json
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch

import train as training
from conftest import CPU, NO_CHANCE, REPOSITORY, interrupt, outcome, same, write
from dataset import prepare
from engine.optimizers import learning_rate
from engine.parameter_files import load_parameters
from errors import StoppedError
from eval import evaluate_checkpoint
from eval import main as evaluation_main
from parameters import ModelParameters, ParameterError
from runs.checkpoints import RunError, load_checkpoint, load_model
from runs.resuming import TRAINING_STATE, State, refuse_changes, start_from
from runs.run_directory import Run, read_metrics
from runs.speaker_model import build_model
from teaching import studies
from teaching.studies import train_once
from train import main, train

# Resuming


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resumed_run_equals_an_unbroken_one(miniature, strike, optimizer):
    name, epochs = f"training.optimizer.name={optimizer}", "training.epochs=4"
    unbroken = train(miniature("run.name=unbroken", name, epochs))
    p = miniature("run.name=broken", name, epochs)
    steps_per_epoch = read_metrics(unbroken)[0]["step"]
    strike(training, "training_step", interrupt, call=2 * steps_per_epoch + 3)
    with pytest.raises(KeyboardInterrupt):
        train(p)
    broken = unbroken.parent / "broken"
    assert len(read_metrics(broken)) == 2
    torch.rand(7)  # whatever else drew from the generator must not matter
    assert train(p, resume=broken) == broken
    assert same(outcome(unbroken), outcome(broken))


@pytest.mark.parametrize(("kind", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 7)])
def test_a_signal_finishes_the_step_and_loses_nothing(miniature, strike, kind, step):
    unbroken = train(miniature("run.name=unbroken"))
    strike(training, "training_step", lambda: os.kill(os.getpid(), kind), call=step)
    p, handler = miniature("run.name=mine"), signal.getsignal(kind)
    run, num_steps = p.run.directory / "mine", read_metrics(unbroken)[1]["step"]
    with pytest.raises(StoppedError, match=f"{step} of {num_steps};.*--resume {run}"):
        train(p)
    assert signal.getsignal(kind) is handler
    train(p, resume=run)
    assert same(outcome(unbroken), outcome(run))


def test_resume_on_the_command_line(miniature, capsys):
    run = train(miniature("run.name=mine"))
    before = outcome(run)
    assert main(["--resume", str(run)]) == 0
    assert same(before, outcome(run))
    for key, old, new in (("batch_size", 6, 3), ("epochs", 2, 1)):
        assert main(["--resume", str(run), f"training.{key}={new}"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: training.{key}: expected ")
        assert all(str(part) in error for part in (old, new, run))


@pytest.mark.parametrize(
    ("training_state", "words"),
    [
        ({}, "init_from"),
        ({key: {} for key in TRAINING_STATE}, "param_groups"),
        (dict.fromkeys(TRAINING_STATE, 3), "not subscriptable"),
    ],
)
def test_a_file_without_a_training(checkpoint, miniature, training_state, words):
    path = checkpoint()
    torch.save(load_checkpoint(path) | training_state, path)
    with pytest.raises(RunError, match=f"^{path}: .*{words}"):
        State.restore(path, miniature(), CPU)


def test_a_finished_run_goes_on_for_more_epochs(miniature, strike):
    run = train(miniature("run.name=mine", *NO_CHANCE))
    before = read_metrics(run)
    command = ["--resume", str(run)]
    strike(training, "train_epochs", interrupt)  # before the third epoch
    assert main([*command, "training.epochs=4"]) == 130
    strike(Run, "log_evaluation", interrupt)  # after the fourth
    assert main(command) == 130
    assert not (run / "report.json").exists()  # the old one was of two epochs
    assert main(command) == 0
    after = read_metrics(run)
    assert [row["epoch"] for row in after] == [1, 2, 3, 4]
    assert after[:2] == before
    p = load_parameters(run / "parameters.yml").training
    assert p.epochs == 4
    assert (run / "report.json").exists()
    # The schedule is that of four epochs, and a step's rate that of its middle.
    steps = after[0]["step"]
    expected = learning_rate(p.optimizer, (3 * steps - 0.5) / (4 * steps))
    assert after[2]["train/learning_rate"] == pytest.approx(expected)


def test_a_run_is_trained_once(miniature, monkeypatch, strike):
    p, reported = miniature("run.name=once"), []
    strike(Run, "log_evaluation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_once(p, reported.append)
    run = train_once(p, reported.append)  # goes on where it was
    assert reported == read_metrics(run)
    assert len(reported) == p.training.epochs
    monkeypatch.setattr(studies, "train", lambda *_, **__: pytest.fail("trained"))
    assert train_once(p) == run
    with pytest.raises(ParameterError, match=r"training\.epochs: expected 2"):
        train_once(miniature("run.name=once", "training.epochs=3"))
    (run / "last.pt").unlink()
    with pytest.raises(RunError, match=str(run)):
        train_once(p)


@pytest.mark.parametrize(
    ("changed", "corpus"),
    [
        ("corpus", "name=folder"),
        ("corpus", "name=manifest"),
        ("noise", "{name: mixture, mixture: [{label: x, weight: 1, name: folder}]}"),
        ("rooms", "name=folder"),
    ],
)
def test_recordings_may_move_but_not_change(tmp_path, miniature, changed, corpus):
    rng, rows = np.random.default_rng(0), []
    home, moved = tmp_path / "home", tmp_path / "moved"
    files = [f"corpus/{speaker}/{n}.wav" for speaker in "abcdef" for n in range(3)]
    for name in (*files, "noise/0.wav", "rooms/0.wav"):
        write(home / name, rng.normal(0, 0.1, 20_000))
        rows.append(json.dumps({"audio_filepath": name, "label": name.split("/")[1]}))
    (home / "rows.json").write_text("\n".join(rows[:-2]))

    def parameters(home):
        return miniature(
            *("run.name=mine", "training.epochs=1", f"dataset.root={home / 'corpus'}"),
            f"dataset.manifest.train={home / 'rows.json'}",
            f"dataset={corpus}" if corpus[0] == "{" else f"dataset.{corpus}",
            f"augmentation.noise.root={home / 'noise'}",
            f"augmentation.reverberation.root={home / 'rooms'}",
        )

    run = train(parameters(home))
    state = load_checkpoint(run / "last.pt")
    sections = {"augmentation.noise", "augmentation.reverberation"}
    assert set(state["recordings"]) == sections
    home.rename(moved)
    p = parameters(moved)
    assert train_once(p) == train(p, resume=run) == train_once(p) == run
    for path in (moved / changed).rglob("0.wav"):
        write(path, rng.normal(0, 0.1, 20_000))
    for again in (train_once, lambda p: train(p, resume=run)):
        with pytest.raises(RunError, match=f"{run}: the files"):
            again(p)
    if changed != "corpus":  # what earlier versions did not keep is not refused
        state = load_checkpoint(run / "last.pt")
        del state["recordings"]
        torch.save(state, run / "last.pt")
        assert train_once(p) == train(p, resume=run) == run
        torch.save(state, run / "last.pt")  # but it may have to stay where it is
        moved.rename(home)
        with pytest.raises(ParameterError, match=r"augmentation\.\w+\.root"):
            train_once(parameters(home))


def test_a_run_of_another_start_or_other_trials_is_not_reused(tmp_path, miniature):
    start, trials = train(miniature("run.name=first")), tmp_path / "trials.txt"
    shutil.copy(start / "trials.txt", trials)
    files = f"training.init_from={start}", f"evaluation.trials={trials}"
    run = train_once(p := miniature("run.name=mine", "training.epochs=1", *files))
    for file, key in ((start / "best.pt", "init_from"), (trials, "evaluation.trials")):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        with pytest.raises(RunError, match=key):
            train_once(p)
        file.write_bytes(before)
    assert train_once(p) == run


# Runs of earlier versions


def test_a_run_whose_classifier_was_muons_goes_on(miniature, monkeypatch):
    def build(*arguments):
        model = build_model(*arguments)
        model.criterion.classifier.weight.muon = True
        return model

    p = miniature("run.name=mine", "loss.name=cross_entropy", "training.epochs=1")
    with monkeypatch.context() as earlier:
        earlier.setattr(training, "build_model", build)
        run = train(p)
    assert main(["--resume", str(run), "training.epochs=2"]) == 0
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2]


def test_a_run_from_before_these_were_counted_goes_on(miniature):
    run = train(miniature("training.epochs=1"))
    for name in ("last.pt", "best.pt"):
        state = load_checkpoint(run / name)
        del state["spent"]
        for added in ("flop", "block_norms", "measured"):
            del state["tally"][added]
        state["parameters"]["dataset"]["root"] = "~/x"  # as it was written then
        torch.save(state, run / name)
    p = miniature("training.epochs=2", f"run.name={run.name}", "dataset.root=~/x")
    one, two = read_metrics(train(p, resume=run))
    assert two["spent/flop"] == pytest.approx(one["spent/flop"], rel=0.5)


def test_a_run_of_the_first_version_opens_and_goes_on(tmp_path, monkeypatch):
    """Trained for one epoch by commit 8601ea2: miniature, 8 kHz, arcface, adamw."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(REPOSITORY / "tests" / "run-of-version-1.tar.xz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    run = tmp_path / "runs" / "version-1"
    p = load_parameters(run / "parameters.yml")
    assert (p.front_end.sample_rate, p.training.epochs) == (8000, 1)
    before, report = read_metrics(run), json.loads((run / "report.json").read_text())
    assert evaluate_checkpoint(run, ["training.device=cpu"]).identification
    (path,) = run.glob("evaluations/*/report.json")
    again = json.loads(path.read_text())
    assert again["identification"] == pytest.approx(report["identification"], rel=1e-3)
    for split, tested in report["verification"].items():
        systems = again["verification"][split]["systems"]
        for system, expected in tested["systems"].items():
            assert systems[system]["eer"] == pytest.approx(expected["eer"], abs=0.1)
    assert main(["--resume", str(run), "training.epochs=2"]) == 0
    after = read_metrics(run)
    assert [row["epoch"] for row in after] == [1, 2]
    assert after[:1] == before
    assert load_parameters(run / "parameters.yml").training.epochs == 2
    assert (run / "report.json").exists()


# Starting from another model


@pytest.mark.parametrize("name", sorted({*ModelParameters.model_fields} - {"name"}))
def test_fine_tuning_may_crop_otherwise(miniature, tmp_path, name):
    def build(override: str):
        p = miniature(f"model.name={name}", f"model.{name}.{override}")
        return build_model(p, ["a", "b"], {}, CPU)

    source = build("crop_seconds=[2.0]")
    start_from(source, tmp_path, build("crop_seconds=[9.0]"))
    with pytest.raises(ParameterError, match=r"embedding_size: .* got 7"):
        start_from(source, tmp_path, build("embedding_size=7"))


@pytest.mark.parametrize(
    ("override", "keeps"),
    [
        ("loss.arcface.margin=0.4", True),
        ("dataset.seed=2", False),  # other people of the same names
        ("loss.name=cosface", False),
    ],
)
def test_a_start_keeps_the_classifier_of_the_same_speakers(
    miniature, tmp_path, override, keeps
):
    def model_of(p):
        splits = prepare(p.dataset, p.front_end)
        return build_model(p, splits.speakers, splits.pack.digests, CPU)

    source, model = model_of(miniature()), model_of(miniature("seed=2", override))
    fresh = model.criterion.classifier.weight.clone()
    copied = start_from(source, tmp_path, model)
    assert copied == ("encoder and classifier" if keeps else "encoder")
    expected = source.criterion.classifier.weight if keeps else fresh
    assert torch.equal(model.criterion.classifier.weight, expected)
    assert same(source.encoder.state_dict(), model.encoder.state_dict())
    assert len(model.heard) == (2 if override == "dataset.seed=2" else 1)


def test_whom_an_ancestor_has_heard_is_never_tested(miniature, capsys):
    """Three generations, each of another corpus."""
    tuned, epochs = "null", "training.epochs=1"
    for seed in (1, 2, 3):
        start = f"training.init_from={tuned}", f"dataset.seed={seed}"
        tuned = train(miniature(f"run.name=of-{seed}", *start, epochs))
    heard = load_model(tuned, CPU).heard
    assert [people.people for people in heard] == [["synthetic", n] for n in (3, 2, 1)]

    def tested(seed: int) -> int:
        overrides = f"dataset.seed={seed}", "dataset.test_fraction=1.0"
        return evaluation_main(["--checkpoint", str(tuned), *overrides])

    for seed in (1, 2, 3):
        assert tested(seed) == 2
        assert "heard 6 of them" in capsys.readouterr().err
        start = f"training.init_from={tuned}", f"dataset.seed={seed}"
        with pytest.raises(ParameterError, match="heard"):
            train(miniature(*start, "dataset.test_fraction=0.75"))
    assert tested(4) == 0


def test_the_first_change_is_named(shipped, tmp_path):
    old, new = shipped().as_dict(), shipped("loss.name=cosface", "seed=5").as_dict()
    refuse_changes(tmp_path, old, new, ["loss", "seed"])
    with pytest.raises(ParameterError, match=r"loss\.name: .*arcface.*cosface"):
        refuse_changes(tmp_path, old, new, ["seed"])
