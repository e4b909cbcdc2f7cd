"""Measure training on a GPU: audio-seconds per second, share of its peak, a profile.

    python benchmarks/gpu.py OUT [--sizes s m l] [--ways eager compiled]
        [--overrides key=value ...]

The corpus has the shape of LibriSpeech's 100 hours (251 speakers, 28,539 utterances).
Its samples are noise made on the device; the speed does not depend on them. Whole
training steps are timed, from cutting the crops to the optimizer.
Writes OUT/gpu.json after each measurement, and OUT/<size>-<way>.txt, a profile.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import Splits, TrainingBatches
from engine.devices import choose_device
from engine.optimizers import build_optimizer
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from models import FLOP_PER_PRODUCT, build_encoder
from parameters import Parameters
from runs.resuming import State
from runs.speaker_model import build_model
from speech.packs import Entry, Pack
from speech.surroundings import load_surroundings
from train import training_step
from transforms import Augmentation

NUM_SPEAKERS, NUM_UTTERANCES, HOURS = 251, 28_539, 100.6
ROUNDS, STEPS, PROFILED = 5, 20, 6
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda encoder: encoder,
    "compiled": lambda encoder: torch.compile(encoder, dynamic=False),
    "autotuned": lambda encoder: torch.compile(
        encoder, dynamic=False, mode="max-autotune-no-cudagraphs"
    ),
    "graphed": lambda encoder: torch.compile(
        encoder, dynamic=False, mode="reduce-overhead"
    ),
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def make_corpus(parameters: Parameters, device: torch.device, scale: float) -> Splits:
    """Return utterances of equal length, all for training, `scale` times as many."""
    count = round(NUM_UTTERANCES * scale)
    size = round(HOURS * 3600 / NUM_UTTERANCES * parameters.front_end.sample_rate)
    samples = torch.randint(
        -(2**12), 2**12, (count * size,), dtype=torch.int16, device=device
    )
    speakers = [f"{number:03}" for number in range(NUM_SPEAKERS)]
    fields = {"split": None, "gender": None, "session": None, "samples": size}
    entries = [
        Entry(id=str(i), speaker=speakers[i % NUM_SPEAKERS], offset=i * size, **fields)
        for i in range(count)
    ]
    pack = Pack(samples, entries, parameters.front_end.sample_rate, [], "noise")
    return Splits(pack, speakers, list(range(count)), [], [], [])


def peaks(device: torch.device) -> dict[str, float]:
    """Return the rates of bfloat16 matrix products, and of copies, read and write."""
    size = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    block = torch.empty(size * size * 16, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    rates = {}
    for name, run, amount in (
        ("matrix_flop_per_second", lambda: a @ b, 2 * size**3),
        ("copied_bytes_per_second", lambda: other.copy_(block), 2 * block.nbytes),
    ):
        times = []
        for _ in range(8):
            synchronize(device)
            began = time.perf_counter()
            for _ in range(5):
                run()
            synchronize(device)
            times.append((time.perf_counter() - began) / 5)
        rates[name] = amount / median(times[3:])
    return rates


def flop_per_second_of_audio(parameters: Parameters) -> float:
    """Return the operations of the encoder's matrix products, forward and backward."""
    encoder = build_encoder(parameters.model, parameters.front_end.num_mels)
    frames = 200
    flop = FLOP_PER_PRODUCT * encoder.products(frames)
    return flop / (frames * parameters.front_end.hop_seconds)


def measure(
    parameters: Parameters, splits: Splits, device: torch.device, way: str, path: Path
) -> dict[str, float]:
    """Return the speed of whole training steps; write their profile to `path`."""
    torch._dynamo.reset()
    model = build_model(parameters, splits.speakers, {"": "noise"}, device).train()
    optimizer_parameters = parameters.training.optimizer
    state = State(model, build_optimizer(model.parameters(), optimizer_parameters))
    augmentation = Augmentation(
        parameters.augmentation,
        parameters.front_end.sample_rate,
        load_surroundings(parameters, device),
    ).to(device)
    batches = TrainingBatches(splits, parameters, device)
    encoder = WAYS[way](model.encoder)
    stream = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def run(num_steps: int) -> tuple[float, float]:
        """Return the seconds of audio and of the clock."""
        audio, began = 0.0, time.perf_counter()
        for batch in itertools.islice(stream, num_steps):
            training_step(state, encoder, augmentation, batch, 10**6)
            audio += batch.size * batch.crop / batches.sample_rate
        synchronize(device)
        return audio, time.perf_counter() - began

    began, crops = time.perf_counter(), set()
    while len(crops) < len(parameters.model.crop_seconds):  # each is compiled once
        batch = next(stream)
        crops.add(batch.crop)
        training_step(state, encoder, augmentation, batch, 10**6)
        synchronize(device)
    first = time.perf_counter() - began
    run(3)
    rounds = [run(STEPS) for _ in range(ROUNDS)]
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities) as profiled:
        run(PROFILED)
    kind = "cuda" if device.type == "cuda" else "cpu"
    table = profiled.key_averages().table(
        f"self_{kind}_time_total", row_limit=60, max_name_column_width=110
    )
    path.write_text(table)
    rates = [audio / seconds for audio, seconds in rounds]
    return {
        "audio_seconds_per_second": median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "seconds_per_step": median(seconds / STEPS for _, seconds in rounds),
        "first_seconds": first,
        "peak_memory": torch.cuda.max_memory_allocated() if kind == "cuda" else 0,
    }


def measure_all(options: argparse.Namespace) -> None:
    """Measure each size in each way."""
    options.out.mkdir(parents=True, exist_ok=True)
    base = load_parameters(SHIPPED, overrides=options.overrides)
    device = choose_device(base.training, base.model)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report = {"device": name, "overrides": options.overrides, **peaks(device)}
    print(report)
    splits = make_corpus(base, device, options.scale)
    crop_seconds = mean(base.model.crop_seconds)
    for size, way in itertools.product(options.sizes, options.ways):
        overrides = [*options.overrides, f"model.titanet.size={size}"]
        parameters = load_parameters(SHIPPED, overrides=overrides)
        path = options.out / f"{size}-{way}.txt"
        one = measure(parameters, splits, device, way, path)
        speed = one["audio_seconds_per_second"]
        flop = flop_per_second_of_audio(parameters) * speed
        one["share_of_matrix_peak"] = flop / report["matrix_flop_per_second"]
        one["seconds_for_75_epochs"] = 75 * NUM_UTTERANCES * crop_seconds / speed
        report[f"{size} {way}"] = one
        print(f"{size} {way}", json.dumps(one), flush=True)
        (options.out / "gpu.json").write_text(json.dumps(report, indent=2))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["s"], choices=["s", "m", "l"])
    parser.add_argument("--ways", nargs="+", default=["eager"], choices=list(WAYS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the corpus")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    return run_command(lambda: measure_all(options))


if __name__ == "__main__":
    sys.exit(main())
