"""Forward and backward pass of encoder and loss, in turns: eager, eager in bfloat16,
compiled, and NeMo's.

    python benchmarks/train_step.py [--against nemo] [key=value ...]

On one batch of 16 x 3 s and 251 speakers, for TitaNet-S, S with the epilog of 3,072
channels, and L. NeMo's encoder, decoder and loss have the very weights of ours, from an
exported `.nemo` file. Figures are medians of the rounds, each of which runs all ways.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from engine.acceleration import fast_encoder
from engine.devices import choose_device, keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from errors import UserError
from exchange.nemo_files import save_nemo
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
    """Features [B, M, T] without padding and speakers [B] to the loss []."""

    def run(features: Tensor, speakers: Tensor) -> Tensor:
        narrow = dtype != torch.float32
        with torch.autocast(features.device.type, torch.bfloat16, enabled=narrow):
            embeddings = encoder(features)
        return model.criterion(embeddings, speakers).loss

    return run


class NemosPass:
    """The same by NeMo with the same weights."""

    def __init__(self, model: SpeakerModel, device: torch.device) -> None:
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from nemo.utils import logging

        logging.setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nemo"
            save_nemo(path, model)
            self.nemo = EncDecSpeakerLabelModel.restore_from(
                str(path), map_location=device
            )
        self.nemo.train()

    @property
    def weights(self) -> list[Tensor]:
        """Of encoder and classifier."""
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
        """The largest between our embeddings and NeMo's, without dropout."""
        model.eval()
        self.nemo.eval()
        _, embeddings = self._decode(features)
        largest = (model.encoder(features) - embeddings).abs().max().item()
        model.train()
        self.nemo.train()
        return largest


def seconds(run: Pass, weights: list[Tensor], batch: tuple[Tensor, Tensor]) -> float:
    """Wall time of one forward and backward pass."""
    for weight in weights:
        weight.grad = None
    began = time.perf_counter()
    run(*batch).backward()
    if batch[0].device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def measure(overrides: tuple[str, ...], against_nemo: bool) -> dict:
    """Seconds of each way, and its ratio to NeMo or else to eager."""
    parameters = load_parameters(SHIPPED, overrides=overrides)
    device = choose_device(parameters.training, parameters.model)
    speakers = [str(number) for number in range(NUM_SPEAKERS)]
    model = build_model(parameters, speakers, {"": "none"}, device).train()
    our_weights = [*model.encoder.parameters(), *model.criterion.parameters()]
    ways = {
        "eager": (our_pass(model, model.encoder), our_weights),
        "bfloat16": (our_pass(model, model.encoder, torch.bfloat16), our_weights),
        "compiled": (
            our_pass(model, fast_encoder(model.encoder, device, "always")),
            our_weights,
        ),
    }
    features = torch.randn(
        BATCH_SIZE, parameters.front_end.num_mels, NUM_FRAMES, device=device
    )
    agreement = {}
    if against_nemo:
        nemo = NemosPass(model, device)
        ways["nemo"] = nemo, nemo.weights
        agreement["largest_difference"] = nemo.difference(model, features)
    batch = features, torch.randint(NUM_SPEAKERS, (BATCH_SIZE,), device=device)
    first = {}
    for name, (run, weights) in ways.items():
        began = time.perf_counter()
        seconds(run, weights, batch)
        first[name] = time.perf_counter() - began
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(seconds(*way, batch))
    reference = "nemo" if against_nemo else "eager"
    audio = BATCH_SIZE * NUM_FRAMES * parameters.front_end.hop_seconds
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": {name: median(durations) for name, durations in times.items()},
        "first_seconds": first,
        "audio_seconds_per_second": {k: audio / median(v) for k, v in times.items()},
        "reference": reference,
        "ratio": {
            name: median(
                one / other
                for one, other in zip(durations, times[reference], strict=True)
            )
            for name, durations in times.items()
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
    against_nemo = options.against == "nemo"
    if against_nemo:
        try:
            import nemo.collections.asr  # noqa: F401
        except ImportError:
            print("NeMo is not installed here: without it")
            against_nemo = False
    report = {}
    try:
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
