"""A finished run as the released encoder, and the figures of its model card.

    python experiments/release.py make RUN init/titanet-s.pt
    python experiments/release.py measure init/titanet-s.pt assets/titanet-s.json

Both read the corpora of the run below `data`, as init/titanet-s.yml names them; of
LibriSpeech test-other is tested too. `make` fits the calibrations on the development
speakers and keeps weights in float16, without the optimizer. `measure` evaluates the
file that was made on each test, and by language where Common Voice has speakers enough.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from checkpoints import load_model, save_checkpoint
from dataset import Splits, prepare
from eval import evaluate_checkpoint, fit_backend, verify
from parameters import (
    SHIPPED,
    UserError,
    load_parameters,
)
from report import Verification, as_report, as_table, print_table

CPU = torch.device("cpu")
TEST_OTHER = (
    "dataset.name=librispeech",
    "dataset.root=data",
    "dataset.librispeech.train=[]",
    "dataset.librispeech.test=[test-other]",
)
FEW = 8  # speakers, of a language that is left out


def make(run: Path, released: Path) -> None:
    """Write the best model of a run as it is released."""
    model = load_model(run, CPU)
    model.backend = fit_backend(model, prepare(model.config))
    model.encoder.half()
    model.criterion.half()
    save_checkpoint(released, model)
    print(f"{released}: {released.stat().st_size / 1e6:.1f} MB")


def measure(released: Path, figures: Path) -> None:
    """Write what the released encoder does on each test."""
    found = {}
    for name, overrides in (("mixture", ()), ("librispeech", TEST_OTHER)):
        evaluation = evaluate_checkpoint(released, overrides)
        print_table(as_table(evaluation))
        found[name] = as_report(evaluation)
        if name == "mixture":
            splits = prepare(load_model(released, CPU).config)
            test = evaluation.verification["test/commonvoice"]
            found["languages"] = by_language(test, splits)
        figures.write_text(json.dumps(found, indent=2))


def by_language(test: Verification, splits: Splits) -> dict[str, dict]:
    """Common Voice's trials of two speakers of one language, where it has enough."""
    with Path("data/commonvoice/speakers.csv").open(encoding="utf-8") as file:
        languages = {row["speaker"]: row["language"] for row in csv.DictReader(file)}
    speakers = splits.speakers_of(splits.by_corpus("test")["test/commonvoice"])
    of_speaker = {s: languages[s.rpartition("/")[2]] for s in set(speakers)}
    of_utterance = np.array([of_speaker[s] for s in speakers])
    found = {}
    for language, count in Counter(of_speaker.values()).most_common():
        if count < FEW:
            break
        spoken = of_utterance == language
        mask = spoken[test.trials.enrolment] & spoken[test.trials.test]
        scores, trials = test.scores["trained"][mask], test.trials.where(mask)
        p = load_parameters(SHIPPED).evaluation
        report = asdict(verify(scores, trials, p, speakers))
        found[language] = {"speakers": count, **report}
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=["make", "measure"])
    parser.add_argument("source", type=Path, help="a run, or the released encoder")
    parser.add_argument("target", type=Path, help="what is written")
    options = parser.parse_args()
    try:
        {"make": make, "measure": measure}[options.command](
            options.source, options.target
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
