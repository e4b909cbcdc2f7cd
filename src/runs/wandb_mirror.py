"""A run's page on W&B, which shows what the run directory holds.

A step is an epoch; the last one also has the results. Only this module imports wandb,
in a thread of its own: whatever wandb does, training goes on.
"""

import json
import netrc
import os
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from dataset import PARTS, Splits
from parameters import Parameters
from reports.spectrogram import colour_spectrogram
from reports.tables import as_errors, as_summary, as_table
from verification.records import Evaluation

START_SECONDS = 20  # the longest that W&B may delay a run's start
END_SECONDS = 30  # and its end
PATIENCE = 0.7  # of both, the share for waiting for a server
AXES = ("epoch", "step", "spent/seconds", "spent/audio_seconds", "spent/flop")
VARIABLES = {
    "WANDB_ERROR_REPORTING": "false",  # it would delay the exit if a server hangs
    "WANDB_HTTP_TIMEOUT": "5",  # seconds, not 19, of delay for each table
}

Action = Callable[[Any, Any], None]  # with the wandb module and a W&B run


def new_id() -> str:
    """The id of a new page; in a sweep the one that its agent has chosen."""
    if "WANDB_SWEEP_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    return os.urandom(8).hex()


class Mirror:
    """A run's page on W&B; does nothing if `wandb.mode` is disabled."""

    def __init__(self, directory: Path, parameters: Parameters, wandb_id: str) -> None:
        self.directory = directory
        self.wandb_id = wandb_id
        self.step = 0  # the last epoch on W&B
        self._epochs = parameters.training.epochs
        self._log_audio = parameters.wandb.log_audio
        self._corpus_name = f"corpus-{parameters.dataset.name}"
        self._failed = False
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if parameters.wandb.mode != "disabled":
            self._start(parameters)

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics, `epoch` among them, unless the page has them."""
        epoch = metrics["epoch"]
        if epoch > self.step:
            self.step = epoch
            commit = epoch < self._epochs  # the last step stays open for the results
            self._do(lambda wandb, page: page.log(dict(metrics), epoch, commit))

    def log_evaluation(self, evaluation: Evaluation, splits: Splits) -> None:
        """Log a run's results: the plots in its directory, tables, the main metrics as
        the page's summary, the corpus it was trained on, and its checkpoints.

        They belong to the last step, or to one more if the page was resumed after the
        last epoch. With `wandb.log_audio` the table of errors has players.
        """
        results, summary = as_table(evaluation), as_summary(evaluation)
        lowest = [f"{folder or 'test'}/eer" for folder in evaluation.tests]
        errors = {
            f"{folder}/errors".lstrip("/"): as_errors(test, splits)
            for folder, test in evaluation.tests.items()
        }

        def show(wandb: Any, page: Any) -> None:
            # The curves of validation keep their last point: this is the best epoch's.
            shown = {
                k: v for k, v in summary.items() if not k.startswith("validation/")
            }
            shown["results"] = wandb.Table(columns=results[0], data=results[1:])
            for name, (columns, *rows) in errors.items():
                images, players = _media(wandb, splits)
                columns = [*columns, "enrolment spectrogram", "test spectrogram"]
                rows = [[*row, *map(images, row[:2])] for row in rows]
                if self._log_audio:
                    columns = [*columns, "enrolment audio", "test audio"]
                    rows = [[*row, *map(players, row[:2])] for row in rows]
                shown[name] = wandb.Table(columns=columns, data=rows)
            for folder in evaluation.tests:
                for path in sorted((self.directory / folder).glob("*.png")):
                    name = Path("figures", folder, path.stem).as_posix()
                    shown[name] = wandb.Image(str(path))
            for name in lowest:
                page.define_metric(name, step_metric="epoch", summary="min")
            step = max(self.step, page.starting_step)
            page.log({"epoch": self.step, **shown}, step, commit=True)
            page.summary.update({k: v for k, v in summary.items() if k not in lowest})
            # As `use_artifact` does, which refuses offline and waits for the upload.
            page._log_artifact(
                _corpus(wandb, self._corpus_name, splits),
                is_user_created=True,
                use_after_commit=True,
            )
            for name in ("last", "best"):  # in this order the latest is the best
                artifact = wandb.Artifact(f"model-{self.wandb_id}", type="model")
                artifact.add_file(str(self.directory / f"{name}.pt"))
                page.log_artifact(artifact, aliases=[name])

        self._do(show)

    def alert(self, title: str, text: str) -> None:
        """Have W&B tell the user, as their settings there say."""
        self._do(lambda wandb, page: page.alert(title, text, level="ERROR"))

    def finish(self, failed: bool = False) -> None:
        """Close the page on W&B, which says whether the run has failed."""
        if self._thread is not None:
            self._failed = failed
            self._actions.put(None)
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                print(f"W&B: not done after {END_SECONDS} s; {self._leftovers}")
            self._thread = None

    def _do(self, action: Action) -> None:
        if self._thread is not None:
            self._actions.put(action)

    def _start(self, parameters: Parameters) -> None:
        """Start the thread that logs, and wait until it has opened the page."""
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
                page.finish(exit_code=int(self._failed))
            except Exception as error:  # whatever W&B does, training goes on
                print(
                    f"W&B: {type(error).__name__}, no longer logging there; "
                    f"{self._leftovers}"
                )
                with suppress(Exception):
                    page.finish()  # uploads would hold up the exit
                _stop_wandb(wandb)

        # A daemon: the interpreter does not wait for it at exit.
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        if not started.wait(START_SECONDS):
            print(f"W&B: not ready after {START_SECONDS} s, training goes on")

    @property
    def _leftovers(self) -> str:
        return f"what it has is in {self.directory / 'wandb'}, for wandb sync"


def _media(wandb: Any, splits: Splits) -> tuple[Callable[[str], Any], ...]:
    """Two functions of an utterance's id: its spectrogram, and a player for it."""
    pack = splits.pack
    entries = {entry.id: entry for entry in pack.entries}

    def samples_of(name: str) -> NDArray[np.int16]:
        entry = entries[name]
        return pack.samples[entry.offset : entry.offset + entry.samples].numpy()

    def image(name: str) -> Any:
        picture = colour_spectrogram(samples_of(name), pack.sample_rate)
        return wandb.Image(picture, caption=name)

    def player(name: str) -> Any:
        return wandb.Audio(samples_of(name), pack.sample_rate, caption=name)

    return image, player


def _corpus(wandb: Any, name: str, splits: Splits) -> Any:
    """An artifact of the pack's digests and the sizes of its splits: no audio."""
    sizes = {
        split: len(indices)
        for part in PARTS
        for split, indices in splits.by_corpus(part).items()
    }
    contents = {"digests": splits.pack.digests, "utterances": sizes}
    artifact = wandb.Artifact(name, type="dataset", metadata=contents)
    # W&B tells versions apart by their files.
    with artifact.new_file("corpus.json", encoding="utf-8") as file:
        json.dump(contents, file)
    return artifact


def _read_api_key(path: Path | None) -> str | None:
    """The key in the key file, in the environment or in ~/.netrc, or None.

    Warns if others can read the key file.
    """
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
        login = netrc.netrc().authenticators(host.hostname or "")
        return login[2] if login else None
    except (OSError, netrc.NetrcParseError):
        return None


def _stop_wandb(wandb: Any) -> None:
    """End W&B's own process, which keeps the id of a failed run reserved."""
    with suppress(Exception):  # it may have died
        wandb.teardown()


def _start_wandb(
    parameters: Parameters, directory: Path, wandb_id: str
) -> tuple[Any, Any] | None:
    """(the wandb module, a W&B run), or None; prints one line on what happens."""
    chosen = parameters.wandb
    for name, value in VARIABLES.items():
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
            group=parameters.run.directory.resolve().name,  # runs of one study
            resume="allow",
            dir=str(directory),
            config=parameters.as_dict(),
            mode=mode,
            settings=wandb.Settings(
                api_key=key if mode == "online" else None,
                init_timeout=PATIENCE * START_SECONDS,
                finish_timeout=PATIENCE * END_SECONDS,
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )
        page.define_metric("*", step_metric="epoch")
        page.define_metric(
            "train/audio_seconds_per_second", step_metric="spent/seconds"
        )
        for name in AXES:  # straight lines
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
