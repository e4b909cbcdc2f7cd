"""Embedding, identification and verification, and the command line."""

import copy
import json
from dataclasses import asdict, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from conftest import CPU, MIXTURE, interrupt
from dataset import UtteranceBatches, prepare
from eval import evaluate, evaluate_checkpoint, identify, main, mean_log_mel, verify
from parameters import ParameterError
from reports.tables import as_report, as_summary
from runs.backend import embed_utterances, fit_backend, make_split_trials
from runs.checkpoints import load_model, save_checkpoint
from runs.heard import refuse_heard
from runs.speaker_model import build_model, embed
from speech import corpora
from speech.utterances import CorpusError
from verification.metrics import OperatingPoint, cllr, min_dcf
from verification.scoring import Calibration
from verification.trials import TrialError, make_trials, write_scores, write_trials
from voices import Voices

FITTED = (
    "evaluation.false_alarm_rate=0.2",
    "evaluation.centre=true",
    "evaluation.as_norm.utterances_per_speaker=2",
    "evaluation.as_norm.top=3",
)


@pytest.fixture
def prepared(miniature):
    """An untrained model and the splits of its corpus."""

    def build(*overrides: str):
        p = miniature(*overrides)
        splits = prepare(p.dataset, p.front_end)
        model = build_model(p, splits.speakers, splits.pack.digests, CPU)
        return model.eval(), splits

    return build


@pytest.fixture
def fitted(prepared, tmp_path):
    """A checkpoint of a model with a backend."""

    def save(development: float):
        model, splits = prepared(f"dataset.development_fraction={development}")
        fit_backend(model, splits)
        save_checkpoint(tmp_path / "x.pt", model)
        return tmp_path / "x.pt"

    return save


@pytest.fixture
def checkpoint(fitted):
    return fitted(0.25)


@pytest.fixture
def command(capsys):
    """src/eval.py: its exit status, its output and the last line of its errors."""

    def run(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err.rstrip().rpartition("\n")[2]

    return run


@pytest.mark.parametrize("mean_features", [False, True])
def test_embeddings_do_not_depend_on_batches(prepared, mean_features):
    model, splits = prepared()
    model = mean_log_mel(model.front_end) if mean_features else model
    indices = splits.test + splits.train[:7]
    batches = [UtteranceBatches(splits.pack, indices, s, CPU) for s in (0.1, 7, 1000)]
    embeddings = [embed(model, batch) for batch in batches]
    assert embeddings[0].shape == (len(indices), 80 if mean_features else 24)
    entry = splits.pack.entries[indices[3]]
    samples = splits.pack.samples[entry.offset :][: entry.samples] / 32768
    with torch.inference_mode():
        alone = model(samples[None], torch.tensor([entry.samples]))[0]
    for batched in embeddings:
        assert (batched - embeddings[0]).abs().max() < 1e-4
        assert (batched[3] - alone).abs().max() < 1e-4


def precisions() -> list[str]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return [part.fp32_precision for part in (cudnn.conv, cudnn.rnn, matmul)]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_embedding_is_in_ieee_float32_and_nothing_else_is(prepared, precision):
    model, splits = prepared()
    batches = UtteranceBatches(splits.pack, splits.test, 60, CPU)
    torch.set_float32_matmul_precision(precision)
    before, inside = precisions(), []
    embed(lambda *batch: inside.append(precisions()) or model(*batch), batches)
    assert (precisions(), inside) == (before, [["ieee", "ieee", "ieee"]])
    with pytest.raises(KeyboardInterrupt):
        embed(lambda *_: interrupt(), batches)
    assert precisions() == before
    # Nor do the older switches mind.
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "high")
    assert torch.get_float32_matmul_precision() == precision
    torch.set_float32_matmul_precision("highest")


def test_long_utterance_has_the_mean_of_its_windows(prepared, monkeypatch):
    model, splits = prepared()
    pack, index = splits.pack, splits.test[1]
    entry = pack.entries[index]
    window = round(0.8 * entry.samples)
    whole = embed(model, UtteranceBatches(pack, [index], 0.1, CPU))[0]
    monkeypatch.setattr("dataset.MAX_UNCUT_SECONDS", 0)
    monkeypatch.setattr("dataset.WINDOW_SECONDS", window / pack.sample_rate)
    monkeypatch.setattr("dataset.MAX_HOP_SECONDS", window / pack.sample_rate)
    begins = entry.offset, entry.offset + entry.samples - window
    pieces = torch.stack([pack.samples[b : b + window] for b in begins]).float()
    expected = model(pieces / 32768, torch.tensor([window, window])).mean(0)
    embedding = embed(model, UtteranceBatches(pack, [index], 0.1, CPU))[0]
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-6)
    assert (embedding - whole).abs().max() > 1e-5


def test_one_forward_for_each_utterance(prepared):
    model, splits = prepared()
    sizes = []
    model.encoder.register_forward_pre_hook(lambda _, call: sizes.append(len(call[0])))
    evaluate(model, splits)
    assert sum(sizes) == len(splits.test) + len(splits.validation)


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface", "ge2e"])
def test_identification_of_separable_speakers(prepared, loss, monkeypatch):
    model, splits = prepared(f"loss.name={loss}")
    monkeypatch.setattr(
        "runs.backend.embed",
        lambda _, batches: torch.eye(6)[splits.classes_of(batches.indices)],
    )
    if loss != "ge2e":
        model.criterion.classifier.weight = torch.nn.Parameter(torch.eye(6))
    report = identify(model, splits)["validation"]
    assert report.accuracy == report.top_5_accuracy == 1
    assert report.num_utterances == len(splits.validation)
    assert report.num_speakers == report.num_classes == len(splits.speakers) == 6


@pytest.mark.parametrize("loss", ["arcface", "cross_entropy", "ge2e"])
def test_identification_scores_few_utterances_at_once(prepared, monkeypatch, loss):
    model, splits = prepared(f"loss.name={loss}", "dataset.validation_fraction=0.6")
    expected = asdict(identify(model, splits)["validation"])
    logits = Mock(wraps=model.criterion.logits)
    monkeypatch.setattr(model.criterion, "logits", logits)
    monkeypatch.setattr("eval.LOGITS_AT_ONCE", 30)  # of 6 speakers
    assert asdict(identify(model, splits)["validation"]) == pytest.approx(expected)
    assert max(len(call.args[0]) for call in logits.mock_calls) == 5


def test_top_5_holds_what_the_first_place_misses(prepared, monkeypatch):
    model, splits = prepared("loss.name=cross_entropy")
    classes = torch.tensor(splits.classes_of(splits.validation))
    logits = torch.eye(6)[classes] + 2 * torch.eye(6)[(classes + 1) % 6]
    monkeypatch.setattr(model.criterion, "logits", lambda *_: logits)
    report = identify(model, splits)["validation"]
    assert (report.accuracy, report.top_5_accuracy) == (0, 1)


def test_losses_of_epochs_compare_at_the_whole_margin(prepared):
    model, splits = prepared("loss.arcface.ramp=0.5")
    model.criterion.schedule(0.0)
    at_start = identify(model, splits)["validation"].loss
    assert model.criterion.train().margin_share == 0  # and it stays as it was
    model.criterion.schedule(1.0)
    assert identify(model, splits)["validation"].loss == at_start


def test_verification_by_hand(shipped):
    section, speakers = shipped().evaluation, ["a", "a", "b", "b"]
    trials = make_trials(speakers, 100, 0)
    report = verify(np.where(trials.targets, 0.9, 0.1), trials, section, speakers)
    assert (report.eer, report.min_dcf, report.min_cllr) == (0, 0, 0)
    assert (report.num_targets, report.num_non_targets, report.num_speakers) == (
        2,
        4,
        2,
    )
    assert report.eer_interval.low == 0
    assert report.eer_interval.high == pytest.approx(1 - 0.05**0.5)  # two speakers
    assert report.cllr is None
    mixed_up = verify(np.where(trials.targets, 0.1, 0.9), trials, section)
    assert mixed_up.eer > 0.5
    assert mixed_up.num_speakers is mixed_up.eer_interval is None


def test_calibrated_scores_have_costs_and_rates(shipped):
    speakers = [str(n // 2) for n in range(40)]
    trials = make_trials(speakers, 10_000, 0)
    scores = np.random.default_rng(0).normal(3.0 * trials.targets)
    calibration = Calibration(3.0, -4.5, 0.0, 0.1, 0.1)
    report = verify(scores, trials, shipped().evaluation, speakers, calibration)
    assert report.cllr == cllr(3 * scores - 4.5, trials.targets)
    assert report.min_cllr <= report.cllr
    assert report.min_dcf <= report.actual_dcf
    assert report.miss == (scores < 1.5)[trials.targets].mean()
    assert report.false_alarm == (scores >= 1.5)[~trials.targets].mean()
    assert calibration.threshold_of_scores == 1.5


def test_references_are_the_same_whatever_was_trained(prepared):
    model, splits = prepared()
    evaluation = evaluate(model, splits)
    before = evaluation.verification["test"].reports
    assert before["trained"] == before["untrained"]
    assert evaluation.identification
    for weight in model.encoder.parameters():
        weight.data += torch.randn_like(weight)
    model.speakers = [f"other {name}" for name in model.speakers]
    evaluation = evaluate(model, splits)
    after = evaluation.verification["test"].reports
    assert after["trained"] != before["trained"]
    for reference in ("untrained", "mean log-mel"):
        assert after[reference] == before[reference]
    assert not evaluation.identification  # of speakers of another corpus


def test_backend_is_fitted_on_training_and_development_speakers_alone(
    prepared, monkeypatch
):
    model, splits = prepared("dataset.development_fraction=0.25")
    batches = Mock(wraps=UtteranceBatches)
    monkeypatch.setattr("runs.backend.UtteranceBatches", batches)
    backend = fit_backend(model, splits)
    read = {index for call in batches.mock_calls for index in call.args[1]}
    assert set(splits.development) <= read <= set(splits.train + splits.development)
    assert backend.cohort.shape == (len(splits.speakers), 24)
    assert list(backend.calibrations) == ["trained", "trained, AS-norm"]
    reports = evaluate(model, splits).verification["development"].reports
    for name, calibration in backend.calibrations.items():
        assert reports[name].miss == pytest.approx(calibration.miss)
        assert reports[name].false_alarm == pytest.approx(calibration.false_alarm)
        assert reports[name].false_alarm <= 0.01
    assert fit_backend(*prepared()).calibrations == {}


def test_the_mean_training_speaker_is_the_centre(prepared, tmp_path):
    model, splits = prepared("evaluation.as_norm.utterances_per_speaker=1000")
    plain = embed_utterances(model, splits, splits.train)
    report = identify(model, splits)
    fit_backend(model, splits)
    digest = Voices(model).digest
    evaluation = model.config.evaluation.model_copy(update={"centre": True})
    model.config = model.config.model_copy(update={"evaluation": evaluation})
    fit_backend(model, splits)
    fit_backend(model, splits)  # anew, from embeddings that have no centre
    save_checkpoint(tmp_path / "x.pt", model)
    again = load_model(tmp_path / "x.pt", CPU).eval()
    speakers = np.array(splits.speakers_of(splits.train))
    means = [plain[speakers == speaker].mean(0) for speaker in splits.speakers]
    centred = plain - torch.stack(means).mean(0)
    torch.testing.assert_close(embed_utterances(again, splits, splits.train), centred)
    assert torch.equal(again.backend.cohort, model.backend.cohort)
    assert Voices(again).digest == Voices(model).digest != digest
    assert identify(again, splits) == report  # a classifier learns without a centre


def test_kinds_of_trials_have_reports_of_their_own(prepared):
    test = evaluate(*prepared("dataset.test_fraction=0.7")).verification["test"]
    whole, same_gender = test.reports["trained"], test.conditions["same gender"]
    assert same_gender.num_targets == whole.num_targets
    assert same_gender.num_non_targets < whole.num_non_targets
    assert "other session" not in test.conditions  # the corpus knows none


def test_a_list_of_trials_of_ones_own(prepared, tmp_path):
    path = tmp_path / "mine.txt"
    model, splits = prepared("dataset.test_fraction=0.5", f"evaluation.trials={path}")
    ids = [splits.pack.entries[i].id for i in splits.test]
    trials = make_trials(splits.speakers_of(splits.test), 30, 1)
    write_trials(path, trials, ids)
    read = make_split_trials(splits, model.config.dataset, model.config.evaluation)[
        "test"
    ]
    assert np.array_equal(read.enrolment, trials.enrolment)
    assert np.array_equal(read.targets, trials.targets)
    write_trials(path, replace(trials, targets=~trials.targets), ids)
    with pytest.raises(TrialError, match=r"mine.txt:1: .*, got speaker-"):
        make_split_trials(splits, model.config.dataset, model.config.evaluation)


# Of the second split, utterances were trained on that it calls validation.
@pytest.mark.parametrize("override", ["seed=5", "validation_fraction=0.5"])
def test_another_split_is_not_identified(checkpoint, command, override):
    status, table, _ = command("--checkpoint", checkpoint, f"dataset.{override}")
    assert (status, "accuracy" in table) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ("dataset.test_fraction=1", "dataset", "4 of"),
        ("dataset.development_fraction=0.5", "dataset", "it heard "),
        ("dataset.synthetic.num_speakers=9 dataset.test_fraction=1", "dataset", "4 of"),
        ("model.titanet.size=l", "model.titanet.size=l", ""),
        ("seed=3", "seed=3", ""),
        ("dataset.nam=x", "dataset.nam", "dataset.name"),
        ("dataset.name=folder dataset.root=nowhere", "", "nowhere"),
    ],
)
def test_command_refuses(checkpoint, command, arguments, key, value):
    status, _, error = command("--checkpoint", checkpoint, *arguments.split())
    assert (status, error.startswith(f"error: {key}")) == (2, True)
    assert value in error


@pytest.mark.parametrize(
    ("trained", "tested", "refused"),
    [
        ("librispeech", "root=elsewhere", True),
        ("vctk", "vctk.microphone=mic1", True),
        ("voxceleb1", "root=elsewhere", True),
        ("commonvoice", "commonvoice.locales=[en]", True),
        ("vctk", "name=voxceleb1", False),
        ("folder", "seed=7", True),
        ("folder", "root=elsewhere", False),
        ("manifest", "manifest.test=other.json", True),
        ("manifest", "manifest.train=other.json", False),
    ],
)
def test_names_of_heard_speakers(prepared, shipped, capsys, trained, tested, refused):
    model, splits = prepared()
    name = f"dataset.name={trained}"
    model.config, model.digests = shipped(name), {"": "other"}
    model.speakers = splits.speakers_of(splits.test)
    descendant = copy.copy(model)
    descendant.speakers, descendant.ancestors = ["nobody"], model.heard
    tested = shipped(name, f"dataset.{tested}").dataset
    for heir in (model, descendant):
        if refused:
            with pytest.raises(ParameterError, match=r"^dataset: .* it heard 2 "):
                refuse_heard(heir, splits, tested)
        else:
            refuse_heard(heir, splits, tested)
            assert capsys.readouterr().out.startswith("note: 2 ")


@pytest.mark.parametrize("override", FITTED)
def test_the_backend_is_fitted_anew_for_another_setting(prepared, fitted, override):
    path = fitted(0.25)
    backend = fit_backend(*prepared("dataset.development_fraction=0.25", override))
    test = evaluate_checkpoint(path, [override]).verification["test"]
    assert test.reports != evaluate_checkpoint(path, []).verification["test"].reports
    for scoring, calibration in backend.calibrations.items():
        llrs, report = calibration.llrs(test.scores[scoring]), test.reports[scoring]
        assert report.cllr == pytest.approx(cllr(llrs, test.trials.targets))
        accepted = llrs >= calibration.threshold
        assert report.false_alarm == accepted[~test.trials.targets].mean()


@pytest.mark.parametrize("override", FITTED)
@pytest.mark.parametrize(
    ("development", "seed", "honoured"),
    [(0.25, 5, []), (0.0, 5, FITTED[3:]), (0.0, 1, FITTED[1:])],
)
def test_settings_are_honoured_or_refused(
    fitted, command, override, development, seed, honoured
):
    path = fitted(development)
    status, _, error = command("--checkpoint", path, f"dataset.seed={seed}", override)
    if override in honoured:
        assert (status, error) == (0, "")
    else:
        key, _, value = override.partition("=")
        assert (status, error.startswith(f"error: {key}: expected ")) == (2, True)
        assert error.lower().endswith(f", got {value}")


def test_a_run_keeps_what_was_found_of_it(checkpoint, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    checkpoint.rename(run / "best.pt")
    strangers = "dataset.seed=5", "dataset.test_fraction=1"
    status, shown, _ = command("--checkpoint", run, *strangers)
    assert (status, "8 speakers" in shown) == (0, True)
    (folder,) = (run / "evaluations").iterdir()
    assert folder.name.startswith("synthetic-")
    texts = ("report.json", "trials.txt", "scores.txt", "errors.tsv")
    names = (
        *texts,
        "parameters.yml",
        "det.png",
        "scores.png",
        "embeddings.png",
        "map.html",
    )
    assert set(names) == {path.name for path in folder.iterdir()}
    report = json.loads((folder / "report.json").read_text())
    eer = report["verification"]["test"]["systems"]["trained"]["eer"]
    files = [f"--{kind}={folder / kind}.txt" for kind in ("scores", "trials")]
    status, shown, _ = command(*files)
    assert (status, f"{eer:.2%}" in shown) == (0, True)
    lines = (folder / "trials.txt").read_text().splitlines(keepends=True)
    (tmp_path / "trials.txt").write_text("".join(lines[:-1]))
    for others in (
        (),
        ("dataset.seed=6",),
        ("dataset.test_fraction=0.5",),
        ("evaluation.p_target=0.05",),
        (f"evaluation.trials={tmp_path / 'trials.txt'}",),
    ):
        assert command("--checkpoint", run, *strangers, *others)[0] == 0
    assert len(list((run / "evaluations").iterdir())) == 5
    assert json.loads((folder / "report.json").read_text()) == report


def test_checkpoints_share_a_table(checkpoint, tmp_path, command):
    other = tmp_path / "y.pt"
    other.write_bytes(checkpoint.read_bytes())
    status, shown, _ = command("--checkpoint", checkpoint, other)
    *_, table = shown.partition("\ncheckpoint ")
    first, second = (
        [x.removeprefix(str(p)) for x in table.splitlines() if x.startswith(str(p))]
        for p in (checkpoint, other)
    )
    assert (status, first) == (0, second)
    for cell in ("EER", "minDCF", "development", "accuracy", "mean log-mel", "rough"):
        assert cell in table


def test_metrics_of_two_files_alone(tmp_path, command, shipped):
    trials = make_trials([str(n // 3) for n in range(12)], 100, 0)
    scores = np.random.default_rng(0).normal(2.0 * trials.targets)
    scores_file, trials_file = tmp_path / "scores.txt", tmp_path / "trials.txt"
    ids = [f"u{n}" for n in range(12)]
    write_scores(scores_file, trials, scores, ids)
    write_trials(trials_file, trials, ids)
    arguments = "--scores", scores_file, "--trials", trials_file
    status, shown, _ = command(*arguments)
    expected = verify(scores, trials, shipped().evaluation)
    assert (status, f"{expected.eer:.2%}" in shown) == (0, True)
    assert f"{expected.min_dcf:.3f}" in shown
    dcf = min_dcf(scores, trials.targets, OperatingPoint(0.5))
    assert f"{dcf:.3f}" in command(*arguments, "evaluation.p_target=0.5")[1]
    write_scores(scores_file, trials, -scores, ids)
    reversed_output = command(*arguments)[1]
    warned = [f"warning: {scores_file}" in text for text in (shown, reversed_output)]
    assert warned == [False, True]
    write_scores(scores_file, trials, scores, ids)
    lines = scores_file.read_text().splitlines()
    scores_file.write_text("\n".join(lines[::-1]))  # in any order
    assert command(*arguments)[:2] == (0, shown)
    status, _, error = command(*arguments, "evaluation.false_alarm_rate=0.5")
    assert status == 2
    assert error.startswith("error: evaluation.false_alarm_rate=0.5: expected ")
    scores_file.write_text("u0 u1 x")
    status, _, error = command(*arguments)
    assert (status, error.endswith(", got 'u0 u1 x'")) == (2, True)


def test_command_wants_one_or_the_other():
    one, files = ["--checkpoint", "x"], ["--scores", "y", "--trials", "z"]
    for arguments in ([], files[:2], files[2:], one + files[:2], one + files):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)


def test_everything_is_found_within_each_corpus(prepared):
    model, splits = prepared(*MIXTURE)
    fit_backend(model, splits)
    results = evaluate(model, splits)
    assert [*results.identification] == ["validation/one", "validation/two"]
    assert [*results.verification] == ["development/two", "test/one", "test/two"]
    assert results.calibrated_on == ["development/two"]
    for name, test in results.verification.items():
        split, _, label = name.partition("/")
        entries = [splits.pack.entries[i] for i in test.indices]
        assert {entry.corpus for entry in entries} == {label}
        assert set(test.indices) <= set(getattr(splits, split))
        assert len(test.trials.targets) == len(entries) * (len(entries) - 1) // 2
        assert test.reports["trained"].cllr is not None
    for name, report in results.identification.items():
        assert report.num_utterances == len(splits.by_corpus("validation")[name])
        assert report.num_classes == len(splits.speakers)
    summary = as_summary(results)
    assert {"validation/one/loss", "test/one/eer", "test/two/cllr"} <= set(summary)
    assert not {"validation/loss", "test/eer"} & set(summary)
    report = as_report(results)
    assert [*report["identification"]] == ["validation/one", "validation/two"]
    assert [*report["verification"]] == [*results.verification]


def test_a_corpus_is_tested_as_it_is_alone(prepared):
    model, splits = prepared(*MIXTURE)
    mixture, together = model.config, evaluate(model, splits).verification
    for label, dataset in mixture.dataset.corpora.items():
        model.config = mixture.model_copy(update={"dataset": dataset})
        alone = evaluate(model, prepare(dataset, mixture.front_end)).verification
        for system, report in together[f"test/{label}"].reports.items():
            eer = alone["test"].reports[system].eer
            assert report.eer == pytest.approx(eer, abs=0.02)


def test_published_trials_of_one_corpus_of_a_mixture(prepared, tmp_path, monkeypatch):
    model, splits = prepared(*MIXTURE)
    tests = splits.by_corpus("test")
    names = [splits.pack.entries[i].id.removeprefix("two/") for i in tests["test/two"]]
    lines = [f"{int(a[:12] == b[:12])} {a} {b}" for a in names for b in names if a < b]
    (tmp_path / "trials.txt").write_text("\n".join(lines[::2]))
    corpus = replace(
        corpora.CORPORA["synthetic"],
        trials=lambda p: tmp_path / "trials.txt" if p.seed == 2 else None,
    )
    monkeypatch.setitem(corpora.CORPORA, "synthetic", corpus)
    trials = make_split_trials(splits, model.config.dataset, model.config.evaluation)
    assert len(trials["test/two"].targets) == len(lines[::2])
    size = len(tests["test/one"])
    assert len(trials["test/one"].targets) == size * (size - 1) // 2


def test_heard_speakers_are_refused_by_corpus(prepared, capsys):
    model, splits = prepared(*MIXTURE)
    refuse_heard(model, splits, model.config.dataset)
    # The same names are of other people in the other corpus.
    assert capsys.readouterr().out.startswith("note: ")
    for dataset in model.config.dataset.corpora.values():
        everybody = dataset.model_copy(update={"test_fraction": 1.0})
        with pytest.raises(ParameterError, match=r"^dataset: .* it heard "):
            refuse_heard(model, prepare(everybody, model.config.front_end), everybody)
    with pytest.raises(CorpusError, match="expected each recording once"):
        prepared(  # one corpus under two labels
            *MIXTURE,
            "dataset.mixture=[{label: one, weight: 1, name: synthetic},"
            "{label: two, weight: 1, name: synthetic, test_fraction: 1.0}]",
        )
