"""A GPU computes what a CPU does, keeps its memory and says in a line what fails. Every
test here wants a GPU and skips without one."""

import itertools
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

from conftest import CPU, MINIATURE, NO_CHANCE, REPOSITORY, Steps
from dataset import UtteranceBatches, prepare
from engine import precision
from engine.acceleration import fast_encoder
from errors import StoppedError
from parameters import ParameterError
from runs.checkpoints import load_checkpoint
from runs.speaker_model import build_model, embed
from speech.packs import SoundBank
from train import train, training_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CUDA = torch.device("cuda")
ON_GPU = "training.device=cuda"
CHANGES = [
    f"augmentation.{n}.probability=0.5" for n in ("speed", "reverberation", "noise")
]
SMALL_STEPS = "training.optimizer.lr=1e-4"


def twenty_steps(p, device: torch.device) -> tuple[list[float], torch.Tensor]:
    """The losses, and all the encoder's weights afterwards, end to end."""
    steps = Steps.of(p, device)
    stream = itertools.chain.from_iterable(map(steps.batches.epoch, itertools.count()))
    losses = [steps.take(batch, 20).loss for batch in itertools.islice(stream, 20)]
    weights = parameters_to_vector(steps.state.model.encoder.parameters())
    return torch.stack(losses).tolist(), weights.detach().cpu()


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_twenty_steps_in_float32_are_those_of_a_cpu(miniature, monkeypatch, name):
    monkeypatch.setattr(precision, "_has_bfloat16", lambda device: False)
    # Small steps: a ReLU that rounding turns on or off moves all that comes after it.
    p = miniature(*NO_CHANCE, *CHANGES, f"model.name={name}", SMALL_STEPS)
    with torch.backends.cudnn.flags(allow_tf32=False):
        losses, weights = twenty_steps(p, CUDA)
    losses_of_cpu, weights_of_cpu = twenty_steps(p, CPU)
    assert losses == pytest.approx(losses_of_cpu, rel=1e-4)
    assert (weights - weights_of_cpu).norm() < 1e-4 * weights_of_cpu.norm()


def test_twenty_steps_in_bfloat16_are_near_those_of_a_cpu(miniature):
    if not precision._has_bfloat16("cuda"):
        pytest.skip("the GPU has no bfloat16")
    p = miniature(*NO_CHANCE, SMALL_STEPS)
    losses, losses_of_cpu = (twenty_steps(p, device)[0] for device in (CUDA, CPU))
    # bfloat16 keeps eight bits: 0.4 % of a value, of which a loss is a mean.
    assert losses == pytest.approx(losses_of_cpu, rel=2e-2)


def test_augmented_crops_and_features_are_those_of_a_cpu(miniature):
    results = []
    for device in (CPU, CUDA):
        steps = Steps.of(miniature(*CHANGES), device)
        front_end = steps.state.model.eval().front_end
        assert steps.batches.bank.resident == (device == CUDA)
        of_device = []
        for batch in steps.batches.epoch(0):
            torch.manual_seed(batch.seed)
            waveforms = steps.augmentation(batch.waveforms, batch.crop)
            features, _ = front_end(waveforms)
            of_device += [waveforms.cpu().flatten(), features.cpu().flatten()]
        results.append(of_device)
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() < 1e-4 * one.norm()


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_scores_are_those_of_a_cpu(miniature, name):
    p = miniature(f"model.name={name}")
    splits, scores = prepare(p.dataset, p.front_end), []
    for device in (CPU, CUDA):
        model = build_model(p, splits.speakers, {}, device).eval()
        batches = UtteranceBatches(splits.pack, splits.test, 60, device)
        unit = F.normalize(embed(model, batches))
        scores.append(unit @ unit.T)
    assert (scores[0] - scores[1]).abs().max() < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(miniature, optimizer):
    steps = Steps.of(miniature(f"training.optimizer.name={optimizer}"), CUDA)
    weights = steps.state.model.encoder.state_dict()
    before = [weight.clone() for weight in weights.values()]
    batch = next(steps.batches.epoch(0))
    batch.waveforms[0, 100] = torch.nan
    steps.take(batch)
    assert all(map(torch.equal, before, weights.values()))


def test_a_resumed_run_is_an_unbroken_one_to_rounding(miniature):
    # A GPU's sums are made in whatever order its blocks finish.
    options = (ON_GPU, "training.epochs=3", SMALL_STEPS)
    unbroken, p = train(miniature(*options, "run.name=a")), miniature(*options)
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
    steps = Steps.of(p, CUDA)
    encoder = fast_encoder(steps.state.model.encoder, CUDA, "always")

    def train_epoch(number: int) -> set[int]:
        batches = list(steps.batches.epoch(number))
        for batch in batches:
            training_step(steps.state, encoder, steps.augmentation, batch, 100)
        return {batch.crop for batch in batches}

    crops, epochs = set(), itertools.count()
    while len(crops) < 3:
        crops |= train_epoch(next(epochs))
    with torch.compiler.set_stance("fail_on_recompile"):
        train_epoch(next(epochs))


def test_memory_does_not_grow(miniature):
    p = miniature(*CHANGES, "model.titanet.crop_seconds=[1.0]")
    steps, taken = Steps.of(p, CUDA), []
    for epoch in range(6):
        for batch in steps.batches.epoch(epoch):
            steps.take(batch, 100)
        del batch
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[2:]) <= max(taken[:2]) + 2**20


def test_sounds_share_half_of_the_free_memory(monkeypatch):
    samples = torch.zeros(2**20, dtype=torch.int16)  # 2 MiB
    room = torch.cuda.memory_allocated() + 3 * 2**20  # for one of them, not for two

    def mem_get_info(_: torch.device) -> tuple[int, int]:
        return 2 * room - torch.cuda.memory_reserved(), 2 * room

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    banks = [SoundBank(samples, [0], [2**20], CUDA) for _ in range(2)]
    assert [bank.resident for bank in banks] == [True, False]
    for bank in banks:
        assert bank.cut(np.array([0]), np.array([0.5]), 100).device.type == "cuda"


def test_memory_that_runs_out_is_one_line(miniature):
    sizes = ("model.titanet.channels=256", "model.titanet.epilog_channels=1536")
    p = miniature(ON_GPU, *sizes, "training.batch_size=24")
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
    command = [sys.executable, "-u", "src/train.py", "-p", "parameters.yml", *MINIATURE]
    command += [f"dataset.packs={tmp_path}/packs", f"run.directory={tmp_path}/runs"]
    command += [ON_GPU, "training.epochs=5000", "run.name=mine"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    assert f"--resume {tmp_path}/runs/mine" in process.stdout.read()
    assert process.wait() == 130
    assert load_checkpoint(tmp_path / "runs" / "mine" / "last.pt")["epoch"] >= 1
