"""Optimizers: which is built, Muon against torch's own, and the schedule."""

import pytest
import torch
from torch import nn

from conftest import CPU
from engine.optimizers import (
    Muon,
    build_optimizer,
    learning_rate,
    orthogonalised,
    set_learning_rate,
)
from runs.speaker_model import build_model


def build(p):
    model = build_model(p, ["a", "b"], {"": "digest"}, CPU)
    optimizer = build_optimizer(model.parameters(), p.training.optimizer)
    weights = [id(w) for group in optimizer.param_groups for w in group["params"]]
    assert sorted(weights) == sorted(map(id, model.parameters()))
    return model, optimizer


def test_learning_rate_warms_up_and_follows_a_cosine(shipped):
    p = shipped("training.optimizer={lr: 2.0, warmup: 0.2, final_lr: 0.5}")
    p = p.training.optimizer
    rates = [learning_rate(p, progress) for progress in (0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([1.0, 2.0, 1.25, 0.5])
    assert learning_rate(p.model_copy(update={"warmup": 0.0}), 0.0) == 2.0
    assert learning_rate(p.model_copy(update={"warmup": 1.0}), 1.0) == 2.0


@pytest.mark.parametrize(
    ("name", "kind", "decay"),
    [
        ("sgd", torch.optim.SGD, 2e-4),
        ("adam", torch.optim.Adam, 2e-4),
        ("adamw", torch.optim.AdamW, 0.3),
    ],
)
def test_the_optimizer_asked_for_is_the_one_that_runs(miniature, name, kind, decay):
    p = miniature(f"training.optimizer={{name: {name}, momentum: 0.7}}")
    model, optimizer = build(p)
    assert type(optimizer) is kind
    groups = optimizer.param_groups
    assert groups[0].get("momentum", 0.7) == 0.7
    assert [group["weight_decay"] for group in groups] == [decay, 0]
    given = p.training.optimizer.model_copy(update={"weight_decay": 0.1})
    groups = build_optimizer(model.parameters(), given).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0]


@pytest.mark.parametrize("loss", ["arcface", "cross_entropy"])
def test_muon_moves_a_classifier_whose_rows_are_normalised(miniature, loss):
    muon = "training.optimizer.name=muon"
    model, optimizer = build(miniature(muon, f"loss.name={loss}"))
    classifier = id(model.criterion.classifier.weight)
    groups = optimizer.param_groups
    (holder,) = [g for g in groups if classifier in map(id, g["params"])]
    assert holder["muon"] == (loss == "arcface")
    assert holder["weight_decay"] > 0


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_orthogonalised_matrices_have_alike_singular_values(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, *shape)))
    # Five steps of this quintic end between 0.7 and 1.2 (arXiv 2502.16982, section 2).
    assert 0.5 < values.min() < values.max() < 1.3


def test_muon_is_torchs_own_for_matrices_and_adamw_for_the_others():
    shapes = (20, 30), (40, 10), (20, 30), (7,), (5, 1, 3)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    options = {"lr": 0.01, "weight_decay": 0.1}
    groups = [{"params": ours[:3], "muon": True}, {"params": ours[3:]}]
    optimizer = Muon(groups, **options, fused=True)
    expected = (
        torch.optim.Muon(theirs[:3], **options, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[3:], **options),
    )
    begun = [w.detach().clone() for w in ours]
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        for other in expected:
            other.step()
    for one, other, before in zip(ours, theirs, begun, strict=True):
        # torch multiplies in bfloat16 on a CPU too.
        assert (one - other).norm() < 0.02 * (one - before).norm()


def test_matrices_follow_the_schedule_at_their_own_rate(shipped):
    p = shipped("training.optimizer={name: muon, lr: 2e-3, muon_lr: 1e-2}")
    p = p.training.optimizer
    weights = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))]
    optimizer = build_optimizer(weights, p)
    set_learning_rate(optimizer, p, 0.7)
    matrices, *others = (group["lr"] for group in optimizer.param_groups)
    assert others == [learning_rate(p, 0.7)] * 2
    assert matrices == pytest.approx(5 * others[0])
