"""EER on a run's test speakers, as recorded and with rooms and noise added.

    python experiments/robustness.py RUN [RUN ...] [key=value ...]

Every test utterance is put into a room and gets noise at 5 dB, both of the recordings
that `augmentation.reverberation.held_out` and `augmentation.noise.held_out` keep out of
training; all runs hear the same.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from checkpoints import SpeakerModel, choose_device, load_model
from dataset import UtteranceBatches, prepare
from eval import embed, make_split_trials
from metrics import equal_error_rate
from parameters import Parameters, UserError, check_parameters, override_values
from report import print_table
from scoring import cosine_scores
from transforms import Noise, Reverberation, load_noise, load_responses

SNR_DB = 5.0


def degraded(model: SpeakerModel, p: Parameters) -> Callable:
    """The model, hearing every utterance in a room with noise."""
    size = round(p.augmentation.reverberation.max_seconds * p.front_end.sample_rate)
    room = Reverberation(1.0, load_responses(p, model.device, held_out=True), size)
    noise = Noise(1.0, load_noise(p, model.device, held_out=True), (SNR_DB, SNR_DB))
    torch.manual_seed(p.seed)

    def embeddings(waveforms: Tensor, lengths: Tensor) -> Tensor:
        heard = torch.zeros_like(waveforms)
        for row, length in enumerate(lengths.tolist()):
            heard[row, :length] = noise(room(waveforms[row : row + 1, :length]))
        return model(heard, lengths)

    return embeddings


def measure(run: Path, overrides: list[str]) -> dict[str, float]:
    """EER of a run's best checkpoint, clean and degraded."""
    model = load_model(run, torch.device("cpu"))
    values = override_values(model.config.as_dict(), overrides)
    p = check_parameters(values)
    device = choose_device(p)
    model = model.to(device).eval()
    splits = prepare(p)
    trials = make_split_trials(splits, p)["test"]
    batches = UtteranceBatches(
        splits.pack, splits.test, p.evaluation.batch_seconds, device
    )
    models = {"clean": model, "degraded": degraded(model, p)}
    return {
        name: equal_error_rate(
            cosine_scores(embed(heard, batches), trials),
            trials.targets,
        )
        for name, heard in models.items()
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("arguments", nargs="+", metavar="RUN or key=value")
    arguments = parser.parse_args().arguments
    overrides = [argument for argument in arguments if "=" in argument]
    runs = [Path(argument) for argument in arguments if "=" not in argument]
    try:
        found = {str(run): measure(run, overrides) for run in runs}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [
        [run, *(f"{eer:.2%}" for eer in eers.values())] for run, eers in found.items()
    ]
    print_table([["run", "clean", f"room and noise at {SNR_DB:g} dB"], *rows])
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
