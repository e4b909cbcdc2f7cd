"""README and docs say what the committed results say; their commands are understood."""

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from conftest import REPOSITORY
from engine.parameter_files import SHIPPED, load_parameters, parse_yaml
from recognition.verdicts import Candidate, Comparison, Identification, Threshold
from runs.checkpoints import load_checkpoint

sys.path.insert(0, str(REPOSITORY / "experiments"))
import fine_tune
import race
import release
import soak
import study
from blocks import DOCS, split_at_block

ASSETS = REPOSITORY / "assets"
README = REPOSITORY / "README.md"
CARD = REPOSITORY / "init" / "titanet-s.md"
DOCUMENTS = [README, CARD, *sorted(DOCS.glob("*.md"))]


def results(name: str) -> dict:
    return json.loads((ASSETS / f"{name}.json").read_text())


def sentences(document: str) -> str:
    return " ".join((DOCS / f"{document}.md").read_text().split())


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.stem)
def document(request) -> Path:
    return request.param


def test_readme_is_short():
    assert len(README.read_text().split()) <= 1200


def test_commands_are_understood(document):
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if "src/train.py -p" in line):
        words = shlex.split(line)
        files = [REPOSITORY / word for word in words if word.endswith(".yml")]
        values = [w for w in words if "=" in w and "$" not in w and "{" not in w]
        load_parameters(*files, overrides=values)


def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_figure_is_shown():
    text = "".join(path.read_text() for path in DOCUMENTS)
    shown = set(re.findall(r"\]\((?:\.\./)?assets/([\w-]+\.(?:png|jpg))\)", text))
    pictures = {".png", ".jpg"}
    assert shown == {p.name for p in ASSETS.iterdir() if p.suffix in pictures}


def test_readme_leads_to_every_document():
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", README.read_text()))
    assert linked == {path.name for path in DOCS.glob("*.md")}


def test_the_map_names_every_room():
    files = {path.name for path in (REPOSITORY / "src").glob("*.py")}
    folders = {f"{path.parent.name}/" for path in REPOSITORY.glob("src/*/__init__.py")}
    _, _, table = README.read_text().partition("## What is in `src`")
    named = set(re.findall(r"`(\w+(?:\.py|/))`", table.partition("\n## ")[0]))
    assert named == files | folders


def test_the_race_is_as_it_was_run():
    records = race.read_records(ASSETS / "race.jsonl")
    assert split_at_block(DOCS / "results.md", "race.py")[1] == race.table(records)


def test_longer_trainings():
    text = (DOCS / "results.md").read_text()
    for training in results("longer")["trainings"]:
        eers = [
            f"{100 * training[part][corpus]:.2f}"
            for part in ("development", "test")
            for corpus in ("speechocean762", "commonvoice")
        ]
        accuracy = f"{100 * training['training_accuracy']:.0f} %"
        counts = str(training["hours"]), str(training["trainings"])
        row = training["recipe"], *counts, *eers, accuracy
        assert f"| {' | '.join(row)} |\n" in text


def test_the_model_card_is_as_measured():
    written = split_at_block(REPOSITORY / "init" / "titanet-s.md", "release.py")[1]
    assert written == release.as_markdown(results("titanet-s"))


def test_fine_tuning():
    written = split_at_block(DOCS / "training.md", "fine_tune.py")[1]
    assert written == fine_tune.as_markdown(results("fine-tuning"))


def test_the_speaker_who_weighs_most():
    card = " ".join(CARD.read_text().split())
    tests = results("titanet-s")["without_one"].values()
    first, second = (f"{100 * test['eer']:.2f} % on" for test in tests)
    assert f"it is {first} speechocean762 and {second} Common Voice" in card


def leaves(values: dict, name: str = "") -> dict:
    """Dotted name -> value of nested values."""
    found = {}
    for key, value in values.items():
        more = isinstance(value, dict)
        found |= leaves(value, f"{name}{key}.") if more else {f"{name}{key}": value}
    return found


def test_the_training_of_the_released_encoder():
    card = " ".join((REPOSITORY / "init" / "titanet-s.md").read_text().split())
    *_, last = race.read_records(ASSETS / "titanet-s-training.jsonl")
    hours, minutes = last["spent/audio_seconds"] / 3600, last["spent/seconds"] / 60
    assert f"heard {hours:.0f} hours of crops in {last['step']:,} steps" in card
    assert f"accuracy was {100 * last['train/accuracy']:.0f} % in the end" in card
    assert "took three and a half minutes" in card
    assert round(2 * minutes) == 7
    readme = " ".join(README.read_text().split())
    assert f"trained in {60 * minutes:.0f} s on one NVIDIA H200" in readme


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("titanet-s.pt", ["titanet-s.yml"]),
        ("titanet-s-telephone.pt", ["titanet-s.yml", "telephone.yml"]),
    ],
)
def test_the_recipe_is_that_of_the_released_encoder(name, files):
    paths = [REPOSITORY / "init" / file for file in files]
    released = load_checkpoint(REPOSITORY / "init" / name)["parameters"]
    recipe = leaves(load_parameters(SHIPPED, *paths).as_dict())
    for path in paths:
        for key in leaves(parse_yaml(path.read_text(), str(path))):
            assert leaves(released)[key] == recipe[key]


def test_telephones():
    text, found = sentences("results"), results("telephone")
    for system, name in (
        ("released encoder", "titanet-s"),
        ("telephone encoder", "titanet-s-telephone"),
    ):
        eers = [
            f"{found[f'init/{name}.pt test/{corpus}'][condition]:.1%}"
            for corpus in ("speechocean762", "commonvoice")
            for condition in ("clean", "telephone")
        ]
        assert f"| {system} | {' | '.join(eers)} |" in text


def test_ecapa_is_as_measured():
    text = (DOCS / "results.md").read_text()
    for name, system in results("ecapa").items():
        eers = [f"{100 * system['eer'][test]:.1f}" for test in release.TESTS.values()]
        about = f"{system['weights'] / 1e6:.2f} M | {system['steps']:,}"
        assert f"| {name} | {about} | {' | '.join(eers)} |\n" in text


def test_gpu_speed_is_as_measured():
    text = (DOCS / "speed.md").read_text()
    for key, name in (
        ("s eager", "TitaNet-S, eager"),
        ("s compiled", "TitaNet-S, compiled"),
        ("l compiled", "TitaNet-L, compiled"),
    ):
        found = results("gpu")[key]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert row.split(" | ")[2:] == [
            f"{found['audio_seconds_per_second']:,.0f}",
            f"{found['share_of_matrix_peak']:.1%}".replace("%", " %"),
            f"{found['seconds_for_75_epochs']:.0f} s",
            f"{found['first_seconds']:.0f} s |",
        ]


def test_results_are_those_of_the_study():
    written = split_at_block(DOCS / "results.md", "study.py")[1]
    assert written == study.as_markdown(results("results"), results("titanet-s"))


def percent(report: dict, name: str) -> str:
    bounds = report[f"{name}_interval"]
    low, high = bounds.values() if isinstance(bounds, dict) else bounds
    return f"{report[name]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def test_the_released_encoder_is_as_measured():
    text, found = " ".join(README.read_text().split()), results("titanet-s")
    for name, test in release.TESTS.items():
        where = "librispeech" if name == "test" else "mixture"
        systems = found[where]["verification"][name]["systems"]
        trained = systems["trained"]
        references = systems["untrained"], systems["mean log-mel"]
        eers = [percent(report, "eer") for report in (trained, *references)]
        assert f"| {test} ({trained['num_speakers']}) | {' | '.join(eers)} |" in text
        miss, false_alarm = f"{trained['miss']:.1%}", f"{trained['false_alarm']:.1%}"
        assert f"| {test} | {miss} | {false_alarm} |" in sentences("voices")
        if test == "Common Voice":
            assert f"accepts {false_alarm.replace('%', ' %')} of the pairs" in text
            assert f"rejects {miss.replace('%', ' %')} of the pairs" in text


def test_identification_is_as_measured():
    text, found = sentences("voices"), results("open_set")
    shares = []
    for row, name in (
        ("one recording", "one clip"),
        ("three recordings", "three clips, mean direction"),
    ):
        system = found["identification"]["systems"][name]
        rates = system["identify"]
        rates["identified_interval"] = rates["interval"]
        identified, wrong = percent(rates, "identified"), percent(rates, "false_alarm")
        assert f"| {row} | {identified} | {wrong} |" in text
        shares.append(f"{100 * system['0.05']['identified']:.1f} %")
    assert f"identifies {' and '.join(shares)}." in text
    for row, name in (("the encoder's", "encoder"), ("their own", "own")):
        rates = found["calibration"][name]
        miss, false_alarm = percent(rates, "miss"), percent(rates, "false_alarm")
        assert f"| {row} | {miss} | {false_alarm} |" in text


def test_turns_are_as_measured():
    text, found = sentences("voices"), results("turns")

    def share(whose: str, kind: str) -> str:
        low, high = found[whose][kind]["interval"]
        share = found[whose][kind]["share"]
        return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    assert f"In {found['num_recordings']} recordings made of clips" in text
    assert f"gave {share('enrolled', 'right')} of the enrolled people's" in text
    unknown, other = share("enrolled", "unknown"), share("enrolled", "other")
    assert f"{unknown} to `unknown` and {other} to another" in text
    assert f"gave {share('stranger', 'unknown')} to `unknown`" in text


def test_onnx_is_as_measured():
    text, found = sentences("voices"), results("onnx")
    sherpa, speed = found["sherpa"], found["speed"]
    assert f"was {found['largest_difference']:.1e} between" in text
    assert f"{1 - found['smallest_cosine']:.1e} in cosine" in text
    ratios = "{:.2f} of torch's time for one second of speech, {:.2f} for 3 s, {:.2f} "
    ratios += "for 10 s, and {:.2f} for 16 recordings of 3 s"
    assert ratios.format(*(one["ratio"] for one in speed.values())) in text
    assert f"over {sherpa['num_clips']} clips" in text
    assert f"of a clip is {sherpa['mean_cosine']:.3f}" in text
    eers = (100 * sherpa[name] for name in ("eer", "own_eer"))
    assert "EER is {:.1f} % instead of {:.1f} %".format(*eers) in text


def test_reliability_is_that_of_the_soak():
    found = results("soak")
    written = split_at_block(DOCS / "reliability.md", "soak.py")[1]
    assert written == soak.as_markdown(found)
    assert sum(found["kills"].values()) >= 50
    assert len(found["kills"]) == 4
    assert sum(kind["tried"] for kind in found["inputs"].values()) >= 20_000


def test_verdicts():
    def again(kind: type, record: dict) -> str:
        record["threshold"] = Threshold(**record["threshold"])
        record["nearest"] = [Candidate(**one) for one in record.get("nearest", [])]
        return str(kind(**{field.name: record[field.name] for field in fields(kind)}))

    found, text = results("voices"), (DOCS / "voices.md").read_text().splitlines()
    compared = [again(Comparison, record) for record in found["compare"]]
    identified = [again(Identification, record) for record in found["identify"]]
    assert set(compared + identified) <= set(text)
    assert compared[0] in README.read_text().splitlines()


def test_robustness():
    text, found = sentences("results"), results("robustness")
    for name, run in (("with augmentation", "augmented"), ("without", "unaugmented")):
        eers = found[f"runs/{run}"]
        row = f"| {name} | {eers['clean']:.1%} | {eers['degraded']:.1%} |"
        assert row in text


def test_calibration():
    found = results("calibration")["verification"]
    text = sentences("results")
    for name, system in (("cosine", "trained"), ("AS-norm", "trained, AS-norm")):
        report = found["test"]["systems"][system]
        assert (
            f"| {name} | {report['cllr']:.3f} | {report['false_alarm']:.1%} |" in text
        )
    fitted, tested = (
        found[split]["systems"]["trained"]["num_speakers"]
        for split in ("development", "test")
    )
    assert f"on {fitted} development speakers" in text
    assert f"tested on {tested} others" in text


def test_speed_of_a_pass():
    text, steps = sentences("speed"), results("train_step")
    for size, found in (*steps.items(), *results("train_step_zen5").items()):
        seconds, ratio = found["seconds"], found["ratio"]
        assert (
            f"| TitaNet-{size} | {seconds['eager']:.2f} s, {ratio['eager']:.2f} of "
            f"NeMo's time | {seconds['compiled']:.2f} s, {ratio['compiled']:.2f} | "
            f"{seconds['nemo']:.2f} s |"
        ) in text
    rows = [
        f"| TitaNet-{size} | {found['seconds']['eager']:.2f} s | "
        f"{found['seconds']['bfloat16']:.2f} s, {found['ratio']['bfloat16']:.2f}"
        for size, found in results("bfloat16").items()
    ]
    assert all(row in text for row in rows)
    most = max(found["largest_difference"] for found in steps.values())
    assert f"differ by at most {most:.2e}." in text
    first = [steps[size]["first_seconds"]["compiled"] for size in ("S", "L")]
    assert "takes {:.0f} s (S) to {:.0f} s (L)".format(*first) in text
    gains = sorted(
        1 - found["seconds"]["compiled"] / found["seconds"]["eager"]
        for found in steps.values()
    )
    assert f"gain {100 * gains[0]:.0f} to {100 * gains[-1]:.0f} %" in text


def test_speed_of_embedding():
    found, text = results("embed"), sentences("speed")
    speed = found["audio_seconds_per_second"]["ours"]
    assert f"at {speed:.0f} seconds of audio per second" in text
    assert f"{found['times_nemos_speed']:.1f} times as fast as NeMo's" in text


def test_speed_of_the_pipeline():
    found, text = results("pipeline"), sentences("speed")
    for speed in found["audio_seconds_per_second"].values():
        assert f" | {speed:,.0f} |" in text
    ratio = found["ratio_to_file_by_file"]["augmented"]
    assert f"The second is {ratio:.0f} times as fast as the third" in text
    for part, share in found["shares"].items():
        assert re.search(rf"{part}[\w ]* \({100 * share:.0f} %\)", text), part


def test_installation():
    found = results("install")
    sizes = [found[f"{place}_bytes"] / 1e9 for place in ("download", "disk")]
    short = "({:.1f} GB to download, {:.1f} GB on the disk)"
    assert short.format(*sizes) in README.read_text()
    text = sentences("training")
    assert "downloads {:.1f} GB and takes {:.1f} GB".format(*sizes) in text
    assert f"took {found['seconds'] / 60:.0f} minutes" in text


def test_memory():
    size = results("soak")["large"]["hours"]["bytes"]
    assert f"takes {size / 1e9:.1f} GB of memory" in sentences("speed")
