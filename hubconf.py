"""The released encoder for `torch.hub.load`: waveforms in, embeddings out.

model = torch.hub.load("REPOSITORY", "titanet")
model(waveforms)  # [B, N] in [-1, 1] at 16 kHz -> [B, 192]

voices = torch.hub.load("REPOSITORY", "voices")
voices.compare("a.wav", "b.wav")

The modules of `src` import each other by plain names such as `models`, which callers
use for modules of their own. So they are loaded as `_titanet.models` and so on.
"""

import ast as _ast
import sys as _sys
from importlib.machinery import FileFinder as _FileFinder
from importlib.machinery import SourceFileLoader as _SourceFileLoader
from pathlib import Path as _Path
from types import ModuleType as _ModuleType

dependencies = ["numpy", "pydantic", "sklearn", "soundfile", "torch", "torchaudio"]
dependencies += ["tqdm", "yaml"]

_PACKAGE = "_titanet"
_SOURCES = _Path(__file__).parent / "src"
_OUR_NAMES = {path.stem for path in _SOURCES.iterdir()}


def _is_ours(module):
    return module.partition(".")[0] in _OUR_NAMES


class _Loader(_SourceFileLoader):
    """Loads a module of `src`; its `from models` becomes `from _titanet.models`."""

    def get_code(self, fullname):
        """Compile anew: the bytecode cache is that of the module under its own name."""
        tree = _ast.parse(self.get_data(self.path), self.path)
        for node in _ast.walk(tree):
            if isinstance(node, _ast.ImportFrom) and _is_ours(node.module):
                node.module = f"{_PACKAGE}.{node.module}"
        return self.source_to_code(tree, self.path)


class _Finder:
    """Finds the modules of the package, for pickle and torch.compile too."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Return the spec of a module below `_titanet`, and None for any other."""
        if name.startswith(f"{_PACKAGE}."):
            return _FileFinder(path[0], (_Loader, [".py"])).find_spec(name)


if _PACKAGE not in _sys.modules:  # an earlier call of torch.hub may have made it
    _sys.modules[_PACKAGE] = _ModuleType(_PACKAGE)
    _sys.modules[_PACKAGE].__path__ = [str(_SOURCES)]
    _sys.meta_path.insert(0, _Finder)


def titanet(checkpoint=None):
    """Return front end and encoder, on the CPU.

    The model maps waveforms [B, N] in [-1, 1], and lengths [B] in samples where rows
    are padded, to embeddings [B, E]. `checkpoint` is a run, a checkpoint or a `.nemo`
    file; None is the released encoder.
    """
    import torch
    from _titanet.exchange.nemo_files import load_any_model

    path = _Path(checkpoint or _SOURCES.parent / "init" / "titanet-s.pt")
    return load_any_model(path, torch.device("cpu")).eval()


def voices(checkpoint=None, device="auto"):
    """Return `Voices`, which compares recordings and finds enrolled people again.

    It computes on `device`, which is cpu, cuda or mps; auto is the fastest available.
    `checkpoint` is what `titanet` takes.
    """
    from _titanet.voices import RELEASED, Voices

    return Voices.load(checkpoint or RELEASED, device=device)
