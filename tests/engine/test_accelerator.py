"""What can be known of a GPU's path without one: on tensors that only claim to be
there, and that nothing in a step waits for the device."""

import itertools

import numpy as np
import pytest
import torch
import torch._dynamo  # before torch's functions are replaced: it notes them here
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

import transforms
from dataset import TrainingBatches, prepare
from engine.optimizers import build_optimizer
from runs.resuming import State
from runs.speaker_model import build_model
from speech.packs import SoundBank
from speech.surroundings import load_surroundings
from train import training_step
from transforms import Augmentation

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CHANGES = (
    "augmentation.speed.probability=0.5",
    "augmentation.reverberation.probability=0.5",
    "augmentation.noise.probability=0.5",
)


def test_resident_clips_are_cut_like_those_in_memory():
    samples = torch.randint(-(2**15), 2**15, (1000,), dtype=torch.int16)
    clips = SoundBank(samples, [0, 400, 450], [400, 50, 550], CPU)
    chosen, places = np.array([2, 1, 0, 1]), np.array([0.99, 0.3, 0.5, 0.0])
    found = {}
    for clips.resident in (False, True):
        found[clips.resident] = (
            clips.cut(chosen, places, 120),
            clips.whole(chosen, 120),
        )
    assert all(map(torch.equal, *found.values()))


@pytest.fixture
def claims_to_be_on_a_gpu(monkeypatch) -> FakeTensorMode:
    """Inside, tensors have shapes and devices but no values, and asking for a value, or
    for as many rows as hold one, is an error. What is drawn on the CPU is real."""

    def really(draw):
        def wrapped(*sizes, **options):
            if options.get("device") not in (None, CPU):
                return draw(*sizes, **options)
            with unset_fake_temporarily():
                return draw(*sizes, **options)

        return wrapped

    real_numpy = torch.Tensor.numpy
    for place, name in (
        (torch, "rand"),
        (torch, "randint"),
        (transforms, "_draw_rows"),
    ):
        monkeypatch.setattr(place, name, really(getattr(place, name)))
    monkeypatch.setattr(torch.Tensor, "numpy", really(real_numpy))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface", "sphereface", "ge2e"])
def test_nothing_from_crop_to_loss_leaves_the_device(
    miniature, claims_to_be_on_a_gpu, loss
):
    p = miniature(*CHANGES, f"loss.name={loss}")
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {"": "digest"}, CPU).train()
    augmentation, batches = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        TrainingBatches(splits, p, CPU),
    )
    with claims_to_be_on_a_gpu as mode:
        for module in (model, augmentation):
            module.to(CUDA)
        batches.device = CUDA
        for clips in (
            batches.bank,
            augmentation.reverberation.responses,
            augmentation.noise.recordings,
        ):
            clips.samples = mode.from_tensor(clips.samples).to(CUDA)
            clips.device, clips.resident = CUDA, True
        for batch in itertools.islice(batches.epoch(0), 2):
            waveforms = augmentation(batch.waveforms, batch.crop)
            features, _ = model.front_end(waveforms)
            features = augmentation.spec_augment(features)
            output = model.criterion(model.encoder(features), batch.speakers)
            assert output.loss.device == output.predictions.device == CUDA
            assert features.shape[2] == batch.crop // model.front_end.hop
        with pytest.raises(DataDependentOutputException):
            output.loss.item()  # so this would have been noticed


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a value off the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_waits_for_nothing(miniature, optimizer, accumulation):
    p = miniature(
        *CHANGES,
        f"training.optimizer.name={optimizer}",
        f"training.accumulation={accumulation}",
    )
    splits = prepare(p.dataset, p.front_end)
    model = build_model(p, splits.speakers, {"": "digest"}, CPU).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    augmentation, rows = (
        Augmentation(
            p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
        ).to(CPU),
        [],
    )
    batches = list(TrainingBatches(splits, p, CPU).epoch(0))[:2]
    with NoWaiting():
        for batch in batches:
            rows.append(training_step(state, model.encoder, augmentation, batch, 10))
        with pytest.raises(AssertionError):
            rows[0][0].item()  # so this would have been noticed
    assert all(row.loss.isfinite() and row.gradient_norm.isfinite() for row in rows)
