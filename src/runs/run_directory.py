"""The directory of a run, mirrored on W&B.

runs/<name>/  parameters.yml  metrics.jsonl  trials.txt  scores.txt  errors.tsv
              report.json  embeddings.png  det.png  scores.png  last.pt  best.pt

Metrics have the same names in `metrics.jsonl` and on W&B.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from parameters import Parameters
from runs.checkpoints import RunError, atomic_write
from runs.wandb_mirror import Mirror, new_id


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The metrics of each epoch of a run."""
    path = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


class Run:
    """A run's directory and its mirror on W&B."""

    def __init__(self, directory: Path, parameters: Parameters, wandb_id: str) -> None:
        self.directory = directory
        self.mirror = Mirror(directory, parameters, wandb_id)

    @classmethod
    def create(cls, parameters: Parameters) -> "Run":
        """A new directory; raise `RunError` where it exists or cannot be written."""
        name = parameters.run.name
        if name is None:
            time = datetime.now().strftime("%Y%m%d-%H%M%S")
            choices = (parameters.dataset, parameters.model, parameters.loss)
            name = "-".join([*(choice.name for choice in choices), time])
        directory = parameters.run.directory / name
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"{directory}: this run exists; choose another run.name, "
                f"or go on with --resume {directory}"
            ) from None
        except OSError as error:
            raise RunError(f"{directory}: cannot be written: {error}") from None
        try:
            with atomic_write(directory / "parameters.yml") as file:
                file.write(parameters.as_yaml().encode())
        except RunError:
            with suppress(OSError):
                directory.rmdir()  # or the name would be taken
            raise
        return cls(directory, parameters, new_id())

    @classmethod
    def reopen(
        cls, directory: Path, parameters: Parameters, epoch: int, wandb_id: str
    ) -> "Run":
        """An existing directory, with the metrics of its first `epoch` epochs only.

        The report is deleted if there are epochs to come.
        """
        path, lines = directory / "metrics.jsonl", []
        try:
            if epoch:  # before, there is no such file
                lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error}") from None
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in lines[:epoch]).encode())
        with atomic_write(directory / "parameters.yml") as file:
            file.write(parameters.as_yaml().encode())
        if epoch < parameters.training.epochs:
            report = directory / "report.json"
            try:
                report.unlink(missing_ok=True)
            except OSError as error:
                raise RunError(f"{report}: cannot be deleted: {error}") from None
        run = cls(directory, parameters, wandb_id)
        run.mirror.step = len(lines)  # W&B takes nothing back
        return run

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Append one epoch's metrics, `epoch` among them, to `metrics.jsonl`."""
        path = self.directory / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error}") from None
        self.mirror.log_epoch(metrics)
