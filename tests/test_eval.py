"""Embedding, identification and verification, and the command line."""

from dataclasses import replace

import pytest
import torch

import eval as evaluation
from dataset import UtteranceBatches, prepare
from eval import embed, evaluate, identify, main, mean_log_mel, verify
from runs import build_model, save_checkpoint
from trials import make_trials

CPU = torch.device("cpu")


@pytest.fixture
def prepared(miniature):
    """An untrained model, its corpus split, and what they were made from."""

    def build(*overrides: str):
        p = miniature(*overrides)
        splits = prepare(p)
        return build_model(p, splits.speakers, splits.pack.digest, CPU).train(
            False
        ), splits

    return build


def test_embeddings_do_not_depend_on_batches(prepared):
    model, splits = prepared()
    indices = splits.test + splits.train[:7]
    found = [
        embed(
            model.front_end,
            model.encoder,
            UtteranceBatches(splits.pack, indices, seconds, CPU),
        )
        for seconds in (0.1, 7, 1000)
    ]
    assert found[0].shape == (len(indices), 24)
    assert (found[0] - found[1]).abs().max() < 1e-4
    assert (found[0] - found[2]).abs().max() < 1e-4
    entry = splits.pack.entries[indices[3]]
    samples = splits.pack.samples[entry.offset :][: entry.samples] / 32768
    with torch.inference_mode():
        alone = model.encoder(*model.front_end(samples[None]))[0]
    assert (found[2][3] - alone).abs().max() < 1e-4


def test_one_forward_for_each_utterance(prepared):
    model, splits = prepared()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, call: seen.append(len(call[0])))
    evaluate(model, splits)
    assert sum(seen) == len(splits.test) + len(splits.validation)


def test_verification_of_embeddings_by_hand(prepared):
    model, _ = prepared()
    speakers = ["a", "a", "b", "b"]
    trials = make_trials(speakers, 100, 0)
    east, north = [1.0, 0.0], [0.0, 2.0]
    told_apart = torch.tensor([east, east, north, north])
    p = model.parameters.evaluation
    report = verify(told_apart, speakers, trials, p)
    assert (report.eer, report.min_dcf) == (0, 0)
    assert (report.num_targets, report.num_non_targets) == (2, 4)
    assert report.num_speakers == 2
    mixed_up = torch.tensor([east, north, east, north])
    assert verify(mixed_up, speakers, trials, p).eer > 0.5


def test_scores_are_cosines_however_they_are_cut(prepared, monkeypatch):
    model, _ = prepared()
    speakers = [f"s{n // 4}" for n in range(40)]
    trials = make_trials(speakers, 10_000, 0)
    embeddings = torch.randn(40, 8)
    whole = verify(embeddings, speakers, trials, model.parameters.evaluation)
    monkeypatch.setattr(evaluation, "SCORES_AT_ONCE", 7)
    scaled = embeddings * torch.rand(40, 1).add(0.1)
    assert verify(scaled, speakers, trials, model.parameters.evaluation) == whole


def test_mean_log_mel_ignores_padding(prepared):
    model, splits = prepared()
    found = [
        embed(
            *mean_log_mel(model.front_end),
            UtteranceBatches(splits.pack, splits.test, seconds, CPU),
        )
        for seconds in (0.1, 1000)
    ]
    assert found[0].shape == (len(splits.test), 80)
    assert (found[0] - found[1]).abs().max() < 1e-4


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface", "ge2e"])
def test_identification_of_separable_speakers(prepared, loss, monkeypatch):
    model, splits = prepared(f"loss.name={loss}")
    entries = splits.pack.entries

    def perfect(front_end, encoder, batches):
        places = [splits.speakers.index(entries[i].speaker) for i in batches.indices]
        return torch.eye(len(splits.speakers))[places]

    monkeypatch.setattr(evaluation, "embed", perfect)
    if loss != "ge2e":
        identity = torch.eye(len(splits.speakers))
        model.criterion.classifier.weight = torch.nn.Parameter(identity)
    report = identify(model, splits)
    assert report.accuracy == 1
    assert report.num_utterances == len(splits.validation)
    assert report.num_speakers == report.num_classes == len(splits.speakers)


def test_losses_of_epochs_compare_at_the_whole_margin(prepared):
    model, splits = prepared()
    model.criterion.margin_share.fill_(0.0)
    at_start = identify(model, splits).loss
    model.criterion.margin_share.fill_(1.0)
    assert identify(model, splits).loss == at_start


def test_no_identification_of_another_corpus(prepared):
    model, splits = prepared()
    assert evaluate(model, splits).identification is not None
    other = replace(model, speakers=[f"other {name}" for name in model.speakers])
    assert evaluate(other, splits).identification is None


def test_references_are_the_same_whatever_was_trained(prepared):
    model, splits = prepared()
    before = evaluate(model, splits).verification["test"].reports
    assert before["trained"] == before["untrained"]
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.add_(torch.randn_like(weight))
    after = evaluate(model, splits).verification["test"].reports
    assert after["trained"] != before["trained"]
    assert after["untrained"] == before["untrained"]
    assert after["mean log-mel"] == before["mean log-mel"]


@pytest.fixture
def checkpoint(tmp_path, prepared):
    model, _ = prepared("dataset.development_fraction=0.25")
    save_checkpoint(tmp_path / "x.pt", model)
    return tmp_path / "x.pt"


def test_command_prints_a_table(checkpoint, capsys):
    assert main(["--checkpoint", str(checkpoint)]) == 0
    table = capsys.readouterr().out
    for cell in ("development", "untrained", "mean log-mel", "EER", "minDCF"):
        assert cell in table
    assert "accuracy" in table


def test_command_on_another_corpus(checkpoint, capsys):
    arguments = ["dataset.seed=5", "dataset.test_fraction=1"]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "8 speakers" in shown
    assert "accuracy" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset.test_fraction=1"], "the model was not trained on, but it heard 4"),
        (["dataset.development_fraction=0.5"], "the model was not trained on"),
        (
            ["dataset.synthetic.num_speakers=9", "dataset.test_fraction=1"],
            "the model was not trained on",
        ),
        (["model.titanet.size=l"], "expected a key of dataset or evaluation"),
        (["seed=3"], "expected a key of dataset or evaluation"),
        (["dataset.nam=x"], "dataset.nam: unknown key; did you mean dataset.name?"),
        (["dataset.name=folder", "dataset.root=nowhere"], "nowhere"),
    ],
)
def test_command_refuses(checkpoint, capsys, arguments, message):
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_another_split_of_the_same_corpus_is_not_identified(checkpoint, capsys):
    # Its validation utterances were trained on.
    arguments = ["dataset.validation_fraction=0.5"]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    assert "accuracy" not in capsys.readouterr().out
