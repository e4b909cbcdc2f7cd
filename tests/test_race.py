"""The race's own pieces against those that they stand for."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from conftest import RATE, REPOSITORY, write
from losses import ArcFaceLoss
from transforms import slaney_filterbank

sys.path.insert(0, str(REPOSITORY / "experiments"))

from race import (
    IDEAS,
    MarginLoss,
    Muon,
    Recipe,
    change_speed,
    load_corpus,
    recipe_of,
    warped_filterbank,
)


def test_every_idea_is_a_recipe():
    assert all(recipe_of(name) for name in IDEAS)
    assert recipe_of("muon-0.01+margin-0.3").margin == 0.3
    with pytest.raises(SystemExit):
        recipe_of("baseline+nothing")


def test_corpora_do_not_share_a_cache(tmp_path):
    for number, name in enumerate(("a.1/train", "a.1/test", "a.2/train")):
        folder = tmp_path / name
        write(folder / "ann" / "x.wav", np.full(100 + number, 0.1))
        corpus = load_corpus(folder, tmp_path / "cache")
        assert corpus.lengths.tolist() == [100 + number]


def test_muon_is_torchs():
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 8), (16, 4), (3, 20)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizer, reference = (
        Muon(ours, torch.tensor(0.01), 0.1),
        torch.optim.Muon(theirs, **options),
    )
    for _ in range(5):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        optimizer.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_one_centre_and_no_penalty_is_arcface():
    torch.manual_seed(0)
    ours, product = MarginLoss(Recipe(), 24, 10), ArcFaceLoss(24, 10, 30.0, 0.2)
    product.load_state_dict(ours.state_dict())
    embeddings, speakers = torch.randn(6, 24), torch.randint(10, (6,))
    loss, predictions = ours(embeddings, speakers)
    expected = product(embeddings, speakers)
    torch.testing.assert_close(loss, expected.loss)
    assert torch.equal(predictions, expected.predictions)


@pytest.mark.parametrize("percent", [80, 95, 110])
def test_a_tone_at_another_speed(percent):
    seconds = torch.arange(10 * RATE) / RATE
    tone = 10_000 * torch.sin(2 * math.pi * 500 * seconds)
    changed = change_speed(tone.round().to(torch.int16), percent).float()
    size = len(tone) * 100 // percent
    expected = 10_000 * torch.sin(2 * math.pi * 5 * percent * torch.arange(size) / RATE)
    inner = slice(1000, size - 1000)
    assert (changed[inner] - expected[inner]).abs().max() < 100


def test_an_unwarped_filterbank_is_the_front_ends():
    plain = slaney_filterbank(RATE, 512, 80)
    torch.testing.assert_close(warped_filterbank(1.0, 80, 512), plain)
    for alpha in (0.9, 1.1):
        assert (warped_filterbank(alpha, 80, 512).sum(1) > 0).all()
