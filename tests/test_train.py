"""The training loop: miniature real trainings, their steps, and what is refused."""

import copy
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

import train as training
from conftest import CPU, MINIATURE, MIXTURE, NO_CHANCE, Steps, outcome, same, write
from dataset import TrainingBatches, prepare
from engine.acceleration import fast_encoder
from engine.parameter_files import SHIPPED, load_parameters
from engine.signals import StopSignals
from errors import StoppedError
from eval import evaluate
from eval import main as evaluation_main
from losses import AngularMarginLoss
from models import Block
from reports.tables import as_report
from runs.checkpoints import load_checkpoint, load_model
from runs.run_directory import read_metrics
from runs.tally import NotFiniteError
from train import main, train
from transforms import Noise, Reverberation, SpecAugment, Speed
from verification.metrics import equal_error_rate
from verification.trials import read_scores, read_trials

FILES_OF_A_TEST = {"trials.txt", "scores.txt", "errors.tsv", "embeddings.png"}
FILES_OF_A_TEST |= {"map.html", "det.png", "scores.png"}
FILES_OF_A_RUN = {"parameters.yml", "metrics.jsonl", "report.json"}
FILES_OF_A_RUN |= {"best.pt", "last.pt"}


def report_of(run) -> dict:
    return json.loads((run / "report.json").read_text())


def eer_of_files(directory, splits, indices) -> float:
    """The EER of the trials and scores that a test left."""
    ids = [splits.pack.entries[i].id for i in indices]
    trials, _ = read_trials(directory / "trials.txt", ids)
    scores = read_scores(directory / "scores.txt", trials, ids)
    return equal_error_rate(scores, trials.targets)


@pytest.fixture
def words(tmp_path) -> list[str]:
    """Options of src/train.py: miniature parameters, and the test's own folder."""
    folders = f"dataset.packs={tmp_path}/packs", f"run.directory={tmp_path}/runs"
    return ["-p", str(SHIPPED), *MINIATURE, *folders]


@pytest.fixture
def command(words):
    """src/train.py; its exit status."""
    return lambda *overrides: main([*words, *overrides])


@pytest.fixture
def process(words):
    """src/train.py in a process of its own."""

    def run(*overrides: str, **environment: str) -> subprocess.CompletedProcess:
        line = [sys.executable, training.__file__, *words, *overrides]
        environment = {**os.environ, **environment}
        return subprocess.run(line, env=environment, capture_output=True, text=True)

    return run


# Runs


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
    assert set(os.listdir(run)) == FILES_OF_A_RUN | FILES_OF_A_TEST
    assert load_parameters(run / "parameters.yml") == p
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"train/loss", "validation/loss", "validation/accuracy"} <= set(rows[0])
    splits = prepare(p.dataset, p.front_end)
    expected = as_report(evaluate(load_model(run, CPU), splits))
    report = report_of(run)
    assert report["identification"] == pytest.approx(expected["identification"])
    systems = report["verification"]["test"]["systems"]
    assert systems["trained"]["eer"] == eer_of_files(run, splits, splits.test)
    num_pairs = math.comb(len(splits.test), 2)
    for name, system in expected["verification"]["test"]["systems"].items():
        # Scores of so small a model lie so close that rounding can swap two trials.
        assert systems[name]["eer"] == pytest.approx(system["eer"], abs=0.05)
        counts = systems[name]["num_targets"], systems[name]["num_non_targets"]
        assert counts == (system["num_targets"], num_pairs - system["num_targets"])


def test_a_run_of_a_mixture(miniature, capsys):
    p = miniature(*MIXTURE, "run.name=mine")
    run = train(p)
    assert set(os.listdir(run / "test")) == {"one", "two"}
    for label in ("one", "two"):
        assert set(os.listdir(run / "test" / label)) == FILES_OF_A_TEST
    assert set(os.listdir(run)) == FILES_OF_A_RUN | {"test"}
    for row in read_metrics(run):
        for name in ("loss", "accuracy"):
            values = [row[f"validation/{label}/{name}"] for label in ("one", "two")]
            assert row[f"validation/{name}"] == np.mean(values)
    losses = [row["validation/loss"] for row in read_metrics(run)]
    report = report_of(run)
    of_best = [corpus["loss"] for corpus in report["identification"].values()]
    assert np.mean(of_best) == pytest.approx(min(losses))
    splits = prepare(p.dataset, p.front_end)
    for name, indices in splits.by_corpus("test").items():
        eer = report["verification"][name]["systems"]["trained"]["eer"]
        assert eer == eer_of_files(run / name, splits, indices)
    assert report["calibrated_on"] == ["development/two"]
    assert evaluation_main(["--checkpoint", str(run)]) == 0
    assert len(list(run.glob("evaluations/*/test/one/map.html"))) == 1
    one = "{label: one, weight: 2, name: synthetic, seed: 1}"
    assert main(["--resume", str(run), f"dataset.mixture=[{one}]"]) == 2
    assert "error: dataset.mixture" in capsys.readouterr().err


def test_best_is_the_epoch_of_least_validation_loss(miniature):
    run = train(miniature("training.epochs=5", "training.optimizer.lr=0.05"))
    losses = [row["validation/loss"] for row in read_metrics(run)]
    best = load_checkpoint(run / "best.pt")
    assert best["epoch"] == int(np.argmin(losses)) + 1
    assert best["best_loss"] == min(losses)
    assert report_of(run)["identification"]["loss"] == pytest.approx(min(losses))


def test_training_tells_speakers_apart(miniature):
    larger = "model.titanet.channels=32", "model.titanet.epilog_channels=64"
    choices = "training.epochs=12", "training.optimizer.lr=0.01"
    p = miniature(*NO_CHANCE, *larger, *choices, "loss.name=cross_entropy")
    rows = read_metrics(train(p))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 2
    last = [row["train/accuracy"] for row in rows[-4:]]
    assert np.mean(last) > 0.5  # of six speakers, on crops that change


def test_seed_decides_everything(miniature):
    choices = (("run.name=a",), ("run.name=b",), ("run.name=c", "seed=2"))
    one, again, other = (outcome(train(miniature(*choice))) for choice in choices)
    assert same(one, again)
    assert not same(one["best.pt"]["encoder"], other["best.pt"]["encoder"])


def test_real_speech(miniature, shared):
    corpus = "dataset.name=librispeech", f"dataset.root={shared / 'data'}"
    p = miniature(*corpus, "training.epochs=1", "training.batch_size=64")
    report = report_of(train(p))
    trained = report["verification"]["test"]["systems"]["trained"]
    assert (trained["num_targets"], trained["num_non_targets"]) == (450, 4500)
    assert report["identification"]["num_classes"] == 251


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


def test_an_epoch_says_what_training_did_and_spent(miniature, monkeypatch):
    monkeypatch.setattr(training, "STEPS_PER_READING", 2)
    real, measured = training.block_norms, []
    spy = lambda encoder: measured.append(real(encoder)) or measured[-1]  # noqa: E731
    monkeypatch.setattr(training, "block_norms", spy)
    p = miniature("loss.arcface.ramp=0.8", "training.batch_size=5")
    one, two = rows = read_metrics(train(p))
    num_steps = one["step"]
    assert num_steps % 2
    per_epoch = num_steps // 2 + 1  # every second step, and the last
    assert len(measured) == 2 * per_epoch
    for block, norm in measured[0].items():
        norms = [of_step[block].item() for of_step in measured[:per_epoch]]
        assert norm > 0
        assert one[f"gradient_norm/{block}"] == pytest.approx(sum(norms) / per_epoch)
    assert one["train/margin"] == pytest.approx(0.3 * 0.45 / 0.8)
    assert two["train/margin"] == pytest.approx(0.3)
    batches = TrainingBatches(prepare(p.dataset, p.front_end), p, CPU)
    encoder = training.build_model(p, ["a", "b"], {}, CPU).encoder
    seconds = flop = 0
    for epoch, row in enumerate(rows):
        for batch in batches.epoch(epoch):
            seconds += batch.size * batch.crop / 16_000
            flop += 6 * batch.size * encoder.products(batch.crop // 160)
        assert row["spent/audio_seconds"] == pytest.approx(seconds)
        assert row["spent/flop"] == flop
    rates = [row["train/audio_seconds_per_second"] for row in rows]
    assert min(rates) <= seconds / two["spent/seconds"] <= max(rates)


# Steps


def gradient(module) -> torch.Tensor:
    return torch.cat([w.grad.flatten() for w in module.parameters()])


def test_bfloat16_trains_nearly_as_float32(miniature, monkeypatch):
    losses = {}
    for fast in (False, True):
        monkeypatch.setattr("engine.precision._has_bfloat16", lambda _, fast=fast: fast)
        rates = "training.optimizer.lr=1e-4", "training.optimizer.muon_lr=1e-4"
        p = miniature(*NO_CHANCE, *rates, f"run.name=fast-{fast}")
        losses[fast] = [epoch["train/loss"] for epoch in read_metrics(train(p))]
    assert losses[True] != losses[False]
    # bfloat16 keeps eight bits, 0.4 % of a value; the scale of 30 enlarges its errors.
    assert losses[True] == pytest.approx(losses[False], rel=5e-2)


def test_margin_grows_over_its_share_of_the_steps(miniature):
    steps = Steps.of(miniature("loss.arcface.ramp=0.5"))
    criterion, batch = steps.state.model.criterion, next(steps.batches.epoch(0))
    assert isinstance(criterion, AngularMarginLoss)
    shares = []
    for _ in range(8):
        steps.take(batch, num_steps=8)
        shares.append(criterion.margin_share.item())
    assert shares == [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]  # halfway in each step


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_gradients_are_measured_block_by_block(miniature, name):
    kept = "training.optimizer.name=adamw"  # Muon drops the gradients
    p = miniature(f"model.name={name}", kept, "training.optimizer.clip_norm=1e9")
    steps = Steps.of(p)
    encoder, batch = steps.state.model.encoder, next(steps.batches.epoch(0))
    assert steps.take(batch).block_norms == {}
    norms = steps.take(batch, measures_blocks=True).block_norms
    first, *_, last = norms
    assert len(norms) == (8 if name == "titanet" else 2)
    assert (first, last) == ("blocks_0" if name == "titanet" else "lstm", "embedding")
    torch.testing.assert_close(norms[last], gradient(encoder.embedding).norm())
    total = torch.stack(list(norms.values())).norm()
    torch.testing.assert_close(total, gradient(encoder).norm())


def test_gradient_is_clipped(miniature):
    optimizer = "clip_norm=0.001 name=sgd lr=1 warmup=0 momentum=0 weight_decay=0"
    p = miniature(*(f"training.optimizer.{pair}" for pair in optimizer.split()))
    steps = Steps.of(p)
    trained = list(steps.state.model.parameters())
    before = copy.deepcopy(trained)
    reading = steps.take(next(steps.batches.epoch(0)), num_steps=10**6)
    assert reading.gradient_norm > 0.001
    moved = [(w - b).square().sum() for w, b in zip(trained, before, strict=True)]
    assert sum(moved).sqrt().item() == pytest.approx(0.001, rel=1e-2)


def test_a_batch_in_parts_is_the_batch(miniature, monkeypatch):
    """For an encoder without batch statistics and without chance."""
    monkeypatch.setattr("engine.precision._has_bfloat16", lambda _: False)
    kept = "training.optimizer.name=adamw"  # Muon drops the gradients
    readings, gradients = [], []
    for accumulation in (1, 3):
        parts = f"training.accumulation={accumulation}"
        steps = Steps.of(miniature(*NO_CHANCE, "model.name=dvector", parts, kept))
        reading = steps.take(next(steps.batches.epoch(0)))
        readings.append([float(v) for v in (*reading[:2], *reading.sums.values())])
        gradients.append(gradient(steps.state.model.encoder))
    assert readings[0] == pytest.approx(readings[1], rel=1e-4)
    whole, in_parts = gradients
    assert (whole - in_parts).norm() < 1e-4 * whole.norm()


@pytest.mark.reliability
@pytest.mark.skipif(not shutil.which(os.getenv("CXX", "g++")), reason="no compiler")
def test_compiled_layers_have_the_numbers_of_eager_ones():
    # In double precision, since in single rounding alone makes some ReLU differ.
    eager = Block(16, 16, kernel=7, num_sub_blocks=2, skip=True).double()
    compiled = fast_encoder(copy.deepcopy(eager), CPU, "always")
    assert compiled is not eager
    x = torch.randn(4, 50, 16, dtype=torch.float64)
    one, other = eager(x, None), compiled(x, None)
    (one.square().sum() + other.square().sum()).backward()
    assert (one - other).norm() < 1e-6 * one.norm()
    one, other = gradient(eager), gradient(compiled)
    assert (one - other).norm() < 1e-6 * one.norm()


# Values that are not finite


def poison(criterion, bad_steps) -> None:
    """Have a criterion's loss be NaN in some of its calls."""
    real, calls = criterion.forward, itertools.count(1)

    def forward(embeddings, speakers):
        output = real(embeddings, speakers)
        factor = math.nan if next(calls) in bad_steps else 1
        return output._replace(loss=output.loss * factor)

    criterion.forward = forward


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
    names = f"training.optimizer.name={optimizer}", f"model.name={model}"
    steps = Steps.of(miniature(*names))
    encoder, criterion = steps.state.model.encoder, steps.state.model.criterion
    poison(criterion, {bad_step})
    criterion.register_buffer("mean", mean := torch.tensor(0.0))  # a state of its own

    def follow(*call) -> None:
        mean.lerp_(call[2].loss.detach(), 0.1)

    criterion.register_forward_hook(follow)
    trained = [*encoder.state_dict().values(), *criterion.state_dict().values()]
    for step, batch in zip((1, 2, 3), steps.batches.epoch(0), strict=False):
        before = copy.deepcopy(trained)
        steps.take(batch)
        assert same(before, trained) == (step == bad_step)
    assert all(tensor.isfinite().all() for tensor in trained)


def test_steps_without_a_finite_loss_are_skipped_named_and_counted(
    miniature, monkeypatch, capsys
):
    build = training.build_model

    def built(*arguments):
        poison((model := build(*arguments)).criterion, {2, 3})
        return model

    monkeypatch.setattr(training, "build_model", built)
    p = miniature("training.on_nonfinite=skip")
    run = train(p)
    assert [row["train/skipped_steps"] for row in read_metrics(run)] == [2, 0]
    trained = load_checkpoint(run / "last.pt")["encoder"].values()
    assert all(tensor.isfinite().all() for tensor in trained)
    splits, shown = prepare(p.dataset, p.front_end), capsys.readouterr().out
    batches = list(TrainingBatches(splits, p, CPU).epoch(0))
    for step in (2, 3):
        ids = [splits.pack.entries[i].id for i in batches[step - 1].indices.tolist()]
        assert f"step {step}: " in shown
        assert f"{', '.join(ids)}; skipped" in shown


def test_skipped_steps_are_counted_from_epoch_to_epoch(miniature, monkeypatch):
    p = miniature("training.on_nonfinite=skip", "training.epochs=9", "run.name=mine")
    run, real = p.run.directory / "mine", training.training_step

    def step(state, *arguments, **options):  # epochs have four
        reading = real(state, *arguments, **options)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        finite = state.step in (6, 17)
        return reading._replace(loss=reading.loss * (1 if finite else math.nan))

    monkeypatch.setattr(training, "training_step", step)
    with pytest.raises(StoppedError):  # although no step was finite so far
        train(p)
    with pytest.raises(NotFiniteError, match=r"step 16: .* 10 steps in a row"):
        train(p, resume=run)
    assert ["train/loss" in row for row in read_metrics(run)] == [False, True, False]


@pytest.mark.parametrize(("num_steps", "step"), [(1, 0), (5, 4)])
def test_every_step_learns(miniature, num_steps, step):
    steps = Steps.of(miniature())
    steps.state.step = step
    weights = list(steps.state.model.parameters())
    before = copy.deepcopy(weights)
    steps.take(next(steps.batches.epoch(0)), num_steps)
    assert not any(torch.equal(*pair) for pair in zip(before, weights, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_at_its_step(miniature, monkeypatch, value):
    p = miniature("training.epochs=3", "run.name=mine")
    real = training.training_step

    def step(state, *arguments, **options):
        reading = real(state, *arguments, **options)
        return reading._replace(loss=reading.loss * (value if state.step == 8 else 1))

    monkeypatch.setattr(training, "training_step", step)
    with pytest.raises(NotFiniteError, match="step 8: "):
        train(p)
    saved = load_checkpoint(p.run.directory / "mine" / "last.pt")
    assert saved["step"] < 8
    assert all(tensor.isfinite().all() for tensor in saved["encoder"].values())


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_gradients_that_are_not_finite_stop_too(miniature, monkeypatch, what):
    monkeypatch.setattr("runs.tally.MAX_SKIPPED", 3)
    said = "skipped 3 steps in a row" if what == "skip" else "loss and gradient"
    with pytest.raises(NotFiniteError, match=said):
        train(miniature("training.optimizer.lr=1e30", f"training.on_nonfinite={what}"))


# The command line


def test_a_second_signal_does_not_wait():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_on_the_command_line(command, strike, tmp_path, capsys):
    strike(training, "training_step", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert command("run.name=mine") == 130
    shown = capsys.readouterr()
    assert f"--resume {tmp_path / 'runs' / 'mine'}" in shown.out
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        ("training.epochs=none", "training.epochs", "none"),
        ("dataset.name=folder dataset.root=nowhere", "nowhere", "dataset.root"),
        ("dataset.test_fraction=1", "dataset", "0"),  # speakers left to train on
        ("run.name=a/b", "run.name", "a/b"),
        ("evaluation.max_trials=1", "evaluation.max_trials", "1"),
        ("training.accumulation=4", "training.batch_size", "6"),
    ],
)
def test_a_mistake_is_one_line(command, tmp_path, capsys, overrides, key, value):
    assert command(*overrides.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {key}")
    assert value in error
    # How small batches are is known when training begins.
    assert (tmp_path / "runs").exists() == (key == "training.batch_size")


def test_bad_files_among_good_ones(command, tmp_path, capsys):
    root, rng = tmp_path / "corpus", np.random.default_rng(0)
    for speaker in "abcdef":
        for number, rate in enumerate((8000, 16_000, 48_000)):
            samples = rng.normal(0, 0.1, (2 * rate, 1 + number % 2))
            write(root / speaker / f"{number}.flac", samples, rate)
    (root / "a" / "bad.wav").write_text("no audio")
    os.truncate(root / "b" / "0.flac", 9000)
    folder = "dataset.name=folder", f"dataset.root={root}"
    assert command(*folder, "training.epochs=1", "run.name=mine") == 0
    shown = capsys.readouterr().out
    assert "warnings:" in shown
    for named in ("5 of 17 files", "16000 Hz", "bad.wav", "0.flac"):
        assert named in shown
    assert (tmp_path / "runs" / "mine" / "report.json").exists()


@pytest.mark.reliability
def test_progress_is_not_shown_where_it_is_not_wanted(process):
    few = "dataset.synthetic.utterances_per_speaker=4"
    ran = process(few, "training.epochs=1")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.reliability
def test_compiling_without_a_compiler_is_refused_in_a_line(process, tmp_path):
    assert fast_encoder(model := torch.nn.Linear(2, 2), CPU, "auto") is model
    nowhere = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ran = process("training.compile=always", **nowhere)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: training.compile: ")
