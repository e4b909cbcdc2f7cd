"""A GPU computes what a CPU does, keeps its memory and says in a line what fails. Every
test here wants a GPU and skips without one."""

import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import train as training
from conftest import MINIATURE, NO_CHANCE, REPOSITORY
from dataset import TrainingBatches, UtteranceBatches, prepare
from engine.kernels import depthwise
from engine.optimizers import build_optimizer
from errors import StoppedError
from runs.checkpoints import load_checkpoint
from runs.resuming import State
from runs.speaker_model import build_model, embed
from speech.packs import SoundBank
from speech.surroundings import load_surroundings
from train import ParameterError, train, training_step
from transforms import Augmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_GPU = "training.device=cuda"
ALL_CHANGES = (
    "augmentation.speed.probability=0.5",
    "augmentation.reverberation.probability=0.5",
    "augmentation.noise.probability=0.5",
)


def losses(p, device: torch.device, num_steps: int) -> tuple[list[float], State]:
    """Of the first steps of a training."""
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, splits.pack.digests, device).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    augmentation = Augmentation(
        p.augmentation, p.front_end.sample_rate, load_surroundings(p, device)
    ).to(device)
    batches = TrainingBatches(splits, p, device)
    stream = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    rows = [
        training_step(state, model.encoder, augmentation, batch, num_steps).loss
        for batch in itertools.islice(stream, num_steps)
    ]
    return torch.stack(rows).tolist(), state


def weights(state: State) -> torch.Tensor:
    """All of the encoder's, end to end."""
    return torch.cat(
        [w.detach().cpu().flatten() for w in state.model.encoder.parameters()]
    )


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_twenty_steps_in_float32_are_those_of_a_cpu(miniature, monkeypatch, name):
    monkeypatch.setattr(training, "_has_bfloat16", lambda device: False)
    changes = [key.replace("=0", "=0.5") for key in NO_CHANCE[:3]]
    # Small steps: a ReLU that rounding turns on or off moves all that comes after it.
    p = miniature(
        *NO_CHANCE, *changes, f"model.name={name}", "training.optimizer.lr=1e-4"
    )
    with torch.backends.cudnn.flags(allow_tf32=False):
        found, ours = losses(p, CUDA, 20)
    expected, theirs = losses(p, CPU, 20)
    assert found == pytest.approx(expected, rel=1e-4)
    assert (weights(ours) - weights(theirs)).norm() < 1e-4 * weights(theirs).norm()


def test_twenty_steps_in_bfloat16_are_near_those_of_a_cpu(miniature):
    if not training._has_bfloat16("cuda"):
        pytest.skip("the GPU has no bfloat16")
    p = miniature(*NO_CHANCE, "training.optimizer.lr=1e-4")
    found, _ = losses(p, CUDA, 20)
    expected, _ = losses(p, CPU, 20)
    # bfloat16 keeps eight bits: 0.4 % of a value, of which a loss is a mean.
    assert found == pytest.approx(expected, rel=2e-2)


def test_augmented_crops_and_features_are_those_of_a_cpu(miniature):
    p = miniature(*ALL_CHANGES)
    splits, found = prepare(p.dataset, p.front_end), []
    for device in (CPU, CUDA):
        batches = TrainingBatches(splits, p, device)
        augmentation = Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, device)
        ).to(device)
        front_end = build_model(p, splits.speakers, {}, device).eval().front_end
        assert batches.bank.resident == (device == CUDA)
        of_device = []
        for batch in batches.epoch(0):
            torch.manual_seed(batch.seed)
            waveforms = augmentation(batch.waveforms, batch.crop)
            features, _ = front_end(waveforms)
            of_device += [waveforms.cpu().flatten(), features.cpu().flatten()]
        found.append(of_device)
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-4 * one.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 70, 80, 3), (2, 200, 256, 15), (5, 33, 96, 7)])
def test_depthwise_is_a_grouped_convolution_with_its_gradients(shape, dtype):
    batch, frames, channels, taps = shape
    x = torch.randn(batch, frames, channels, device=CUDA).to(dtype).requires_grad_()
    weight = torch.randn(channels, taps, device=CUDA, requires_grad=True)
    y = depthwise(x, weight)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = torch.nn.functional.conv1d(
        x64.mT, weight64[:, None], padding=taps // 2, groups=channels
    ).mT
    expected.backward(gradient.double())
    pairs = (y, expected), (x.grad, x64.grad), (weight.grad, weight64.grad)
    for found, right in pairs:  # bfloat16 keeps eight bits
        assert (found - right).norm() < (1e-6 if dtype is torch.float32 else 4e-3) * (
            right.norm()
        )


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_scores_are_those_of_a_cpu(miniature, name):
    p = miniature(f"model.name={name}")
    splits, found = prepare(p.dataset, p.front_end), []
    for device in (CPU, CUDA):
        model = build_model(p, splits.speakers, {}, device).eval()
        batches = UtteranceBatches(splits.pack, splits.test, 60, device)
        vectors = embed(model, batches)
        unit = torch.nn.functional.normalize(vectors)
        found.append(unit @ unit.T)
    assert (found[0] - found[1]).abs().max() < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(miniature, optimizer):
    p = miniature(f"training.optimizer.name={optimizer}")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {}, CUDA).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    batch = next(TrainingBatches(splits, p, CUDA).epoch(0))
    before = [t.clone() for t in model.encoder.state_dict().values()]
    batch.waveforms[0, 100] = torch.nan
    training_step(
        state,
        model.encoder,
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CUDA)
        ).to(CUDA),
        batch,
        10,
    )
    after = model.encoder.state_dict().values()
    assert all(map(torch.equal, before, after))


def test_a_resumed_run_is_an_unbroken_one_to_rounding(miniature):
    # A GPU's sums are made in whatever order its blocks finish.
    p = miniature(ON_GPU, "training.epochs=3", "training.optimizer.lr=1e-4")
    unbroken = train(
        p.model_copy(update={"run": p.run.model_copy(update={"name": "a"})})
    )
    with pytest.raises(StoppedError):
        train(p, watch=lambda metrics: signal.raise_signal(signal.SIGINT))
    (stopped,) = set(p.run.directory.iterdir()) - {unbroken}
    train(p, stopped)
    one, other = (load_checkpoint(run / "last.pt") for run in (unbroken, stopped))
    assert one["step"] == other["step"]
    for name, weight in one["encoder"].items():
        torch.testing.assert_close(other["encoder"][name], weight, atol=1e-3, rtol=1e-3)


def test_nothing_is_compiled_after_the_first_epoch(miniature):
    durations = "model.titanet.crop_seconds=[0.8, 1.0, 1.2]"
    p = miniature(durations, "training.compile=always", "training.batch_size=7")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {}, CUDA).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    augmentation, batches = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CUDA)
        ).to(CUDA),
        TrainingBatches(splits, p, CUDA),
    )
    encoder = training.fast_encoder(model.encoder, CUDA, "always")
    seen, epoch = set(), 0
    while len(seen) < 3:
        for batch in batches.epoch(epoch):
            training_step(state, encoder, augmentation, batch, 100)
            seen.add(batch.crop)
        epoch += 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in batches.epoch(epoch):
            training_step(state, encoder, augmentation, batch, 100)


def test_memory_does_not_grow(miniature):
    p = miniature(*ALL_CHANGES, "model.titanet.crop_seconds=[1.0]")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {}, CUDA).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    augmentation, batches = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CUDA)
        ).to(CUDA),
        TrainingBatches(splits, p, CUDA),
    )
    taken = []
    for epoch in range(6):
        for batch in batches.epoch(epoch):
            training_step(state, model.encoder, augmentation, batch, 100)
        del batch
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[2:]) <= max(taken[:2]) + 2**20


def test_clips_share_half_of_the_free_memory(monkeypatch):
    samples = torch.zeros(2**20, dtype=torch.int16)  # 2 MiB
    room = torch.cuda.memory_allocated() + 3 * 2**20  # for one of them, not for two

    def mem_get_info(_: torch.device) -> tuple[int, int]:
        free = 2 * room - torch.cuda.memory_reserved()
        return free, 2 * room

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    first, second = (SoundBank(samples, [0], [2**20], CUDA) for _ in range(2))
    assert first.resident
    assert not second.resident
    for clips in (first, second):
        cut = clips.cut(np.array([0]), np.array([0.5]), 100)
        assert cut.device.type == "cuda"


def test_memory_that_runs_out_is_one_line(miniature):
    p = miniature(
        ON_GPU,
        "model.titanet.channels=256",
        "model.titanet.epilog_channels=1536",
        "training.batch_size=24",
    )
    torch.cuda.empty_cache()
    _, everything = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + 200 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / everything)
    try:
        with pytest.raises(ParameterError, match=r"^training\.batch_size: .*got 24"):
            train(p)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_control_c_saves(tmp_path):
    folders = (
        f"dataset.packs={tmp_path / 'packs'}",
        f"run.directory={tmp_path / 'runs'}",
    )
    command = [sys.executable, "src/train.py", "-p", "parameters.yml", *MINIATURE]
    command += [*folders, ON_GPU, "training.epochs=5000", "run.name=mine"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    said = process.stdout.read()
    assert process.wait() == 130
    assert "go on with --resume" in said
    assert load_checkpoint(tmp_path / "runs" / "mine" / "last.pt")["epoch"] >= 1
