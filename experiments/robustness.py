"""Measure the EER of runs on test speakers as recorded, degraded, and over a telephone.

    python experiments/robustness.py RUN [RUN ...] [key=value ...] > EERS.json

Degraded, every test utterance is put into a room and gets noise at 5 dB, both of the
recordings that `augmentation.reverberation.held_out` and `augmentation.noise.held_out`
keep out of training; where they keep none, this is left out. Over a telephone it has
the band and the coding of `augmentation.telephone`. All runs hear the same. Prints the
EERs of each run and corpus as JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import UtteranceBatches, prepare
from engine.devices import choose_device
from engine.parameter_files import check_parameters, override_values
from errors import run_command
from parameters import Parameters
from runs.backend import make_split_trials
from runs.checkpoints import load_model
from runs.speaker_model import SpeakerModel, embed
from speech.surroundings import load_noise, load_responses
from transforms import Noise, Reverberation, Telephone
from verification.metrics import equal_error_rate
from verification.scoring import cosine_scores
from voices import Voices

SNR_DB = 5.0


def hearing(model: SpeakerModel, change: Callable[[Tensor], Tensor]) -> Callable:
    """Return the model with a change of every utterance before it."""

    def embeddings(waveforms: Tensor, lengths: Tensor) -> Tensor:
        heard = torch.zeros_like(waveforms)
        for row, length in enumerate(lengths.tolist()):
            heard[row, :length] = change(waveforms[row : row + 1, :length])
        return model(heard, lengths)

    return embeddings


def in_a_noisy_room(parameters: Parameters, device: torch.device) -> Callable:
    """Return the change by a room and noise that training never uses."""
    max_seconds = parameters.augmentation.reverberation.max_seconds
    size = round(max_seconds * parameters.front_end.sample_rate)
    room = Reverberation(1.0, load_responses(parameters, device, held_out=True), size)
    noise = Noise(1.0, load_noise(parameters, device, held_out=True), (SNR_DB, SNR_DB))
    return lambda waveforms: noise(room(waveforms))


def measure(run: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Return EERs of a run's best checkpoint on each corpus, by what it hears, and the
    digest of its encoder."""
    model = load_model(run, torch.device("cpu"))
    values = override_values(model.config.as_dict(), overrides)
    parameters = check_parameters(values)
    device = choose_device(parameters.training, parameters.model)
    model = model.to(device).eval()
    splits = prepare(parameters.dataset, parameters.front_end)
    trials = make_split_trials(splits, parameters.dataset, parameters.evaluation)
    telephone = Telephone(1.0, parameters.front_end.sample_rate)
    models = {"clean": model, "telephone": hearing(model, telephone)}
    augmentation = parameters.augmentation
    if augmentation.reverberation.held_out and augmentation.noise.held_out:
        models["degraded"] = hearing(model, in_a_noisy_room(parameters, device))
    eers: dict[str, dict[str, Any]] = {}
    digest = Voices(model).digest
    tests, seconds = splits.by_corpus("test"), parameters.evaluation.batch_seconds
    for name, indices in tests.items():
        batches = UtteranceBatches(splits.pack, indices, seconds, device)
        targets = trials[name].targets
        key = f"{run} {name}" if len(tests) > 1 else str(run)
        eers[key] = {"encoder": digest}
        for condition, heard in models.items():
            torch.manual_seed(parameters.seed)
            scores = cosine_scores(embed(heard, batches), trials[name])
            eers[key][condition] = equal_error_rate(scores, targets)
    return eers


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("arguments", nargs="+", metavar="RUN or key=value")
    arguments = parser.parse_args().arguments
    overrides = [argument for argument in arguments if "=" in argument]
    runs = [Path(argument) for argument in arguments if "=" not in argument]

    def command() -> None:
        eers: dict[str, dict[str, Any]] = {}
        for run in runs:
            eers |= measure(run, overrides)
        print(json.dumps(eers, indent=1))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
