"""A run's page on W&B, which shows what the run directory holds.

A step of the page is an epoch; the last one also has the results. `page_name` says how
metrics are called there. Only this module imports wandb, and calls it in a thread:
whatever wandb does, training goes on.
"""

import codecs
import json
import netrc
import os
import shlex
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from dataset import SPLIT_NAMES, Splits
from parameters import Parameters
from reports.error_table import error_table
from reports.tables import as_summary, as_table, html_table
from runs.tally import SPENT
from verification.records import Evaluation

START_SECONDS = 20  # the longest that W&B may delay the start of a run
END_SECONDS = 30  # the longest that it may delay the end
SERVER_SHARE = 0.7  # of these times, which wandb may spend waiting for its server
ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",  # it would delay the exit if the server hangs
    "WANDB_HTTP_TIMEOUT": "5",  # seconds that a request may wait, instead of 19
}
# Sections of the page that are not named after what is measured.
SECTIONS = {
    **dict.fromkeys(("learning_rate", "margin"), "schedule"),
    **dict.fromkeys(
        (*SPENT, "step", "audio_seconds_per_second", "skipped_steps"), "spent"
    ),
}
# Others can be drawn against these. Their own charts would be straight lines.
AXES = [f"spent/{name}" for name in (*SPENT, "step")]
STYLE = "<style>body { font: 13px sans-serif } td, th { padding: 2px 8px }</style>"
PROJECT = "titanet"  # where neither the parameters nor WANDB_PROJECT name one
MODES = {  # values of WANDB_MODE, wandb's older words among them
    **{mode: mode for mode in ("online", "offline", "disabled")},
    "run": "online",
    "dryrun": "offline",
}

Action = Callable[[Any, Any], None]  # gets the wandb module and the W&B run


def page_name(metric: str) -> str:
    """Return the page's name for a metric: `loss/train` for `train/loss`.

    W&B draws in the order of names, in a browser as in a terminal. This order begins
    with what tells whether a model learns and how good it is: accuracy, EER, loss,
    minDCF, the schedule of rate and margin. What was spent and gradients end it.
    """
    subject, _, quantity = metric.rpartition("/")
    if subject == "gradient_norm":
        return f"weights/gradient/{quantity}"
    if quantity in SECTIONS:
        return f"{SECTIONS[quantity]}/{quantity}"
    return f"{quantity}/{subject}"


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
            named = {page_name(k): v for k, v in metrics.items() if k != "epoch"}
            self._enqueue(lambda wandb, page: page.log(named, epoch, commit))

    def log_evaluation(self, evaluation: Evaluation, splits: Splits) -> None:
        """Log a run's results: the plots in its directory, tables, the main metrics as
        the page's summary, the corpus it was trained on, and its checkpoints.

        They belong to the last step, or to one more if the page was resumed after the
        last epoch. With `wandb.log_audio` the table of errors has players.
        """
        self._enqueue(
            lambda wandb, page: self._log_results(wandb, page, evaluation, splits)
        )
        self._enqueue(lambda wandb, page: self._log_files(wandb, page, splits))

    def log_table(self, name: str, table: str) -> None:
        """Log an HTML table as the panel `results/NAME`."""
        self._enqueue(
            lambda wandb, page: page.log({f"results/{name}": _html(wandb, table)})
        )

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
            if page.offline:
                _say_offline(page)  # again, where the user looks in the end
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
        summary = as_summary(evaluation)
        # Validation is left out. Its curves end with the last epoch, but these results
        # are the best epoch's. Cllr has no chart, as a chart of one point says little.
        results = {
            page_name(metric): value
            for metric, value in summary.items()
            if metric.endswith(("/eer", "/min_dcf"))
        }
        table = html_table(as_table(evaluation))
        results["results/table"] = _html(wandb, table)
        with_players = self.parameters.wandb.log_audio
        for folder, test in evaluation.tests.items():
            section = f"results/{folder}".rstrip("/")
            table = error_table(test, splits, with_players)
            results[f"{section}/errors"] = _html(wandb, table)
            for path in sorted((self.directory / folder).glob("*.png")):
                results[f"{section}/{path.stem}"] = wandb.Image(str(path))
        lowest = {page_name(f"{folder or 'test'}/eer") for folder in evaluation.tests}
        for name in lowest:
            page.define_metric(name, summary="min")
        page.log(results, max(self.step, page.starting_step), commit=True)
        named = {page_name(metric): value for metric, value in summary.items()}
        page.summary.update({k: v for k, v in named.items() if k not in lowest})

    def _log_files(self, wandb: Any, page: Any, splits: Splits) -> None:
        """Log the corpus as an input and the checkpoints as outputs.

        Offline they are files of the page: an artifact is uploaded from the paths that
        it was logged with, which a run that has moved no longer has.
        """
        contents = _describe_corpus(splits)
        corpus = Path(page.dir, "corpus.json")  # W&B tells versions apart by files
        corpus.write_text(json.dumps(contents), encoding="utf-8")
        # W&B's latest version is the best.
        checkpoints = [self.directory / f"{name}.pt" for name in ("last", "best")]
        if page.offline:
            for path in checkpoints:
                _link_or_copy(path, Path(page.dir, path.name))
            for path in (corpus, *checkpoints):
                file = str(Path(page.dir, path.name))
                page.save(file, base_path=page.dir, policy="now", glob=False)
            return
        keeps = {"policy": "immutable", "skip_cache": True}  # makes no copies of files
        name = f"corpus-{self.parameters.dataset.name}"
        artifact = wandb.Artifact(name, type="dataset", metadata=contents)
        artifact.add_file(str(corpus), **keeps)
        # What `use_artifact` does, but that waits for the upload.
        page._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        for path in checkpoints:
            artifact = wandb.Artifact(f"model-{self.wandb_id}", type="model")
            artifact.add_file(str(path), **keeps)
            page.log_artifact(artifact, aliases=[path.stem])


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, which takes no space, or a copy where there are none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _html(wandb: Any, table: str) -> Any:
    """Return a panel, which needs no artifact as W&B's own tables do and makes no
    charts of its numbers of rows and columns."""
    return wandb.Html(STYLE + table, inject=False, data_is_not_path=True)


def _describe_corpus(splits: Splits) -> dict[str, Any]:
    """Return the pack's digests and the sizes of its splits."""
    sizes = {
        split: len(indices)
        for part in SPLIT_NAMES
        for split, indices in splits.by_corpus(part).items()
    }
    return {"digests": splits.pack.digests, "utterances": sizes}


def _open_page(
    parameters: Parameters, mode: str, directory: Path, wandb_id: str
) -> tuple[Any, Any] | None:
    """Return the wandb module and a W&B run, or None; print one line on what
    happened."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # otherwise in the user's home
        os.environ[name] = str(directory.resolve() / "wandb" / "cache")
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
    _say_offline(page)
    return wandb, page


def _say_offline(page: Any) -> None:
    """Print the commands that show an offline page and upload it."""
    found = shutil.which("wandb")  # not if an environment was not activated
    program = "wandb" if found else str(Path(sys.executable).with_name("wandb"))
    run = Path(page.dir).parent
    show = shlex.join([program, "leet", str(run.parent)])
    upload = shlex.join([program, "sync", str(run)])
    print(f"W&B: offline; to see it: {show}; to upload it: {upload}")


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
    page.define_metric("spent/audio_seconds_per_second", step_metric="spent/seconds")
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
