"""Measure the released encoder's ONNX file: its speed, and its use by sherpa-onnx.

    python benchmarks/onnx_file.py PEOPLE [assets/onnx.json]

Speed is of one encoder pass on features, by torch and by onnxruntime in turns, with as
many threads; medians of the rounds. PEOPLE is a folder with a folder for each person.
The first four clips of each go through sherpa-onnx with the file, and through `Voices`:
the cosines between both vectors of a clip, and both error rates over all pairs.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import sherpa_onnx
import torch
from numpy.typing import NDArray
from timing import take_turns
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from errors import run_command
from exchange.onnx_files import INPUTS, OUTPUTS, save_onnx
from recognition.people import read_people
from runs.speaker_model import SpeakerModel
from speech.audio import load_recording
from speech.packs import FULL_SCALE
from verification.metrics import equal_error_rate
from voices import Voices

NUM_CLIPS, ROUNDS = 4, 15
SHAPES = ((1, 1.0), (1, 3.0), (1, 10.0), (16, 3.0))  # utterances, seconds


def speed(file: Path, model: SpeakerModel) -> dict[str, dict[str, float]]:
    """Return the seconds of a pass by each program, and onnxruntime's share of
    torch's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options)
    speeds = {}
    for batch_size, duration in SHAPES:
        count = round(duration / model.config.front_end.hop_seconds)
        features = torch.randn(batch_size, model.config.front_end.num_mels, count)
        frames = torch.full((batch_size,), count)
        inputs = dict(zip(INPUTS, (features.numpy(), frames.numpy()), strict=True))

        def by_torch(features: Tensor = features, frames: Tensor = frames) -> None:
            with torch.inference_mode():
                model.encoder(model.front_end.normalise(features, frames), frames)

        ways = {
            "torch": by_torch,
            "onnxruntime": lambda inputs=inputs: session.run(OUTPUTS, inputs),
        }
        _, times = take_turns(ways, ROUNDS)
        ratios = np.divide(times["onnxruntime"], times["torch"])
        seconds = {name: median(of_way) for name, of_way in times.items()}
        speeds[f"{batch_size} x {duration:g} s"] = seconds | {"ratio": median(ratios)}
    return speeds


def by_sherpa(file: Path, clips: list[NDArray[np.float32]], rate: int) -> NDArray:
    """Return unit vectors [U, E] of clips by sherpa-onnx."""
    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(file))
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(config)
    vectors = []
    for samples in clips:
        stream = extractor.create_stream()
        stream.accept_waveform(rate, samples)
        stream.input_finished()
        vectors.append(extractor.compute(stream))
    return np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(people: Mapping[str, Sequence[Path]]) -> dict:
    """Return differences and error rates on people's clips, and speeds."""
    voices = Voices.load()
    rate = voices.sample_rate
    clips = [(name, file) for name, of in people.items() for file in of[:NUM_CLIPS]]
    names, files = np.array([n for n, _ in clips]), [file for _, file in clips]
    waveforms = [
        load_recording(file, rate).samples.astype(np.float32) / FULL_SCALE
        for file in files
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        speech = torch.from_numpy(np.concatenate(waveforms)[: 60 * rate])
        agreement = save_onnx(file, voices.model, voices.digest, speech)
        vectors = by_sherpa(file, waveforms, rate), voices.embed(files)
        speeds = speed(file, voices.model)
    first, second = np.triu_indices(len(files), 1)
    targets = names[first] == names[second]
    eers = [equal_error_rate((v @ v.T)[first, second], targets) for v in vectors]
    cosines = (vectors[0] * vectors[1]).sum(1)
    return {
        "encoder": voices.digest,
        "largest_difference": agreement.largest_difference,
        "smallest_cosine": agreement.smallest_cosine,
        "sherpa": {
            "num_clips": len(files),
            "mean_cosine": float(cosines.mean()),
            "smallest_cosine": float(cosines.min()),
            "eer": eers[0],
            "own_eer": eers[1],
        },
        "threads": torch.get_num_threads(),
        "speed": speeds,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("people", type=Path, metavar="PEOPLE")
    parser.add_argument("out", type=Path, nargs="?", help="JSON; default: printed only")
    options = parser.parse_args()

    def command() -> None:
        text = json.dumps(measure(read_people([str(options.people)])), indent=1)
        print(text)
        if options.out is not None:
            options.out.write_text(text)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
