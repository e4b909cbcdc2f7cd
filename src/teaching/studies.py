"""Trainings that a study or a notebook needs, run once and then reused.

`Parameters` -> `train_once` -> the run's directory
"""

from pathlib import Path

from dataset import prepare
from parameters import Parameters
from runs.checkpoints import RunError, load_checkpoint
from runs.resuming import (
    MAY_CHANGE,
    file_digests,
    refuse_changes,
    refuse_other_files,
    with_new_places,
)
from speech.surroundings import recording_digests
from teacher import teacher_digests
from train import Watch, train


def train_once(parameters: Parameters, watch: Watch | None = None) -> Path:
    """Return the run named `run.name`: reused if finished, resumed if stopped, else
    trained. An existing run must have these parameters."""
    name = parameters.run.name
    if name is None or not (directory := parameters.run.directory / name).exists():
        return train(parameters, watch=watch)
    if not (directory / "last.pt").exists():
        raise RunError(
            f"{directory}: stopped before its first checkpoint; remove it to train anew"
        )
    old = load_checkpoint(directory / "last.pt")
    new = parameters.as_dict()
    refuse_changes(directory, with_new_places(old, new), new, MAY_CHANGE)
    refuse_other_files(directory, old.get("files", {}), file_digests(parameters))
    if not (directory / "report.json").exists():
        return train(parameters, directory, watch)
    digests = prepare(parameters.dataset, parameters.front_end).pack.digests
    refuse_other_files(directory, old["digests"], digests)
    recordings = recording_digests(parameters) | teacher_digests(parameters)
    refuse_other_files(directory, old.get("recordings", {}), recordings)
    return directory
