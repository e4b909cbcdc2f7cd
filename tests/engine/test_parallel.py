"""Two ranks train like one process: the same statistics, weights and report."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from conftest import CPU, MINIATURE, NO_CHANCE, REPOSITORY, Steps
from dataset import UtteranceBatches, prepare
from engine.acceleration import fast_encoder
from engine.layers import BatchNorm
from engine.optimizers import build_optimizer
from engine.parallel import anywhere, gather, gather_lists, rank, ranks, share
from engine.parameter_files import SHIPPED, check_parameters, load_parameters
from eval import evaluate
from parameters import Parameters
from reports.tables import as_report
from runs.checkpoints import load_model
from runs.resuming import State
from runs.speaker_model import build_model, embed
from train import training_step

NUM_STEPS = 10
SGD = ("training.optimizer.name=sgd", "training.optimizer.lr=0.1")
SINGLE = "single precision"
# Rounding makes some ReLU choose otherwise, and bold steps blow that up, whatever the
# number of ranks.
SMALL_STEPS = (
    "training.optimizer={name: sgd, lr: 0.001, warmup: 0, momentum: 0}",
    "training.batch_size=23",
    "loss.name=cross_entropy",
)
CASES = {
    "arcface": SGD,
    "cross-entropy": (*SGD, "loss.name=cross_entropy"),
    "ge2e": (*SGD, "loss.name=ge2e"),
    "d-vector": (*SGD, "model.name=dvector"),
    "d-vector in parts": (*SGD, "model.name=dvector", "training.accumulation=2"),
    SINGLE: SMALL_STEPS,
}


# Not by a fixture: ranks are processes of their own.
@patch("engine.precision._has_bfloat16", lambda device: False)
def ten_steps(p: Parameters, name: str) -> dict:
    """What ten steps say of themselves and leave in the model."""
    dtype = torch.float32 if name == SINGLE else torch.float64
    steps = Steps.of(p)
    model = steps.state.model.to(dtype)
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    encoder = fast_encoder(model.encoder, CPU, "never")
    stream = itertools.chain.from_iterable(map(steps.batches.epoch, itertools.count()))
    rows = []
    for batch in itertools.islice(stream, NUM_STEPS):
        wide = replace(batch, waveforms=batch.waveforms.to(dtype))
        reading = training_step(state, encoder, steps.augmentation, wide, NUM_STEPS)
        rows.append(
            torch.stack([*reading[:2], *reading.sums.values()]).double()
        )  # of all ranks
    running = [b for name, b in model.encoder.named_buffers() if "running" in name]
    model.eval()
    splits = steps.batches.splits
    batches = UtteranceBatches(splits.pack, splits.test, 5.0, CPU)
    return {
        "weights": flat(model.parameters()),
        "running": flat(running or [torch.zeros(1)]),
        "rows": torch.stack(rows),
        "embeddings": embed(model.float(), batches),
    }


def flat(tensors) -> torch.Tensor:
    """All of them, end to end."""
    return torch.cat([t.detach().double().flatten() for t in tensors])


def rows_of_batch_norm() -> torch.Tensor:
    return torch.linspace(-1, 3, 42, dtype=torch.float64).reshape(7, 2, 3).exp()


def small_things() -> dict:
    """What each rank sees of gathering, sharing and batch norm."""
    rows = torch.full((2 + rank(), 3), float(rank()), requires_grad=True)
    gathered = gather(rows)
    (gathered * torch.arange(5.0)[:, None]).sum().backward()
    norm = BatchNorm(3, dtype=torch.float64)
    mine = rows_of_batch_norm()[share(7)].requires_grad_()
    out = norm(mine)
    (out * mine.detach().square()).sum().backward()
    return {
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "lists": gather_lists([rank()] * (1 + rank())),
        "anywhere": [anywhere(rank() == 1), anywhere(False)],
        "normalised": out.detach(),
        "norm gradient": mine.grad,
        "running": torch.stack([norm.running_mean, norm.running_var]),
    }


def process(number: int, folder: Path, cases: dict) -> None:
    """One of two ranks; each leaves its results."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=number, world_size=2)
    results = {"small": small_things()}
    for name, values in cases.items():
        results[name] = ten_steps(check_parameters(values), name)
    torch.save(results, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parameters(tmp_path_factory) -> dict[str, Parameters]:
    options = [*MINIATURE, *NO_CHANCE, f"dataset.packs={tmp_path_factory.mktemp('p')}"]
    options += ["training.batch_size=7"]  # shares of 3 and 4
    cases = {name: [*options, *overrides] for name, overrides in CASES.items()}
    return {name: load_parameters(SHIPPED, overrides=o) for name, o in cases.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory, parameters) -> list[dict]:
    """The results of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {name: p.as_dict() for name, p in parameters.items()}
    prepare(parameters["arcface"].dataset, parameters["arcface"].front_end)
    multiprocessing.spawn(process, (folder, cases), nprocs=2)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_weights_of_one_process(two, parameters, name):
    alone, (first, second) = ten_steps(parameters[name], name), (r[name] for r in two)
    assert torch.equal(first["weights"], second["weights"])
    tolerance = 1e-4 if name == SINGLE else 1e-6
    assert (first["weights"] - alone["weights"]).abs().max() < tolerance
    untrained = build_model(parameters[name], ["a"] * 6, {}, CPU)
    moved = flat(untrained.parameters()) - alone["weights"]
    assert moved.abs().max() > 10 * tolerance  # so that it means something
    assert torch.equal(first["embeddings"], second["embeddings"])
    assert (first["embeddings"] - alone["embeddings"]).abs().max() < 1e-4
    if name != SINGLE:
        assert torch.allclose(first["rows"], alone["rows"], rtol=1e-5)
        assert torch.allclose(first["running"], alone["running"], rtol=1e-6)


def test_what_ranks_tell_each_other(two):
    for number, small in enumerate(results["small"] for results in two):
        values = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
        assert torch.equal(small["gathered"], values[:, None].expand(5, 3))
        # Both ranks have a loss of their own, so each row's gradient counts twice.
        factors = torch.arange(5.0)[slice(2) if number == 0 else slice(2, 5)]
        assert torch.equal(small["gradient"], 2 * factors[:, None].expand(-1, 3))
        assert small["lists"] == [0, 1, 1]
        assert small["anywhere"] == [True, False]


def test_batch_norm_over_ranks_is_torchs_over_all_rows(two):
    x = rows_of_batch_norm().requires_grad_()
    norm = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    out = norm(x.flatten(0, 1)).view_as(x)
    (out * x.detach().square()).sum().backward()
    small = [results["small"] for results in two]
    assert torch.allclose(torch.cat([s["normalised"] for s in small]), out)
    assert torch.allclose(torch.cat([s["norm gradient"] for s in small]), x.grad)
    expected = torch.stack([norm.running_mean, norm.running_var])
    assert all(torch.allclose(s["running"], expected) for s in small)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_a_rank_that_fails_waits_for_no_other(monkeypatch, error):
    begin, end = Mock(), Mock()
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(dist, "destroy_process_group", end)
    with nullcontext() if error is None else pytest.raises(error), ranks():
        if error is not None:
            raise error
    assert (begin.call_count, end.call_count) == (1, 1 if error is None else 0)


def torchrun(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "src/train.py", *arguments]
    command += [f"dataset.packs={tmp_path}/packs", f"run.directory={tmp_path}/runs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, **pipes)


@pytest.mark.reliability
def test_torchrun_trains_writes_once_stops_and_goes_on(tmp_path):
    run = tmp_path / "runs" / "mine"
    files = ("-p", "parameters.yml", *MINIATURE, "run.name=mine", "training.epochs=8")
    few = "dataset.synthetic.utterances_per_speaker=4"  # too few for UMAP: it is slow
    started = torchrun(tmp_path, *files, few)
    while not (run / "metrics.jsonl").exists() and started.poll() is None:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert f"--resume {run}" in out, err
    finished = torchrun(tmp_path, "--resume", str(run))
    out, err = finished.communicate(timeout=120)
    assert finished.returncode == 0, err
    assert (out.count("epoch 8/8"), out.count(f"run: {run}")) == (1, 1)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    model = load_model(run, CPU)
    splits = prepare(model.config.dataset, model.config.front_end)
    alone = as_report(evaluate(model, splits))
    report = json.loads((run / "report.json").read_text())
    assert report["identification"] == pytest.approx(alone["identification"])
    tests = [r["verification"]["test"]["systems"] for r in (report, alone)]
    ours, theirs = (systems["trained"] for systems in tests)
    assert ours["num_targets"] == theirs["num_targets"]
    assert ours["eer"] == pytest.approx(theirs["eer"], abs=0.05)
    again = torchrun(tmp_path, *files)
    _, err = again.communicate(timeout=60)
    assert again.returncode != 0
    assert err.count(f"error: {run}: ") == 1
    assert "[rank1]: Traceback" not in err
