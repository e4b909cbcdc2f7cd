"""Measure audio-seconds embedded per second, by ours and by NeMo's batched call.

    python benchmarks/embed.py [--against nemo] \
        dataset.name=librispeech dataset.root=DATA

Both begin with the files of the test's utterances, whole, and end with an embedding of
each. The model is TitaNet-S with fresh weights, which NeMo reads from an exported
`.nemo` file. Figures are medians of the rounds, each of which runs both.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from timing import as_nemos, nemo_is_installed, take_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import UtteranceBatches
from engine.devices import choose_device, keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from runs.speaker_model import SpeakerModel, build_model, embed
from speech.corpora import utterances
from speech.packs import pack
from speech.utterances import Utterance

ROUNDS = 7
NEMOS_BATCH_SIZE = 32  # utterances, NeMo's own choice


def our_way(
    model: SpeakerModel, corpus: list[Utterance], device: torch.device, folder: Path
) -> Callable[[], None]:
    """Return the call that decodes into a new pack, then embeds in batches of similar
    length."""
    config = model.config

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as new:
            packed = pack(corpus, Path(new) / "pack", config.front_end.sample_rate)
            indices = range(len(packed.entries))
            seconds = config.evaluation.batch_seconds
            embed(model, UtteranceBatches(packed, indices, seconds, device))

    return run


def nemos_way(
    model: SpeakerModel, corpus: list[Utterance], device: torch.device, folder: Path
) -> Callable[[], None]:
    """Return the call of `batch_inference` over a manifest of the files."""
    nemo = as_nemos(model, device)
    manifest = folder / "manifest.json"
    lines = [
        json.dumps(
            {
                "audio_filepath": str(utterance.source),
                "label": utterance.speaker,
                "duration": soundfile.info(utterance.source).duration,
            }
        )
        for utterance in corpus
    ]
    manifest.write_text("\n".join(lines))
    return lambda: nemo.batch_inference(
        str(manifest), NEMOS_BATCH_SIZE, device=device.type
    )


def measure(overrides: Sequence[str], against_nemo: bool) -> dict:
    """Return the audio-seconds per second of each way, and what was embedded."""
    parameters = load_parameters(SHIPPED, overrides=overrides)
    device = choose_device(parameters.training, parameters.model)
    corpus = [u for u in utterances(parameters.dataset) if u.split == "test"]
    model = build_model(parameters, ["a", "b"], {"": "none"}, device).eval()
    builders = {"ours": our_way}
    if against_nemo and nemo_is_installed():
        builders["nemo"] = nemos_way
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        folder = Path(name)
        packed = pack(corpus, folder / "pack", parameters.front_end.sample_rate)
        audio = len(packed.samples) / packed.sample_rate
        ways = {
            name: build(model, corpus, device, folder)
            for name, build in builders.items()
        }
        _, times = take_turns(ways, ROUNDS)
    report = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "utterances": len(packed.entries),
        "audio_seconds": audio,
        "audio_seconds_per_second": {k: audio / median(v) for k, v in times.items()},
    }
    if "nemo" in times:
        ratios = np.divide(times["nemo"], times["ours"])
        report["times_nemos_speed"] = float(np.median(ratios))
    return report


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--against", choices=["nemo"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    keep_freed_memory()

    def command() -> None:
        report = measure(options.overrides, options.against == "nemo")
        for way, speed in report["audio_seconds_per_second"].items():
            print(f"{way:8}{speed:8.0f} audio s/s")
        print(json.dumps(report))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
