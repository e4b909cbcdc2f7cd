"""Audio-seconds embedded per second: ours, and NeMo's batched call on the same model.

    python benchmarks/embed.py [--against nemo] \
        dataset.name=librispeech dataset.root=DATA

Both begin with the files of the test's utterances, whole, and end with an embedding of
each. The model is TitaNet-S with fresh weights, which NeMo has from an exported `.nemo`
file. Figures are medians of the rounds, each of which runs both.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median

import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import UtteranceBatches
from engine.devices import choose_device, keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from errors import UserError
from exchange.nemo_files import save_nemo
from runs.speaker_model import SpeakerModel, build_model, embed
from speech.corpora import utterances
from speech.packs import pack
from speech.utterances import Utterance

ROUNDS, NEMOS_BATCH = 7, 32  # utterances, NeMo's own choice


def our_way(
    model: SpeakerModel, corpus: list[Utterance], device: torch.device, folder: Path
) -> Callable[[], None]:
    """Decode into a new pack, then embed in batches alike in length."""
    config = model.config

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as new:
            packed = pack(corpus, Path(new) / "pack", config.front_end.sample_rate)
            indices = range(len(packed.entries))
            seconds = config.evaluation.batch_seconds
            batches = UtteranceBatches(packed, indices, seconds, device)
            embed(model, batches)

    return run


def nemos_way(
    model: SpeakerModel, corpus: list[Utterance], device: torch.device, folder: Path
) -> Callable[[], None]:
    """`batch_inference` over a manifest of the files."""
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    save_nemo(folder / "model.nemo", model)
    nemo = EncDecSpeakerLabelModel.restore_from(
        str(folder / "model.nemo"), map_location=device
    )
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

    def run() -> None:
        nemo.batch_inference(str(manifest), NEMOS_BATCH, device=device.type)

    return run


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--against", choices=["nemo"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    keep_freed_memory()
    builders = {"ours": our_way}
    if options.against == "nemo":
        try:
            import nemo.collections.asr  # noqa: F401

            builders["nemo"] = nemos_way
        except ImportError:
            print("NeMo is not installed here: without it")
    try:
        parameters = load_parameters(SHIPPED, overrides=options.overrides)
        device = choose_device(parameters.training, parameters.model)
        corpus = [u for u in utterances(parameters.dataset) if u.split == "test"]
        model = build_model(parameters, ["a", "b"], {"": "none"}, device).eval()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        folder = Path(name)
        packed = pack(corpus, folder / "pack", parameters.front_end.sample_rate)
        audio = len(packed.samples) / packed.sample_rate
        ways = {
            name: build(model, corpus, device, folder)
            for name, build in builders.items()
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, ROUNDS):  # the first round warms up
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                if number >= 0:
                    times[name].append(time.perf_counter() - began)
    report = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "utterances": len(packed.entries),
        "audio_seconds": audio,
        "audio_seconds_per_second": {k: audio / median(v) for k, v in times.items()},
    }
    if "nemo" in times:
        pairs = zip(times["nemo"], times["ours"], strict=True)
        report["times_nemos_speed"] = median(theirs / ours for theirs, ours in pairs)
    for way, speed in report["audio_seconds_per_second"].items():
        print(f"{way:8}{speed:8.0f} audio s/s")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
