"""The criteria against hand-computed cases, the papers and other libraries."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.parameter_files import load_parameters
from losses import (
    AngularMarginLoss,
    ArcFaceLoss,
    CosFaceLoss,
    CrossEntropyLoss,
    GE2ELoss,
    SphereFaceLoss,
    angles_between,
    build_loss,
    monotone_cosine,
)

B, E, S = 12, 8, 5
ANGULAR = [(ArcFaceLoss, 0.2), (CosFaceLoss, 0.2), (SphereFaceLoss, 1.5)]
NAMES = ["cross_entropy", "arcface", "cosface", "sphereface", "ge2e"]
SPEAKERS = torch.arange(B) % 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def build(name: str) -> torch.nn.Module:
    parameters = load_parameters(
        Path(__file__).parents[1] / "parameters.yml", overrides=[f"loss.name={name}"]
    )
    return build_loss(parameters.loss, E, S)


def at_angles(angles: torch.Tensor) -> torch.Tensor:
    """Embeddings in the plane at these angles, of various lengths."""
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    return directions * torch.linspace(0.5, 7, len(angles), dtype=angles.dtype)[:, None]


def in_the_plane(kind: type, scale: float, margin: float) -> AngularMarginLoss:
    """Two speakers whose class vectors point along x and y, in float64."""
    criterion = kind(2, 2, scale, margin).double()
    criterion.classifier.weight.data = torch.tensor([[2, 0], [0, 0.3]]).double()
    return criterion


# What is built


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cross_entropy", CrossEntropyLoss),
        ("arcface", ArcFaceLoss),
        ("cosface", CosFaceLoss),
        ("sphereface", SphereFaceLoss),
        ("ge2e", GE2ELoss),
    ],
)
def test_parameters_choose_the_criterion(name, kind):
    criterion = build(name)
    assert type(criterion) is kind
    if isinstance(criterion, AngularMarginLoss):
        assert criterion.scale == 30
        margins = {"arcface": 0.3, "cosface": 0.2, "sphereface": 1.5}
        assert criterion.margin == margins[name]
        assert list(criterion.state_dict()) == ["classifier.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_output_shapes(name):
    loss, predictions = build(name)(torch.randn(B, E), SPEAKERS)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert predictions.shape == (B,)
    assert predictions.dtype == torch.int64


@pytest.mark.parametrize("name", NAMES)
def test_never_waits_for_the_device(name):
    with FakeTensorMode():  # tensors without values: looking at one raises
        criterion = build(name)
        embeddings = torch.randn(B, E, requires_grad=True)
        loss, predictions = criterion(embeddings, torch.arange(B) % 4)
        loss.backward()
    assert loss.shape == ()
    assert predictions.shape == (B,)


# Values


@pytest.mark.parametrize(
    ("kind", "margin", "target"),
    [
        (ArcFaceLoss, 0.5, math.cos(math.pi / 3 + 0.5)),
        (CosFaceLoss, 0.35, 0.5 - 0.35),
        (SphereFaceLoss, 2.0, -0.5),  # cos 120 degrees
        (SphereFaceLoss, 4.0, 0.5 - 2),  # -cos 240 degrees - 2
    ],
)
def test_hand_computed_at_60_degrees(kind, margin, target):
    criterion = in_the_plane(kind, scale=10, margin=margin)
    embedding = at_angles(torch.tensor([math.pi / 3], dtype=torch.float64))
    loss, predictions = criterion(embedding, torch.tensor([0]))
    other = math.sqrt(3) / 2
    expected = math.log(1 + math.exp(10 * (other - target)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert predictions.tolist() == [1]  # nearer to y, margin or not
    logits = criterion.logits(embedding)[0]
    assert logits.tolist() == pytest.approx([5, 10 * other], rel=1e-12)


def test_cross_entropy_is_that_of_torch():
    criterion = CrossEntropyLoss(E, S)
    embeddings = torch.randn(B, E)
    loss, predictions = criterion(embeddings, SPEAKERS)
    weight, bias = criterion.classifier.weight, criterion.classifier.bias
    logits = embeddings @ weight.T + bias
    torch.testing.assert_close(loss, F.cross_entropy(logits, SPEAKERS))
    torch.testing.assert_close(criterion.logits(embeddings), logits)
    assert torch.equal(predictions, logits.argmax(dim=1))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    ("kind", "margin", "theirs"),
    [
        (ArcFaceLoss, 0.2, lambda m: reference.ArcFaceLoss(S, E, math.degrees(m), 30)),
        (CosFaceLoss, 0.2, lambda m: reference.CosFaceLoss(S, E, margin=m, scale=30)),
        # Theirs scales by the embedding's length and takes whole margins only.
        (SphereFaceLoss, 2, lambda m: reference.SphereFaceLoss(S, E, m, 30)),
        (SphereFaceLoss, 3, lambda m: reference.SphereFaceLoss(S, E, m, 30)),
    ],
)
def test_agrees_with_pytorch_metric_learning(kind, margin, theirs):
    ours, theirs = kind(E, S, 30, margin).double(), theirs(margin).double()
    theirs.W.data = ours.classifier.weight.data.T.clone()
    embeddings = F.normalize(torch.randn(B, E).double())
    angles = angles_between(embeddings, ours.classifier.weight[SPEAKERS])
    assert angles.max() < math.pi - 0.2  # past it their ArcFace goes on differently
    loss = ours(embeddings, SPEAKERS).loss
    torch.testing.assert_close(loss, theirs(embeddings, SPEAKERS), rtol=1e-9, atol=0)
    loss.backward()
    theirs(embeddings, SPEAKERS).backward()
    torch.testing.assert_close(ours.classifier.weight.grad, theirs.W.grad.T)


def literal_ge2e(embeddings, speakers, scale, bias):
    """Equations 1, 4, 5, 6, 8 and 9 of arXiv 1710.10467 and the mean of eq. 6."""
    embeddings = [e / e.norm() for e in embeddings]
    labels = sorted(set(speakers.tolist()))
    losses, predictions = [], []
    for i, embedding in enumerate(embeddings):
        similarities = []
        for label in labels:
            members = [
                other
                for j, other in enumerate(embeddings)
                if speakers[j] == label and j != i
            ]
            centroid = torch.stack(members).mean(dim=0)
            cosine = embedding @ centroid / centroid.norm()
            similarities.append(scale * cosine + bias)
        own = similarities[labels.index(speakers[i])]
        losses.append(-own + sum(s.exp() for s in similarities).log())
        predictions.append(labels[torch.stack(similarities).argmax()])
    return torch.stack(losses).mean(), predictions


@pytest.mark.parametrize(
    "speakers",
    [
        [7, 7, 7, 3, 3, 3, 9, 9, 9, 0, 0, 0],
        [3, 9, 7, 9, 3, 7, 7, 3, 9, 7, 9, 3],
        [5, 5, 2, 2, 2, 5, 2, 8, 8, 5, 2, 2],  # unequal counts
    ],
)
def test_ge2e_is_the_papers(speakers):
    speakers = torch.tensor(speakers)
    criterion = GE2ELoss().double()
    embeddings = torch.randn(B, E).double()
    loss, predictions = criterion(embeddings, speakers)
    expected, labels = literal_ge2e(embeddings, speakers, scale=10, bias=-5)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert predictions.tolist() == labels


def test_ge2e_logits_are_scaled_cosines():
    logits = GE2ELoss().logits(torch.eye(3), torch.tensor([[4.0, 0, 0], [0, 2, 2]]))
    expected = torch.tensor([[5.0, -5], [-5, 10 / 2**0.5 - 5], [-5, 10 / 2**0.5 - 5]])
    torch.testing.assert_close(logits, expected)


def test_ge2e_defines_the_only_utterance_of_a_speaker():
    embeddings = torch.eye(3)[[0, 0, 1]].requires_grad_()
    loss, _ = GE2ELoss()(embeddings, torch.tensor([4, 4, 6]))
    pair = math.log(1 + math.exp(-10))  # cosines 1 and 0
    alone = math.log(2)  # cosines 0 and 0
    assert loss.item() == pytest.approx((2 * pair + alone) / 3, rel=1e-5)
    loss.backward()
    assert embeddings.grad.abs().max() < 100


# The margin


@pytest.mark.parametrize("kind", [ArcFaceLoss, CosFaceLoss, SphereFaceLoss])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.0, 1.5, 2.7, 4.0])
def test_target_decreases_from_0_to_pi(kind, margin):
    angles = torch.linspace(0, math.pi, 100_001, dtype=torch.float64)
    if kind is SphereFaceLoss:
        margin = 1 + margin
    targets = in_the_plane(kind, 1, margin).target_cosine(angles)
    steps = targets.diff()
    assert steps.max() < 1e-12
    assert steps.min() > -2 * (1 + margin) * math.pi / 100_000  # and never jumps


def test_continuation_meets_cosine_in_value_and_slope():
    angles = torch.tensor([math.pi - 1e-4, math.pi + 1e-4]).double().requires_grad_()
    cosines = monotone_cosine(angles)
    (slopes,) = torch.autograd.grad(cosines.sum(), angles)
    assert (cosines + 1).abs().max() < 1e-7
    assert slopes.abs().max() < 2e-4
    assert slopes.max() < 0


@pytest.mark.parametrize(("kind", "margin"), ANGULAR)
def test_margin_share_scales_the_margin(kind, margin):
    embeddings = torch.randn(B, E)
    criterion = kind(E, S, 30, margin)
    full = criterion(embeddings, SPEAKERS).loss
    criterion.ramp = 1.0
    criterion.schedule(0.5)
    half = criterion(embeddings, SPEAKERS).loss
    criterion.schedule(0)
    none = criterion(embeddings, SPEAKERS).loss
    assert criterion.eval()(embeddings, SPEAKERS).loss == full
    assert none < half < full
    plain = F.cross_entropy(criterion.logits(embeddings), SPEAKERS)
    torch.testing.assert_close(none, plain, rtol=1e-5, atol=1e-5)
    halved = kind(E, S, 30, 1.25 if kind is SphereFaceLoss else margin / 2)
    criterion.schedule(0.5)
    assert criterion.scheduled() == {"margin": pytest.approx(halved.margin)}
    halved.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(half, halved(embeddings, SPEAKERS).loss)


@pytest.mark.parametrize(("kind", "margin"), ANGULAR)
def test_lengths_do_not_matter(kind, margin):
    criterion = kind(E, S, 30, margin)
    embeddings = torch.randn(B, E)
    loss = criterion(embeddings, SPEAKERS).loss
    criterion.classifier.weight.data *= torch.rand(S, 1) * 9 + 0.1
    scaled = criterion(embeddings * (torch.rand(B, 1) * 9 + 0.1), SPEAKERS).loss
    torch.testing.assert_close(scaled, loss)


# Gradients


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    criterion = build(name).double()
    embeddings = torch.randn(B, E, dtype=torch.float64, requires_grad=True)
    weights = dict(criterion.named_parameters())

    def loss(embeddings, *values):
        return torch.func.functional_call(
            criterion, dict(zip(weights, values, strict=True)), (embeddings, SPEAKERS)
        ).loss

    assert torch.autograd.gradcheck(loss, (embeddings, *weights.values()))


@pytest.mark.parametrize(("kind", "margin"), ANGULAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_bounded_at_and_near_0_and_pi(kind, margin, dtype):
    criterion = kind(E, S, 30, margin).to(dtype)
    own = criterion.classifier.weight.detach()[SPEAKERS]
    for sign in (1, -1):
        for distance in (0, 1e-12, 1e-7, 1e-4):
            embeddings = F.normalize(sign * own + distance * torch.randn_like(own))
            embeddings.requires_grad_()
            criterion.zero_grad()
            loss = criterion(embeddings, SPEAKERS).loss
            loss.backward()
            assert loss.isfinite()
            assert embeddings.grad.norm(dim=1).max() < 30 * 2 * 1.5 / B
            assert criterion.classifier.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_and_equal_embeddings_are_finite(name):
    criterion = build(name)
    for embeddings in (torch.zeros(B, E), torch.ones(B, E)):
        embeddings.requires_grad_()
        loss = criterion(embeddings, SPEAKERS).loss
        loss.backward()
        assert loss.isfinite()
        assert embeddings.grad.isfinite().all()


def test_angles_are_exact_where_arccos_is_not():
    small = torch.tensor([0, 1e-6, 1e-3, 1, math.pi - 1e-3, math.pi])
    angles = angles_between(at_angles(small), at_angles(torch.zeros(len(small))))
    torch.testing.assert_close(angles, small, rtol=1e-5, atol=1e-7)


# Laws


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name):
    criterion = build(name)
    embeddings = torch.randn(B, E)
    order = torch.randperm(B)
    loss, predictions = criterion(embeddings, SPEAKERS)
    permuted, permuted_predictions = criterion(embeddings[order], SPEAKERS[order])
    torch.testing.assert_close(permuted, loss)
    assert torch.equal(permuted_predictions, predictions[order])


@pytest.mark.parametrize("name", NAMES)
def test_float32_whatever_the_precision_around(name):
    criterion = build(name)
    embeddings = torch.randn(B, E).bfloat16()
    expected, _ = criterion(embeddings.float(), SPEAKERS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = criterion(embeddings, SPEAKERS)
        if not criterion.num_enrolled:
            logits = criterion.logits(embeddings)
            assert torch.equal(logits, criterion.logits(embeddings.float()))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("name", NAMES)
def test_learns_the_right_speakers(name):
    criterion = build(name)
    speakers = torch.arange(B) % S
    means = torch.randn(S, E)
    encoder = torch.nn.Linear(E, E)
    waveforms = means[speakers] + 0.3 * torch.randn(B, E)
    optimizer = torch.optim.Adam([*encoder.parameters(), *criterion.parameters()], 0.05)
    losses = []
    for _ in range(60):
        loss, predictions = criterion(encoder(waveforms), speakers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(predictions, speakers)


@pytest.mark.parametrize(("kind", "margin"), ANGULAR)
def test_gradients_of_large_batches_are_the_same_every_time(kind, margin):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    criterion = kind(192, 20, 30.0, margin)
    embeddings, speakers = torch.randn(260, 192), torch.randint(20, (260,))
    found = []
    for _ in range(50):
        criterion.zero_grad()
        criterion(embeddings, speakers).loss.backward()
        found.append(criterion.classifier.weight.grad.clone())
    torch.set_num_threads(num_threads)
    assert all(torch.equal(found[0], again) for again in found)
