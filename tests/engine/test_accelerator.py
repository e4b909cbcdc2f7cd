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
from conftest import CPU, Steps
from speech.packs import SoundBank

CUDA = torch.device("cuda", 0)
CHANGES = [
    f"augmentation.{n}.probability=0.5" for n in ("speed", "reverberation", "noise")
]


def test_resident_sounds_are_cut_like_those_in_memory():
    samples = torch.randint(-(2**15), 2**15, (1000,), dtype=torch.int16)
    bank = SoundBank(samples, [0, 400, 450], [400, 50, 550], CPU)
    chosen, positions = np.array([2, 1, 0, 1]), np.array([0.99, 0.3, 0.5, 0.0])
    pieces = []
    for bank.resident in (False, True):
        pieces.append((bank.cut(chosen, positions, 120), bank.whole(chosen, 120)))
    assert all(map(torch.equal, *pieces))


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

    for place, name in (
        (torch, "rand"),
        (torch, "randint"),
        (transforms, "_draw_rows"),
        (torch.Tensor, "numpy"),
    ):
        monkeypatch.setattr(place, name, really(getattr(place, name)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface", "sphereface", "ge2e"])
def test_nothing_from_crop_to_loss_leaves_the_device(
    miniature, claims_to_be_on_a_gpu, loss
):
    steps = Steps.of(miniature(*CHANGES, f"loss.name={loss}"))
    model, augmentation, batches = steps.state.model, steps.augmentation, steps.batches
    with claims_to_be_on_a_gpu as mode:
        for module in (model, augmentation):
            module.to(CUDA)
        batches.device = CUDA
        for bank in (
            batches.bank,
            augmentation.changes["reverberation"].responses,
            augmentation.changes["noise"].recordings,
        ):
            bank.samples = mode.from_tensor(bank.samples).to(CUDA)
            bank.device, bank.resident = CUDA, True
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
    chosen = f"training.optimizer.name={optimizer}"
    accumulated = f"training.accumulation={accumulation}"
    steps = Steps.of(miniature(*CHANGES, chosen, accumulated))
    batches = list(steps.batches.epoch(0))[:2]
    with NoWaiting():
        readings = [steps.take(batch) for batch in batches]
        with pytest.raises(AssertionError):
            readings[0].loss.item()  # so this would have been noticed
    assert all(r.loss.isfinite() and r.gradient_norm.isfinite() for r in readings)
