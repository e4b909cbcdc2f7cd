"""Time a forward and backward pass of encoder and loss: eager, bfloat16, compiled,
and NeMo's.

    python benchmarks/train_step.py [--against nemo] [key=value ...]

On one batch of 16 x 3 s and 251 speakers, for TitaNet-S, S with the epilog of 3,072
channels, and L. NeMo's encoder and decoder have the weights of ours, from an exported
`.nemo` file. Figures are medians of the rounds, each of which runs all ways.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timing import as_nemos, nemo_is_installed, take_turns
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.acceleration import fast_encoder
from engine.devices import choose_device, keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from runs.speaker_model import SpeakerModel, build_model

BATCH_SIZE, NUM_FRAMES, NUM_SPEAKERS, ROUNDS = 16, 300, 251, 9
SIZES = {
    "S": ("model.titanet.size=s",),
    "S, epilog 3072": ("model.titanet.size=s", "model.titanet.epilog_channels=3072"),
    "L": ("model.titanet.size=l",),
}
Pass = Callable[[Tensor, Tensor], Tensor]


def our_pass(
    model: SpeakerModel, encoder: Callable, dtype: torch.dtype = torch.float32
) -> Pass:
    """Return the map of features [B, M, T] without padding and speakers [B] to the
    loss []."""

    def run(features: Tensor, speakers: Tensor) -> Tensor:
        narrow = dtype != torch.float32
        with torch.autocast(features.device.type, torch.bfloat16, enabled=narrow):
            embeddings = encoder(features)
        return model.criterion(embeddings, speakers).loss

    return run


class NemosPass:
    """The same by NeMo with the same weights."""

    def __init__(self, model: SpeakerModel, device: torch.device) -> None:
        self.nemo = as_nemos(model, device).train()

    @property
    def weights(self) -> list[Tensor]:
        """The weights of encoder and classifier."""
        return [*self.nemo.encoder.parameters(), *self.nemo.decoder.parameters()]

    def _decode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.full((len(features),), features.shape[2], device=features.device)
        encoded, frames = self.nemo.encoder(audio_signal=features, length=frames)
        return self.nemo.decoder(encoder_output=encoded, length=frames)

    def __call__(self, features: Tensor, speakers: Tensor) -> Tensor:
        logits, _ = self._decode(features)
        return self.nemo.loss(logits=logits, labels=speakers)

    @torch.inference_mode()
    def difference(self, model: SpeakerModel, features: Tensor) -> float:
        """Return the largest difference between our embeddings and NeMo's, without
        dropout."""
        model.eval()
        self.nemo.eval()
        _, embeddings = self._decode(features)
        largest = (model.encoder(features) - embeddings).abs().max().item()
        model.train()
        self.nemo.train()
        return largest


def measure(overrides: Sequence[str], against_nemo: bool) -> dict:
    """Return the seconds of each way, and its ratio to NeMo's or else to eager."""
    parameters = load_parameters(SHIPPED, overrides=overrides)
    device = choose_device(parameters.training, parameters.model)
    speakers = [str(number) for number in range(NUM_SPEAKERS)]
    model = build_model(parameters, speakers, {"": "none"}, device).train()
    weights = [*model.encoder.parameters(), *model.criterion.parameters()]
    compiled = fast_encoder(model.encoder, device, "always")
    passes = {
        "eager": (our_pass(model, model.encoder), weights),
        "bfloat16": (our_pass(model, model.encoder, torch.bfloat16), weights),
        "compiled": (our_pass(model, compiled), weights),
    }
    shape = BATCH_SIZE, parameters.front_end.num_mels, NUM_FRAMES
    features = torch.randn(shape, device=device)
    agreement = {}
    if against_nemo:
        nemo = NemosPass(model, device)
        passes["nemo"] = nemo, nemo.weights
        agreement["largest_difference"] = nemo.difference(model, features)
    batch = features, torch.randint(NUM_SPEAKERS, (BATCH_SIZE,), device=device)

    def forward_and_backward(run: Pass, weights: list[Tensor]) -> None:
        for weight in weights:
            weight.grad = None
        run(*batch).backward()

    ways = {name: partial(forward_and_backward, *way) for name, way in passes.items()}
    first, times = take_turns(ways, ROUNDS)
    reference = "nemo" if against_nemo else "eager"
    audio = BATCH_SIZE * NUM_FRAMES * parameters.front_end.hop_seconds
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": {name: median(seconds) for name, seconds in times.items()},
        "first_seconds": first,
        "audio_seconds_per_second": {k: audio / median(v) for k, v in times.items()},
        "reference": reference,
        "ratio": {
            name: float(np.median(np.divide(seconds, times[reference])))
            for name, seconds in times.items()
        },
        **agreement,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--against", choices=["nemo"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    keep_freed_memory()

    def command() -> None:
        against_nemo = options.against == "nemo" and nemo_is_installed()
        report = {}
        for size, overrides in SIZES.items():
            overrides = (*overrides, "loss.name=arcface", *options.overrides)
            report[size] = one = measure(overrides, against_nemo)
            for name, duration in one["seconds"].items():
                print(
                    f"{size:16}{name:10}{duration:8.3f} s"
                    f"{one['ratio'][name]:7.2f} of {one['reference']}"
                    f"   (the first {one['first_seconds'][name]:.1f} s)"
                )
            if "largest_difference" in one:
                print(f"{'':16}embeddings differ by {one['largest_difference']:.1e}")
        print(json.dumps(report))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
