"""The released encoder for `torch.hub.load`: waveforms in, embeddings out.

model = torch.hub.load("REPOSITORY", "titanet")
model(waveforms)  # [B, N] in [-1, 1] at 16 kHz -> [B, 192]
"""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["numpy", "pydantic", "sklearn", "soundfile", "torch", "torchaudio"]
dependencies += ["tqdm", "yaml"]

_SOURCES = _Path(__file__).parent / "src"


def titanet(checkpoint=None):
    """Front end and encoder, [B, N] in [-1, 1], [B] samples -> [B, E], on the CPU.

    Without lengths [B] nothing is padded. `checkpoint` is a run, a checkpoint or a
    `.nemo` file instead of the released encoder.
    """
    ours = {path.stem for path in _SOURCES.glob("*.py")}
    # The caller may have a `models` or a `dataset` too: neither sees the other's.
    theirs = {name: _sys.modules.pop(name) for name in ours & set(_sys.modules)}
    _sys.path.insert(0, str(_SOURCES))
    try:
        import torch

        from exchange.nemo_files import load_any_model

        path = _Path(checkpoint or _SOURCES.parent / "init" / "titanet-s.pt")
        return load_any_model(path, torch.device("cpu")).eval()
    finally:
        _sys.path.remove(str(_SOURCES))
        for name in ours & set(_sys.modules):
            del _sys.modules[name]
        _sys.modules.update(theirs)
