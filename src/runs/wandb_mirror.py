"""A run's page on W&B, which shows what the run directory holds.

A step of the page is an epoch; the last one also has the results. Only this module
imports wandb, and calls it in a thread: whatever wandb does, training goes on.
"""

import codecs
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

from dataset import SPLIT_NAMES, Splits
from parameters import Parameters
from reports.spectrogram import colour_spectrogram
from reports.tables import as_errors, as_summary, as_table
from speech.packs import Pack
from verification.records import Evaluation

START_SECONDS = 20  # the longest that W&B may delay the start of a run
END_SECONDS = 30  # the longest that it may delay the end
SERVER_SHARE = 0.7  # of these times, which wandb may spend waiting for its server
# Metrics that others can be drawn against. Their own charts would be straight lines.
AXES = ("epoch", "step", "spent/seconds", "spent/audio_seconds", "spent/flop")
ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",  # it would delay the exit if the server hangs
    "WANDB_HTTP_TIMEOUT": "5",  # seconds that a table may wait, instead of 19
}

PROJECT = "titanet"  # where neither the parameters nor WANDB_PROJECT name one
MODES = {  # values of WANDB_MODE, wandb's older words among them
    **{mode: mode for mode in ("online", "offline", "disabled")},
    "run": "online",
    "dryrun": "offline",
}

Action = Callable[[Any, Any], None]  # gets the wandb module and the W&B run


def new_id() -> str:
    """Return the id of a new page; in a sweep, the one that its agent has chosen."""
    if "WANDB_SWEEP_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    return os.urandom(8).hex()


def _choose_mode(mode: str) -> str:
    """Return the mode of the parameters; auto becomes that of WANDB_MODE, if any."""
    wanted = os.environ.get("WANDB_MODE")
    if mode != "auto" or not wanted:
        return mode
    if wanted not in MODES:
        print(f"W&B: WANDB_MODE: expected {' or '.join(MODES)}, got {wanted}")
    return MODES.get(wanted, mode)


class Mirror:
    """A run's page on W&B; does nothing if `wandb.mode` or WANDB_MODE is disabled.

    `step` is the last epoch on the page.
    """

    def __init__(
        self, directory: Path, parameters: Parameters, wandb_id: str, step: int = 0
    ) -> None:
        self.directory, self.parameters = directory, parameters
        self.wandb_id, self.step = wandb_id, step
        self._mode = _choose_mode(parameters.wandb.mode)
        self._failed = False
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._mode != "disabled":
            self._start()

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics, `epoch` among them, unless the page has them."""
        epoch = metrics["epoch"]
        if epoch > self.step:
            self.step = epoch
            # The last step stays open for the results.
            commit = epoch < self.parameters.training.epochs
            self._enqueue(lambda wandb, page: page.log(dict(metrics), epoch, commit))

    def log_evaluation(self, evaluation: Evaluation, splits: Splits) -> None:
        """Log a run's results: the plots in its directory, tables, the main metrics as
        the page's summary, the corpus it was trained on, and its checkpoints.

        They belong to the last step, or to one more if the page was resumed after the
        last epoch. With `wandb.log_audio` the table of errors has players.
        """
        self._enqueue(
            lambda wandb, page: self._log_results(wandb, page, evaluation, splits)
        )
        self._enqueue(lambda wandb, page: self._log_artifacts(wandb, page, splits))

    def alert(self, title: str, text: str) -> None:
        """Send the user an alert, in the way that their settings on W&B choose."""
        self._enqueue(lambda wandb, page: page.alert(title, text, level="ERROR"))

    def finish(self, failed: bool = False) -> None:
        """Close the page on W&B, which shows whether the run has failed."""
        if self._thread is not None:
            self._failed = failed
            self._actions.put(None)
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                print(f"W&B: not done after {END_SECONDS} s; {self._leftovers}")
            self._thread = None

    def _enqueue(self, action: Action) -> None:
        if self._thread is not None:
            self._actions.put(action)

    def _start(self) -> None:
        """Start the thread that logs, and wait until it has opened the page."""
        opened = threading.Event()
        # A daemon: the interpreter does not wait for it at exit.
        self._thread = threading.Thread(target=self._work, args=[opened], daemon=True)
        self._thread.start()
        if not opened.wait(START_SECONDS):
            print(f"W&B: not ready after {START_SECONDS} s, training goes on")

    def _work(self, opened: threading.Event) -> None:
        """Open the page, then do what is queued until `finish`."""
        wandb_and_page = _open_page(
            self.parameters, self._mode, self.directory, self.wandb_id
        )
        opened.set()
        if wandb_and_page is None:
            return
        wandb, page = wandb_and_page
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
                page.finish()  # uploads would delay the exit
            _stop_wandb(wandb)

    @property
    def _leftovers(self) -> str:
        return f"what it has is in {self.directory / 'wandb'}, for wandb sync"

    def _log_results(
        self, wandb: Any, page: Any, evaluation: Evaluation, splits: Splits
    ) -> None:
        columns, *rows = as_table(evaluation)
        summary = as_summary(evaluation)
        # Validation is left out. Its curves end with the last epoch, but these results
        # are the best epoch's.
        results = {k: v for k, v in summary.items() if not k.startswith("validation/")}
        results["results"] = wandb.Table(columns=columns, data=rows)
        for folder, test in evaluation.tests.items():
            table = self._error_table(wandb, as_errors(test, splits), splits)
            results[f"{folder}/errors".lstrip("/")] = table
            for path in sorted((self.directory / folder).glob("*.png")):
                name = Path("figures", folder, path.stem).as_posix()
                results[name] = wandb.Image(str(path))
        eer_names = [f"{folder or 'test'}/eer" for folder in evaluation.tests]
        for name in eer_names:
            page.define_metric(name, step_metric="epoch", summary="min")
        step = max(self.step, page.starting_step)
        page.log({"epoch": self.step, **results}, step, commit=True)
        page.summary.update({k: v for k, v in summary.items() if k not in eer_names})

    def _error_table(self, wandb: Any, errors: list[list], splits: Splits) -> Any:
        """Return a table of trials with spectrograms and players of both utterances."""
        columns, *rows = errors
        spectrogram, player = _media(wandb, splits.pack)
        columns = [*columns, "enrolment spectrogram", "test spectrogram"]
        rows = [[*row, *map(spectrogram, row[:2])] for row in rows]
        if self.parameters.wandb.log_audio:
            columns = [*columns, "enrolment audio", "test audio"]
            rows = [[*row, *map(player, row[:2])] for row in rows]
        return wandb.Table(columns=columns, data=rows)

    def _log_artifacts(self, wandb: Any, page: Any, splits: Splits) -> None:
        corpus = _corpus(wandb, f"corpus-{self.parameters.dataset.name}", splits)
        # What `use_artifact` does, but that fails offline and waits for the upload.
        page._log_artifact(corpus, is_user_created=True, use_after_commit=True)
        for name in ("last", "best"):  # so that W&B's latest version is the best
            artifact = wandb.Artifact(f"model-{self.wandb_id}", type="model")
            artifact.add_file(str(self.directory / f"{name}.pt"))
            page.log_artifact(artifact, aliases=[name])


def _media(wandb: Any, pack: Pack) -> tuple[Callable[[str], Any], ...]:
    """Return two functions of an utterance's id: one makes its spectrogram, the other a
    player for it."""
    entries = {entry.id: entry for entry in pack.entries}

    def samples_of(name: str) -> NDArray[np.int16]:
        entry = entries[name]
        return pack.samples[entry.offset : entry.offset + entry.samples].numpy()

    def spectrogram(name: str) -> Any:
        picture = colour_spectrogram(samples_of(name), pack.sample_rate)
        return wandb.Image(picture, caption=name)

    def player(name: str) -> Any:
        return wandb.Audio(samples_of(name), pack.sample_rate, caption=name)

    return spectrogram, player


def _corpus(wandb: Any, name: str, splits: Splits) -> Any:
    """Return an artifact with the pack's digests and the sizes of its splits, without
    audio."""
    sizes = {
        split: len(indices)
        for part in SPLIT_NAMES
        for split, indices in splits.by_corpus(part).items()
    }
    contents = {"digests": splits.pack.digests, "utterances": sizes}
    artifact = wandb.Artifact(name, type="dataset", metadata=contents)
    # W&B tells versions apart by their files.
    with artifact.new_file("corpus.json", encoding="utf-8") as file:
        json.dump(contents, file)
    return artifact


def _open_page(
    parameters: Parameters, mode: str, directory: Path, wandb_id: str
) -> tuple[Any, Any] | None:
    """Return the wandb module and a W&B run, or None; print one line on what
    happened."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import wandb
    except Exception as error:  # missing, or broken by another package
        print(f"W&B: wandb cannot be imported ({error}), not logging there")
        return None
    key = _read_api_key(parameters.wandb.api_key_file)
    if mode == "online" and key is None:
        print("W&B: no API key in wandb.api_key_file, WANDB_API_KEY or ~/.netrc")
    if mode != "offline" and key is not None:
        try:
            page = _init(wandb, parameters, directory, wandb_id, key)
            print(f"W&B: logging to {page.url}")
            return wandb, page
        except Exception as error:  # wrong key, no network, a server in trouble
            print(f"W&B: cannot go online ({type(error).__name__}), logging offline")
            _stop_wandb(wandb)
    try:
        page = _init(wandb, parameters, directory, wandb_id)
    except Exception as error:
        print(f"W&B: {type(error).__name__}, not logging there")
        return None
    print(f"W&B: offline; upload with: wandb sync {Path(page.dir).parent}")
    return wandb, page


def _init(
    wandb: Any,
    parameters: Parameters,
    directory: Path,
    wandb_id: str,
    key: str | None = None,
) -> Any:
    """Open a page: online with a key, else offline."""
    page = wandb.init(
        entity=parameters.wandb.entity,  # None means WANDB_ENTITY to wandb
        project=parameters.wandb.project or os.environ.get("WANDB_PROJECT") or PROJECT,
        name=directory.name,
        id=wandb_id,
        group=parameters.run.directory.resolve().name,  # runs of one study
        resume="allow",
        dir=str(directory),
        config=parameters.as_dict(),
        mode="offline" if key is None else "online",
        settings=wandb.Settings(
            api_key=key,
            init_timeout=SERVER_SHARE * START_SECONDS,
            finish_timeout=SERVER_SHARE * END_SECONDS,
            finish_timeout_raises=True,
            console="off",
            silent=True,
        ),
    )
    page.define_metric("*", step_metric="epoch")
    page.define_metric("train/audio_seconds_per_second", step_metric="spent/seconds")
    for name in AXES:
        page.define_metric(name, hidden=True)
    return page


def _read_api_key(path: Path | None) -> str | None:
    """Return the key from the key file, the environment or ~/.netrc, or None; warn if
    others can read the file."""
    try:
        if path is not None and (key := _decode(path.read_bytes()).strip()):
            others = stat.S_IRGRP | stat.S_IROTH
            if os.name == "posix" and path.stat().st_mode & others:
                print(f"warning: {path}: others can read this key; chmod 600 {path}")
            return key
    except (OSError, UnicodeDecodeError):
        pass  # most users have no key file
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        login = netrc.netrc().authenticators(host.hostname or "")
        return login[2] if login else None
    except (OSError, netrc.NetrcParseError):
        return None


def _decode(text: bytes) -> str:
    """Return UTF-8 text, or UTF-16 after its byte order mark, without the mark."""
    sixteen_bits = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if sixteen_bits else "utf-8-sig")


def _stop_wandb(wandb: Any) -> None:
    """End W&B's own process, which keeps the id of a failed run reserved."""
    with suppress(Exception):  # it may have died
        wandb.teardown()
