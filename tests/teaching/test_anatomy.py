"""What is read off an encoder is what it computes."""

import numpy as np
import pytest
import torch

from conftest import MINIATURE
from models import SqueezeExcitation, build_encoder
from teaching import anatomy
from transforms import FrontEnd


@pytest.fixture
def encoder(shipped):
    return build_encoder(shipped(*MINIATURE).model, 80).eval()


@pytest.mark.parametrize("name", ["titanet", "dvector"])
def test_layers_hold_every_weight(shipped, name):
    encoder = build_encoder(shipped(f"model.name={name}").model, 80)
    parts = anatomy.layers(encoder)
    weights = sum(w.numel() for w in encoder.parameters())
    assert sum(layer.weights for layer in parts) == weights
    assert parts[-1].shape == (encoder.embedding_size,)


def test_shapes_and_weights_on_the_way(shipped):
    p = shipped()
    encoder = build_encoder(p.model, 80).eval()
    steps = anatomy.walk(FrontEnd(p.front_end).eval(), encoder, torch.zeros(1, 48_000))
    middle = [(1, 80, 300), *4 * [(1, 300, 256)], (1, 300, 1536), (1, 3072)]
    assert [step.shape for step in steps] == [(1, 48_000), *middle, (1, 192)]
    assert sum(step.weights for step in steps) == 3_275_568


def test_costs_by_hand(encoder):
    costs = {k: (16 * k + 16 * 16, 16 * 16 * k) for k in (7, 11, 15)}  # kernels
    assert anatomy.convolution_costs(encoder) == costs


def test_fields_are_where_a_gradient_arrives(encoder, monkeypatch):
    # Without squeeze-and-excitation, which sees the whole utterance.
    monkeypatch.setattr(SqueezeExcitation, "forward", lambda self, x, valid: x)
    features = torch.randn(1, 201, 80, requires_grad=True)
    x, sees = features, []
    for block in encoder.blocks:
        x = block(x, None)
        (gradient,) = torch.autograd.grad(x[0, 100].sum(), features, retain_graph=True)
        (reached,) = gradient[0].abs().sum(1).nonzero(as_tuple=True)
        assert 100 - reached[0] == reached[-1] - 100
        sees.append(f"{len(reached)} frames")
    assert sees == [layer.sees for layer in anatomy.layers(encoder)[:5]]
    fields = anatomy.receptive_fields(encoder)
    assert (fields[0], fields[-1]) == ((3, 3), (1, 93))
    assert sees[-1] == "93 frames"


def test_pooled_is_what_attention_makes_of_the_frames(encoder):
    features = torch.randn(1, 80, 50)
    inside = anatomy.look_inside(encoder, features)
    assert not any(module._forward_hooks for module in encoder.modules())
    assert [gates.shape for gates in inside.gates] == [(16,)] * 4 + [(32,)]
    assert all(((gates > 0) & (gates < 1)).all() for gates in inside.gates)
    np.testing.assert_allclose(inside.attention.sum(0), 1, rtol=1e-5)
    mean = (inside.attention * inside.frames).sum(0)
    variance = (inside.attention * (inside.frames - mean) ** 2).sum(0)
    expected = np.concatenate([mean, np.sqrt(np.maximum(variance, 1e-10))])
    np.testing.assert_allclose(inside.pooled, expected, atol=1e-5)
    with torch.no_grad():
        embedding = encoder(features)
        pooled = torch.from_numpy(inside.pooled)[None]
        again = encoder.embedding(encoder.norm(pooled))
    torch.testing.assert_close(again, embedding, atol=1e-5, rtol=1e-4)
