"""Measure how many people fine-tuning needs: EER before, after, and from scratch.

    python experiments/fine_tune.py WORK

Run it in the folder that has the corpora below `data`, as init/titanet-s.yml names
them. It trains an encoder on Common Voice and LibriSpeech, and fine-tunes it with
init/fine-tune.yml on 10, 40 and 125 training speakers of speechocean762; three quarters
of each epoch are from the old corpora. It also trains on those speakers alone from
scratch, for as many steps. All are tested on the test speakers of speechocean762 and,
to see what tuning forgets, of Common Voice. Runs already in WORK are not repeated.
Writes `assets/fine-tuning.json`; `make docs` tabulates it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import prepare
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from eval import evaluate_checkpoint
from reports.tables import as_report
from runs.checkpoints import load_model
from teaching.studies import train_once

HOME = SHIPPED.parent
INIT = HOME / "init"
NEW_CORPUS = Path("data/speechocean762")
SPEAKER_COUNTS = (10, 40, 125)
NEW_CROPS = 64 * 40  # of the new corpus in an epoch
OLD_CROPS_PER_NEW = 3
TUNING_EPOCHS = 2
FIRST_EPOCHS = 2  # of the encoder that is tuned
SEED = 0
TEST_NAMES = {  # "test" is that of a corpus alone
    "test": "speechocean762",
    "test/own": "speechocean762",
    "test/commonvoice": "Common Voice",
}


def make_folder(folder: Path, count: int) -> int:
    """Link `count` training speakers and all test speakers; return the number of
    training utterances."""
    speakers = sorted((NEW_CORPUS / "train").iterdir())
    chosen = np.random.default_rng(SEED).permutation(len(speakers))[:count]
    for speaker in (*(speakers[i] for i in chosen), *(NEW_CORPUS / "test").iterdir()):
        link = folder / speaker.relative_to(NEW_CORPUS)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(speaker.resolve())
    return sum(len(list(s.iterdir())) for s in (folder / "train").iterdir())


def train(work: Path, name: str, corpora: list[dict], *overrides: str) -> Path:
    """Train on a mixture by init/titanet-s.yml, or tune by init/fine-tune.yml."""
    recipe = "fine-tune.yml" if name.startswith("tuned") else "titanet-s.yml"
    mixture = work / f"{name}.yml"
    mixture.write_text(yaml.safe_dump({"dataset": {"mixture": corpora}}))
    layers = [SHIPPED, INIT / recipe, mixture]
    fixed = [
        f"run.directory={work}",
        f"run.name={name}",
        "wandb.mode=disabled",
        "dataset.validation_fraction=0",
        "dataset.test_fraction=0",
        "evaluation.num_resamples=1",
    ]
    return train_once(load_parameters(*layers, overrides=[*fixed, *overrides]))


def measure(work: Path) -> dict[str, dict[str, float]]:
    """Train every encoder, and return EERs by system and test."""
    work.mkdir(parents=True, exist_ok=True)
    recipe = load_parameters(SHIPPED, INIT / "titanet-s.yml").as_dict()
    mixed = [c for c in recipe["dataset"]["mixture"] if c["label"] != NEW_CORPUS.name]
    before = train(work, "before", mixed, f"training.epochs={FIRST_EPOCHS}")
    chosen = load_model(before, torch.device("cpu")).config
    splits = prepare(chosen.dataset, chosen.front_end)
    num_old = len(splits.train)
    eers_of = {}
    for count in SPEAKER_COUNTS:
        folder = work / f"people-{count}"
        num_new = make_folder(folder, count)
        recordings = {"label": "own", "name": "folder", "root": str(folder)}
        if not eers_of:
            evaluation = evaluate_checkpoint(
                before, ["dataset.name=folder", f"dataset.root={folder}"]
            )
            eers_of["before"] = eers(as_report(evaluation)) | eers(read_report(before))
        tuned = [
            recordings | {"weight": NEW_CROPS / num_new},
            *(
                corpus | {"weight": OLD_CROPS_PER_NEW * NEW_CROPS / num_old}
                for corpus in mixed
            ),
        ]
        short = f"training.epochs={TUNING_EPOCHS}", "training.batch_size=64"
        start = f"training.init_from={before}"
        run = train(work, f"tuned-{count}", tuned, *short, start)
        eers_of[f"tuned on {count}"] = eers(read_report(run))
        alone = [recordings | {"weight": (1 + OLD_CROPS_PER_NEW) * NEW_CROPS / num_new}]
        run = train(work, f"scratch-{count}", alone, *short)
        eers_of[f"from scratch on {count}"] = eers(read_report(run))
    return eers_of


def read_report(run: Path) -> dict:
    """Return a finished run's report."""
    return json.loads((run / "report.json").read_text())


def eers(report: dict) -> dict[str, float]:
    """Return the trained system's EER on each test that the table shows."""
    return {
        TEST_NAMES[test]: of_test["systems"]["trained"]["eer"]
        for test, of_test in report["verification"].items()
        if test in TEST_NAMES
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK", help="a folder for runs")
    options = parser.parse_args()

    def command() -> None:
        eers = json.dumps(measure(options.work), indent=1)
        (HOME / "assets" / "fine-tuning.json").write_text(f"{eers}\n")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
