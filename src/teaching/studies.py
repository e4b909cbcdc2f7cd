"""What the notebook trains on what, and trainings that run once and are then reused.

name of a study -> `choose` -> `Study` -> `Parameters` of its models
`Parameters` -> `train_once` -> the run's directory
"""

from dataclasses import dataclass
from pathlib import Path

from dataset import prepare
from engine.parameter_files import SHIPPED, load_parameters
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

STRANGERS = ("dataset.name=synthetic", "dataset.seed=2")
STRANGERS += ("dataset.synthetic.num_speakers=40",)
MODELS = {  # overrides, by the names that tables and figures show
    "d-vector, CE": ("model.name=dvector", "loss.name=cross_entropy"),
    # At ArcFace's rate, cross-entropy learns more slowly.
    "TitaNet, CE": ("loss.name=cross_entropy", "training.optimizer.muon_lr=0.003"),
    "TitaNet, ArcFace": ("loss.name=arcface", "training.optimizer.muon_lr=0.01"),
}


@dataclass(frozen=True)
class Study:
    """A corpus to train and test on, an unseen one to test on, and how long to train.

    Without `epochs` the models are those of `init/librispeech.yml`, the d-vector as
    large as in its paper.
    """

    name: str
    files: tuple[str, ...] = ()  # laid over parameters.yml
    corpus: tuple[str, ...] = ()  # overrides
    unseen: tuple[str, ...] = STRANGERS
    epochs: tuple[int, int] | None = (20, 10)  # of the d-vector, of TitaNet

    def parameters(self, model: str, *changes: str) -> Parameters:
        """Return the parameters of one of `MODELS`, with more overrides."""
        is_dvector = model.startswith("d-vector")
        dvector_epochs, titanet_epochs = self.epochs or (75, 75)
        files = [*self.files]
        overrides = [
            *MODELS[model],
            f"training.epochs={dvector_epochs if is_dvector else titanet_epochs}",
            f"run.directory=runs/{self.name}",
            f"run.name={model.replace(', ', '-')}",
        ]
        if is_dvector and self.epochs:
            files.append("init/dvector.yml")
        elif is_dvector:  # Muon's gradients would grow without bounds
            overrides += ["training.optimizer.name=adamw", "training.optimizer.lr=5e-4"]
        layers = (SHIPPED, *(SHIPPED.parent / file for file in files))
        overrides += [*self.corpus, *changes]
        return load_parameters(*layers, overrides=overrides)

    def unseen_parameters(self) -> Parameters:
        """Return the parameters of the unseen corpus, all of whose speakers are
        tested."""
        overrides = [*self.unseen, "dataset.test_fraction=1"]
        return load_parameters(SHIPPED, overrides=overrides)


def choose(name: str, data: str) -> Study:
    """Return the study of this name; `data` is the folder of the corpora that it
    reads. Raises `ValueError` for a name that there is not."""
    root = f"dataset.root={data}"
    libri = ("dataset.name=librispeech", root)
    vctk = ("dataset.name=vctk", root, "dataset.download=true")
    folder = ("dataset.name=folder", root)
    studies = {
        study.name: study
        for study in (
            Study("embedded"),
            Study("mini", ("init/mini.yml",), (root,)),
            Study("full", ("init/librispeech.yml",), (root,), vctk, None),
            Study("folder", (), folder),
            Study("excerpt", ("init/study.yml",), (), libri, (30, 15)),
        )
    }
    if name not in studies:
        raise ValueError(f"STUDY: expected {' or '.join(studies)}, got {name}")
    return studies[name]


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
