"""The layers with a form of their own against torch's."""

import pytest
import torch
import torch.nn.functional as F

from layers import Dropout, _Normalised


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = torch.rand(1000, 1001, requires_grad=True)  # not a multiple of four
    dropped = Dropout(rate)(x)
    zeros = (dropped == 0).float().mean().item()
    assert zeros == pytest.approx(rate, abs=4 * (rate * (1 - rate) / x.numel()) ** 0.5)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], x[kept] / (1 - rate), rtol=1e-4)
    dropped.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    rows, columns = kept.float().mean(1), kept.float().mean(0)
    for means in (rows, columns):  # neighbours do not share their fate
        assert means.std().item() == pytest.approx(
            (rate * (1 - rate) / 1000) ** 0.5, rel=0.1
        )


def test_dropout_is_none_in_evaluation_and_at_probability_zero():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("num_rows", [2, 7, 48])
def test_normalised_rows_and_gradients_are_those_of_torch(num_rows):
    rows = torch.randn(num_rows, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 3, dtype=torch.float64).requires_grad_().unbind()
    found, mean, variance, count = _Normalised.apply(rows, weight, bias, 1e-3)
    expected = F.batch_norm(rows, None, None, weight, bias, training=True, eps=1e-3)
    assert torch.allclose(found, expected)
    assert torch.allclose(mean, rows.mean(0))
    assert torch.allclose(variance, rows.var(0, correction=0))
    assert count == num_rows
    grown = torch.randn_like(rows)
    for one, other in zip(
        torch.autograd.grad(found, (rows, weight, bias), grown, retain_graph=True),
        torch.autograd.grad(expected, (rows, weight, bias), grown),
        strict=True,
    ):
        assert torch.allclose(one, other)
