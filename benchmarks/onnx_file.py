"""The ONNX file of the released encoder: its speed, and what sherpa-onnx makes of it.

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
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import sherpa_onnx
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from errors import UserError
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
    """Seconds of a pass by each program, and onnxruntime's share of torch's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options)
    speeds = {}
    for batch_size, duration in SHAPES:
        count = round(duration / model.config.front_end.hop_seconds)
        features = torch.randn(batch_size, model.config.front_end.num_mels, count)
        frames = torch.full((batch_size,), count)
        inputs = dict(zip(INPUTS, (features.numpy(), frames.numpy()), strict=True))
        times: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            with torch.inference_mode():
                model.encoder(model.front_end.normalise(features, frames), frames)
            between = time.perf_counter()
            session.run(OUTPUTS, inputs)
            times["torch"].append(between - began)
            times["onnxruntime"].append(time.perf_counter() - between)
        ratios = np.divide(times["onnxruntime"], times["torch"])
        seconds = {name: median(of) for name, of in times.items()}
        speeds[f"{batch_size} x {duration:g} s"] = seconds | {"ratio": median(ratios)}
    return speeds


def by_sherpa(file: Path, clips: list[NDArray[np.float32]], rate: int) -> NDArray:
    """Unit vectors of clips by sherpa-onnx, [U, E]."""
    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(file))
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(config)
    vectors = []
    for samples in clips:
        stream = extractor.create_stream()
        stream.accept_waveform(rate, samples)
        stream.input_finished()
        vectors.append(extractor.compute(stream))
    return np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("people", type=Path, metavar="PEOPLE")
    parser.add_argument("out", type=Path, nargs="?", help="JSON; default: printed only")
    options = parser.parse_args()
    try:
        voices = Voices.load()
        people = read_people([str(options.people)])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rate = voices.sample_rate
    files = [file for of in people.values() for file in of[:NUM_CLIPS]]
    names = np.repeat(list(people), [len(of[:NUM_CLIPS]) for of in people.values()])
    clips = [load_recording(f, rate).samples.astype(np.float32) for f in files]
    clips = [samples / FULL_SCALE for samples in clips]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        speech = torch.from_numpy(np.concatenate(clips)[: 60 * rate])
        agreement = save_onnx(file, voices.model, voices.digest, speech)
        vectors = by_sherpa(file, clips, rate), voices.embed(files)
        first, second = np.triu_indices(len(files), 1)
        targets = names[first] == names[second]
        eers = [equal_error_rate((v @ v.T)[first, second], targets) for v in vectors]
        cosines = (vectors[0] * vectors[1]).sum(1)
        report = {
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
            "speed": speed(file, voices.model),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
