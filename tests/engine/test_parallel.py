"""Two ranks train like one process: the same statistics, weights and report."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from conftest import MINIATURE, NO_CHANCE, REPOSITORY
from dataset import TrainingBatches, UtteranceBatches, prepare
from engine.acceleration import fast_encoder
from engine.layers import BatchNorm
from engine.optimizers import build_optimizer
from engine.parallel import anywhere, gather, gather_lists, rank, ranks, share
from engine.parameter_files import check_parameters, load_parameters
from eval import evaluate
from parameters import Parameters
from reports.tables import as_report
from runs.checkpoints import load_model
from runs.resuming import State
from runs.speaker_model import SpeakerModel, build_model, embed
from speech.surroundings import load_surroundings
from train import training_step
from transforms import Augmentation

CPU = torch.device("cpu")
NUM_STEPS = 10
SGD = ("training.optimizer.name=sgd", "training.optimizer.lr=0.1")
CASES = {  # precision, overrides, how much weights may differ
    "arcface": (torch.float64, SGD, 1e-6),
    "cross-entropy": (torch.float64, (*SGD, "loss.name=cross_entropy"), 1e-6),
    "ge2e": (torch.float64, (*SGD, "loss.name=ge2e"), 1e-6),
    "d-vector": (torch.float64, (*SGD, "model.name=dvector"), 1e-6),
    "d-vector in parts": (
        torch.float64,
        (*SGD, "model.name=dvector", "training.accumulation=2"),
        1e-6,
    ),
    # Rounding makes some ReLU choose otherwise, and bold steps blow that up, whatever
    # the number of ranks.
    "single precision": (
        torch.float32,
        (
            "training.optimizer.name=sgd",
            "training.optimizer.lr=0.001",
            "training.optimizer.warmup=0",
            "training.optimizer.momentum=0",
            "training.batch_size=23",
            "loss.name=cross_entropy",
        ),
        1e-4,
    ),
}


# Not by a fixture: ranks are processes of their own.
@patch("train._has_bfloat16", lambda device: False)
def ten_steps(p: Parameters, dtype: torch.dtype) -> tuple[SpeakerModel, list]:
    """A model after ten steps, and what each step said of itself."""
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {"": "digest"}, CPU).train().to(dtype)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    encoder = fast_encoder(model.encoder, CPU, "never")
    augmentation = Augmentation(
        p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
    ).to(CPU)
    batches, rows = TrainingBatches(splits, p, CPU), []
    while state.step < NUM_STEPS:
        for batch in batches.epoch(state.step):
            wide = replace(batch, waveforms=batch.waveforms.to(dtype))
            reading = training_step(state, encoder, augmentation, wide, NUM_STEPS)
            rows.append([float(value) for value in reading[:4]])  # of all ranks
            if state.step == NUM_STEPS:
                break
    return model, rows


def weights(model: SpeakerModel) -> torch.Tensor:
    """All of them, end to end."""
    parts = [*model.encoder.parameters(), *model.criterion.parameters()]
    return torch.cat([w.detach().double().flatten() for w in parts])


def running_statistics(model: SpeakerModel) -> torch.Tensor:
    """Means and variances of all batch norms, end to end."""
    buffers = model.encoder.named_buffers()
    kept = [b.double() for name, b in buffers if "running" in name]
    return torch.cat(kept) if kept else torch.zeros(1)


def small_things() -> dict:
    """What each rank sees of gathering, sharing and batch norm."""
    rows = torch.full((2 + rank(), 3), float(rank()), requires_grad=True)
    everybodys = gather(rows)
    (everybodys * torch.arange(5.0)[:, None]).sum().backward()
    x = torch.linspace(-1, 3, 42, dtype=torch.float64).reshape(7, 2, 3).exp()
    norm = BatchNorm(3, dtype=torch.float64)
    own = x[share(7)].requires_grad_()
    out = norm(own)
    (out * x[share(7)].detach().square()).sum().backward()
    return {
        "gathered": everybodys.detach(),
        "gradient": rows.grad,
        "lists": gather_lists([rank()] * (1 + rank())),
        "anywhere": [anywhere(rank() == 1), anywhere(False)],
        "normalised": out.detach(),
        "norm gradient": own.grad,
        "running": torch.stack([norm.running_mean, norm.running_var]),
    }


def process(number: int, folder: Path, cases: dict) -> None:
    """One of two ranks; each leaves what it found."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=number, world_size=2)
    found = {"small": small_things()}
    for name, (values, dtype) in cases.items():
        p = check_parameters(values)
        model, rows = ten_steps(p, dtype)
        splits = prepare(p.dataset, p.front_end)
        model.eval().to(CPU)
        batches = UtteranceBatches(splits.pack, splits.test, 5.0, CPU)
        found[name] = {
            "weights": weights(model),
            "running": running_statistics(model),
            "rows": rows,
            "embeddings": embed(model.float(), batches),
        }
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def parameters(folder):
    def load(*overrides: str) -> Parameters:
        return load_parameters(
            REPOSITORY / "parameters.yml",
            overrides=(
                *MINIATURE,
                *NO_CHANCE,
                "training.batch_size=7",  # shared out unevenly
                f"dataset.packs={folder / 'packs'}",
                *overrides,
            ),
        )

    return load


@pytest.fixture(scope="module")
def found(folder, parameters) -> list[dict]:
    """What the two ranks found."""
    cases = {
        name: (parameters(*overrides).as_dict(), dtype)
        for name, (dtype, overrides, _) in CASES.items()
    }
    chosen = parameters()
    prepare(chosen.dataset, chosen.front_end)
    multiprocessing.spawn(process, (folder, cases), nprocs=2)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_weights_of_one_process(found, parameters, name):
    dtype, overrides, tolerance = CASES[name]
    model, rows = ten_steps(parameters(*overrides), dtype)
    alone = weights(model)
    first, second = (own[name]["weights"] for own in found)
    assert torch.equal(first, second)
    assert (first - alone).abs().max() < tolerance
    untrained = build_model(parameters(*overrides), ["a"] * 6, {"": "digest"}, CPU)
    moved = weights(untrained) - alone
    assert moved.abs().max() > 10 * tolerance  # so that it means something
    if dtype == torch.float64:
        said = [torch.tensor(own) for own in (found[0][name]["rows"], rows)]
        assert torch.allclose(*said, rtol=1e-5)
        running = found[0][name]["running"]
        assert torch.allclose(running, running_statistics(model), rtol=1e-6)


@pytest.mark.parametrize("name", ["arcface", "d-vector"])
def test_ranks_share_out_the_embedding(found, parameters, name):
    first, second = (own[name]["embeddings"] for own in found)
    assert torch.equal(first, second)
    p = parameters(*CASES[name][1])
    model, _ = ten_steps(p, torch.float64)
    model.eval()
    splits = prepare(p.dataset, p.front_end)
    batches = UtteranceBatches(splits.pack, splits.test, 5.0, CPU)
    alone = embed(model.float(), batches)
    assert (first - alone).abs().max() < 1e-4


def test_what_ranks_tell_each_other(found):
    for number, small in enumerate(own["small"] for own in found):
        values = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
        assert torch.equal(small["gathered"], values[:, None].expand(5, 3))
        # Both ranks have a loss of their own, so each row's gradient counts twice.
        weights = torch.arange(5.0)[slice(2) if number == 0 else slice(2, 5)]
        assert torch.equal(small["gradient"], 2 * weights[:, None].expand(-1, 3))
        assert small["lists"] == [0, 1, 1]
        assert small["anywhere"] == [True, False]


def test_batch_norm_over_ranks_is_torchs_over_all_rows(found):
    x = torch.linspace(-1, 3, 42, dtype=torch.float64).reshape(7, 2, 3).exp()
    norm = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    out = norm(whole.flatten(0, 1)).view_as(x)
    (out * x.square()).sum().backward()
    together = {
        name: torch.cat([own["small"][name] for own in found])
        for name in ("normalised", "norm gradient")
    }
    assert torch.allclose(together["normalised"], out)
    assert torch.allclose(together["norm gradient"], whole.grad)
    expected = torch.stack([norm.running_mean, norm.running_var])
    for own in found:
        assert torch.allclose(own["small"]["running"], expected)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_a_rank_that_fails_waits_for_no_other(monkeypatch, error):
    calls = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    for name in ("init_process_group", "destroy_process_group"):
        call = partial(lambda name, *_, **__: calls.append(name), name)
        monkeypatch.setattr(dist, name, call)
    with nullcontext() if error is None else pytest.raises(error), ranks():
        if error is not None:
            raise error
    ended = ["destroy_process_group"] if error is None else []
    assert calls == ["init_process_group", *ended]


def torchrun(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    folders = (
        f"dataset.packs={tmp_path / 'packs'}",
        f"run.directory={tmp_path / 'runs'}",
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "src/train.py", *arguments, *folders),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.reliability
def test_torchrun_trains_writes_once_stops_and_goes_on(tmp_path):
    run = tmp_path / "runs" / "mine"
    started = torchrun(
        tmp_path,
        *("-p", "parameters.yml", *MINIATURE, "run.name=mine", "training.epochs=8"),
        "dataset.synthetic.utterances_per_speaker=4",  # too few for UMAP, which is slow
    )
    while not (run / "metrics.jsonl").exists() and started.poll() is None:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert f"go on with --resume {run}" in out, err
    finished = torchrun(tmp_path, "--resume", str(run))
    out, err = finished.communicate(timeout=120)
    assert finished.returncode == 0, err
    assert out.count("epoch 8/8") == 1
    assert out.count(f"run: {run}") == 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    model = load_model(run, CPU)
    alone = as_report(
        evaluate(model, prepare(model.config.dataset, model.config.front_end))
    )
    report = json.loads((run / "report.json").read_text())
    assert report["identification"] == pytest.approx(alone["identification"])
    ours, theirs = (
        r["verification"]["test"]["systems"]["trained"] for r in (report, alone)
    )
    assert ours["num_targets"] == theirs["num_targets"]
    assert ours["eer"] == pytest.approx(theirs["eer"], abs=0.05)
    again = torchrun(tmp_path, *("-p", "parameters.yml", *MINIATURE, "run.name=mine"))
    _, err = again.communicate(timeout=60)
    assert again.returncode != 0
    assert err.count(f"error: {run}: this run exists") == 1
    assert "[rank1]: Traceback" not in err
