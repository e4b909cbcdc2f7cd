"""The W&B mirror: what a page holds, and what W&B may not do to a run or its key."""

import base64
import html
import io
import itertools
import json
import operator
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import PIL.Image
import pytest
import soundfile
import wandb
from wandb.proto import wandb_internal_pb2
from wandb.sdk.launch.sweeps import utils as sweeps

import train as training
from conftest import MIXTURE, REPOSITORY, TIMED, interrupt
from dataset import SPLIT_NAMES, prepare
from engine.parameter_files import dump_yaml
from reports.spectrogram import colour_spectrogram
from reports.tables import REPORT_COLUMNS
from runs import wandb_mirror
from runs.checkpoints import save_checkpoint
from runs.run_directory import Run, read_metrics
from runs.tally import NotFiniteError
from runs.wandb_mirror import page_name
from verification.records import Evaluation

KEY = "0123456789" * 4
SPEED = "spent/audio_seconds_per_second"
SHOWN = {f"results/{name}" for name in ("det", "embeddings", "errors", "scores")}
TESTED = ("development", "test")

# wandb's own threads, where a test ends wandb while a run given up still waits.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


class Page:
    """What the logs of a run hold, complete: `finish` does not wait for the disk."""

    def __init__(self, run: Path) -> None:
        for _ in range(300):
            files = sorted(run.glob("wandb/*run-*/*.wandb"))
            logs = [list(_records(file)) for file in files]
            if all(log and log[-1].HasField("exit") for log in logs):
                break
            time.sleep(0.1)
        self.records = [record for log in logs for record in log]

    def all_of(self, kind: str) -> list:
        return [getattr(r, kind) for r in self.records if r.HasField(kind)]

    @cached_property
    def steps(self) -> list[dict]:
        return [_named(history.item) for history in self.all_of("history")]

    @property
    def summary(self) -> dict:
        return _named(item for s in self.all_of("summary") for item in s.update)


def _records(path: Path) -> Iterator:
    """The protobufs of a log in LevelDB's format."""
    header, block, (full, last) = 7, 2**15, (1, 4)  # bytes, and kinds of chunks
    data, at, message = path.read_bytes(), header, b""
    while at + header <= len(data):
        if block - at % block < header:  # padding
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + header : at + header + size]
        at += header + size
        if kind in (full, last):
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def _named(items) -> dict:
    """Name -> value; the fields of a medium stand below its name."""
    values = {}
    for item in items:
        name, *fields = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if fields:
            values.setdefault(name, {})["/".join(fields)] = value
        else:
            values[name] = value
    return values


class _Handler(BaseHTTPRequestHandler):
    """As much of W&B's interface as a run needs, as long as the server is well."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        trouble, answer = self.server.trouble, {}
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if trouble == "hangs":
            self.server.over.wait()
        if trouble in ("hangs", "disappears"):
            return
        if trouble is None and self.path == "/graphql":
            answer = {"data": self._answer(**json.loads(body))}
        self.server.uploads[self.path.removeprefix("/upload/")] = body
        self.send_response(trouble or 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_PUT = do_POST  # noqa: N815 (their names)

    def _answer(self, query, variables, **_):
        if "upsertBucket" in query:
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": variables["name"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        url = f"{self.server.url}/upload"
        names = variables.get("files", [])
        files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in names]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}


class WandbServer(ThreadingHTTPServer):
    """Well until it gets into `trouble`: a status, `hangs` or `disappears`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble = None
        self.uploads: dict[str, bytes] = {}
        self.over = threading.Event()

    def handle_error(self, *_):
        pass  # whoever asked has gone


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("API_KEY", "MODE", "PROJECT", "ENTITY", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc either
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens


@pytest.fixture
def key_file(tmp_path) -> Path:
    path = tmp_path / "key.txt"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def server(monkeypatch, no_key) -> Iterator[WandbServer]:
    """Where wandb finds it."""
    wandb.teardown()  # a test without a server left wandb's own address behind
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.over.set()
        server.shutdown()
        wandb.teardown()  # it would remember this server


@pytest.fixture
def impatient(monkeypatch):
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(wandb_mirror, "START_SECONDS", 5)
    monkeypatch.setattr(wandb_mirror, "END_SECONDS", 5)


@pytest.fixture
def online(miniature, key_file):
    key = f"wandb.api_key_file={key_file}"
    return miniature("run.name=mine", "wandb.mode=auto", key)


@pytest.fixture
def offline(miniature):
    return lambda *overrides: miniature(*overrides, "wandb.mode=offline")


@pytest.fixture
def the_key_stays_in(tmp_path, key_file, capfd):
    """Return what was printed, once the key is nowhere else than in its file."""

    def printed() -> str:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [f for f in files if KEY.encode() in f.read_bytes()] == [key_file]
        shown = "".join(capfd.readouterr())
        assert KEY not in shown
        assert "Traceback" not in shown
        return shown

    return printed


def seconds(action, *arguments) -> float:
    began = time.monotonic()
    action(*arguments)
    return time.monotonic() - began


def epochs(rows: list[dict]) -> list[int]:
    """Of `metrics.jsonl`, or of a page, whose steps they are."""
    return [row.get("epoch", row.get("_step")) for row in rows]


def run_of_an_epoch(p) -> Run:
    run = Run.create(p)
    run.log_epoch({"epoch": 1})
    run.mirror.finish()
    return run


@pytest.mark.parametrize("key", [None, b"", b"\xff"])  # a folder, nothing, no text
def test_auto_goes_offline_without_a_key(online, key_file, capsys, monkeypatch, key):
    monkeypatch.setattr("builtins.input", None)  # a prompt would fail
    key_file.unlink()
    key_file.mkdir() if key is None else key_file.write_bytes(key)
    run = run_of_an_epoch(online)
    assert "wandb sync" in capsys.readouterr().out
    assert len(list(run.directory.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("variable", "mode", "expected"),
    [
        *((variable, "auto", variable) for variable in ("online", "offline")),
        ("disabled", "auto", "disabled"),
        ("dryrun", "auto", "offline"),
        ("mistyped", "auto", "online"),
        ("disabled", "offline", "offline"),
    ],
)
def test_auto_is_the_mode_of_the_environment(
    miniature, key_file, monkeypatch, capsys, variable, mode, expected
):
    monkeypatch.setitem(sys.modules, "wandb", module := MagicMock())
    monkeypatch.setenv("WANDB_MODE", variable)
    key = f"wandb.api_key_file={key_file}"
    Run.create(miniature(key, f"wandb.mode={mode}")).mirror.finish()
    opened = [call.kwargs["mode"] for call in module.init.call_args_list]
    assert opened == ([] if expected == "disabled" else [expected])
    assert ("got mistyped" in capsys.readouterr().out) == (variable == "mistyped")


@pytest.mark.parametrize("given", ["null", "mine"])
def test_null_is_the_project_and_the_entity_of_the_environment(
    offline, monkeypatch, tmp_path, given
):
    keys = [f"wandb.{key}={given}" for key in ("project", "entity")]
    for name in ("PROJECT", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", f"their-{name}")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    wandb.teardown()  # it reads its variables once
    (page,) = Page(run_of_an_epoch(offline(*keys)).directory).all_of("run")
    expected = ("their-PROJECT", "their-ENTITY") if given == "null" else ("mine",) * 2
    assert (page.project, page.entity) == expected
    assert not (tmp_path / "elsewhere").exists()  # outside the run's directory


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_key_file_may_begin_with_a_byte_order_mark(key_file, encoding):
    key_file.write_text(f"{KEY}\n", encoding)
    assert wandb_mirror._read_api_key(key_file) == KEY


@pytest.mark.parametrize("mode", ["auto", "disabled"])
def test_wandb_not_installed(miniature, capsys, monkeypatch, mode):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = run_of_an_epoch(miniature(f"wandb.mode={mode}"))
    assert ("W&B" in capsys.readouterr().out) == (mode == "auto")
    assert set(os.listdir(run.directory)) == {"metrics.jsonl", "parameters.yml"}


def test_every_choice_of_the_sweep_is_a_training(monkeypatch):
    """As `wandb agent` starts it; a distribution is tried at both its ends."""
    sweep = sweeps.load_sweep_config(str(REPOSITORY / "init" / "sweep.yml"))
    choices, started = {}, []
    for name, choice in sweep["parameters"].items():
        choices[name] = choice.get("values") or [choice["min"], choice["max"]]
    monkeypatch.setattr(training, "train", lambda p, _: started.append(p))
    monkeypatch.chdir(REPOSITORY)
    for values in itertools.product(*choices.values()):
        drawn = dict(zip(choices, values, strict=True))
        command = {"args": {name: {"value": value} for name, value in drawn.items()}}
        filled = sweeps.create_sweep_command_args(command)
        filled |= {"env": [], "interpreter": [], "program": [sweep["program"]]}
        parts = [filled.get(part.strip("${}"), [part]) for part in sweep["command"]]
        program, *words = itertools.chain(*parts)
        assert Path(program).exists()
        assert training.main(words) == 0
        for name, value in drawn.items():
            assert operator.attrgetter(name)(started[-1]) == value
    assert len({dump_yaml(p.as_dict()) for p in started}) == len(started)
    assert started[0].dataset.development_fraction > 0  # or it had no such metric
    assert sweep["metric"]["name"] == page_name("development/eer")


def test_a_sweep_chooses_the_page(offline, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    run = run_of_an_epoch(offline())
    (page,) = Page(run.directory).all_of("run")
    assert run.wandb_id == page.run_id == "chosen"


def test_the_page_of_a_mixture_tells_its_corpora_apart(offline):
    run = training.train(offline(*MIXTURE, "training.epochs=1"))
    page, tests = Page(run), ("test/one", "test/two")
    (last,) = page.steps
    shown = {name.replace("/", f"/{test}/") for test in tests for name in SHOWN}
    assert shown == {n for n in last if n.startswith("results/")} - {"results/table"}
    measured = {f"{name}/{test}" for test in tests for name in ("eer", "min_dcf")}
    validated = {f"loss/validation/{label}" for label in ("one", "two")}
    assert measured | validated <= set(last)
    assert not {"eer/test", "loss/validation/test"} & set(last)
    assert validated < set(page.summary)


@pytest.mark.parametrize("audio", [False, True])
def test_the_page_holds_all_that_a_run_leaves(
    offline, monkeypatch, tmp_path, key_file, the_key_stays_in, audio
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    mirror = f"wandb.api_key_file={key_file}", f"wandb.log_audio={audio}"
    p = offline(*mirror, "training.epochs=3", "dataset.development_fraction=0.25")
    run, splits = training.train(p), prepare(p.dataset, p.front_end)
    page, report = Page(run), json.loads((run / "report.json").read_text())
    check_metrics(page, run, report)
    check_files(page, run, splits)
    check_errors(page, run, splits.pack, audio)
    home = {"key.txt", "runs", "packs"}
    assert {f.name for f in tmp_path.iterdir()} - {".cache", ".config"} <= home
    assert not (tmp_path / ".cache" / "wandb").exists()
    the_key_stays_in()


def check_metrics(page: Page, run: Path, report: dict) -> None:
    """The last step has the report's values besides its epoch's metrics."""
    defined = {m.glob_name or m.name: m for m in page.all_of("metric")}
    assert defined[SPEED].step_metric == "spent/seconds"
    assert defined["eer/test"].summary.min
    hidden = {name for name, metric in defined.items() if metric.options.hidden}
    spent = {name for name in read_metrics(run)[-1] if name.startswith("spent/")}
    assert hidden == {"spent/step", *spent}
    (of_run,) = page.all_of("run")
    assert of_run.run_group == run.parent.name == "runs"
    assert [record.exit_code for record in page.all_of("exit")] == [0]
    assert [step.pop("_step") for step in page.steps] == [1, 2, 3]
    for row, step in zip(read_metrics(run), page.steps, strict=True):
        del row["epoch"]
        assert {page_name(name): value for name, value in row.items()}.items() <= (
            step.items()
        )
    summary, (*_, last) = page.summary, page.steps
    for split, name in itertools.product(TESTED, ("eer", "min_dcf", "cllr")):
        value = report["verification"][split]["systems"]["trained"][name]
        assert last.get(f"{name}/{split}") == (None if name == "cllr" else value)
        lowest = (split, name) == ("test", "eer")
        assert summary[f"{name}/{split}"] == ({"min": value} if lowest else value)
    for name in ("loss", "accuracy", "top_5_accuracy"):
        assert summary[f"{name}/validation"] == report["identification"][name]
    check_order(page.steps)


def check_order(steps: list[dict]) -> None:
    """Charts are drawn in the order of their names, of all numbers on the page: first
    what tells whether the model learns and how good it is."""
    of_files = {"_type", "path", "sha256", "format", "size", "width", "height"}
    charts = set()
    for name, value in itertools.chain(*(step.items() for step in steps)):
        if isinstance(value, dict):
            charts |= {f"{name}.{field}" for field in set(value) - of_files}
        elif name[0] != "_":
            charts.add(name)
    numbers = sorted(charts)
    assert numbers[:8] == [
        *("accuracy/train", "accuracy/validation"),
        *(f"eer/{part}" for part in TESTED),
        *("loss/train", "loss/validation"),
        *(f"min_dcf/{part}" for part in TESTED),
    ]
    assert numbers[8:10] == ["schedule/learning_rate", "schedule/margin"]
    assert {name.split("/")[0] for name in numbers[10:]} == {"spent", "weights"}


def check_files(page: Page, run: Path, splits) -> None:
    """All that is uploaded lies in the page's folder, and no name is a path."""
    (folder,) = run.glob("wandb/offline-run-*/files")
    for name in ("best.pt", "last.pt"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    sizes = {name: len(getattr(splits, name)) for name in SPLIT_NAMES}
    contents = {"digests": splits.pack.digests, "utterances": sizes}
    assert json.loads((folder / "corpus.json").read_text()) == contents
    named = {file.path for files in page.all_of("files") for file in files.files}
    assert {"best.pt", "last.pt", "corpus.json"} < named
    assert all((folder / name).is_file() for name in named)
    for name in SHOWN - {"results/errors"}:
        picture = (run / f"{Path(name).name}.png").read_bytes()
        assert (folder / page.steps[-1][name]["path"]).read_bytes() == picture
    table = (folder / page.steps[-1]["results/table"]["path"]).read_text()
    assert all(f"<th>{title}</th>" in table for title in ("split", *REPORT_COLUMNS))
    log = next(run.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    assert str(run / "wandb").encode() not in log
    assert str(run / "best.pt").encode() not in log


def check_errors(page: Page, run: Path, pack, audio: bool) -> None:
    """The table of errors shows, and lets hear, the utterances that it names."""
    (folder,) = run.glob("wandb/offline-run-*/files")
    table = (folder / page.steps[-1]["results/errors"]["path"]).read_text()
    header, *rows = (run / "errors.tsv").read_text().splitlines()
    assert len(re.findall("<tr>", table)) == 1 + len(rows)
    for row in rows:
        assert "</td><td>".join(map(html.escape, row.split("\t")[:4])) in table
    assert {row.split("\t")[5] for row in rows} == {"false alarm", "miss"}
    assert header.startswith("enrolment\ttest")
    first = rows[0].split("\t")[0]
    (entry,) = (entry for entry in pack.entries if entry.id == first)
    said = pack.samples[entry.offset : entry.offset + entry.samples].numpy()
    media = re.findall(r'src="data:(\w+)/\w+;base64,([^"]*)"', table)
    pictures = [content for kind, content in media if kind == "image"]
    sounds = [content for kind, content in media if kind == "audio"]
    assert len(pictures) == 2 * len(rows)
    assert len(sounds) == (2 * len(rows) if audio else 0)
    with PIL.Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as drawn:
        expected = colour_spectrogram(said, pack.sample_rate)
        assert np.abs(np.asarray(drawn) - expected.astype(int)).mean() < 20
    for sound in sounds[:1]:
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="int16")
        assert (rate, len(heard)) == (pack.sample_rate, len(said))


def test_a_run_that_has_moved_is_uploaded_whole(
    server, offline, model, tmp_path, monkeypatch
):
    p = offline("run.name=mine")
    splits = prepare(p.dataset, p.front_end)
    run = Run.create(p)
    for name in ("last", "best"):
        save_checkpoint(run.directory / f"{name}.pt", model)
    for epoch in (1, 2):
        run.log_epoch({"epoch": epoch, "train/loss": 1.5})
    run.mirror.log_evaluation(Evaluation({}, {}, [], {}, "titanet", 0), splits)
    run.mirror.finish()
    wandb.teardown()  # has all written
    moved = run.directory.rename(tmp_path / "moved")
    shutil.rmtree(p.run.directory)
    (log,) = moved.glob("wandb/offline-run-*")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    command = [sys.executable, "-m", "wandb", "sync", str(log)]
    subprocess.run(command, cwd="/", check=True, capture_output=True, timeout=120)
    for name in ("last.pt", "best.pt"):
        assert server.uploads[name] == (moved / name).read_bytes()
    assert "results/table" in json.loads(server.uploads["wandb-summary.json"])
    sent = b"".join(v for k, v in server.uploads.items() if k.endswith("file_stream"))
    assert b"loss/train" in sent


def test_online_the_checkpoints_are_versions_of_a_model(online, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", module := MagicMock())
    page, splits = module.init.return_value, prepare(online.dataset, online.front_end)
    page.dir, page.offline, page.starting_step = str(tmp_path), False, 0
    run = Run.create(online)
    run.mirror.log_evaluation(Evaluation({}, {}, [], {}, "titanet", 0), splits)
    run.mirror.finish()
    added = module.Artifact.return_value.add_file.call_args_list
    files = [str(run.directory / f"{name}.pt") for name in ("last", "best")]
    assert [call.args[0] for call in added] == [str(tmp_path / "corpus.json"), *files]
    assert all(call.kwargs["policy"] == "immutable" for call in added)  # no copies
    aliases = [call.kwargs["aliases"] for call in page.log_artifact.call_args_list]
    assert aliases == [["last"], ["best"]]  # so that W&B's latest version is the best


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("place", "call"),  # in an epoch, before one's checkpoint, after all
    [("training_epoch", 2), ("epoch_line", 2), ("evaluate", 1)],
)
def test_a_resumed_run_is_not_logged_twice(offline, strike, place, call):
    p = offline("run.name=mine")
    strike(training, place, interrupt, call)
    with pytest.raises(KeyboardInterrupt):
        training.train(p)
    run = training.train(p, resume=p.run.directory / "mine")
    steps, metrics = Page(run).steps, read_metrics(run)
    for name in set(metrics[0]) - {"epoch", *TIMED}:  # times differ in a second try
        shown = page_name(name)
        found = [(step["_step"], step[shown]) for step in steps if shown in step]
        assert found == [(row["epoch"], row[name]) for row in metrics], name
    assert sum(SPEED in step for step in steps) == 2
    for name in ("results/table", "results/errors", "results/det", "eer/test"):
        assert [step["_step"] for step in steps if name in step] == [2]


def test_a_value_that_is_not_finite_alerts(offline):
    p = offline("run.name=mine", "training.optimizer.lr=1e30")
    with pytest.raises(NotFiniteError) as stopped:
        training.train(p)
    page = Page(run := p.run.directory / "mine")
    (alert,) = page.all_of("alert")
    assert (alert.level, alert.text) == ("ERROR", f"{run}: {stopped.value}")
    assert [record.exit_code for record in page.all_of("exit")] == [1]


@pytest.mark.reliability
@pytest.mark.parametrize("trouble", [401, 500, "hangs", "disappears"])
@pytest.mark.parametrize("at_start", [True, False])
def test_trouble_is_waited_for_at_the_start_and_the_end_only(
    server, impatient, online, model, the_key_stays_in, trouble, at_start
):
    splits = prepare(online.dataset, online.front_end)
    server.trouble = trouble if at_start else None
    began = time.monotonic()
    run = Run.create(online)
    assert time.monotonic() - began < wandb_mirror.START_SECONDS + 0.5
    assert seconds(run.log_epoch, {"epoch": 1}) < 0.1
    server.trouble = trouble
    for name in ("last", "best"):
        save_checkpoint(run.directory / f"{name}.pt", model)
    assert seconds(run.log_epoch, {"epoch": 2}) < 0.1
    evaluation = Evaluation({}, {}, [], {}, "titanet", 0)
    assert seconds(run.mirror.log_evaluation, evaluation, splits) < 0.1
    assert seconds(run.mirror.finish) < wandb_mirror.END_SECONDS + 0.5
    shown = the_key_stays_in()
    assert ("cannot go online" in shown) == at_start
    assert (f"W&B: logging to {server.url}/e/p/runs/" in shown) != at_start
    assert "wandb sync" in shown
    wandb.teardown()  # has all written
    assert epochs(Page(run.directory).steps) == [1, 2]
    assert epochs(read_metrics(run.directory)) == [1, 2]


@pytest.mark.reliability
def test_a_hanging_server_holds_up_neither_training_nor_exit(server, online, tmp_path):
    few = "dataset.synthetic.utterances_per_speaker=4"  # too few for slow UMAP
    (tmp_path / "p.yml").write_text(dump_yaml(online.as_dict()))
    program = (
        f"import sys\nsys.path.append({str(REPOSITORY / 'src')!r})\n"
        "from runs import wandb_mirror\nfrom train import main\n"
        "wandb_mirror.START_SECONDS = wandb_mirror.END_SECONDS = 3\n"
        f"raise SystemExit(main(['-p', 'p.yml', {few!r}]))"
    )
    server.trouble = "hangs"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = online.run.directory / "mine"
    assert f"run: {run}" in done.stdout
    assert {"scores.txt", "best.pt"} < set(os.listdir(run))
    assert epochs(read_metrics(run)) == [1, 2]
    assert time.time() - (run / "report.json").stat().st_mtime < 10


@pytest.mark.reliability
@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_wandb_that_never_returns(offline, monkeypatch, capsys, place):
    over, module = threading.Event(), MagicMock()

    def hang(*_, **__):
        over.wait()
        raise SystemExit  # of its thread, in silence

    page = module.init.return_value
    page.dir = "x/files"
    setattr(module if place == "init" else page, place, hang)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(wandb_mirror, "START_SECONDS", 0.3)
    monkeypatch.setattr(wandb_mirror, "END_SECONDS", 0.3)
    began = time.monotonic()
    run = Run.create(offline())
    for epoch in range(1, 100):
        run.log_epoch({"epoch": epoch})
    run.mirror.finish()
    over.set()
    assert time.monotonic() - began < 1.5
    shown = capsys.readouterr().out
    assert ("not ready after 0.3 s" in shown) == (place == "init")
    assert "not done after 0.3 s" in shown
    assert len(read_metrics(run.directory)) == 99


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_wandbs_process_hides_the_key_and_may_die(server, impatient, online, capfd):
    run, found = Run.create(online), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or somebody else's
            status = (process / "stat").read_bytes()
            for name in ("cmdline", "environ"):
                assert KEY.encode() not in (process / name).read_bytes()
            if b"(wandb-core)" in status and int(status.split()[3]) == os.getpid():
                found.append(int(process.name))
    assert "wandb sync" not in capfd.readouterr().out
    for process in found:
        os.kill(process, signal.SIGKILL)
    for epoch in (1, 2):
        run.log_epoch({"epoch": epoch})
    run.mirror.finish()
    assert capfd.readouterr().out.count("no longer logging there") == 1
    assert epochs(read_metrics(run.directory)) == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604])
def test_key_file_that_others_can_read(offline, key_file, capsys, mode):
    key_file.chmod(mode)
    run_of_an_epoch(offline(f"wandb.api_key_file={key_file}"))
    warns = f"warning: {key_file}: " in capsys.readouterr().out
    assert warns == (mode in (0o640, 0o604))
