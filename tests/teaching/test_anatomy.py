"""What is read off an encoder is what it computes."""

import numpy as np
import pytest
import torch

from models import build_encoder
from teaching.anatomy import (
    convolution_costs,
    look_inside,
    parts_of,
    receptive_fields,
    walk,
)
from transforms import FrontEnd


@pytest.fixture
def model(shipped):
    p = shipped("model.titanet.channels=16", "model.titanet.epilog_channels=32")
    return FrontEnd(p.front_end).eval(), build_encoder(p.model, 80).eval()


def test_shapes_and_weights_on_the_way(shipped):
    p = shipped()
    encoder = build_encoder(p.model, 80).eval()
    steps = walk(FrontEnd(p.front_end).eval(), encoder, torch.zeros(1, 48_000))
    assert [step.shape for step in steps] == [
        (1, 48_000),
        (1, 80, 300),
        *[(1, 300, 256)] * 4,
        (1, 300, 1536),
        (1, 3072),
        (1, 192),
    ]
    assert sum(step.weights for step in steps) == 3_275_568
    block = encoder.blocks[1]
    assert sum(weights for _, weights in parts_of(block)) == steps[3].weights
    assert len(parts_of(block)) == 3 * 3 + 2


def test_costs_by_hand(model):
    assert convolution_costs(model[1]) == {
        kernel: (16 * kernel + 16 * 16, 16 * 16 * kernel) for kernel in (7, 11, 15)
    }


def test_receptive_field_is_where_a_change_of_the_features_arrives(model):
    _, encoder = model
    fields = receptive_fields(encoder)
    assert fields[0] == (3, 3)
    assert fields[-1] == (1, 93)
    for block in encoder.blocks:  # which sees the whole utterance
        torch.nn.init.zeros_(block.squeeze_excitation.excite.weight)
    features = torch.randn(1, 80, 201, requires_grad=True)
    x = features.transpose(1, 2)
    for block in encoder.blocks:
        x = block(x, None)
    x[0, 100].sum().backward()
    (reached,) = features.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (reached[0], reached[-1]) == (100 - 46, 100 + 46)


def test_pooled_is_what_attention_makes_of_the_frames(model):
    _, encoder = model
    features = torch.randn(1, 80, 50)
    inside = look_inside(encoder, features)
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
    torch.testing.assert_close(
        encoder.embedding(encoder.norm(pooled)), embedding, atol=1e-5, rtol=1e-4
    )


def test_looking_leaves_no_hook(model):
    _, encoder = model
    look_inside(encoder, torch.randn(1, 80, 50))
    assert not any(module._forward_hooks for module in encoder.modules())
