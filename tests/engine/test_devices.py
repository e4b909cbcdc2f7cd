"""The device of a training."""

import pytest
import torch

from engine.devices import choose_device
from parameters import ParameterError


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
    p = shipped(f"training.device={choice}", f"model.name={model}")
    assert choose_device(p.training, p.model).type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(shipped):
    p = shipped("training.device=cuda")
    with pytest.raises(ParameterError, match=r"training.device: .*cpu.*cuda"):
        choose_device(p.training, p.model)
