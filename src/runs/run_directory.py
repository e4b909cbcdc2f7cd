"""The directory of a run, mirrored on W&B.

`Run.create` or `Run.reopen` -> `log_epoch`, `save` -> `log_evaluation`

runs/<name>/  parameters.yml  metrics.jsonl  trials.txt  scores.txt  errors.tsv
              report.json  embeddings.png  det.png  scores.png  last.pt  best.pt

`wandb_mirror.page_name` says what the metrics of `metrics.jsonl` are called on W&B.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from dataset import Splits
from engine.files import FileError, atomic_write
from engine.parallel import first_rank_first, gather_lists, rank
from engine.parameter_files import dump_yaml
from parameters import Parameters
from reports.evaluation_files import write_evaluation
from reports.tables import as_table, print_table
from runs.checkpoints import RunError
from runs.resuming import State
from runs.tally import NotFiniteError
from runs.wandb_mirror import Mirror, new_id
from verification.records import Evaluation


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the metrics of each epoch of a run; raise `RunError` if that fails."""
    path = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


class Run:
    """A run's directory and its page on W&B, which is closed at the end of a `with`.

    Every rank has a run, but only rank 0 writes.
    """

    def __init__(
        self,
        directory: Path,
        parameters: Parameters,
        wandb_id: str,
        logged_epochs: int = 0,
    ) -> None:
        self.directory, self.wandb_id = directory, wandb_id
        self.mirror = None
        if rank() == 0:
            self.mirror = Mirror(directory, parameters, wandb_id, logged_epochs)

    @classmethod
    def create(cls, parameters: Parameters) -> "Run":
        """Make a new directory; raise `RunError` if it exists, `FileError` if it cannot
        be written."""
        made = [(_make_directory(parameters), new_id())] if rank() == 0 else []
        ((directory, wandb_id),) = gather_lists(made)
        return cls(directory, parameters, wandb_id)

    @classmethod
    def reopen(
        cls, directory: Path, parameters: Parameters, epoch: int, wandb_id: str
    ) -> "Run":
        """Open an existing directory to go on after `epoch` finished epochs.

        Metrics of later epochs are deleted, and so is the report if there are epochs to
        come.
        """
        logged_epochs = _rewind(directory, parameters, epoch) if rank() == 0 else 0
        return cls(directory, parameters, wandb_id, logged_epochs)

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Append one epoch's metrics, `epoch` among them, to `metrics.jsonl`."""
        if self.mirror is None:
            return
        path = self.directory / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error}") from None
        self.mirror.log_epoch(metrics)

    def save(self, state: State, name: str) -> None:
        """Write the checkpoint `last` or `best`; every rank waits for it."""
        with first_rank_first():
            if self.mirror is not None:
                state.save(self.directory / f"{name}.pt")

    def log_evaluation(self, evaluation: Evaluation, splits: Splits) -> None:
        """Write and print a run's results."""
        if self.mirror is None:
            return
        write_evaluation(self.directory, evaluation, splits)
        self.mirror.log_evaluation(evaluation, splits)
        print_table(as_table(evaluation))
        print(f"run: {self.directory}")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.mirror is None:
            return
        if isinstance(error, NotFiniteError):
            text = f"{self.directory}: {error}"
            self.mirror.alert("A value that is not finite", text)
        self.mirror.finish(failed=error is not None)


def _names(parameters: Parameters) -> Iterator[str]:
    """Yield the run's name; if it has none, names that say what is run and when, which
    end in a number from the second on."""
    if parameters.run.name is not None:
        yield parameters.run.name
        return
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    choices = (parameters.dataset, parameters.model, parameters.loss)
    name = "-".join([*(choice.name for choice in choices), time])
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _make_directory(parameters: Parameters) -> Path:
    for name in _names(parameters):
        directory = parameters.run.directory / name
        try:
            directory.mkdir(parents=True)
            break
        except FileExistsError:
            if parameters.run.name is None and directory.exists():
                continue  # of a run that began in the same second
            raise RunError(
                f"{directory}: this run exists; choose another run.name, "
                f"or go on with --resume {directory}"
            ) from None
        except OSError as error:
            raise FileError(f"{directory}: cannot be written: {error}") from None
    try:
        _write_parameters(directory, parameters)
    except FileError:
        with suppress(OSError):
            directory.rmdir()  # so that the name stays free
        raise
    return directory


def _rewind(directory: Path, parameters: Parameters, epoch: int) -> int:
    """Delete what a run wrote after an epoch. Return the number of epochs written
    before: they may all be on W&B, where nothing can be deleted."""
    path, lines = directory / "metrics.jsonl", []
    try:
        if epoch:  # the first epoch makes the file
            lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines[:epoch]).encode())
    _write_parameters(directory, parameters)
    if epoch < parameters.training.epochs:
        report = directory / "report.json"
        try:
            report.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{report}: cannot be deleted: {error}") from None
    return len(lines)


def _write_parameters(directory: Path, parameters: Parameters) -> None:
    with atomic_write(directory / "parameters.yml") as file:
        file.write(dump_yaml(parameters.as_dict()).encode())
