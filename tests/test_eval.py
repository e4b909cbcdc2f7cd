"""Embedding, identification and verification, and the command line."""

import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import eval as evaluation
from conftest import MIXTURE
from dataset import UtteranceBatches, prepare
from eval import (
    evaluate,
    evaluate_checkpoint,
    fit_backend,
    identify,
    main,
    make_split_trials,
    mean_log_mel,
    refuse_heard,
    verify,
)
from parameters import ParameterError
from reports.tables import as_report, as_summary
from runs.checkpoints import save_checkpoint
from runs.speaker_model import build_model, embed
from speech import corpora
from verification.metrics import cllr, min_dcf
from verification.scoring import Calibration
from verification.trials import TrialError, make_trials, write_scores, write_trials

CPU = torch.device("cpu")


@pytest.fixture
def prepared(miniature):
    """An untrained model, its corpus split, and what they were made from."""

    def build(*overrides: str):
        p = miniature(*overrides)
        splits = prepare(p.dataset, p.front_end)
        model = build_model(p, splits.speakers, splits.pack.digests, CPU)
        return model.eval(), splits

    return build


def test_embeddings_do_not_depend_on_batches(prepared):
    model, splits = prepared()
    indices = splits.test + splits.train[:7]
    found = [
        embed(
            model,
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
        alone = model(samples[None])[0]
    assert (found[2][3] - alone).abs().max() < 1e-4


def precisions() -> list[str]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return [part.fp32_precision for part in (cudnn.conv, cudnn.rnn, matmul)]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_embedding_is_in_ieee_float32_and_nothing_else_is(prepared, precision):
    model, splits = prepared()
    batches = UtteranceBatches(splits.pack, splits.test, 60, CPU)
    found = []

    def noted(waveforms, lengths):
        found.append(precisions())
        if len(found) == 2:
            raise KeyboardInterrupt
        return model(waveforms, lengths)

    torch.set_float32_matmul_precision(precision)
    before = precisions()
    embed(noted, batches)
    assert precisions() == before
    with pytest.raises(KeyboardInterrupt):
        embed(noted, batches)
    assert precisions() == before
    assert found == 2 * [["ieee", "ieee", "ieee"]]
    # Nor do the older switches mind.
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "high")
    assert torch.get_float32_matmul_precision() == precision
    torch.set_float32_matmul_precision("highest")


def test_one_forward_for_each_utterance(prepared):
    model, splits = prepared()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, call: seen.append(len(call[0])))
    evaluate(model, splits)
    assert sum(seen) == len(splits.test) + len(splits.validation)


def test_verification_by_hand(shipped):
    p, speakers = shipped().evaluation, ["a", "a", "b", "b"]
    trials = make_trials(speakers, 100, 0)
    report = verify(np.where(trials.targets, 0.9, 0.1), trials, p, speakers)
    assert (report.eer, report.min_dcf, report.min_cllr) == (0, 0, 0)
    assert (report.num_targets, report.num_non_targets) == (2, 4)
    assert report.num_speakers == 2
    assert (report.eer_interval.low, report.eer_interval.high) == (0, 0)
    assert report.cllr is None
    mixed_up = verify(np.where(trials.targets, 0.1, 0.9), trials, p)
    assert mixed_up.eer > 0.5
    assert mixed_up.num_speakers is mixed_up.eer_interval is None


def test_calibrated_scores_have_costs_and_rates(shipped):
    p, speakers = shipped().evaluation, [str(n // 2) for n in range(40)]
    trials = make_trials(speakers, 10_000, 0)
    scores = np.random.default_rng(0).normal(3.0 * trials.targets)
    calibration = Calibration(3.0, -4.5, 0.0, 0.1, 0.1)
    report = verify(scores, trials, p, speakers, calibration)
    assert report.cllr == cllr(3 * scores - 4.5, trials.targets)
    assert report.min_cllr <= report.cllr
    assert report.min_dcf <= report.actual_dcf
    assert report.miss == (scores < 1.5)[trials.targets].mean()
    assert report.false_alarm == (scores >= 1.5)[~trials.targets].mean()
    assert calibration.threshold_of_scores == 1.5


@pytest.mark.parametrize("loss", ["arcface", "cross_entropy", "ge2e"])
def test_identification_scores_few_utterances_at_once(prepared, monkeypatch, loss):
    model, splits = prepared(f"loss.name={loss}", "dataset.validation_fraction=0.6")
    whole = identify(model, splits)
    score, sizes = model.criterion.logits, []

    def counted(*arguments):
        logits = score(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(model.criterion, "logits", counted)
    monkeypatch.setattr(evaluation, "LOGITS_AT_ONCE", 30, raising=False)
    parts = identify(model, splits)
    assert max(sizes) <= 30
    one, other = (asdict(found["validation"]) for found in (parts, whole))
    assert one == pytest.approx(other)


def test_long_utterance_has_the_mean_of_its_windows(prepared, monkeypatch):
    model, splits = prepared()
    packed, (first, second) = splits.pack, splits.test[:2]
    size = packed.entries[second].samples
    window, rate = round(0.8 * size), packed.sample_rate
    batches = UtteranceBatches(packed, [first, second], 0.1, CPU)
    whole = embed(model, batches)
    monkeypatch.setattr("dataset.MAX_UNCUT_SECONDS", 0)
    monkeypatch.setattr("dataset.WINDOW_SECONDS", window / rate)
    monkeypatch.setattr("dataset.MAX_HOP_SECONDS", window / rate)
    begins = [packed.entries[second].offset + start for start in (0, size - window)]
    pieces = torch.stack([packed.samples[b : b + window] for b in begins]).float()
    lengths = torch.tensor([window, window])
    expected = model(pieces / 32768, lengths).mean(0)
    batches = UtteranceBatches(packed, [second], 0.1, CPU)
    found = embed(model, batches)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - whole[1]).abs().max() > 1e-5


def test_mean_log_mel_ignores_padding(prepared):
    model, splits = prepared()
    found = [
        embed(
            mean_log_mel(model.front_end),
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

    def perfect(model, batches):
        places = [splits.speakers.index(entries[i].speaker) for i in batches.indices]
        return torch.eye(len(splits.speakers))[places]

    monkeypatch.setattr(evaluation, "embed", perfect)
    if loss != "ge2e":
        identity = torch.eye(len(splits.speakers))
        model.criterion.classifier.weight = torch.nn.Parameter(identity)
    report = identify(model, splits)["validation"]
    assert report.accuracy == report.top_5_accuracy == 1
    assert report.num_utterances == len(splits.validation)
    assert report.num_speakers == report.num_classes == len(splits.speakers)


def test_losses_of_epochs_compare_at_the_whole_margin(prepared):
    model, splits = prepared("loss.arcface.ramp=0.5")
    model.criterion.schedule(0.0)
    at_start = identify(model, splits)["validation"].loss
    assert model.criterion.train().margin_share == 0  # and it stays as it was
    model.criterion.schedule(1.0)
    assert identify(model, splits)["validation"].loss == at_start


def test_no_identification_of_another_corpus(prepared):
    model, splits = prepared()
    assert evaluate(model, splits).identification
    model.speakers = [f"other {name}" for name in model.speakers]
    assert not evaluate(model, splits).identification


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


def test_top_5_holds_what_the_first_place_misses(prepared, monkeypatch):
    model, splits = prepared("loss.name=cross_entropy")
    targets = [
        splits.speakers.index(speaker)
        for speaker in splits.speakers_of(splits.validation)
    ]

    def second_best(*_):
        logits = torch.zeros(len(targets), 6)
        for row, target in enumerate(targets):
            logits[row, target] = 1.0
            logits[row, (target + 1) % 6] = 2.0
        return logits

    monkeypatch.setattr(model.criterion, "logits", second_best)
    report = identify(model, splits)["validation"]
    assert (report.accuracy, report.top_5_accuracy) == (0, 1)


def test_backend_is_fitted_on_training_and_development_speakers_alone(
    prepared, monkeypatch
):
    model, splits = prepared("dataset.development_fraction=0.25")
    seen = []

    class Spy(UtteranceBatches):
        def __init__(self, packed, indices, *others):
            seen.extend(indices)
            super().__init__(packed, indices, *others)

    monkeypatch.setattr(evaluation, "UtteranceBatches", Spy)
    model.backend = backend = fit_backend(model, splits)
    assert not set(seen) & set(splits.test)
    assert set(seen) <= set(splits.train + splits.development)
    assert backend.cohort.shape == (len(splits.speakers), 24)
    assert list(backend.calibrations) == ["trained", "trained, AS-norm"]
    trials = evaluate(model, splits).verification
    found = trials["development"].reports
    for name, calibration in backend.calibrations.items():
        assert found[name].miss == pytest.approx(calibration.miss)
        assert found[name].false_alarm == pytest.approx(calibration.false_alarm)
        assert found[name].false_alarm <= 0.01
    without = prepared()
    assert fit_backend(*without).calibrations == {}


def test_kinds_of_trials_have_reports_of_their_own(prepared):
    model, splits = prepared("dataset.test_fraction=0.7")
    found = evaluate(model, splits).verification["test"]
    assert found.conditions["same gender"].num_targets == (
        found.reports["trained"].num_targets
    )
    assert found.conditions["same gender"].num_non_targets < (
        found.reports["trained"].num_non_targets
    )
    assert "other session" not in found.conditions  # the corpus knows none


def test_a_list_of_trials_of_ones_own(prepared, tmp_path):
    model, splits = prepared("dataset.test_fraction=0.5")
    ids = [splits.pack.entries[i].id for i in splits.test]
    trials = make_trials(splits.speakers_of(splits.test), 30, 1)
    write_trials(tmp_path / "mine.txt", trials, ids)
    p = model.config
    update = {
        "evaluation": p.evaluation.model_copy(update={"trials": tmp_path / "mine.txt"})
    }
    model.config = p.model_copy(update=update)
    found = evaluate(model, splits).verification["test"].trials
    assert np.array_equal(found.enrolment, trials.enrolment)
    assert np.array_equal(found.targets, trials.targets)
    write_trials(tmp_path / "mine.txt", replace(trials, targets=~trials.targets), ids)
    with pytest.raises(TrialError, match=r"mine.txt:1: expected utterances of "):
        evaluate(model, splits)
    (tmp_path / "mine.txt").write_text("1 nobody nobody\n")
    with pytest.raises(TrialError, match=r"mine.txt:1: expected the id of an utter"):
        evaluate(model, splits)


@pytest.fixture
def checkpoint(tmp_path, prepared):
    model, _ = prepared("dataset.development_fraction=0.25")
    save_checkpoint(tmp_path / "x.pt", model)
    return tmp_path / "x.pt"


def test_command_prints_a_table(checkpoint, capsys):
    assert main(["--checkpoint", str(checkpoint)]) == 0
    table = capsys.readouterr().out
    for cell in ("development", "untrained", "mean log-mel", "EER", "minDCF", "rough"):
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


@pytest.mark.parametrize(
    ("trained_on", "tested_on", "refused"),
    [
        ("librispeech", ["dataset.root=elsewhere"], True),
        ("vctk", ["dataset.vctk.microphone=mic1"], True),
        ("voxceleb1", ["dataset.root=elsewhere"], True),
        ("commonvoice", ["dataset.commonvoice.locales=[en]"], True),
        ("vctk", ["dataset.name=voxceleb1"], False),
        ("folder", ["dataset.seed=7"], True),
        ("folder", ["dataset.root=elsewhere"], False),
        ("manifest", ["dataset.manifest.test=other.json"], True),
        ("manifest", ["dataset.manifest.train=other.json"], False),
    ],
)
def test_names_of_heard_speakers(
    prepared, shipped, capsys, trained_on, tested_on, refused
):
    model, splits = prepared()
    name = f"dataset.name={trained_on}"
    heard = splits.speakers_of(splits.test)
    model.config, model.speakers, model.digests = shipped(name), heard, {"": "other"}
    descendant = copy.copy(model)
    descendant.speakers, descendant.ancestors = ["nobody"], model.heard
    p = shipped(name, *tested_on).dataset
    for heir in (model, descendant):
        if refused:
            with pytest.raises(ParameterError, match="the model was not trained on"):
                refuse_heard(heir, splits, p)
        else:
            refuse_heard(heir, splits, p)
            assert "have names of training speakers" in capsys.readouterr().out


FITTED = (
    "evaluation.false_alarm_rate=0.2",
    "evaluation.as_norm.utterances_per_speaker=2",
    "evaluation.as_norm.top=3",
)


@pytest.mark.parametrize("override", FITTED)
def test_the_backend_is_fitted_anew_for_another_setting(prepared, tmp_path, override):
    model, splits = prepared("dataset.development_fraction=0.25")
    model.backend = fit_backend(model, splits)
    save_checkpoint(tmp_path / "x.pt", model)
    fitted = fit_backend(
        prepared("dataset.development_fraction=0.25", override)[0], splits
    )
    found = evaluate_checkpoint(tmp_path / "x.pt", [override]).verification["test"]
    before = evaluate_checkpoint(tmp_path / "x.pt", []).verification["test"]
    assert found.reports != before.reports
    for system, calibration in fitted.calibrations.items():
        llrs = calibration.llrs(found.scores[system])
        report = found.reports[system]
        assert report.cllr == pytest.approx(cllr(llrs, found.trials.targets))
        accepted = llrs >= calibration.threshold
        assert report.false_alarm == accepted[~found.trials.targets].mean()


@pytest.mark.parametrize("override", FITTED)
@pytest.mark.parametrize(
    ("development", "tested_on", "honoured"),
    [
        (0.25, ["dataset.seed=5"], []),
        (0.0, ["dataset.seed=5"], FITTED[2:]),
        (0.0, [], FITTED[1:]),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    prepared, tmp_path, capsys, override, development, tested_on, honoured
):
    model, splits = prepared(f"dataset.development_fraction={development}")
    model.backend = fit_backend(model, splits)
    save_checkpoint(tmp_path / "x.pt", model)
    status = main(["--checkpoint", str(tmp_path / "x.pt"), *tested_on, override])
    if override in honoured:
        assert status == 0
    else:
        assert status == 2
        key, _, value = override.partition("=")
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {key}: expected ")
        assert error.endswith(f", got {value}")


def test_another_split_of_the_same_corpus_is_not_identified(checkpoint, capsys):
    # Its validation utterances were trained on.
    arguments = ["dataset.validation_fraction=0.5"]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    assert "accuracy" not in capsys.readouterr().out


def test_a_run_keeps_what_was_found_of_it(checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").write_bytes(checkpoint.read_bytes())
    arguments = ["--checkpoint", str(run), "dataset.seed=5", "dataset.test_fraction=1"]
    assert main(arguments) == 0
    (folder,) = (run / "evaluations").iterdir()
    assert folder.name.startswith("synthetic-")
    texts = ("report.json", "trials.txt", "scores.txt", "errors.tsv")
    names = (*texts, "det.png", "scores.png", "embeddings.png", "map.html")
    assert set(names) == {path.name for path in folder.iterdir()}
    report = json.loads((folder / "report.json").read_text())
    eer = report["verification"]["test"]["systems"]["trained"]["eer"]
    files = [f"--{kind}={folder / kind}.txt" for kind in ("scores", "trials")]
    capsys.readouterr()
    assert main(files) == 0
    assert f"{eer:.2%}" in capsys.readouterr().out


def test_several_checkpoints_in_one_table(checkpoint, tmp_path, capsys):
    other = tmp_path / "y.pt"
    other.write_bytes(checkpoint.read_bytes())
    assert main(["--checkpoint", str(checkpoint), str(other), "dataset.seed=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, x in enumerate(lines) if x.startswith("checkpoint")) :]
    first, second = (
        [x.removeprefix(str(path)) for x in table if x.startswith(str(path))]
        for path in (checkpoint, other)
    )
    assert first == second
    assert any("mean log-mel" in line for line in first)


@pytest.fixture
def files(tmp_path):
    """Trials, their scores, and the paths of both."""
    speakers = [str(n // 3) for n in range(12)]
    ids = [f"u{n}" for n in range(12)]
    trials = make_trials(speakers, 100, 0)
    scores = np.random.default_rng(0).normal(2.0 * trials.targets)
    paths = tmp_path / "scores.txt", tmp_path / "trials.txt"
    write_scores(paths[0], trials, scores, ids)
    write_trials(paths[1], trials, ids)
    return trials, scores, paths


def test_figures_from_two_files_alone(files, capsys, shipped):
    trials, scores, (scores_file, trials_file) = files
    arguments = ["--scores", str(scores_file), "--trials", str(trials_file)]
    assert main(arguments) == 0
    expected = verify(scores, trials, shipped().evaluation)
    shown = capsys.readouterr().out
    assert f"{expected.eer:.2%}" in shown
    assert f"{expected.min_dcf:.3f}" in shown
    assert main([*arguments, "evaluation.p_target=0.5"]) == 0
    expected = min_dcf(scores, trials.targets, p_target=0.5)
    assert f"{expected:.3f}" in capsys.readouterr().out
    assert main([*arguments, "evaluation.false_alarm_rate=0.5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: evaluation.false_alarm_rate=0.5: expected ")
    lines = scores_file.read_text().splitlines()
    scores_file.write_text("\n".join(lines[::-1]))  # in any order
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s[:-1], t), "expected a score for each trial, none is of u10 u"),
        (lambda s, t: ([*s, s[0]], t), "expected a pair once, got u0 u1 again"),
        (lambda s, t: (["u0 u1 nan", *s[1:]], t), ":1: expected a finite score, got n"),
        (lambda s, t: (["u0 u1 x", *s[1:]], t), ":1: expected `id id score`, got 'u0"),
        (lambda s, t: (["u0 0.5", *s[1:]], t), ":1: expected `id id score`, got 'u0 "),
        (lambda s, t: ([], t), "expected lines `id id score`, got none"),
        (lambda s, t: (s, []), "expected lines `1 id id` or `0 id id`, got none"),
        (lambda s, t: (s, ["1 u0 u1"]), "target and non-target trials, got 1 and 0"),
        (lambda s, t: (s, ["0 u0 u9"]), "target and non-target trials, got 0 and 1"),
        (lambda s, t: (s, [*t, "5 u0 u1"]), ":67: expected `1 id id` or `0 id id`"),
    ],
)
def test_files_that_do_not_fit(files, capsys, change, message):
    _, _, paths = files
    lines = change(*(path.read_text().splitlines() for path in paths))
    for path, content in zip(paths, lines, strict=True):
        path.write_text("\n".join(content))
    assert main(["--scores", str(paths[0]), "--trials", str(paths[1])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scores", "x"],
        ["--trials", "x"],
        ["--checkpoint", "x", "--scores", "y"],
        ["--checkpoint", "x", "--scores", "y", "--trials", "z"],
    ],
)
def test_command_wants_one_or_the_other(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


class TestMixture:
    @pytest.fixture
    def prepared(self, miniature):
        p = miniature(*MIXTURE)
        splits = prepare(p.dataset, p.front_end)
        return build_model(p, splits.speakers, splits.pack.digests, CPU), splits

    def test_everything_is_found_within_each_corpus(self, prepared):
        model, splits = prepared
        model.backend = fit_backend(model, splits)
        found = evaluate(model, splits)
        assert [*found.identification] == ["validation/one", "validation/two"]
        assert [*found.verification] == ["development/two", "test/one", "test/two"]
        assert found.calibrated_on == ["development/two"]
        for name, part in found.verification.items():
            split, _, label = name.partition("/")
            entries = [splits.pack.entries[i] for i in part.indices]
            assert {entry.corpus for entry in entries} == {label}
            assert set(part.indices) <= set(getattr(splits, split))
            num_pairs = len(entries) * (len(entries) - 1) // 2
            assert len(part.trials.targets) == num_pairs
            assert part.reports["trained"].cllr is not None
        for name, part in found.identification.items():
            assert part.num_utterances == len(splits.by_corpus("validation")[name])
            assert part.num_classes == len(splits.speakers)
        summary = as_summary(found)
        assert {"validation/one/loss", "test/one/eer", "test/two/cllr"} <= set(summary)
        assert not {"validation/loss", "test/eer"} & set(summary)
        report = as_report(found)
        assert [*report["identification"]] == ["validation/one", "validation/two"]
        assert [*report["verification"]] == [*found.verification]

    def test_a_corpus_is_tested_as_it_is_alone(self, prepared, miniature):
        model, splits = prepared
        whole = model.config
        expected = evaluate(model, splits)
        for label, dataset in whole.dataset.corpora.items():
            p = whole.model_copy(update={"dataset": dataset})
            model.config = p
            found = evaluate(model, prepare(p.dataset, p.front_end))
            alone = found.verification["test"].reports
            for system, report in expected.verification[
                f"test/{label}"
            ].reports.items():
                assert report.eer == pytest.approx(alone[system].eer, abs=0.02)

    def test_official_trials_of_one_of_its_corpora(
        self, prepared, tmp_path, monkeypatch
    ):
        model, splits = prepared
        of_two = splits.by_corpus("test")["test/two"]
        names = [splits.pack.entries[i].id.removeprefix("two/") for i in of_two]
        lines = [
            f"{int(a[:12] == b[:12])} {a} {b}" for a in names for b in names if a < b
        ]
        (tmp_path / "trials.txt").write_text("\n".join(lines[::2]))
        monkeypatch.setitem(
            corpora.CORPORA,
            "synthetic",
            replace(
                corpora.CORPORA["synthetic"],
                trials=lambda p: tmp_path / "trials.txt" if p.seed == 2 else None,
            ),
        )
        trials = make_split_trials(splits, model.config)
        assert len(trials["test/two"].targets) == len(lines[::2])
        first = splits.by_corpus("test")["test/one"]
        assert len(trials["test/one"].targets) == len(first) * (len(first) - 1) // 2

    def test_heard_speakers_are_refused_by_corpus(self, prepared, capsys):
        model, splits = prepared
        whole = model.config
        refuse_heard(model, splits, whole.dataset)
        # the same names are of other people in the other corpus
        assert "have names of training speakers" in capsys.readouterr().out
        for dataset in whole.dataset.corpora.values():
            p = whole.model_copy(
                update={"dataset": dataset.model_copy(update={"test_fraction": 1.0})}
            )
            with pytest.raises(ParameterError, match="the model was not trained on"):
                refuse_heard(model, prepare(p.dataset, p.front_end), p.dataset)

    def test_one_corpus_under_two_labels(self, miniature):
        p = miniature(
            *MIXTURE,
            "dataset.mixture=[{label: one, weight: 1, name: synthetic},"
            "{label: two, weight: 1, name: synthetic, test_fraction: 1.0}]",
        )
        splits = prepare(p.dataset, p.front_end)
        model = build_model(p, splits.speakers, splits.pack.digests, CPU)
        with pytest.raises(ParameterError, match="it heard 4 of them"):
            refuse_heard(model, splits, p.dataset)
