"""Make a finished run the released encoder, and measure it for its model card.

    python experiments/release.py make RUN init/titanet-s.pt
    python experiments/release.py measure init/titanet-s.pt assets/titanet-s.json
    python experiments/release.py draw init/titanet-s.pt assets/embeddings.png
    python experiments/release.py curves RUN assets/titanet-s-training.png

Run all in the folder that has the corpora below `data`, as init/titanet-s.yml names
them; LibriSpeech's test-other is tested too. `make` fits the calibrations on the
development speakers and stores weights in float16, without the optimizer. `measure`
evaluates the released file on each test, by language where Common Voice has enough
speakers, and without the one speaker whose removal lowers the EER most. `make docs`
then writes the model card's tables. `draw` draws the figure in README, `curves` the
training curves.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import Splits, UtteranceBatches, prepare
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from eval import evaluate_checkpoint, verify
from reports.figures import draw_curves
from reports.projections import draw_embeddings
from reports.tables import as_report, as_table, print_table
from runs.backend import Condition, embed_speech, fit_backend
from runs.checkpoints import load_model, save_checkpoint
from runs.run_directory import read_metrics
from runs.speaker_model import SpeakerModel, embed
from speech.audio import FULL_SCALE
from speech.surroundings import load_noise, load_responses
from tables import TESTS
from transforms import Noise, Reverberation, Telephone
from verification.metrics import equal_error_rate
from verification.records import Verification
from verification.scoring import cosine_scores
from verification.trials import make_trials
from voices import Voices

CPU = torch.device("cpu")
TEST_OTHER = (
    "dataset.name=librispeech",
    "dataset.root=data",
    "dataset.librispeech.train=[]",
    "dataset.librispeech.test=[test-other]",
)
MIN_SPEAKERS_OF_LANGUAGE = 8
SHORT_SECONDS = 2.0  # of a recording with little speech


def make(run: Path, released: Path) -> None:
    """Write the best model of a run with calibrations, in float16.

    They are fitted in all conditions, since one threshold serves recordings of unknown
    origin: on speech as recorded, over a telephone, in a room with noise, and on little
    of it.
    """
    model = load_model(run, CPU)
    parameters, rate = model.config, model.config.front_end.sample_rate
    splits = prepare(parameters.dataset, parameters.front_end)
    size = round(parameters.augmentation.reverberation.max_seconds * rate)
    room = Reverberation(1.0, load_responses(parameters, CPU), size)
    noise_ratios = parameters.augmentation.noise.snr_db
    noise = Noise(1.0, load_noise(parameters, CPU), noise_ratios)
    conditions = (
        embed_speech,
        speech_after(Telephone(1.0, rate)),
        speech_after(lambda waveform: noise(room(waveform))),
        speech_after(lambda waveform: waveform[:, : round(SHORT_SECONDS * rate)]),
    )
    fit_backend(model, splits, conditions)
    model.encoder.half()
    model.criterion.half()
    save_checkpoint(released, model)
    print(f"{released}: {released.stat().st_size / 1e6:.1f} MB")


def speech_after(change: Callable[[Tensor], Tensor]) -> Condition:
    """Return the condition in which each waveform [1, N] is changed, and of what comes
    the speech is embedded."""

    def condition(
        model: SpeakerModel, splits: Splits, indices: Sequence[int]
    ) -> tuple[Tensor, NDArray[np.float64]]:
        torch.manual_seed(1)
        entries, pieces, offset = list(splits.pack.entries), [], 0
        for index in indices:
            entry = entries[index]
            samples = splits.pack.samples[entry.offset :][: entry.samples]
            waveform = change(samples[None].float() / FULL_SCALE)[0]
            piece = (waveform * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1)
            entries[index] = replace(entry, offset=offset, samples=len(piece))
            pieces.append(piece.short())
            offset += len(piece)
        changed = replace(splits.pack, samples=torch.cat(pieces), entries=entries)
        return embed_speech(model, replace(splits, pack=changed), indices)

    return condition


def measure(released: Path, figures: Path) -> None:
    """Write how the released encoder does on each test."""
    reports: dict[str, Any] = {"encoder": Voices.load(released).digest}
    for name, overrides in (("mixture", ()), ("librispeech", TEST_OTHER)):
        evaluation = evaluate_checkpoint(released, overrides)
        print_table(as_table(evaluation))
        reports[name] = as_report(evaluation)
        if name == "mixture":
            chosen = load_model(released, CPU).config
            splits = prepare(chosen.dataset, chosen.front_end)
            tests = evaluation.verification
            reports["languages"] = by_language(tests["test/commonvoice"], splits)
            reports["without_one"] = {
                test: without_one(tests[test], splits)
                for test in TESTS
                if test in tests
            }
        figures.write_text(json.dumps(reports, indent=2))


def without_one(test: Verification, splits: Splits) -> dict[str, str | float]:
    """Return the speaker whose absence lowers the EER most, and the EER without."""
    trials, scores = test.trials, test.scores["trained"]
    speakers = np.array(splits.speakers_of(test.indices))
    eers = {}
    for speaker in np.unique(speakers).tolist():
        others = speakers != speaker
        chosen = others[trials.enrolment] & others[trials.test]
        eers[speaker] = equal_error_rate(scores[chosen], trials.targets[chosen])
    speaker = min(eers, key=eers.__getitem__)
    return {"speaker": speaker, "eer": eers[speaker]}


def by_language(test: Verification, splits: Splits) -> dict[str, dict]:
    """Return reports of Common Voice's trials within a language that has enough
    speakers."""
    with Path("data/commonvoice/speakers.csv").open(encoding="utf-8") as file:
        languages = {row["speaker"]: row["language"] for row in csv.DictReader(file)}
    speakers = splits.speakers_of(splits.by_corpus("test")["test/commonvoice"])
    of_speaker = {s: languages[s.rpartition("/")[2]] for s in set(speakers)}
    of_utterance = np.array([of_speaker[s] for s in speakers])
    reports = {}
    for language, count in Counter(of_speaker.values()).most_common():
        if count < MIN_SPEAKERS_OF_LANGUAGE:
            break
        spoken = of_utterance == language
        mask = spoken[test.trials.enrolment] & spoken[test.trials.test]
        scores, trials = test.scores["trained"][mask], test.trials.where(mask)
        evaluation = load_parameters(SHIPPED).evaluation
        report = asdict(verify(scores, trials, evaluation, speakers))
        reports[language] = {"speakers": count, **report}
    return reports


def draw(released: Path, figure: Path) -> None:
    """Draw the embeddings of speechocean762's test speakers, with their EER."""
    model = load_model(released, CPU).eval()
    splits = prepare(model.config.dataset, model.config.front_end)
    indices = splits.by_corpus("test")["test/speechocean762"]
    speakers = [s.rpartition("/")[2] for s in splits.speakers_of(indices)]
    seconds = model.config.evaluation.batch_seconds
    embeddings = embed(model, UtteranceBatches(splits.pack, indices, seconds, CPU))
    trials = make_trials(speakers, model.config.evaluation.max_trials, seed=1)
    eer = equal_error_rate(cosine_scores(embeddings, trials), trials.targets)
    title = f"speechocean762, never heard in training, EER {eer:.1%}"
    systems = {"TitaNet-S": embeddings.numpy()}
    draw_embeddings(systems, speakers, title, model.config.seed).savefig(figure)
    shown = json.dumps({"encoder": Voices.load(released).digest})
    figure.with_suffix(".json").write_text(f"{shown}\n")


def curves(run: Path, figure: Path) -> None:
    """Draw loss and accuracy of the training."""
    draw_curves({"released encoder": read_metrics(run)}).savefig(figure)


COMMANDS = {f.__name__: f for f in (make, measure, draw, curves)}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("source", type=Path, help="a run or the released encoder")
    parser.add_argument("target", type=Path, help="what is written")
    options = parser.parse_args()
    return run_command(
        lambda: COMMANDS[options.command](options.source, options.target)
    )


if __name__ == "__main__":
    sys.exit(main())
