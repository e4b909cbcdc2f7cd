"""The GPU's depthwise convolution by Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from conftest import REPOSITORY

PROGRAM = """
import torch
import torch.nn.functional as F
from engine.kernels import depthwise

torch.manual_seed(0)
# More than one tile of frames, channels that do not fill a tile, one frame, one tap.
for batch, frames, channels, taps in (
    (3, 70, 80, 3), (2, 33, 64, 15), (5, 130, 96, 7), (2, 10, 16, 1), (1, 1, 16, 11)
):
    x = torch.randn(batch, channels, frames).transpose(1, 2).requires_grad_()
    weight = torch.randn(channels, taps, requires_grad=True)
    y = depthwise(x, weight)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    x64 = x.detach().double().requires_grad_()
    weight64 = weight.detach().double().requires_grad_()
    expected = F.conv1d(
        x64.mT, weight64[:, None], padding=taps // 2, groups=channels
    ).mT
    expected.backward(gradient.double())
    for ours, right in (
        (y, expected), (x.grad, x64.grad), (weight.grad, weight64.grad)
    ):
        assert (ours - right).norm() < 1e-6 * right.norm()
torch.library.opcheck(depthwise, (x, weight))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_depthwise_is_a_grouped_convolution_with_its_gradients():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(REPOSITORY / "src"),
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
