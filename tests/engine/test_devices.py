"""The device to compute on."""

import numpy as np
import pytest
import torch

from engine.devices import DeviceError, choose_device
from parameters import ParameterError
from voices import Voices


@pytest.mark.parametrize(
    ("choice", "has_cuda", "has_mps", "model", "expected"),
    [
        ("auto", True, True, "titanet", "cuda"),
        ("auto", False, True, "titanet", "mps"),
        ("auto", False, True, "dvector", "cpu"),  # its LSTM needs projections
        ("auto", False, False, "titanet", "cpu"),
        ("cpu", True, True, "titanet", "cpu"),
    ],
)
def test_the_fastest_device_is_chosen(
    shipped, monkeypatch, choice, has_cuda, has_mps, model, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, _: x)
    p = shipped(f"training.device={choice}", f"model.name={model}")
    assert choose_device(p.training, p.model).type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(shipped):
    p = shipped("training.device=cuda")
    with pytest.raises(ParameterError, match=r"training.device: .*cpu.*cuda"):
        choose_device(p.training, p.model)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "full"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "full"),
        (RuntimeError("CUDA error: no kernel image is available"), "no kernels"),
        (RuntimeError("CUDA error: device is busy"), "device is busy"),
    ],
)
def test_a_gpu_that_cannot_compute(shipped, checkpoint, monkeypatch, error, words):
    cuda = torch.device("cuda")

    def fail(x, *target, **_):
        if cuda in target:
            raise error
        return x

    path, p = checkpoint(), shipped()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(ParameterError, match=rf"{words}.* training\.device=cpu$"):
        choose_device(p.training, p.model)
    with pytest.raises(DeviceError, match=f"{words}.* --device cpu"):
        Voices.load(path)
    monkeypatch.undo()
    voices = Voices.load(path, device="cpu")
    monkeypatch.setattr("voices.embed_recordings", lambda *_: fail(0, cuda))
    with pytest.raises(DeviceError, match=words):
        voices.embed_samples([np.ones(16_000, np.int16)])
