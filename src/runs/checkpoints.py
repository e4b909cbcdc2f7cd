"""The model that is trained and used, and its checkpoints.

`build_model` -> `SpeakerModel` -> `save_checkpoint` -> `load_checkpoint` ->
`restore_model` -> `SpeakerModel`

A checkpoint holds tensors and plain values only: reading one executes nothing.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from losses import build_loss
from models import build_encoder
from parameters import (
    ParameterError,
    Parameters,
    UserError,
    check_parameters,
    migrate,
)
from speech.corpora import people_key, without_label
from transforms import FrontEnd
from verification.scoring import Backend

CHECKPOINT_VERSION = 2
MODULES = ("front_end", "encoder", "criterion")  # of a `SpeakerModel`


class RunError(UserError):
    """A run directory or checkpoint that cannot be used."""


@dataclass(frozen=True)
class Heard:
    """The speakers of one corpus that weights come from, named as the corpus does."""

    digest: str  # of the corpus as packed
    people: list  # as `corpora.people_key` has it
    speakers: list[str]


class SpeakerModel(nn.Module):
    """An encoder with all that it needs to be trained and used.

    waveforms -> `front_end` -> `encoder` -> embeddings; `criterion` is the training
    loss, and `backend` normalises and calibrates verification scores.

    `speakers` are the training speakers in the order of the classifier's rows;
    `digests` are those of their corpora, as in `Pack`. `ancestors` are the training
    speakers of the models whose weights this one started from, directly or through
    other models.
    """

    def __init__(
        self, config: Parameters, speakers: list[str], digests: dict[str, str]
    ) -> None:
        super().__init__()
        self.config, self.speakers, self.digests = config, speakers, digests
        self.front_end = FrontEnd(config.front_end)
        self.encoder = build_encoder(config.model, config.front_end.num_mels)
        size = self.encoder.embedding_size
        self.criterion = build_loss(config.loss, size, len(speakers))
        self.backend: Backend | None = None  # until training has ended
        self.ancestors: tuple[Heard, ...] = ()

    @property
    def heard(self) -> tuple[Heard, ...]:
        """Everybody that the weights come from, ancestors' speakers included."""
        corpora, names = self.config.dataset.corpora, {}
        for speaker in self.speakers:
            label = "" if "" in corpora else speaker.partition("/")[0]
            names.setdefault(label, []).append(without_label(speaker, label))
        return (
            *(
                Heard(self.digests.get(label, ""), people_key(corpora[label]), heard)
                for label, heard in names.items()
            ),
            *self.ancestors,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, N] in [-1, 1], [B] samples -> [B, E]; without lengths nothing is
        padded."""
        return self.encoder(*self.front_end(waveforms, lengths))


def build_model(
    config: Parameters,
    speakers: list[str],
    digests: dict[str, str],
    device: torch.device,
) -> SpeakerModel:
    """An untrained model whose weights are drawn from `seed`, the same on any
    device."""
    torch.manual_seed(config.seed)
    return SpeakerModel(config, speakers, digests).to(device)


def save_checkpoint(path: Path, model: SpeakerModel, **training: Any) -> None:
    """Write a model and the state of its training; an old file stays until then."""
    state = {
        "version": CHECKPOINT_VERSION,
        "parameters": model.config.as_dict(),
        "speakers": model.speakers,
        "digests": model.digests,
        "ancestors": [asdict(heard) for heard in model.ancestors],
        "backend": model.backend and model.backend.as_dict(),
        **{name: module.state_dict() for name, module in model.named_children()},
        **training,
    }
    with atomic_write(path) as file:
        torch.save(state, file)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` once all is written; raise `RunError` if that
    fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # it may not exist, nor may anything be removed
            partial.unlink()
        # torch's writer hides what the disk said behind what it makes of that.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise RunError(f"{path}: cannot be written: {reason}") from None


def make_directory(path: Path) -> None:
    """A directory and all above it, where they are missing; raise `RunError` where they
    cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error}") from None


def load_tensors(file: Path | BinaryIO, name: Path | str) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in the file is executed.

    Raises `RunError` with `name` if it cannot be read.
    """
    try:
        # torch checks no sums and would unpack a bomb
        with zipfile.ZipFile(file) as archive:
            packed = any(record.compress_type for record in archive.infolist())
            if packed or archive.testzip():
                raise zipfile.BadZipFile("other bytes than were written")
        if not isinstance(file, Path):
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{name}: expected a checkpoint, got no such file") from None
    except pickle.UnpicklingError:  # torch would advise to execute it
        reason = "damaged, or more than tensors and plain values"
        raise RunError(f"{name}: not a readable checkpoint: {reason}") from None
    # What torch raises depends on where foreign bytes stop looking like a checkpoint.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{name}: not a readable checkpoint: {reason}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU; executes nothing."""
    state = load_tensors(path, path)
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise RunError(f"{path}: not a checkpoint of this program")
    if "corpus" in state:  # as it was until there were mixtures and ancestors
        state |= {"digests": {"": state["corpus"]}, "ancestors": []}
    wanted = ("parameters", "speakers", "digests", "ancestors", "backend", *MODULES)
    missing = set(wanted) - set(state)
    if missing:
        raise RunError(f"{path}: the checkpoint lacks {min(missing)}")
    speakers = state["speakers"]
    if not (isinstance(speakers, list) and all(isinstance(s, str) for s in speakers)):
        raise RunError(f"{path}: the checkpoint does not name its speakers")
    try:
        state["parameters"] = migrate(state["parameters"])
    except (ParameterError, AttributeError) as error:
        raise RunError(f"{path}: the checkpoint does not fit: {error}") from None
    return state


def restore_model(
    state: Mapping[str, Any], path: Path, device: torch.device
) -> SpeakerModel:
    """The model in a checkpoint's state; raise `RunError` with `path` if it does not
    fit."""
    try:
        parameters = check_parameters(state["parameters"])
        # Shapes are compared without memory for them: a file may claim any.
        with (meta := torch.device("meta")):
            outline = build_model(parameters, state["speakers"], {}, meta)
        for name, module in outline.named_children():
            # As a plain dict: torch notes `assign` in the state's metadata, and would
            # also assign below, where float16 is to become float32.
            module.load_state_dict(dict(state[name]), assign=True)
        model = build_model(parameters, state["speakers"], state["digests"], device)
        for name, module in model.named_children():
            module.load_state_dict(state[name])
        model.ancestors = tuple(Heard(**heard) for heard in state["ancestors"])
        if state["backend"]:
            model.backend = Backend.from_dict(state["backend"])
    except (RuntimeError, TypeError, KeyError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: the checkpoint does not fit: {reason}") from None
    return model


def load_model(run_or_file: Path, device: torch.device) -> SpeakerModel:
    """The model of a checkpoint file, or of a run's `best.pt`."""
    path = run_or_file / "best.pt" if run_or_file.is_dir() else run_or_file
    return restore_model(load_checkpoint(path), path, device)


def choose_device(parameters: Parameters) -> torch.device:
    """The device that `training.device` names; auto is the fastest available."""
    name = parameters.training.device
    # torch has no LSTM with projections on mps.
    mps = torch.backends.mps.is_available() and parameters.model.name != "dvector"
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise RunError(
            f"training.device: expected a device of this machine ({there}), got {name}"
        )
    return torch.device(name)
