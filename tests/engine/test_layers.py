"""The layers with a form of their own against torch's."""

import pytest
import torch
import torch.nn.functional as F

from engine.layers import Dropout, _Normalised, linear


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = torch.rand(1000, 1001, requires_grad=True)  # not a multiple of four
    dropped = Dropout(rate)(x)
    kept = dropped != 0
    share = kept.float().mean().item()
    tolerance = 4 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert share == pytest.approx(1 - rate, abs=tolerance)
    assert torch.allclose(dropped[kept], x[kept] / (1 - rate), rtol=1e-4)
    dropped.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    deviation = (rate * (1 - rate) / 1000) ** 0.5
    for axis in (0, 1):  # neighbours do not share their fate
        means = kept.float().mean(axis)
        assert means.std().item() == pytest.approx(deviation, rel=0.1)


def test_dropout_is_none_in_evaluation_and_at_probability_zero():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("num_rows", [2, 7, 48])
def test_normalised_rows_and_gradients_are_those_of_torch(num_rows):
    rows = torch.randn(num_rows, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 3, dtype=torch.float64).requires_grad_().unbind()
    ours, mean, variance, count = _Normalised.apply(rows, weight, bias, 1e-3)
    expected = F.batch_norm(rows, None, None, weight, bias, training=True, eps=1e-3)
    assert torch.allclose(ours, expected)
    assert torch.allclose(mean, rows.mean(0))
    assert torch.allclose(variance, rows.var(0, correction=0))
    assert count == num_rows
    gradient, leaves = torch.randn_like(rows), (rows, weight, bias)
    gradients = [torch.autograd.grad(y, leaves, gradient) for y in (ours, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (1, 7, 3), (16, 300, 64), (5, 77, 200)])
def test_linear_and_its_gradients_are_those_of_torch(shape, bias):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(48, shape[-1], requires_grad=True)
    leaves = [x, weight, *([torch.randn(48, requires_grad=True)] if bias else [])]
    ours, expected = linear(*leaves), F.linear(*(leaf.double() for leaf in leaves))
    gradient = torch.randn_like(ours)
    results = (ours, *torch.autograd.grad(ours, leaves, gradient))
    right = (expected, *torch.autograd.grad(expected, leaves, gradient.double()))
    for one, other in zip(results, right, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_linear_of_a_part_of_a_weight():
    x, weight = torch.randn(4, 9, 6), torch.randn(5, 20)
    part = weight.split((6, 14), 1)[0]  # not contiguous
    assert torch.allclose(linear(x, part), x @ part.T, atol=1e-5)
