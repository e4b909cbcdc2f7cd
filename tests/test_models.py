"""Both encoders against their laws; against NeMo's numbers, see its checkpoints."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from conftest import MINIATURE
from models import AttentiveStatisticsPooling, DVector, build_encoder


@pytest.mark.parametrize(
    ("options", "weights", "with_classifier"),
    [
        ("size: s, epilog_channels: null", 3_275_568, 6.478),
        ("size: m, epilog_channels: null", 10_220_336, 13.423),
        ("size: l, epilog_channels: null", 22_122_288, 25.325),
        ("size: s, epilog_channels: 3072", 6_825_264, 10.028),
    ],
)
def test_sizes(shipped, options, weights, with_classifier):
    with torch.device("meta"):
        encoder = build_encoder(shipped(f"model.titanet={{{options}}}").model, 80)
    assert sum(w.numel() for w in encoder.parameters()) == weights
    # The paper counts a classifier over its 16,681 training speakers.
    assert round((weights + 16_681 * 192) / 1e6, 3) == with_classifier


@pytest.mark.parametrize("frames", [150, 200, 330])
@pytest.mark.parametrize("choice", ["titanet.size=s", "titanet.size=l", "name=dvector"])
def test_products_are_those_that_torch_counts(shipped, choice, frames):
    # In double precision torch's own layers compute, which it counts.
    encoder = build_encoder(shipped(f"model.{choice}").model, 80).double()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(2, 80, frames, dtype=torch.float64))
    counts = counter.get_flop_counts()["Global"]
    flop = sum(n for op, n in counts.items() if "convolution" not in str(op))
    assert flop == 2 * 2 * encoder.products(frames)  # utterances, operations


def test_batch_norms_have_nemos_epsilons_and_mega_blocks_dropout(shipped):
    encoder = build_encoder(shipped(*MINIATURE).model, 80)
    norms = [m for m in encoder.blocks.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert encoder.pooling.norm.eps == encoder.norm.eps == 1e-5
    assert [block.dropout.p for block in encoder.blocks] == [0, 0.1, 0.1, 0.1, 0]


@pytest.fixture(params=["titanet", "dvector"])
def encoder(request, shipped) -> nn.Module:
    p = shipped(*MINIATURE, "model.titanet.dropout=0", f"model.name={request.param}")
    encoder = build_encoder(p.model, 80)
    for module in encoder.modules():  # as after training, not as at birth
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


@torch.inference_mode()
@pytest.mark.parametrize("frames", [3, 159, 160, 161, 239, 240, 333])
def test_padding_and_order_never_change_an_embedding(encoder, frames):
    features = torch.randn(1, 80, frames)
    alone = encoder(features, torch.tensor([frames]))
    padded = torch.randn(3, 80, frames + 400)  # what lies beyond must not matter
    padded[1, :, :frames] = features[0]
    lengths = torch.tensor([frames + 400, frames, frames + 31])
    together = encoder(padded, lengths)
    assert (together[1] - alone[0]).abs().max() < 1e-5
    assert (encoder(features) - alone).abs().max() < 1e-5
    reversed_batch = encoder(padded.flip(0), lengths.flip(0))
    assert (reversed_batch.flip(0) - together).abs().max() < 1e-5


def test_every_weight_learns(encoder):
    encoder.train()
    encoder(torch.randn(4, 80, 200)).square().sum().backward()
    # A bias added to all scores of a softmax changes nothing.
    for name, weight in encoder.named_parameters():
        assert weight.grad.abs().sum() > 0 or name == "pooling.scores.bias"


def test_training_without_padding_is_training_with_full_lengths(encoder):
    encoder.train()
    features = torch.randn(4, 80, 160)
    difference = encoder(features) - encoder(features, torch.full((4,), 160))
    assert difference.abs().max() < 1e-5


def test_pooling_of_uniform_attention_by_hand():
    pooling = AttentiveStatisticsPooling(2).eval()
    nn.init.zeros_(pooling.scores.weight)  # every frame weighs the same
    x = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [90.0, 90.0]]])
    valid = torch.tensor([[[1.0], [1.0], [0.0]]])
    pooled = pooling(x, valid)[0]
    assert torch.allclose(pooled, torch.tensor([2.0, 5.0, 1.0, 1e-5]), atol=1e-6)


@pytest.mark.parametrize("size", [5, 16])
def test_crops_of_other_lengths_break_no_graph(shipped, size):
    encoder = build_encoder(shipped(*MINIATURE).model, 80).train()
    graphs = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend=graphs, fullgraph=True)
    for length in (150, 200, 300, 151):
        assert compiled(torch.randn(size, 80, length)).isfinite().all()
    assert graphs.frame_count <= 2  # the first length's, and one for all


@pytest.mark.parametrize("num_valid", [5, 3])
def test_gradient_of_pooling_is_that_of_its_values(num_valid):
    pooling = AttentiveStatisticsPooling(2).double().eval()
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    valid = (torch.arange(5) < num_valid).double()[None, :, None]
    nn.init.normal_(pooling.scores.weight)
    assert torch.autograd.gradcheck(lambda x: pooling(x, valid), x)


@torch.inference_mode()
def test_d_vector_is_the_mean_of_normalised_windows(shipped):
    encoder = DVector(shipped(*MINIATURE).model.dvector, 80).eval()
    features = torch.randn(1, 80, 400)
    # 400 frames hold whole windows of 160 from frames 0, 80, 160 and 240.
    windows = [features[:, :, start : start + 160] for start in (0, 80, 160, 240)]
    outputs = torch.cat([encoder.lstm(w.transpose(1, 2))[0][:, -1] for w in windows])
    vectors = encoder.embedding(outputs)
    mean = nn.functional.normalize(vectors).mean(0) * vectors.norm(dim=1).mean()
    assert torch.allclose(encoder(features)[0], mean, atol=1e-5)
    assert torch.allclose(encoder(windows[0])[0], vectors[0], atol=1e-5)


@torch.inference_mode()
def test_untrained_d_vectors_tell_utterances_apart(shipped):
    encoder = DVector(shipped().model.dvector, 80).eval()
    embeddings = encoder(2 * torch.randn(8, 80, 160))
    spread = (embeddings - embeddings.mean(0)).norm(dim=1).mean()
    assert spread > 0.2 * embeddings.norm(dim=1).mean()
