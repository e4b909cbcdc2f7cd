"""The GPU's depthwise convolution, and by Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from conftest import REPOSITORY

PROGRAM = """
import sys
import torch
import torch.nn.functional as F
from engine.kernels import depthwise

device, dtype, tolerance = sys.argv[1], getattr(torch, sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
# More than one tile of frames, channels that do not fill a tile, one frame, one tap.
for batch, frames, channels, taps in (
    (3, 70, 80, 3), (2, 33, 64, 15), (5, 130, 96, 7), (2, 10, 16, 1), (1, 1, 16, 11)
):
    x = torch.randn(batch, channels, frames).to(device, dtype).mT.requires_grad_()
    weight = torch.randn(channels, taps, device=device, requires_grad=True)
    y = depthwise(x, weight)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    y64 = F.conv1d(x64.mT, weight64[:, None], padding=taps // 2, groups=channels).mT
    y64.backward(gradient.double())
    for ours, right in ((y, y64), (x.grad, x64.grad), (weight.grad, weight64.grad)):
        assert (ours - right).norm() < tolerance * right.norm()
if device == "cpu":
    torch.library.opcheck(depthwise, (x, weight))
"""
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ON_GPU = [pytest.mark.gpu, NO_GPU]


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    [
        ("cpu", "float32", "1e-6"),
        pytest.param("cuda", "float32", "1e-6", marks=ON_GPU),
        pytest.param("cuda", "bfloat16", "4e-3", marks=ON_GPU),  # it keeps eight bits
    ],
)
def test_depthwise_is_a_grouped_convolution(device, dtype, tolerance):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-c", PROGRAM, device, dtype, tolerance]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
