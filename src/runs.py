"""What a run leaves behind: its directory, its checkpoints and its W&B page.

runs/<name>/  parameters.yml  metrics.jsonl  trials.txt  scores.txt  errors.tsv
              report.json  embeddings.png  det.png  scores.png  last.pt  best.pt

Metrics have the same names in `metrics.jsonl` and on W&B, where a step is an epoch and
the last one also holds what ends the run. wandb is imported in this module only, and
by a thread of its own, so that nothing that it does or fails to do stops training.
"""

import json
import netrc
import os
import pickle
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import torch
from torch import nn

from dataset import Pack
from figures import Figure
from losses import build_loss
from models import build_encoder
from parameters import Parameters, UserError, check_parameters
from scoring import Backend
from transforms import FrontEnd

CHECKPOINT_VERSION = 2
WANDB_START_SECONDS = 20  # that W&B may delay a run's start
WANDB_END_SECONDS = 30  # and its end
WANDB_PATIENCE = 0.7  # the share of both that W&B may wait for its server
WANDB_VARIABLES = {
    "WANDB_ERROR_REPORTING": "false",  # or a server that hangs holds the exit up
    "WANDB_HTTP_TIMEOUT": "5",  # seconds, of 19, that each table is held up
}

MODULES = ("front_end", "encoder", "criterion")

Action = Callable[[Any, Any], None]  # with the wandb module and a W&B run


class RunError(UserError):
    """A run directory or checkpoint that cannot be used."""


@dataclass(frozen=True)
class SpeakerModel:
    """All that embeds and identifies speakers, and what it was trained with.

    `speakers` are the training speakers in the order of the classifier's rows; `corpus`
    is the digest of the pack that they were heard in.
    """

    parameters: Parameters
    speakers: list[str]
    corpus: str
    front_end: FrontEnd
    encoder: nn.Module
    criterion: nn.Module
    backend: Backend | None = None  # once training has ended

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that a checkpoint holds the weights of."""
        return {name: getattr(self, name) for name in MODULES}

    def train(self, mode: bool = True) -> "SpeakerModel":
        """Switch all modules to training mode, or to evaluation mode."""
        for module in self.modules.values():
            module.train(mode)
        return self

    def to(self, device: torch.device) -> "SpeakerModel":
        """Move all modules to a device."""
        for module in self.modules.values():
            module.to(device)
        return self


def build_model(
    parameters: Parameters, speakers: list[str], corpus: str, device: torch.device
) -> SpeakerModel:
    """An untrained model whose weights are drawn from `seed`, the same on any
    device."""
    torch.manual_seed(parameters.seed)
    front_end = FrontEnd(parameters.front_end)
    encoder = build_encoder(parameters.model, parameters.front_end.num_mels)
    criterion = build_loss(parameters.loss, encoder.embedding_size, len(speakers))
    model = SpeakerModel(parameters, speakers, corpus, front_end, encoder, criterion)
    return model.to(device)


def save_checkpoint(path: Path, model: SpeakerModel, **training: Any) -> None:
    """Write a model and the state of its training, whole or not at all."""
    state = {
        "version": CHECKPOINT_VERSION,
        "parameters": model.parameters.as_dict(),
        "speakers": model.speakers,
        "corpus": model.corpus,
        "backend": model.backend and model.backend.as_dict(),
        **{name: module.state_dict() for name, module in model.modules.items()},
        **training,
    }
    with atomic_write(path) as file:
        torch.save(state, file)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when it is whole; raise `RunError` where it cannot be
    written."""
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


def load_tensors(file: Path | BinaryIO, name: Path | str) -> Any:
    """What `torch.save` wrote, on the CPU; executes nothing it reads, and raises
    `RunError` with the name where it is not readable."""
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
    """The state that `save_checkpoint` wrote, on the CPU; executes nothing it reads."""
    state = load_tensors(path, path)
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise RunError(f"{path}: not a checkpoint of this program")
    missing = {"parameters", "speakers", "corpus", "backend", *MODULES} - set(state)
    if missing:
        raise RunError(f"{path}: the checkpoint lacks {min(missing)}")
    speakers = state["speakers"]
    if not (isinstance(speakers, list) and all(isinstance(s, str) for s in speakers)):
        raise RunError(f"{path}: the checkpoint does not name its speakers")
    return state


def restore_model(
    state: Mapping[str, Any], path: Path, device: torch.device
) -> SpeakerModel:
    """The model in a checkpoint's state; `path` is named where it does not fit."""
    try:
        parameters = check_parameters(state["parameters"])
        # Shapes are compared without memory for them: a file may claim any.
        with (meta := torch.device("meta")):
            outline = build_model(parameters, state["speakers"], "", meta)
        for name, module in outline.modules.items():
            module.load_state_dict(state[name], assign=True)
        model = build_model(parameters, state["speakers"], state["corpus"], device)
        for name, module in model.modules.items():
            module.load_state_dict(state[name])
        backend = state["backend"] and Backend.from_dict(state["backend"])
    except (RuntimeError, TypeError, KeyError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: the checkpoint does not fit: {reason}") from None
    return replace(model, backend=backend)


def load_model(run_or_file: Path, device: torch.device) -> SpeakerModel:
    """The model of a checkpoint file, or of a run's `best.pt`."""
    path = run_or_file / "best.pt" if run_or_file.is_dir() else run_or_file
    return restore_model(load_checkpoint(path), path, device)


def choose_device(parameters: Parameters) -> torch.device:
    """The device that `training.device` names; auto takes the fastest there is."""
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
        self.wandb_id = wandb_id
        self._epochs = parameters.training.epochs
        self._log_audio = parameters.wandb.log_audio
        self._step = 0  # the last epoch on W&B
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._wandb: threading.Thread | None = None
        if parameters.wandb.mode != "disabled":
            self._start_mirror(parameters)

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
        return cls(directory, parameters, os.urandom(8).hex())

    @classmethod
    def reopen(
        cls, directory: Path, parameters: Parameters, epoch: int, wandb_id: str
    ) -> "Run":
        """An existing directory, its metrics cut back to `epoch` finished epochs, and
        without a report where there are more to come."""
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
        run._step = len(lines)  # W&B takes nothing back
        return run

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Append one epoch's metrics, `epoch` among them, to `metrics.jsonl`."""
        path = self.directory / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error}") from None
        epoch = metrics["epoch"]
        if epoch > self._step:
            self._step = epoch
            commit = epoch < self._epochs  # the last is open to what ends the run
            self._mirror(lambda wandb, page: page.log(dict(metrics), epoch, commit))

    def log_figure(self, name: str, figure: Figure) -> None:
        """Save a figure as `<name>.png`; W&B has it as `figures/<name>`."""
        path = self.directory / f"{name}.png"
        with atomic_write(path) as file:
            figure.savefig(file)
        self._log_ending(lambda wandb: {f"figures/{name}": wandb.Image(str(path))})

    def log_report(self, report: Mapping[str, Any], table: list[list]) -> None:
        """Write `report.json`; W&B shows the table, whose first row names its
        columns."""
        with atomic_write(self.directory / "report.json") as file:
            file.write(json.dumps(report, indent=2).encode())
        rows = {"columns": table[0], "data": table[1:]}
        self._log_ending(lambda wandb: {"results": wandb.Table(**rows)})

    def log_errors(self, table: list[list], pack: Pack) -> None:
        """Show a table of trials on W&B, whose first row names its columns and whose
        first two columns are ids of the pack; with players of both utterances where
        `wandb.log_audio` asks for them."""

        def show(wandb: Any) -> dict[str, Any]:
            columns, *rows = table
            if self._log_audio:
                entries = {entry.id: entry for entry in pack.entries}

                def player(name: str) -> Any:
                    entry = entries[name]
                    samples = pack.samples[entry.offset : entry.offset + entry.samples]
                    return wandb.Audio(samples.numpy(), pack.sample_rate, caption=name)

                columns = [*columns, "enrolment audio", "test audio"]
                rows = [[*row, *map(player, row[:2])] for row in rows]
            return {"errors": wandb.Table(columns=columns, data=rows)}

        self._log_ending(show)

    def log_summary(self, figures: Mapping[str, float]) -> None:
        """Close the last step on W&B with a run's main figures, and have them in its
        summary."""
        # Those of validation are the best epoch's: curves keep their own last point.
        last = {k: v for k, v in figures.items() if not k.startswith("validation/")}
        self._log_ending(lambda wandb: last, commit=True)
        self._mirror(lambda wandb, page: page.summary.update(dict(figures)))

    def log_model(self) -> None:
        """Hand the best checkpoint to W&B."""

        def upload(wandb: Any, page: Any) -> None:
            artifact = wandb.Artifact(f"model-{self.wandb_id}", type="model")
            artifact.add_file(str(self.directory / "best.pt"))
            page.log_artifact(artifact)

        self._mirror(upload)

    def finish(self) -> None:
        """Close the page on W&B."""
        if self._wandb is not None:
            self._actions.put(None)
            self._wandb.join(WANDB_END_SECONDS)
            if self._wandb.is_alive():
                print(f"W&B: not done after {WANDB_END_SECONDS} s; {self._leftovers}")
            self._wandb = None

    def _log_ending(
        self, values: Callable[[Any], dict[str, Any]], commit: bool = False
    ) -> None:
        """Add to the last step on W&B; to a further one where the page was resumed
        after the last epoch."""
        self._mirror(
            lambda wandb, page: page.log(
                {"epoch": self._step, **values(wandb)},
                max(self._step, page.starting_step),
                commit,
            )
        )

    def _mirror(self, action: Action) -> None:
        if self._wandb is not None:
            self._actions.put(action)

    def _start_mirror(self, parameters: Parameters) -> None:
        """Have a thread log to W&B, and wait for its first line."""
        started = threading.Event()

        def work() -> None:
            opened = _start_wandb(parameters, self.directory, self.wandb_id)
            started.set()
            if opened is None:
                return
            wandb, page = opened
            try:
                while action := self._actions.get():
                    action(wandb, page)
                page.finish()
            except Exception as error:  # whatever W&B does, training goes on
                print(
                    f"W&B: {type(error).__name__}, no longer logging there; "
                    f"{self._leftovers}"
                )
                with suppress(Exception):
                    page.finish()  # uploads would hold up the exit
                _stop_wandb(wandb)

        # A daemon, for which the interpreter does not wait at its exit.
        self._wandb = threading.Thread(target=work, daemon=True)
        self._wandb.start()
        if not started.wait(WANDB_START_SECONDS):
            print(f"W&B: not ready after {WANDB_START_SECONDS} s, training goes on")

    @property
    def _leftovers(self) -> str:
        return f"what it has is in {self.directory / 'wandb'}, for wandb sync"


def _read_api_key(path: Path | None) -> str | None:
    """From the key file, the environment or ~/.netrc; None where none has one. Warns of
    a key file that others can read."""
    try:
        if path is not None and (key := path.read_text(encoding="utf-8").strip()):
            others = stat.S_IRGRP | stat.S_IROTH
            if os.name == "posix" and path.stat().st_mode & others:
                print(f"warning: {path}: others can read this key; chmod 600 {path}")
            return key
    except (OSError, UnicodeDecodeError):
        pass  # a missing key file is the usual case, and no reason to stop
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        found = netrc.netrc().authenticators(host.hostname or "")
        return found[2] if found else None
    except (OSError, netrc.NetrcParseError):
        return None


def _stop_wandb(wandb: Any) -> None:
    """End W&B's own process, which would keep the id of a run that failed."""
    with suppress(Exception):  # it may have died
        wandb.teardown()


def _start_wandb(
    parameters: Parameters, directory: Path, wandb_id: str
) -> tuple[Any, Any] | None:
    """(the wandb module, a W&B run), or None; says in a line what it chose and why."""
    chosen = parameters.wandb
    for name, value in WANDB_VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import wandb
    except Exception as error:  # missing, or broken by another package
        print(f"W&B: wandb cannot be imported ({error}), not logging there")
        return None
    key = _read_api_key(chosen.api_key_file)
    online = chosen.mode != "offline" and key is not None
    if chosen.mode == "online" and key is None:
        print("W&B: no API key in wandb.api_key_file, WANDB_API_KEY or ~/.netrc")

    def start(mode: str) -> Any:
        page = wandb.init(
            entity=chosen.entity,
            project=chosen.project,
            name=directory.name,
            id=wandb_id,
            resume="allow",
            dir=str(directory),
            config=parameters.as_dict(),
            mode=mode,
            settings=wandb.Settings(
                api_key=key if mode == "online" else None,
                init_timeout=WANDB_PATIENCE * WANDB_START_SECONDS,
                finish_timeout=WANDB_PATIENCE * WANDB_END_SECONDS,
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )
        page.define_metric("*", step_metric="epoch")
        for name in ("epoch", "step"):  # straight lines
            page.define_metric(name, hidden=True)
        return page

    if online:
        try:
            page = start("online")
            print(f"W&B: logging to {page.url}")
            return wandb, page
        except Exception as error:  # wrong key, no network, a server in trouble
            print(f"W&B: cannot go online ({type(error).__name__}), logging offline")
            _stop_wandb(wandb)
    try:
        page = start("offline")
    except Exception as error:
        print(f"W&B: {type(error).__name__}, not logging there")
        return None
    print(f"W&B: offline; upload with: wandb sync {Path(page.dir).parent}")
    return wandb, page
