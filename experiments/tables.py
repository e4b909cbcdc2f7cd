"""The tables of README.md, docs/ and init/titanet-s.md.

Each function of `figures` alone writes the block that a document marks with its name
(`documents.py`). EERs and rates are in percent; brackets are 95 % intervals.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

from cells import interval, percent, spread, table
from house import imports_by_room

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from recognition.verdicts import Candidate, Comparison, Identification, Threshold

TESTS = {
    "test/speechocean762": "speechocean762",
    "test/commonvoice": "Common Voice",
    "test": "LibriSpeech test-other",
}
CORPORA = ("speechocean762", "commonvoice")
Figures = Mapping[str, Any]  # as `documents.read_figures` returns them


# README.md and docs/voices.md


def systems(figures: Figures) -> str:
    """EER of each system on each test, worst first."""
    runs_by_model, released = study_runs(figures), figures["released"]
    rows = [["", "weights", *(f"{test}, EER %" for test in TESTS.values())]]
    spectra = [interval(of["mean log-mel"], "eer") for of in released.values()]
    rows.append(["mean spectrum", "", *spectra])
    for model, shown in (
        ("d-vector, CE", "d-vector, cross-entropy"),
        ("TitaNet, CE", "TitaNet-S, cross-entropy"),
        ("TitaNet, ArcFace", "TitaNet-S, ArcFace"),
    ):
        runs = runs_by_model[model]
        eers = [[run["tests"][t]["trained"]["eer"] for run in runs] for t in TESTS]
        spreads = [spread(of_test, 100, 1) for of_test in eers]
        rows.append([shown, millions(runs[0]["weights"]), *spreads])
    peer = figures["ecapa"]["ECAPA-TDNN"]
    eers = [percent(peer["eer"][test]) for test in TESTS.values()]
    rows.insert(-1, ["ECAPA-TDNN", millions(peer["weights"]), *eers])
    eers = [interval(of["trained"], "eer") for of in released.values()]
    rows.append(["**released encoder**", rows[-1][1], *eers])
    return table(*rows)


def millions(weights: float) -> str:
    """Return a number of weights as tables show it."""
    return f"{weights / 1e6:.2f} M"


def thresholds(figures: Figures) -> str:
    """Both rates at the released encoder's threshold."""
    rows = [["test speakers", "misses %", "false alarms %"]]
    for test, systems in figures["released"].items():
        rates = systems["trained"]["miss"], systems["trained"]["false_alarm"]
        rows.append([test, *map(percent, rates)])
    return table(*rows)


def read_result(kind: type, record: Mapping[str, Any]) -> Any:
    """Return a result of `Voices` from its record."""
    values = {field.name: record[field.name] for field in fields(kind)}
    values["threshold"] = Threshold(**record["threshold"])
    if "nearest" in values:
        values["nearest"] = [Candidate(**one) for one in record["nearest"]]
    return kind(**values)


def comparisons(figures: Figures) -> str:
    """What `compare` prints of three recordings."""
    records = figures["voices"]["compare"]
    lines = "".join(f"{read_result(Comparison, record)}\n" for record in records)
    return f"```\n{lines}```\n"


def comparison(figures: Figures) -> str:
    """What `compare` prints of two recordings of one person."""
    first = figures["voices"]["compare"][0]
    return f"```\n{read_result(Comparison, first)}\n```\n"


def identifications(figures: Figures) -> str:
    """What `identify` prints of an enrolled person and of a stranger."""
    records = figures["voices"]["identify"]
    lines = "".join(f"{read_result(Identification, record)}\n" for record in records)
    return f"```\n{lines}```\n"


def turns(figures: Figures) -> str:
    """To whom `who` gives speech."""
    enrolled, stranger = figures["turns"]["enrolled"], figures["turns"]["stranger"]
    rows = [["given to", "of enrolled people's speech, %", "of strangers' speech, %"]]
    for kind, shown in (
        ("right", "the right person"),
        ("other", "another person"),
        ("unknown", "`unknown`"),
        ("nobody", "nobody"),
    ):
        reports = [speech[kind] for speech in (enrolled, stranger) if kind in speech]
        shares = [interval(report, "share") for report in reports]
        rows.append([shown, *shares, *[""] * (2 - len(shares))])
    return table(*rows)


def silence(figures: Figures) -> str:
    """EER if whole recordings are heard and if speech alone is, by condition."""
    measured = {name: figures["silence"][name]["conditions"] for name in CORPORA}
    ways = {"whole": "whole", "speech, margin 0.3 s": "speech"}
    heads = [f"{TESTS[f'test/{name}']}, {ways[w]}" for name in CORPORA for w in ways]
    rows = [["the other recording", *(f"{head}, EER %" for head in heads)]]
    for condition in measured["commonvoice"]:
        of_corpora = (of_corpus[condition] for of_corpus in measured.values())
        rows.append(
            [condition, *(percent(of[w]["eer"]) for of in of_corpora for w in ways)]
        )
    return table(*rows)


def identification(figures: Figures) -> str:
    """How many clips of enrolled people are identified, and what strangers meet."""
    lenient_head = "identified %, with 5 % of strangers' recordings accepted"
    heads = "identified %", "strangers' recordings accepted %", lenient_head
    rows = [["enrolled with", *heads]]
    systems = figures["open_set"]["identification"]["systems"]
    for shown, name in (
        ("one recording", "one clip"),
        ("three recordings", "three clips, mean direction"),
    ):
        rates, lenient = systems[name]["identify"], systems[name]["0.05"]
        shares = [interval(rates, of) for of in ("identified", "false_alarm")]
        rows.append([shown, *shares, interval(lenient, "identified")])
    return table(*rows)


def own_threshold(figures: Figures) -> str:
    """Rates at the encoder's threshold and at one found on half the people."""
    rows = [["threshold", "misses %", "false alarms %"]]
    for shown, name in (("the encoder's", "encoder"), ("their own", "own")):
        rates = figures["open_set"]["calibration"][name]
        rows.append([shown, interval(rates, "miss"), interval(rates, "false_alarm")])
    return table(*rows)


# The model card


def card_systems(figures: Figures) -> str:
    """Every system on every test."""
    names = {"trained": "this encoder", "trained, AS-norm": "this encoder, AS-norm"}
    rows = [["test", "system", "EER %", "minDCF", "misses %", "false alarms %"]]
    for test, systems in figures["released"].items():
        for system, report in systems.items():
            rates = [percent(report[rate], 2) for rate in ("miss", "false_alarm")]
            eer, dcf = (
                interval(report, "eer", 100, 2),
                interval(report, "min_dcf", 1, 3),
            )
            rows.append([test, names.get(system, system), eer, dcf, *rates])
    return table(*rows)


def card_conditions(figures: Figures) -> str:
    """The released encoder by gender, duration and language."""
    measured = figures["titanet-s"]
    rows = [["test", "trials", "targets", "non-targets", "EER %"]]
    for name, test in TESTS.items():
        corpora = measured["librispeech" if name == "test" else "mixture"]
        conditions = dict(corpora["verification"][name]["conditions"])
        if name == "test/commonvoice":
            conditions |= {f"both {k}": r for k, r in measured["languages"].items()}
        for condition, report in conditions.items():
            counts = str(report["num_targets"]), str(report["num_non_targets"])
            rows.append([test, condition, *counts, interval(report, "eer", 100, 2)])
    return table(*rows)


# docs/results.md


def study_runs(figures: Figures) -> dict[str, list[dict[str, Any]]]:
    """Return the study's runs by model."""
    runs_by_model = defaultdict(list)
    for run in figures["results"]["runs"]:
        runs_by_model[run["model"]].append(run)
    return runs_by_model


def study(figures: Figures) -> str:
    """EER and minDCF of each model on each test: means over the seeds, or where all
    agree, the interval over speakers."""
    runs_by_model = study_runs(figures)
    reports = {
        model: {test: [run["tests"][test]["trained"] for run in runs] for test in TESTS}
        for model, runs in runs_by_model.items()
    }
    arcface = runs_by_model["TitaNet, ArcFace"]
    reports["TitaNet, untrained"] = {
        test: [run["tests"][test]["untrained"] for run in arcface] for test in TESTS
    }
    for shown, system in (
        ("released encoder", "trained"),
        ("mean log-mel", "mean log-mel"),
    ):
        reports[shown] = {
            t: [figures["released"][name][system]] for t, name in TESTS.items()
        }
    heads = [f"{test}, {of}" for test in TESTS.values() for of in ("EER %", "minDCF")]
    rows = [["system", *heads]]
    for shown, reports_by_test in reports.items():
        row = [shown]
        for of_test in reports_by_test.values():
            for metric, scale, digits in (("eer", 100, 1), ("min_dcf", 1, 2)):
                values = [report[metric] for report in of_test]
                if len(set(values)) == 1:
                    row.append(interval(of_test[0], metric, scale, digits))
                else:
                    row.append(spread(values, scale, digits))
        rows.append(row)
    return table(*rows)


def study_trainings(figures: Figures) -> str:
    """What each model's trainings took, their accuracy, and the first one's command."""
    heads = ["weights", "trainings", "epochs", "hours of crops", "accuracy %"]
    rows, commands = [["model", *heads]], ""
    for model, runs in study_runs(figures).items():
        first = runs[0]
        accuracies = [
            mean(report["accuracy"] for report in run["identification"].values())
            for run in runs
        ]
        weights, hours = millions(first["weights"]), f"{first['hours']:.0f}"
        counts = str(len(runs)), str(first["epochs"])
        rows.append([model, weights, *counts, hours, spread(accuracies, 100, 1)])
        commands += f"{first['command']}\n"
    return f"{table(*rows)}\nThe first training of each:\n\n```bash\n{commands}```\n"


def excerpts(figures: Figures) -> str:
    """Speakers and utterances of each excerpt."""
    heads = "training speakers", "utterances", "test speakers", "utterances"
    rows = [["corpus", *heads]]
    for corpus, lines in sorted(figures["excerpts"].items()):
        row = [corpus]
        for splits in (("train", "validation"), ("test",)):
            names = [n for s, n in map(str.split, lines) if s in splits]
            pattern = r"(?:train/|test/)?(\w+)"
            speakers = {re.match(pattern, name)[1] for name in names}
            row += [f"{len(speakers):,}", f"{len(names):,}"]
        rows.append(row)
    return table(*rows)


def race(figures: Figures) -> str:
    """A table for the development speakers and one for the test's, best first."""

    def eers(runs: Sequence[Mapping]) -> list[float]:
        return [run["eer"]["last"] for run in runs]

    texts = []
    for phase, title in (("develop", "Development"), ("test", "Test")):
        recipes = figures["race"][phase].items()
        rows = [["recipe", "trainings", "EER %", "training accuracy %"]]
        for name, runs in sorted(recipes, key=lambda item: mean(eers(item[1]))):
            accuracy = percent(mean(run["accuracy"] for run in runs), 0)
            rows.append([name, str(len(runs)), spread(eers(runs), 1, 2), accuracy])
        texts.append(f"{title} speakers:\n\n{table(*rows)}")
    return "\n".join(texts)


def longer(figures: Figures) -> str:
    """Recipes in longer trainings."""
    conditions = "development", "development_in_noise", "test"
    rows = [["recipe", "hours", "trainings"]]
    for condition in ("development", "in noise", "test"):
        rows[0] += [f"{condition}: speechocean762", "Common Voice"]
    rows[0].append("training accuracy %")
    for training in figures["longer"]["trainings"]:
        reports = [training.get(condition, {}) for condition in conditions]
        eers = [percent(report.get(c), 2) for report in reports for c in CORPORA]
        counts = str(training["hours"]), str(training["trainings"])
        accuracy = percent(training["training_accuracy"], 0)
        rows.append([training["recipe"], *counts, *eers, accuracy])
    return table(*rows)


def ecapa(figures: Figures) -> str:
    """TitaNet-S beside ECAPA-TDNN, with intervals where the file has them."""
    rows = [["", "weights", "steps", *(f"{test}, EER %" for test in TESTS.values())]]
    for name, system in figures["ecapa"].items():
        limits = system.get("eer_interval", {})
        eers = [
            interval({"eer": eer, "eer_interval": limits.get(test)}, "eer")
            for test, eer in system["eer"].items()
        ]
        counts = millions(system["weights"]), f"{system['steps']:,}"
        rows.append([name, *counts, *eers])
    return table(*rows)


def robustness(figures: Figures) -> str:
    """Training with augmentation and without, tested with noise and without."""
    rows = [["", "as recorded, EER %", "in rooms with noise, EER %"]]
    for shown, run in (("with augmentation", "augmented"), ("without", "unaugmented")):
        eers = figures["robustness"][f"runs/{run}"]
        rows.append([shown, percent(eers["clean"]), percent(eers["degraded"])])
    return table(*rows)


def calibration(figures: Figures) -> str:
    """Calibrated scores, with AS-norm and without."""
    systems = figures["calibration"]["verification"]["test"]["systems"]
    rows = [["score", "Cllr", "false alarms at the threshold %"]]
    for shown, system in (("cosine", "trained"), ("AS-norm", "trained, AS-norm")):
        report = systems[system]
        rows.append([shown, f"{report['cllr']:.3f}", percent(report["false_alarm"])])
    return table(*rows)


# docs/evaluation.md


def few_people(figures: Figures) -> str:
    """False alarms at thresholds that were found on few people, in three ways."""
    measured = figures["few_people"]
    heads = "false alarms %: median", "worst", "misses %", "slope", "largest LLR"
    rows = [["prior", "people", *heads]]
    for shown, way in (
        ("none", "alone"),
        ("of an unknown encoder", "unknown"),
        ("the encoder's own", "own"),
    ):
        for count, found in measured[way].items():
            rates = "false_alarm", "worst_false_alarm", "miss"
            low, median, high = found["slope"]
            slopes = f"{median:.1f} ({low:.1f} to {high:.1f})"
            llrs = "{:.0f}, at worst {:.0f}".format(*found["largest_llr"])
            cells = [percent(found[rate]) for rate in rates]
            rows.append([shown, count, *cells, slopes, llrs])
    return table(*rows)


# docs/training.md, docs/reliability.md, docs/speed.md


def fine_tuning(figures: Figures) -> str:
    """EER before and after fine-tuning, and from scratch."""
    tests = "speechocean762", "Common Voice"
    rows = [["encoder", *(f"{test}, EER %" for test in tests)]]
    for system, eers in figures["fine-tuning"].items():
        rows.append([system, *(percent(eers.get(test)) for test in tests)])
    return table(*rows)


def soak(figures: Figures) -> str:
    """What `make soak` tried, and what happened."""
    report = figures["soak"]
    rows = [["what was tried", "how often", "what happened"]]
    for moment, count in sorted(report["kills"].items()):
        outcome = "went on; weights, optimizer, metrics and report equal to the bit"
        rows.append([f"SIGKILL: {moment}", str(count), outcome])
    for kind, counts in report["inputs"].items():
        outcome = (
            f"{counts['read']:,} read, {counts['refused']:,} refused in one line; the "
            f"slowest took {1000 * counts['slowest_seconds']:.0f} ms, peak memory grew "
            f"by {counts['growth_bytes'] / 1e6:.0f} MB"
        )
        rows.append([f"damaged files: {kind}", f"{counts['tried']:,}", outcome])
    for kind, tried in (
        ("hours", "six steps of TitaNet-S at batch 32 in 20 hours"),
        ("recording", "embedding a recording of 3 hours, miniature model"),
        ("utterances", "opening a pack of 200,000 utterances, and its first batch"),
    ):
        size, seconds = (report["large"][kind][of] for of in ("bytes", "seconds"))
        outcome = f"at most {size / 1e9:.1f} GB of its own memory, {seconds:.0f} s"
        rows.append([tried, "1", outcome])
    return table(*rows)


def passes(steps: Mapping[str, Any], *ways: str) -> str:
    """Return seconds of a pass by each way, the last of which is compared with."""
    names = {"eager": "eager float32", "nemo": "NeMo 2.7.3"}
    rows = [["", *(names.get(way, way) for way in ways)]]
    for size, found in steps.items():
        row = [f"TitaNet-{size}"]
        for way in ways:
            ratio = f" ({found['ratio'][way]:.2f})" if way != ways[-1] else ""
            row.append(f"{found['seconds'][way]:.2f} s{ratio}")
        rows.append(row)
    return table(*rows)


def train_step(figures: Figures) -> str:
    """A pass beside NeMo's."""
    return passes(figures["train_step"], "eager", "compiled", "nemo")


def train_step_zen5(figures: Figures) -> str:
    """The same on another processor."""
    return passes(figures["train_step_zen5"], "eager", "compiled", "nemo")


def bfloat16(figures: Figures) -> str:
    """A pass in bfloat16, and compiled, beside float32."""
    return passes(figures["bfloat16"], "bfloat16", "compiled", "eager")


def pipeline(figures: Figures) -> str:
    """From the pack to features, and by files."""
    rows = [["", "seconds of audio per second", "times file by file"]]
    report = figures["pipeline"]
    for way, shown in (
        ("plain", "without augmentation"),
        (
            "augmented",
            "with speed, reverberation and noise, each for half of the crops",
        ),
        ("file by file", "the same with torchaudio's functions, file by file"),
    ):
        ratio = f"{report['ratio_to_file_by_file'][way]:.0f}"
        rows.append([shown, f"{report['audio_seconds_per_second'][way]:,.0f}", ratio])
    return table(*rows)


def gpu(figures: Figures) -> str:
    """Whole training steps on a GPU."""
    heads = "batch", "seconds of audio per second", "share of the matrix peak %"
    rows = [["", *heads, "75 epochs", "first step"]]
    for name in ("s eager", "s compiled", "l compiled"):
        found = figures["gpu"][name]
        size, way = name.split()
        (batch,) = re.findall(r"batch_size=(\d+)", found["command"])
        speed = f"{found['audio_seconds_per_second']:,.0f}"
        share = percent(found["share_of_matrix_peak"])
        times = found["seconds_for_75_epochs"], found["first_seconds"]
        cells = batch, speed, share, *(f"{seconds:.0f} s" for seconds in times)
        rows.append([f"TitaNet-{size.upper()}, {way}", *cells])
    return table(*rows)


# docs/house.md


def imports(_: Figures) -> str:
    """Which rooms of `src` import from which."""
    return f"```\n{imports_by_room()}\n```\n"


# docs/results.md and init/titanet-s.md, in the wild

WILD = {
    "speechocean762": "speechocean762",
    "commonvoice": "Common Voice",
    "librispeech": "LibriSpeech test-other",
    "calls": "real calls",
}


def wild(figures: Figures) -> str:
    """EER of the released encoder, the one before it and two of other houses, and the
    released one's rates at its threshold, in each condition."""
    systems = figures["wild"]
    ours = next(iter(systems))
    head = ["test", "condition", *systems, "misses %", "false alarms %"]
    rows = [head]
    for corpus, shown in WILD.items():
        for condition, report in systems[ours]["tests"][corpus].items():
            found = [system["tests"].get(corpus, {}) for system in systems.values()]
            eers = [
                interval(tests[condition], "eer") if condition in tests else ""
                for tests in found
            ]
            rates = percent(report["miss"]), percent(report["false_alarm"])
            rows.append([shown, condition, *eers, *rates])
    return table(*rows)


def teachers(figures: Figures) -> str:
    """EER of development speakers for each way of training that was tried, as they are
    and with the mean of the set subtracted."""
    tried = figures["teachers"]["tried"]
    rows = [["", "hours of crops", *next(iter(tried.values()))["eer"]]]
    for name, run in tried.items():
        eers = [f"{plain} ({centred})" for plain, centred in run["eer"].values()]
        rows.append([name, str(run["hours"] or ""), *eers])
    return table(*rows)
