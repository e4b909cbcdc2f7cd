"""The criteria against hand-computed cases, the papers and other libraries."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference
from torch._subclasses.fake_tensor import FakeTensorMode

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
    teacher_loss,
)
from parameters import UNLABELLED

B, E, S = 12, 8, 5
SPEAKERS = torch.arange(B) % 4
KINDS = {
    "cross_entropy": CrossEntropyLoss,
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
    "sphereface": SphereFaceLoss,
    "ge2e": GE2ELoss,
}
MARGINS = {ArcFaceLoss: 0.3, CosFaceLoss: 0.2, SphereFaceLoss: 1.5}


@pytest.fixture(params=KINDS)
def criterion(request, shipped) -> torch.nn.Module:
    return build_loss(shipped(f"loss.name={request.param}").loss, E, S)


@pytest.fixture(params=MARGINS, ids=lambda kind: kind.__name__)
def angular(request) -> AngularMarginLoss:
    return request.param(E, S, 30, MARGINS[request.param])


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(B, E)


def at_angles(angles: torch.Tensor) -> torch.Tensor:
    """Embeddings in the plane at these angles, of various lengths."""
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    return directions * torch.linspace(0.5, 7, len(angles), dtype=angles.dtype)[:, None]


def in_the_plane(kind: type, scale: float, margin: float) -> AngularMarginLoss:
    """Two speakers whose class vectors point along x and y, in float64."""
    criterion = kind(2, 2, scale, margin).double()
    criterion.classifier.weight.data = torch.tensor([[2, 0], [0, 0.3]]).double()
    return criterion


@pytest.mark.parametrize("name", KINDS)
def test_parameters_choose_the_criterion(shipped, name):
    criterion = build_loss(shipped(f"loss.name={name}").loss, E, S)
    assert type(criterion) is KINDS[name]
    if margin := MARGINS.get(type(criterion)):
        assert (criterion.scale, criterion.margin) == (30, margin)
        assert list(criterion.state_dict()) == ["classifier.weight"]


@pytest.mark.parametrize("name", KINDS)
def test_never_waits_for_the_device(shipped, name):
    p = shipped(f"loss.name={name}").loss
    with FakeTensorMode():  # tensors without values: looking at one raises
        embeddings = torch.randn(B, E, requires_grad=True)
        loss, predictions = build_loss(p, E, S)(embeddings, torch.arange(B) % 4)
        loss.backward()
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert (predictions.shape, predictions.dtype) == ((B,), torch.int64)


@pytest.mark.parametrize(
    ("kind", "margin", "target"),
    [
        (ArcFaceLoss, 0.5, math.cos(math.pi / 3 + 0.5)),
        (CosFaceLoss, 0.35, 0.5 - 0.35),
        (SphereFaceLoss, 2.0, -0.5),  # cos 120 degrees
        (SphereFaceLoss, 4.0, 0.5 - 2),  # -cos 240 degrees - 2
    ],
)
def test_hand_computed_at_60_degrees_whatever_the_lengths(kind, margin, target):
    criterion = in_the_plane(kind, scale=10, margin=margin)
    embedding = at_angles(torch.tensor([math.pi / 3], dtype=torch.float64))
    loss, predictions = criterion(embedding, torch.tensor([0]))
    other = math.sqrt(3) / 2
    expected = math.log(1 + math.exp(10 * (other - target)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert predictions.tolist() == [1]  # nearer to y, margin or not
    logits = criterion.logits(embedding)[0].tolist()
    assert logits == pytest.approx([5, 10 * other], rel=1e-12)


def test_cross_entropy_is_that_of_torch(embeddings):
    criterion = CrossEntropyLoss(E, S)
    loss, predictions = criterion(embeddings, SPEAKERS)
    logits = F.linear(embeddings, *criterion.classifier.parameters())
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


@pytest.mark.parametrize("digits", ["777333999000", "397937739793", "552225288522"])
def test_ge2e_is_the_papers(digits):
    """Equations 1, 4, 5, 6, 8 and 9 of arXiv 1710.10467, and the mean of eq. 6."""
    speakers = torch.tensor([int(digit) for digit in digits])
    embeddings, labels = torch.randn(B, E).double(), speakers.unique()
    similarities = []
    for i, direction in enumerate(F.normalize(embeddings)):
        others = F.normalize(embeddings).index_fill(0, torch.tensor(i), 0)
        centroids = torch.stack([others[speakers == k].sum(0) for k in labels])
        similarities.append(10 * F.cosine_similarity(direction, centroids) - 5)
    similarities = torch.stack(similarities)  # [B, speakers in the batch]
    expected = F.cross_entropy(similarities, torch.searchsorted(labels, speakers))
    loss, predictions = GE2ELoss().double()(embeddings, speakers)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert torch.equal(predictions, labels[similarities.argmax(1)])


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


@pytest.mark.parametrize("kind", MARGINS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.0, 1.5, 2.7, 4.0])
def test_target_decreases_from_0_to_pi(kind, margin):
    angles = torch.linspace(0, math.pi, 100_001, dtype=torch.float64)
    margin += kind.no_margin
    steps = in_the_plane(kind, 1, margin).target_cosine(angles).diff()
    assert steps.max() < 1e-12
    assert steps.min() > -2 * (1 + margin) * math.pi / 100_000  # and never jumps


def test_continuation_meets_cosine_in_value_and_slope():
    angles = torch.tensor([math.pi - 1e-4, math.pi + 1e-4]).double().requires_grad_()
    cosines = monotone_cosine(angles)
    (slopes,) = torch.autograd.grad(cosines.sum(), angles)
    assert (cosines + 1).abs().max() < 1e-7
    assert slopes.abs().max() < 2e-4
    assert slopes.max() < 0


def test_margin_share_scales_the_margin(angular, embeddings):
    full = angular(embeddings, SPEAKERS).loss
    angular.ramp = 1.0
    angular.schedule(0)
    none = angular(embeddings, SPEAKERS).loss
    angular.schedule(0.5)
    half = angular(embeddings, SPEAKERS).loss
    assert none < half < full
    plain = F.cross_entropy(angular.logits(embeddings), SPEAKERS)
    torch.testing.assert_close(none, plain, rtol=1e-5, atol=1e-5)
    halved = type(angular)(E, S, 30, (angular.no_margin + angular.margin) / 2)
    assert angular.scheduled() == {"margin": pytest.approx(halved.margin)}
    halved.load_state_dict(angular.state_dict())
    torch.testing.assert_close(half, halved(embeddings, SPEAKERS).loss)
    assert angular.eval()(embeddings, SPEAKERS).loss == full


def test_gradients_are_those_of_finite_differences(criterion, embeddings):
    embeddings = embeddings.double().requires_grad_()
    inputs = embeddings, *criterion.double().parameters()  # each is changed in place
    assert torch.autograd.gradcheck(
        lambda *_: criterion(embeddings, SPEAKERS).loss, inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("distance", [0, 1e-12, 1e-7, 1e-4])
def test_gradients_are_bounded_at_and_near_0_and_pi(angular, dtype, sign, distance):
    weight = angular.to(dtype).classifier.weight
    targets = weight.detach()[SPEAKERS]
    embeddings = F.normalize(sign * targets + distance * torch.randn_like(targets))
    embeddings.requires_grad_()
    loss = angular(embeddings, SPEAKERS).loss
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.norm(dim=1).max() < 30 * 2 * 1.5 / B
    assert weight.grad.isfinite().all()


def test_zero_and_equal_embeddings_are_finite(criterion):
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


def test_order_of_the_batch_does_not_matter(criterion, embeddings):
    order = torch.randperm(B)
    loss, predictions = criterion(embeddings, SPEAKERS)
    permuted, permuted_predictions = criterion(embeddings[order], SPEAKERS[order])
    torch.testing.assert_close(permuted, loss)
    assert torch.equal(permuted_predictions, predictions[order])


def test_float32_whatever_the_precision_around(criterion, embeddings):
    embeddings = embeddings.bfloat16()
    expected, _ = criterion(embeddings.float(), SPEAKERS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = criterion(embeddings, SPEAKERS)
        if not criterion.num_enrolled:
            logits = criterion.logits(embeddings)
            assert torch.equal(logits, criterion.logits(embeddings.float()))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_learns_the_right_speakers(criterion):
    speakers = torch.arange(B) % S
    waveforms = torch.randn(S, E)[speakers] + 0.3 * torch.randn(B, E)
    encoder = torch.nn.Linear(E, E)
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


@pytest.mark.parametrize("kind", MARGINS)
def test_gradients_of_large_batches_are_the_same_every_time(kind):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    criterion = kind(192, 20, 30.0, MARGINS[kind])
    embeddings, speakers = torch.randn(260, 192), torch.randint(20, (260,))
    gradients = []
    for _ in range(50):
        loss = criterion(embeddings, speakers).loss
        gradients += torch.autograd.grad(loss, criterion.classifier.weight)
    torch.set_num_threads(num_threads)
    assert all(torch.equal(gradients[0], again) for again in gradients)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"ge2e"}))
def test_unlabelled_rows_count_nothing(shipped, embeddings, name):
    criterion = build_loss(shipped(f"loss.name={name}").loss, E, S)
    speakers = SPEAKERS.clone()
    speakers[[1, 5]] = UNLABELLED
    known = speakers != UNLABELLED
    expected = criterion(embeddings[known], speakers[known]).loss
    assert criterion(embeddings, speakers).loss.item() == pytest.approx(expected.item())
    nobody = embeddings.requires_grad_()
    criterion(nobody, torch.full_like(speakers, UNLABELLED)).loss.backward()
    assert not nobody.grad.any()


def test_teachers_loss_by_hand():
    """At 60 degrees from the target, 30 from the only other vector."""
    target, anchor = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    student = 7 * torch.tensor([[0.5, math.sqrt(0.75)]])
    wanted = math.exp(2) / (math.exp(2) + 1)  # at a temperature of 0.5
    found = math.exp(1) / (math.exp(1) + math.exp(math.sqrt(3)))
    divergence = wanted * math.log(wanted / found)
    divergence += (1 - wanted) * math.log((1 - wanted) / (1 - found))
    loss = teacher_loss(student, target, anchor, 0.5).item()
    assert loss == pytest.approx(0.5 + divergence)
    assert teacher_loss(3 * target, target, anchor, 0.5).item() == pytest.approx(0)
