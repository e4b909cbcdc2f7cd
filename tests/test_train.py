"""The training loop: miniature real trainings, resuming, and its refusals."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

import train as training
from conftest import MINIATURE, MIXTURE, NO_CHANCE, REPOSITORY, write
from dataset import TrainingBatches, prepare
from engine.acceleration import fast_encoder
from engine.optimizers import build_optimizer, learning_rate
from engine.parameter_files import load_parameters
from engine.signals import StopSignals
from errors import StoppedError
from eval import evaluate, evaluate_checkpoint
from eval import main as evaluation_main
from losses import AngularMarginLoss
from models import Block, build_encoder
from parameters import ModelParameters, ParameterError
from reports.tables import as_report
from runs.checkpoints import RunError, load_checkpoint, load_model
from runs.resuming import State
from runs.speaker_model import build_model
from runs.tally import NotFiniteError
from speech.surroundings import load_surroundings
from speech.utterances import CorpusError
from train import main, train, train_once
from transforms import Augmentation, Noise, Reverberation, SpecAugment, Speed
from verification.metrics import equal_error_rate
from verification.trials import read_scores, read_trials

CPU = torch.device("cpu")


def weights(run, name: str = "last.pt") -> list[torch.Tensor]:
    return list(load_model(run / name, CPU).state_dict().values())


def equal_weights(one, other) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


TIMED = {"train/audio_seconds_per_second", "spent/seconds"}


def metrics(run) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name=titanet", "loss.name=cross_entropy"),
        ("model.name=titanet", "loss.name=arcface", "training.optimizer.name=sgd"),
        ("model.name=dvector", "loss.name=cosface", "training.optimizer.name=adam"),
        ("model.name=dvector", "loss.name=sphereface"),
        ("model.name=titanet", "loss.name=ge2e"),
        ("front_end.normalization=mean", "dataset.development_fraction=0.25"),
    ],
)
def test_a_run_leaves_all_that_it_should(miniature, overrides):
    p = miniature(*overrides)
    run = train(p)
    assert {
        "parameters.yml",
        "metrics.jsonl",
        "trials.txt",
        "scores.txt",
        "errors.tsv",
        "report.json",
        "embeddings.png",
        "map.html",
        "det.png",
        "scores.png",
        "best.pt",
        "last.pt",
    } == set(os.listdir(run))
    assert load_parameters(run / "parameters.yml") == p
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert {"train/loss", "validation/loss", "validation/accuracy"} <= set(row)
    splits = prepare(p.dataset, p.front_end)
    ids = [splits.pack.entries[i].id for i in splits.test]
    trials, _ = read_trials(run / "trials.txt", ids)
    assert len(trials.targets) == len(ids) * (len(ids) - 1) // 2
    found = as_report(evaluate(load_model(run, CPU), splits))
    report = json.loads((run / "report.json").read_text())
    assert report["identification"] == pytest.approx(found["identification"])
    scores = read_scores(run / "scores.txt", trials, ids)
    reports = report["verification"]["test"]["systems"]
    assert reports["trained"]["eer"] == equal_error_rate(scores, trials.targets)
    for system, expected in found["verification"]["test"]["systems"].items():
        # Scores of so small a model lie so close that rounding can swap two trials.
        assert reports[system]["eer"] == pytest.approx(expected["eer"], abs=0.05)
        assert reports[system]["num_targets"] == trials.targets.sum()


def test_best_is_the_epoch_of_least_validation_loss(miniature):
    run = train(miniature("training.epochs=5", "training.optimizer.lr=0.05"))
    losses = [row["validation/loss"] for row in metrics(run)]
    best = load_checkpoint(run / "best.pt")
    assert best["epoch"] == int(np.argmin(losses)) + 1
    assert best["best_loss"] == min(losses)
    report = json.loads((run / "report.json").read_text())
    assert report["identification"]["loss"] == pytest.approx(min(losses))


def test_training_tells_speakers_apart(miniature):
    p = miniature(
        "training.epochs=12",
        "training.optimizer.lr=0.01",
        "model.titanet.channels=32",
        "model.titanet.epilog_channels=64",
        "model.titanet.dropout=0",
        "loss.name=cross_entropy",
        "augmentation.reverberation.probability=0",
        "augmentation.noise.probability=0",
    )
    rows = metrics(train(p))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 2
    last = [row["train/accuracy"] for row in rows[-4:]]
    assert np.mean(last) > 0.5  # of six speakers, on crops that change


@pytest.mark.reliability
def test_progress_is_not_shown_where_it_is_not_wanted(tmp_path):
    folders = f"dataset.packs={tmp_path / 'p'}", f"run.directory={tmp_path / 'r'}"
    few = "dataset.synthetic.utterances_per_speaker=4", "training.epochs=1"
    ran = subprocess.run(
        [
            *(sys.executable, "src/train.py", "-p", "parameters.yml"),
            *(*MINIATURE, *few, *folders),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_seed_decides_everything(miniature):
    one, same = (train(miniature(f"run.name={name}")) for name in "ab")
    other = train(miniature("run.name=c", "seed=2"))
    assert equal_weights(one, same)
    assert not equal_weights(one, other)
    untimed = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in metrics(run)]
        for run in (one, same)
    ]
    assert untimed[0] == untimed[1]


def test_bfloat16_trains_nearly_as_float32(miniature, monkeypatch):
    losses = {}
    for fast in (False, True):
        monkeypatch.setattr(training, "_has_bfloat16", lambda device, fast=fast: fast)
        p = miniature(*NO_CHANCE, "training.optimizer.lr=1e-4", f"run.name=fast-{fast}")
        losses[fast] = [epoch["train/loss"] for epoch in metrics(train(p))]
    assert losses[True] != losses[False]
    # bfloat16 keeps eight bits, 0.4 % of a value; the scale of 30 enlarges its errors.
    assert losses[True] == pytest.approx(losses[False], rel=5e-2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resumed_run_equals_an_unbroken_one(miniature, monkeypatch, optimizer):
    p = f"training.optimizer.name={optimizer}", "training.epochs=4"
    unbroken = train(miniature("run.name=unbroken", *p))
    real = training.training_epoch

    def killed_in_epoch_3(state, *others):
        if state.epoch == 2:
            list(zip(range(2), others[1].epoch(2), strict=False))  # some of its steps
            raise KeyboardInterrupt
        return real(state, *others)

    monkeypatch.setattr(training, "training_epoch", killed_in_epoch_3)
    with pytest.raises(KeyboardInterrupt):
        train(miniature("run.name=broken", *p))
    monkeypatch.setattr(training, "training_epoch", real)
    broken = unbroken.parent / "broken"
    assert len(metrics(broken)) == 2
    torch.rand(7)  # whatever else drew from the generator must not matter
    assert train(miniature("run.name=broken", *p), resume=broken) == broken
    assert equal_weights(unbroken, broken)
    assert [row["train/loss"] for row in metrics(broken)] == [
        row["train/loss"] for row in metrics(unbroken)
    ]
    assert (broken / "report.json").read_text() == (
        unbroken / "report.json"
    ).read_text()


@pytest.mark.parametrize(("kind", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 7)])
def test_a_signal_finishes_the_step_and_loses_nothing(
    miniature, monkeypatch, kind, step
):
    unbroken = train(miniature("run.name=unbroken"))
    assert len(metrics(unbroken)) == 2
    num_steps = metrics(unbroken)[-1]["step"]
    real = training.training_step

    def struck(state, *arguments):
        if state.step + 1 == step:
            os.kill(os.getpid(), kind)
        return real(state, *arguments)

    monkeypatch.setattr(training, "training_step", struck)
    p, handler = miniature("run.name=mine"), signal.getsignal(kind)
    run = p.run.directory / "mine"
    with pytest.raises(StoppedError) as stopped:
        train(p)
    assert str(stopped.value) == (
        f"stopped after step {step} of {num_steps}; go on with --resume {run}"
    )
    assert signal.getsignal(kind) is handler
    monkeypatch.setattr(training, "training_step", real)
    train(p, resume=run)
    assert equal_weights(unbroken, run)
    for broken_row, row in zip(metrics(run), metrics(unbroken), strict=True):
        assert {k: broken_row[k] for k in row.keys() - TIMED} == {
            k: row[k] for k in row.keys() - TIMED
        }
    assert (run / "scores.txt").read_text() == (unbroken / "scores.txt").read_text()


def test_a_second_signal_does_not_wait():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_on_the_command_line(tmp_path, monkeypatch, capsys):
    real = training.training_step

    def struck(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(training, "training_step", struck)
    assert command(tmp_path, "run.name=mine") == 130
    shown = capsys.readouterr()
    assert f"go on with --resume {tmp_path / 'runs' / 'mine'}" in shown.out
    assert "Traceback" not in shown.err


def test_resume_on_the_command_line(miniature, capsys):
    run = train(miniature("run.name=mine"))
    before = weights(run)
    assert main(["--resume", str(run)]) == 0
    assert all(map(torch.equal, before, weights(run)))
    assert main(["--resume", str(run), "training.batch_size=3"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: training.batch_size: expected 6, which {run} has, got 3"
    )


def test_a_finished_run_goes_on_for_more_epochs(miniature, monkeypatch, capsys):
    run = train(miniature("run.name=mine", *NO_CHANCE))
    before = metrics(run)
    assert main(["--resume", str(run), "training.epochs=1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: training.epochs: expected at least 2, which {run} has, got 1"
    )
    command = ["--resume", str(run)]
    killed = {"train_epochs": ["training.epochs=4"], "write_evaluation": []}
    for place, more in killed.items():  # before the third epoch, after the fourth
        with monkeypatch.context() as interrupted:
            interrupted.setattr(training, place, lambda *_: sys.exit("killed"))
            with pytest.raises(SystemExit):
                main(command + more)
    assert not (run / "report.json").exists()  # the old one was of two epochs
    assert main(command) == 0
    after = metrics(run)
    assert [row["epoch"] for row in after] == [1, 2, 3, 4]
    assert after[:2] == before
    assert load_parameters(run / "parameters.yml").training.epochs == 4
    assert (run / "report.json").exists()
    # Half of the longer way lies behind: the rate goes on from there.
    p = load_parameters(run / "parameters.yml").training.optimizer
    expected = learning_rate(p, 3 / 4)
    assert after[2]["train/learning_rate"] == pytest.approx(expected, rel=0.1)


def test_a_run_whose_classifier_was_muons_goes_on(miniature, monkeypatch):
    settings = "run.name=mine", "loss.name=cross_entropy", "training.epochs=1"
    with monkeypatch.context() as earlier:
        earlier.setattr("engine.optimizers._is_muons", lambda weight: weight.ndim == 2)
        run = train(miniature(*settings))
    assert main(["--resume", str(run), "training.epochs=2"]) == 0
    assert [row["epoch"] for row in metrics(run)] == [1, 2]


def test_a_run_of_the_first_version_opens_and_goes_on(tmp_path, monkeypatch, capsys):
    """Trained for one epoch by commit 8601ea2: miniature, 8 kHz, arcface, adamw."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(REPOSITORY / "tests" / "run-of-version-1.tar.xz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    run = tmp_path / "runs" / "version-1"
    p = load_parameters(run / "parameters.yml")
    assert (p.front_end.sample_rate, p.training.epochs) == (8000, 1)
    before, report = metrics(run), json.loads((run / "report.json").read_text())
    assert evaluate_checkpoint(run, ["training.device=cpu"]).identification
    (folder,) = (run / "evaluations").iterdir()
    again = json.loads((folder / "report.json").read_text())
    assert again["identification"] == pytest.approx(report["identification"], rel=1e-3)
    for split, found in report["verification"].items():
        for system, expected in found["systems"].items():
            eer = again["verification"][split]["systems"][system]["eer"]
            assert eer == pytest.approx(expected["eer"], abs=0.1)
    assert main(["--resume", str(run), "training.epochs=2"]) == 0
    after = metrics(run)
    assert [row["epoch"] for row in after] == [1, 2]
    assert after[:1] == before
    assert load_parameters(run / "parameters.yml").training.epochs == 2
    assert (run / "report.json").exists()


def test_a_run_is_trained_once(miniature, monkeypatch):
    p = miniature("run.name=once")
    reported = []
    with monkeypatch.context() as interrupted:
        interrupted.setattr(training, "write_evaluation", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            train_once(p, reported.append)
    run = train_once(p, reported.append)  # goes on where it was
    assert reported == metrics(run)
    assert len(reported) == p.training.epochs
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained"))
    assert train_once(p) == run
    with pytest.raises(ParameterError, match=r"training\.epochs: expected 2"):
        train_once(miniature("run.name=once", "training.epochs=3"))
    (run / "last.pt").unlink()
    with pytest.raises(RunError, match="remove it to train anew"):
        train_once(p)


@pytest.mark.parametrize("changed", ["corpus", "noise", "rooms"])
def test_recordings_that_have_changed_are_refused(tmp_path, miniature, changed):
    rng = np.random.default_rng(0)
    for speaker in "abcdef":
        for number in range(3):
            path = tmp_path / "corpus" / speaker / f"{number}.wav"
            write(path, rng.normal(0, 0.1, 20_000))
    for folder in ("noise", "rooms"):
        for number in range(2):
            write(tmp_path / folder / f"{number}.wav", rng.normal(0, 0.1, 20_000))
    p = miniature(
        "run.name=mine",
        "training.epochs=1",
        "dataset.name=folder",
        f"dataset.root={tmp_path / 'corpus'}",
        f"augmentation.noise.root={tmp_path / 'noise'}",
        f"augmentation.reverberation.root={tmp_path / 'rooms'}",
    )
    run = train(p)
    state = load_checkpoint(run / "last.pt")
    assert set(state["recordings"]) == {
        "augmentation.noise",
        "augmentation.reverberation",
    }
    assert train_once(p) == run
    for path in (tmp_path / changed).rglob("0.wav"):
        write(path, rng.normal(0, 0.1, 20_000))
    for again in (train_once, lambda p: train(p, resume=run)):
        with pytest.raises(RunError, match="have changed since it began"):
            again(p)
    if changed != "corpus":  # what earlier versions did not keep is not refused
        del state["recordings"]
        torch.save(state, run / "last.pt")
        assert train_once(p) == train(p, resume=run) == run


def test_augmentation_touches_training_batches_and_nothing_else(miniature, monkeypatch):
    stages = []

    def spy(module: torch.nn.Module, *arguments) -> torch.Tensor:
        assert sys._getframe(1).f_globals["__name__"] in ("transforms", "train")
        stages.append(type(module).__name__)
        return originals[type(module)](module, *arguments)

    kinds = (Speed, Reverberation, Noise, SpecAugment)
    originals = {kind: kind.__call__ for kind in kinds}
    for kind in kinds:
        monkeypatch.setattr(kind, "__call__", spy)
    p = miniature("dataset.development_fraction=0.25")
    run = train(p)
    num_steps = load_checkpoint(run / "last.pt")["step"]
    assert Counter(stages) == {kind.__name__: num_steps for kind in kinds}
    stages.clear()
    assert evaluate(load_model(run, CPU), prepare(p.dataset, p.front_end)).verification
    assert stages == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_at_its_step(miniature, monkeypatch, value):
    p = miniature("training.epochs=3", "run.name=mine")
    real, steps = training.training_step, []

    def step(*arguments):
        reading = real(*arguments)
        steps.append(1)
        return (
            reading._replace(loss=value * reading.loss) if len(steps) == 8 else reading
        )

    monkeypatch.setattr(training, "training_step", step)
    with pytest.raises(NotFiniteError, match="step 8: expected a finite loss"):
        train(p)
    run = p.run.directory / "mine"
    kept = load_checkpoint(run / "last.pt")
    assert kept["step"] < 8
    assert all(tensor.isfinite().all() for tensor in kept["encoder"].values())


def poisoned(criterion, steps):
    """A criterion whose loss is not finite in some of its calls."""
    real, calls = criterion.forward, []

    def forward(embeddings, speakers):
        output = real(embeddings, speakers)
        calls.append(1)
        factor = math.nan if len(calls) in steps else 1
        return output._replace(loss=output.loss * factor)

    criterion.forward = forward


def keeps_a_mean(criterion):
    """A criterion with a state of its own, a mean of its losses."""
    criterion.register_buffer("mean", torch.tensor(0.0))

    def follow(criterion, _, output):
        criterion.mean.lerp_(output.loss.detach(), 0.1)

    criterion.register_forward_hook(follow)


@pytest.fixture
def unwritten_memory_is_nan():
    """torch fills tensors that it would leave unwritten."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unwritten_memory_is_nan")
@pytest.mark.parametrize("bad_step", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("model", ["titanet", "dvector"])
def test_a_step_without_a_finite_loss_changes_nothing(
    miniature, optimizer, model, bad_step
):
    p = miniature(f"training.optimizer.name={optimizer}", f"model.name={model}")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, splits.pack.digests, CPU)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    poisoned(model.criterion, {bad_step})
    keeps_a_mean(model.criterion)
    modules = model.encoder, model.criterion

    def tensors() -> list[torch.Tensor]:
        return [t.clone() for m in modules for t in m.state_dict().values()]

    augmentation, kept = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        [tensors()],
    )
    for batch in list(TrainingBatches(splits, p, CPU).epoch(0))[:3]:
        training.training_step(state, model.encoder, augmentation, batch, 10)
        kept.append(tensors())
    for step in (1, 2, 3):
        changed = not all(map(torch.equal, kept[step - 1], kept[step]))
        assert changed == (step != bad_step)
    assert all(tensor.isfinite().all() for tensor in kept[-1])


def test_steps_without_a_finite_loss_are_skipped_named_and_counted(
    miniature, monkeypatch, capsys
):
    build = training.build_model

    def built(*arguments):
        model = build(*arguments)
        poisoned(model.criterion, {2, 3})
        return model

    monkeypatch.setattr(training, "build_model", built)
    p = miniature("training.on_nonfinite=skip")
    run = train(p)
    assert [row["train/skipped_steps"] for row in metrics(run)] == [2, 0]
    assert all(tensor.isfinite().all() for tensor in weights(run))
    splits, shown = prepare(p.dataset, p.front_end), capsys.readouterr().out
    batches = list(TrainingBatches(splits, p, CPU).epoch(0))
    for step in (2, 3):
        indices = batches[step - 1].indices.tolist()
        names = ", ".join(splits.pack.entries[i].id for i in indices)
        assert f"step {step}: expected a finite loss and gradient, got" in shown
        assert f"of {names}; skipped" in shown


def test_skipping_ends_where_nothing_else_happens(miniature, monkeypatch):
    monkeypatch.setattr(training, "MAX_SKIPPED", 3)
    p = miniature("training.on_nonfinite=skip", "training.optimizer.lr=1e30")
    with pytest.raises(NotFiniteError, match="skipped 3 steps in a row"):
        train(p)


def test_gradient_that_is_not_finite_stops_too(miniature):
    p = miniature("training.optimizer.lr=1e30", "training.epochs=3")
    with pytest.raises(NotFiniteError, match="expected a finite loss and gradient"):
        train(p)


def test_a_batch_in_parts_is_the_batch(miniature, monkeypatch):
    """Of an encoder without batch statistics and without chance."""
    monkeypatch.setattr(training, "_has_bfloat16", lambda device: False)
    found = []
    for accumulation in (1, 3):
        p = miniature(
            *NO_CHANCE,
            "model.name=dvector",
            f"training.accumulation={accumulation}",
            "training.optimizer.name=adamw",  # which keeps the gradients
        )
        splits = prepare(p.dataset, p.front_end)
        model = build_model(p, splits.speakers, splits.pack.digests, CPU)
        state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
        augmentation = Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU)
        batch = next(TrainingBatches(splits, p, CPU).epoch(0))
        reading = training.training_step(state, model.encoder, augmentation, batch, 10)
        gradients = [w.grad.flatten() for w in model.encoder.parameters()]
        found.append((reading, torch.cat(gradients)))
    (reading, whole), (of_parts, parts) = found
    for one, other in zip(reading[:4], of_parts[:4], strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-4)
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_batches_too_small_to_share_out_are_refused(miniature):
    with pytest.raises(
        CorpusError,
        match=r"training\.batch_size: expected at least 8 utterances in every batch to "
        r"share out, got one of 6",
    ):
        train(miniature("training.accumulation=4"))


@pytest.mark.reliability
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)
def test_compiled_layers_have_the_numbers_of_eager_ones():
    # In double precision, since in single rounding alone makes some ReLU differ.
    eager = Block(16, 16, kernel=7, num_sub_blocks=2, skip=True).double()
    compiled = fast_encoder(copy.deepcopy(eager), CPU, "always")
    assert compiled is not eager
    x, found = torch.randn(4, 50, 16, dtype=torch.float64), []
    for block in (eager, compiled):
        out = block(x, None)
        out.square().sum().backward()
        gradients = [w.grad.flatten() for w in block.parameters()]
        found.append((out, torch.cat(gradients)))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-6 * one.norm()


@pytest.mark.reliability
def test_compiling_without_a_compiler_is_refused_in_a_line(tmp_path):
    assert fast_encoder(model := torch.nn.Linear(2, 2), CPU, "auto") is model
    asked = "training.compile=always", "wandb.mode=disabled"
    folders = f"dataset.packs={tmp_path}", f"run.directory={tmp_path}"
    tried = subprocess.run(
        [
            *(sys.executable, "src/train.py", "-p", "parameters.yml"),
            *(*MINIATURE, *asked, *folders),
        ],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "CXX": str(tmp_path / "none"),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert tried.returncode == 2
    last = tried.stderr.strip().splitlines()[-1]
    assert "training.compile: expected a compiler that works, got: " in last


def test_margin_grows_over_its_share_of_the_steps(miniature):
    p = miniature("loss.arcface.ramp=0.5")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, splits.pack.digests, CPU)
    assert isinstance(model.criterion, AngularMarginLoss)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    batch = next(TrainingBatches(splits, p, CPU).epoch(0))
    augmentation, shares = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        [],
    )
    for _ in range(8):
        training.training_step(state, model.encoder, augmentation, batch, num_steps=8)
        shares.append(model.criterion.margin_share.item())
    assert shares == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_gradients_are_measured_block_by_block(miniature, name):
    of = "training.optimizer"  # AdamW keeps the gradients
    p = miniature(f"model.name={name}", f"{of}.name=adamw", f"{of}.clip_norm=1e9")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, splits.pack.digests, CPU)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    batch = next(TrainingBatches(splits, p, CPU).epoch(0))
    common = (
        state,
        model.encoder,
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        batch,
        10,
    )
    assert training.training_step(*common).block_norms == {}
    found = training.training_step(*common, True).block_norms
    first, *_, last = found
    assert len(found) == (8 if name == "titanet" else 2)
    assert (first, last) == ("blocks_0" if name == "titanet" else "lstm", "embedding")
    parts = [w.grad.flatten() for w in model.encoder.embedding.parameters()]
    assert found["embedding"].item() == pytest.approx(torch.cat(parts).norm().item())
    total = math.hypot(*(norm.item() for norm in found.values()))
    parts = [w.grad.flatten() for w in model.encoder.parameters()]
    assert total == pytest.approx(torch.cat(parts).norm().item(), rel=1e-5)


def test_an_epoch_says_what_training_did_and_spent(miniature, monkeypatch):
    monkeypatch.setattr(training, "STEPS_PER_READING", 2)
    real, measured = training.block_norms, []

    def spy(encoder):
        measured.append(real(encoder))
        return measured[-1]

    monkeypatch.setattr(training, "block_norms", spy)
    p = miniature("loss.arcface.ramp=0.8", "training.batch_size=5")
    one, two = metrics(train(p))
    num_steps = one["step"]
    assert num_steps % 2
    per_epoch = num_steps // 2 + 1  # every second step, and the last
    assert len(measured) == 2 * per_epoch
    for block, norm in measured[0].items():
        norms = [of_step[block].item() for of_step in measured[:per_epoch]]
        expected = sum(norms) / per_epoch
        assert norm > 0
        assert one[f"gradient_norm/{block}"] == pytest.approx(expected)
    assert one["train/margin"] == pytest.approx(0.3 * 0.5 / 0.8)
    assert two["train/margin"] == pytest.approx(0.3)
    batches = TrainingBatches(prepare(p.dataset, p.front_end), p, CPU)
    sizes = [[(b.size, b.crop) for b in batches.epoch(epoch)] for epoch in (0, 1)]
    encoder = build_encoder(p.model, 80)
    seconds = flop = 0
    for row, of_epoch in zip((one, two), sizes, strict=True):
        seconds += sum(size * crop for size, crop in of_epoch) / 16_000
        flop += sum(6 * n * encoder.products(crop // 160) for n, crop in of_epoch)
        assert row["spent/audio_seconds"] == pytest.approx(seconds)
        assert row["spent/flop"] == flop
    speed = seconds / two["spent/seconds"]
    rates = [row["train/audio_seconds_per_second"] for row in (one, two)]
    assert min(rates) <= speed <= max(rates)


def test_a_run_from_before_these_were_counted_goes_on(miniature):
    p = miniature("training.epochs=1")
    run = train(p)
    for name in ("last.pt", "best.pt"):
        state = load_checkpoint(run / name)
        del state["spent"]
        for added in ("flop", "block_norms", "measured"):
            del state["tally"][added]
        torch.save(state, run / name)
    p = miniature("training.epochs=2", f"run.name={run.name}")
    one, two = metrics(train(p, resume=run))
    assert two["spent/flop"] == pytest.approx(one["spent/flop"], rel=0.5)


def test_gradient_is_clipped(miniature):
    p = miniature(
        "training.optimizer.clip_norm=0.001",
        "training.optimizer.name=sgd",
        "training.optimizer.lr=1.0",
        "training.optimizer.warmup=0",
        "training.optimizer.momentum=0",
        "training.optimizer.weight_decay=0",
    )
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, splits.pack.digests, CPU)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    trained = [*model.encoder.parameters(), *model.criterion.parameters()]
    before = [w.detach().clone() for w in trained]
    batch = next(TrainingBatches(splits, p, CPU).epoch(0))
    _, norm, *_ = training.training_step(
        state,
        model.encoder,
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        batch,
        10**6,
    )
    assert norm > 0.001
    moved = [(w - b).square().sum() for w, b in zip(trained, before, strict=True)]
    assert sum(moved).sqrt().item() == pytest.approx(0.001, rel=1e-2)


def command(tmp_path, *overrides: str) -> int:
    folders = (
        f"dataset.packs={tmp_path / 'packs'}",
        f"run.directory={tmp_path / 'runs'}",
    )
    shipped = str(REPOSITORY / "parameters.yml")
    return main(["-p", shipped, *MINIATURE, *folders, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epochs=none"], "training.epochs: expected a whole number"),
        (["dataset.name=folder", "dataset.root=nowhere"], "nowhere"),
        (["dataset.test_fraction=1"], "at least two speakers to train on, got 0"),
        (["run.name=a/b"], "run.name: expected text that matches"),
        (
            ["evaluation.max_trials=1"],
            "evaluation.max_trials: expected enough for test",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(tmp_path, capsys, overrides, message):
    assert command(tmp_path, *overrides) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_existing_run_is_refused_on_the_command_line(tmp_path, capsys):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert command(tmp_path, "run.name=mine") == 2
    assert "this run exists" in capsys.readouterr().err


def test_bad_files_among_good_ones(tmp_path, capsys):
    root = tmp_path / "corpus"
    rng = np.random.default_rng(0)
    for speaker in "abcdef":
        (root / speaker).mkdir(parents=True)
        for number, rate in enumerate((8000, 16_000, 48_000)):
            samples = rng.normal(0, 0.1, (2 * rate, 1 + number % 2))
            soundfile.write(root / speaker / f"{number}.flac", samples, rate)
    (root / "a" / "bad.wav").write_text("no audio")
    with open(root / "b" / "0.flac", "r+b") as file:
        file.truncate(9000)
    folder = "dataset.name=folder", f"dataset.root={root}"
    assert command(tmp_path, *folder, "training.epochs=1", "run.name=mine") == 0
    shown = capsys.readouterr().out
    assert "3 warnings:" in shown
    assert "5 of 17 files were recorded below 16000 Hz" in shown
    assert "bad.wav" in shown
    assert "0.flac" in shown
    assert (tmp_path / "runs" / "mine" / "report.json").exists()


def test_real_speech(tmp_path, miniature, shared):
    p = miniature(
        "dataset.name=librispeech",
        f"dataset.root={shared / 'data'}",
        "training.epochs=1",
        "training.batch_size=64",
    )
    run = train(p)
    report = json.loads((run / "report.json").read_text())
    assert report["verification"]["test"]["systems"]["trained"]["num_targets"] == 450
    assert (
        report["verification"]["test"]["systems"]["trained"]["num_non_targets"] == 4500
    )
    assert report["identification"]["num_classes"] == 251


@pytest.mark.parametrize("name", sorted({*ModelParameters.model_fields} - {"name"}))
def test_fine_tuning_may_crop_otherwise(shipped, name):
    p, other = (
        shipped(f"model.name={name}", f"model.{name}.{change}")
        for change in ("crop_seconds=[9.0]", "embedding_size=7")
    )
    whole = training._architecture(shipped(f"model.name={name}"))
    assert training._architecture(p) == whole
    assert training._architecture(other) != whole


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("loss.arcface.margin=0.4", True),
        ("dataset.seed=2", False),  # other people of the same names
        ("loss.name=cosface", False),
    ],
)
def test_a_start_keeps_the_classifier_of_the_same_speakers(
    miniature, capsys, override, kept
):
    first = train(miniature("run.name=first", "training.epochs=1"))
    source = load_model(first, CPU)
    p = miniature("run.name=second", f"training.init_from={first}", override)
    model = build_model(
        p, source.speakers, prepare(p.dataset, p.front_end).pack.digests, CPU
    )
    fresh = model.criterion.classifier.weight.clone()
    training._start_from(first, model)
    expected = source.criterion.classifier.weight if kept else fresh
    assert torch.equal(model.criterion.classifier.weight, expected)
    assert ("encoder and classifier" in capsys.readouterr().out) == kept
    assert len(model.heard) == (2 if override == "dataset.seed=2" else 1)


def test_whom_an_ancestor_has_heard_is_never_tested(miniature, capsys):
    """Three generations, each of another corpus."""
    first = train(miniature("run.name=first", "training.epochs=1"))
    tuned = first
    for name, seed in (("second", 2), ("third", 3)):
        p = miniature(
            f"run.name={name}",
            f"dataset.seed={seed}",
            f"training.init_from={tuned}",
            "training.epochs=1",
        )
        tuned = train(p)
    heard = load_model(tuned, CPU).heard
    assert [people.people for people in heard] == [["synthetic", n] for n in (3, 2, 1)]
    for seed in (1, 2, 3):
        overrides = [f"dataset.seed={seed}", "dataset.test_fraction=1.0"]
        assert evaluation_main(["--checkpoint", str(tuned), *overrides]) == 2
        assert "it heard 6 of them" in capsys.readouterr().err
        p = miniature(
            f"training.init_from={tuned}", *overrides[:1], "dataset.test_fraction=0.75"
        )
        with pytest.raises(ParameterError, match="expected to test speakers that"):
            train(p)
    others = ["dataset.seed=4", "dataset.test_fraction=1.0"]
    assert evaluation_main(["--checkpoint", str(tuned), *others]) == 0


class TestMixture:
    def test_a_run_of_a_mixture(self, miniature, capsys):
        p = miniature(*MIXTURE, "run.name=mine")
        run = train(p)
        texts = ("trials.txt", "scores.txt", "errors.tsv")
        names = {*texts, "det.png", "scores.png", "embeddings.png", "map.html"}
        assert {path.name for path in (run / "test").iterdir()} == {"one", "two"}
        for label in ("one", "two"):
            files = {path.name for path in (run / "test" / label).iterdir()}
            assert files == names
        assert not names & {path.name for path in run.iterdir()}
        assert load_parameters(run / "parameters.yml") == p
        for row in metrics(run):
            for name in ("loss", "accuracy"):
                own = [row[f"validation/{label}/{name}"] for label in ("one", "two")]
                assert row[f"validation/{name}"] == np.mean(own)
        losses = [row["validation/loss"] for row in metrics(run)]
        report = json.loads((run / "report.json").read_text())
        found = [part["loss"] for part in report["identification"].values()]
        assert np.mean(found) == pytest.approx(min(losses))
        splits = prepare(p.dataset, p.front_end)
        for name, indices in splits.by_corpus("test").items():
            ids = [splits.pack.entries[i].id for i in indices]
            trials, _ = read_trials(run / name / "trials.txt", ids)
            scores = read_scores(run / name / "scores.txt", trials, ids)
            eer = report["verification"][name]["systems"]["trained"]["eer"]
            assert eer == equal_error_rate(scores, trials.targets)
        assert report["calibrated_on"] == ["development/two"]
        assert evaluation_main(["--checkpoint", str(run)]) == 0
        (again,) = (run / "evaluations").iterdir()
        assert (again / "test" / "one" / "map.html").exists()
        one = "{label: one, weight: 2, name: synthetic, seed: 1}"
        assert main(["--resume", str(run), f"dataset.mixture=[{one}]"]) == 2
        assert "error: dataset.mixture" in capsys.readouterr().err
