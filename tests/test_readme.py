"""README says what the committed results say."""

import json
import re
import sys

import pytest

from conftest import REPOSITORY
from parameters import load_parameters

sys.path.insert(0, str(REPOSITORY / "experiments"))
import soak
import study
from readme import split_at_block

ASSETS = REPOSITORY / "assets"


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def results(name: str) -> dict:
    return json.loads((ASSETS / f"{name}.json").read_text())


def sentences(readme: str) -> str:
    return " ".join(readme.split())


def test_results_are_those_of_the_study():
    assert split_at_block("study.py")[1] == study.as_markdown(results("results"))


def test_reliability_is_that_of_the_soak():
    found = results("soak")
    assert split_at_block("soak.py")[1] == soak.as_markdown(found)
    assert sum(found["kills"].values()) >= 50
    assert len(found["kills"]) == 4
    assert sum(kind["tried"] for kind in found["inputs"].values()) >= 20_000


def test_commands_of_the_results_are_understood(readme):
    commands = re.findall(r"^python src/train\.py (-p .*)$", readme, re.MULTILINE)
    assert len(commands) >= len(study.RUNS)
    for words in (command.split() for command in commands):
        files = [REPOSITORY / w for w in words if w.endswith(".yml")]
        overrides = [w for w in words if "=" in w and "$" not in w and "{" not in w]
        load_parameters(*files, overrides=[o for o in overrides if "DATA" not in o])


def test_every_figure_is_there_and_shown(readme):
    shown = set(re.findall(r"\]\(assets/([\w-]+\.png)\)", readme))
    assert shown == {path.name for path in ASSETS.glob("*.png")}


def test_the_map_names_every_module(readme):
    modules = {path.name for path in (REPOSITORY / "src").glob("*.py")}
    _, _, table = readme.partition("## What is in `src`")
    assert set(re.findall(r"`(\w+\.py)`", table.partition("\n## ")[0])) == modules


def test_robustness(readme):
    found = results("robustness")
    augmented, plain = found["runs/augmented"], found["runs/unaugmented"]
    text = sentences(readme)
    noisy = [100 * eers["degraded"] for eers in (augmented, plain)]
    assert "the EER there is {:.1f} %, without any {:.1f} %".format(*noisy) in text
    clean = [100 * eers["clean"] for eers in (augmented, plain)]
    assert "As recorded it is {:.1f} % with, {:.1f} % without".format(*clean) in text


def test_calibration(readme):
    systems = results("calibration")["verification"]["test"]["systems"]
    plain, normalised = systems["trained"], systems["trained, AS-norm"]
    text = sentences(readme)
    assert f"Cllr of the test is {plain['cllr']:.3f}, and" in text
    assert f"and {normalised['cllr']:.3f} of normalised scores" in text
    assert f"lets {100 * plain['false_alarm']:.1f} % through" in text
    assert f"of normalised scores {100 * normalised['false_alarm']:.1f} %" in text


def test_speed_of_a_pass(readme):
    for size, found in results("train_step").items():
        seconds, ratio = found["seconds"], found["ratio"]
        assert (
            f"| TitaNet-{size} | {seconds['eager']:.2f} s, {ratio['eager']:.2f} of "
            f"NeMo's time | {seconds['compiled']:.2f} s, {ratio['compiled']:.2f} | "
            f"{seconds['nemo']:.2f} s |"
        ) in readme
    most = max(one["largest_difference"] for one in results("train_step").values())
    assert f"differ by at most {most:.2e} between" in sentences(readme)


def test_speed_of_embedding(readme):
    found, text = results("embed"), sentences(readme)
    speed = found["audio_seconds_per_second"]["ours"]
    assert f"embedded at {speed:.0f} audio-seconds a second" in text
    assert f"{found['times_nemos_speed']:.1f} times what NeMo's" in text


def test_speed_of_the_pipeline(readme):
    found, text = results("pipeline"), sentences(readme)
    speed, ratio = found["audio_seconds_per_second"], found["ratio_to_file_by_file"]
    assert f"prepare {speed['plain']:,.0f} audio-seconds a second" in text
    assert f"and {speed['augmented']:,.0f} with all three" in text
    assert f": {ratio['plain']:.0f} and {ratio['augmented']:.0f} times a loop" in text
    for part, share in found["shares"].items():
        assert f"{100 * share:.0f} %" in text, part
