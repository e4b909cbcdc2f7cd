"""The race's own pieces against those that they stand for."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from conftest import RATE, REPOSITORY, write

sys.path.insert(0, str(REPOSITORY / "experiments"))

import race
from race import IDEAS, Muon, load_corpus, recipe_of


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


def test_a_run_is_recorded_once(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for speaker in "abcdefgh":
        for number in range(2):
            samples = 0.1 * rng.standard_normal(RATE)
            write(tmp_path / "train" / speaker / f"{number}.wav", samples)
    results = tmp_path / "race.jsonl"
    options = ["run", "--train", f"{tmp_path}/train", "--cache", f"{tmp_path}/cache"]
    options += ["--steps", "2", "--seeds", "1", "--configurations", "baseline"]
    monkeypatch.setattr(sys, "argv", ["race.py", *options, str(results)])
    race.main()
    race.main()
    (record,) = race.read_records(results)
    assert (record["steps"], record["classes"]) == (2, 6)  # two speakers are held out
    assert 0 <= record["eer"]["last"] <= 100
    assert "develop: 0 runs" in capsys.readouterr().out
