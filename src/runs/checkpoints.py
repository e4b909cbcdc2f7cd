"""Checkpoints: a model, and the state of its training, in a file.

`SpeakerModel` -> `save_checkpoint` -> file -> `load_checkpoint` -> state ->
`restore_model` -> `SpeakerModel`

A checkpoint holds only tensors and plain values: reading one executes nothing.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.files import atomic_write
from engine.parameter_files import check_parameters
from errors import UserError, first_line
from parameters import ParameterError
from runs.speaker_model import Heard, SpeakerModel, build_model
from verification.scoring import Backend

CHECKPOINT_VERSION = 2
LIGHTNING = b"pytorch-lightning_version"  # a key of every checkpoint that it writes
MODEL_MODULES = ("front_end", "encoder", "criterion")


class RunError(UserError):
    """A run directory or checkpoint that cannot be used."""


def save_checkpoint(path: Path, model: SpeakerModel, **training: Any) -> None:
    """Write a model and the state of its training.

    An old file is replaced only when the new one is complete. Raises `FileError` if it
    cannot be written.
    """
    state = {
        "version": CHECKPOINT_VERSION,
        "parameters": model.config.as_dict(),
        "speakers": model.speakers,
        "digests": model.digests,
        "ancestors": [asdict(heard) for heard in model.ancestors],
        "backend": model.backend.as_dict() if len(model.backend.cohort) else None,
        **{name: module.state_dict() for name, module in model.named_children()},
        **training,
    }
    with atomic_write(path) as file:
        torch.save(state, file)


def load_tensors(file: Path | BinaryIO, name: Path | str) -> Any:
    """Return what `torch.save` wrote, on the CPU; execute nothing in the file.

    Raises `RunError` with `name` if it cannot be read.
    """
    try:
        # torch verifies no checksums and would inflate any amount of compressed data.
        with zipfile.ZipFile(file) as archive:
            packed = any(record.compress_type for record in archive.infolist())
            if packed or archive.testzip():
                raise zipfile.BadZipFile("its bytes are not those that were written")
            for record in archive.namelist():
                if record.endswith("data.pkl") and LIGHTNING in archive.read(record):
                    raise zipfile.BadZipFile(
                        "a checkpoint of Lightning; export the model to .nemo or .pt"
                    )
        if not isinstance(file, Path):
            file.seek(0)
        with warnings.catch_warnings():  # of pickles by other programs
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{name}: expected a checkpoint, got no such file") from None
    except pickle.UnpicklingError:  # torch's message advises executing the file
        reason = "damaged, or it holds more than tensors and plain values"
        raise RunError(f"{name}: not a readable checkpoint: {reason}") from None
    except Exception as error:  # torch's error depends on which bytes are damaged
        reason = first_line(error)
        raise RunError(f"{name}: not a readable checkpoint: {reason}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` wrote, on the CPU; execute nothing.

    Parameters of earlier versions become those of this one. Raises `RunError` if the
    file is not such a checkpoint.
    """
    state = load_tensors(path, path)
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise RunError(f"{path}: not a checkpoint of this program")
    if "corpus" in state:  # written before there were mixtures and ancestors
        state |= {"digests": {"": state["corpus"]}, "ancestors": []}
    required = {"parameters", "speakers", "digests", "ancestors", "backend"}
    if missing := required.union(MODEL_MODULES) - set(state):
        raise RunError(f"{path}: the checkpoint lacks {min(missing)}")
    speakers = state["speakers"]
    if not (isinstance(speakers, list) and all(isinstance(s, str) for s in speakers)):
        raise RunError(f"{path}: the checkpoint does not name its speakers")
    try:
        # Checked, so that paths of all versions compare: earlier ones kept a `~`.
        state["parameters"] = check_parameters(state["parameters"]).as_dict()
    except (ParameterError, AttributeError) as error:
        raise RunError(f"{path}: the checkpoint does not fit: {error}") from None
    return state


def restore_model(
    state: Mapping[str, Any], path: Path, device: torch.device
) -> SpeakerModel:
    """Return the model in a checkpoint's state; raise `RunError` with `path` if its
    parts do not fit together."""
    try:
        parameters = check_parameters(state["parameters"])
        # Compare shapes first, without allocating them: a file may claim any size.
        with (meta := torch.device("meta")):
            outline = build_model(parameters, state["speakers"], {}, meta)
        for name, module in outline.named_children():
            # A copy, since torch notes `assign` in the state itself. It would then also
            # assign below, where it must copy, so that float16 becomes float32.
            module.load_state_dict(dict(state[name]), assign=True)
        cpu = torch.device("cpu")  # a full GPU is no fault of the file
        model = build_model(parameters, state["speakers"], state["digests"], cpu)
        for name, module in model.named_children():
            module.load_state_dict(state[name])
        model.ancestors = tuple(Heard(**heard) for heard in state["ancestors"])
        if state["backend"]:
            model.backend = Backend.from_dict(state["backend"])
    except (RuntimeError, TypeError, KeyError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: the checkpoint does not fit: {reason}") from None
    return model.to(device)


def load_model(run_or_file: Path, device: torch.device) -> SpeakerModel:
    """Load the model of a checkpoint file, or of a run's `best.pt`."""
    path = run_or_file / "best.pt" if run_or_file.is_dir() else run_or_file
    return restore_model(load_checkpoint(path), path, device)
