"""The state of a training, how it resumes, and what may differ when it does.

`State` -> `State.save` -> last.pt -> `State.restore` -> `State`
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.files import file_digest
from engine.optimizers import build_optimizer
from errors import first_line
from parameters import ParameterError, Parameters
from runs.checkpoints import RunError, load_checkpoint, restore_model, save_checkpoint
from runs.speaker_model import SpeakerModel
from runs.tally import SPENT, Tally

TRAINING_STATE = {"optimizer", "epoch", "step", "tally", "best_loss", "wandb_id"}
MAY_CHANGE = (  # keys that do not affect a run's result
    "dataset.packs",
    "dataset.download",
    "training.device",
    "training.compile",
    "run",
    "wandb",
)
MAY_CHANGE_ON_RESUME = (*MAY_CHANGE, "training.epochs")
# Keys of the front end and the encoder that no weight depends on. A model may differ in
# them from the model that it starts from.
MAY_DIFFER = ("dither", "dropout", "crop_seconds")


@dataclass
class State:
    """Everything that training changes."""

    model: SpeakerModel
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps
    tally: Tally = field(default_factory=Tally)  # of the unfinished epoch
    best_loss: float = math.inf  # on validation
    wandb_id: str = ""
    recordings: dict[str, str] = field(default_factory=dict)  # digests: rooms and noise
    files: dict[str, str] = field(default_factory=dict)  # `file_digests` at the start
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))

    def save(self, path: Path) -> None:
        """Write a checkpoint to resume training from, or to evaluate."""
        save_checkpoint(
            path,
            self.model,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            tally=asdict(self.tally),
            best_loss=self.best_loss,
            wandb_id=self.wandb_id,
            recordings=self.recordings,
            files=self.files,
            spent=self.spent,
        )

    @classmethod
    def restore(
        cls, path: Path, parameters: Parameters, device: torch.device
    ) -> "State":
        """Load the state that `save` wrote.

        Raises `ParameterError` if the parameters differ from the run's, except in
        `MAY_CHANGE_ON_RESUME` and in where the recordings lie, or ask for fewer epochs,
        and `RunError` for a file without the state of a training.
        """
        saved = load_checkpoint(path)
        if missing := TRAINING_STATE - set(saved):
            raise RunError(
                f"{path}: expected a training to resume, got a model without "
                f"{min(missing)}; training.init_from starts from its weights"
            )
        new = parameters.as_dict()
        old = with_new_places(saved, new)
        refuse_changes(path.parent, old, new, MAY_CHANGE_ON_RESUME)
        least, epochs = old["training"]["epochs"], parameters.training.epochs
        if epochs < least:
            raise ParameterError(
                f"training.epochs: expected at least {least}, which {path.parent} has, "
                f"got {epochs}"
            )
        model = restore_model({**saved, "parameters": new}, path, device)
        chosen = parameters.training.optimizer
        optimizer = build_optimizer(model.parameters(), chosen)
        try:
            if _group_sizes(optimizer.state_dict()) != _group_sizes(saved["optimizer"]):
                # Written by an earlier version, whose Muon trained every matrix.
                for weight in model.parameters():
                    weight.muon = True
                optimizer = build_optimizer(model.parameters(), chosen)
            optimizer.load_state_dict(saved["optimizer"])
            tally = Tally.restore(saved["tally"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = first_line(error)
            raise RunError(f"{path}: its training does not fit: {reason}") from None
        names = TRAINING_STATE - {"optimizer", "tally"}
        # Earlier versions lack these.
        names |= {"recordings", "files", "spent"} & set(saved)
        values = {name: saved[name] for name in names}
        return cls(model, optimizer, tally=tally, **values)


def _group_sizes(optimizer_state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer_state["param_groups"]]


def refuse_changes(
    source: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    allowed: Sequence[str] = (),
    path: str = "",
) -> None:
    """Raise `ParameterError` for the first key that differs but is not `allowed` to.

    `source` is the run or file that has the old values; `path` is the key of the
    section, with a dot.
    """
    for name, value in new.items():
        key = path + name
        if key in allowed:
            continue
        if isinstance(value, dict):
            refuse_changes(source, old[name], value, allowed, f"{key}.")
        elif value != old[name]:
            raise ParameterError(
                f"{key}: expected {old[name]!r}, which {source} has, got {value!r}"
            )


def with_new_places(saved: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's parameters with the new paths of recordings that it has
    digests of: these may move, since `refuse_other_files` finds whether they changed.
    """
    old, known = saved["parameters"], saved.get("recordings", {})
    augmentation = {
        kind: _moved(section, new["augmentation"][kind])
        if f"augmentation.{kind}" in known
        else section
        for kind, section in old["augmentation"].items()
    }
    dataset = _moved(old["dataset"], new["dataset"])
    return {**old, "dataset": dataset, "augmentation": augmentation}


def _moved(old: Any, new: Any, key: str = "") -> Any:
    """Return a section, or the value of a key, with the paths of recordings that
    another has too."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            name: _moved(value, new.get(name), "root" if key == "manifest" else name)
            for name, value in old.items()
        }
    if key == "mixture" and len(old) == len(new):
        return [_moved(*corpora) for corpora in zip(old, new, strict=True)]
    return new if key == "root" and old and new else old


def file_digests(parameters: Parameters) -> dict[str, str]:
    """Return the digests of the model that training starts from and of the list of
    trials, by key, if there are such files."""
    start, trials = parameters.training.init_from, parameters.evaluation.trials
    if start is not None and start.is_dir():
        start = start / "best.pt"
    paths = {"training.init_from": start, "evaluation.trials": trials}
    files = {key: path for key, path in paths.items() if path and path.is_file()}
    return {key: file_digest(path) for key, path in files.items()}


def refuse_other_files(
    run: Path, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
    """Raise `RunError` if the digest of any files differs from the run's."""
    for key, digest in new.items():
        if old.get(key, digest) != digest:
            raise RunError(
                f"{run}: the files of {key or 'the corpus'} have changed since it "
                "began; restore them, or train anew"
            )


def start_from(other: SpeakerModel, source: Path, model: SpeakerModel) -> str:
    """Copy another model's front end and encoder, and its classifier if both have the
    same speakers, loss and shapes; return what was copied.

    `source` is the other model's file. Raises `ParameterError` if the architectures
    differ.
    """
    refuse_changes(source, _architecture(other.config), _architecture(model.config))
    model.front_end.load_state_dict(other.front_end.state_dict())
    model.encoder.load_state_dict(other.encoder.state_dict())
    model.ancestors = tuple(heard for heard in other.heard if heard not in model.heard)
    same_loss = other.config.loss.name == model.config.loss.name
    same_speakers = (other.speakers, other.digests) == (model.speakers, model.digests)
    same_shapes = _shapes(other.criterion) == _shapes(model.criterion)
    if not (same_loss and same_speakers and same_shapes):
        return "encoder"
    model.criterion.load_state_dict(other.criterion.state_dict())
    return "encoder and classifier"


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _architecture(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that weights of the front end and the encoder depend on."""

    def fixed(section: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key not in MAY_DIFFER}

    values, name = parameters.as_dict(), parameters.model.name
    model = {"name": name, name: fixed(values["model"][name])}
    return {"front_end": fixed(values["front_end"]), "model": model}
