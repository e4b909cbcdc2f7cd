"""The W&B mirror: what a page holds, and what W&B may not do to a run or its key."""

import builtins
import itertools
import json
import operator
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
import wandb
from wandb.sdk.launch.sweeps import utils as sweeps

import train as training
from conftest import MIXTURE, REPOSITORY
from dataset import prepare
from parameters import Parameters
from reports import evaluation_files
from reports.tables import REPORT_COLUMNS
from runs import wandb_mirror
from runs.checkpoints import save_checkpoint
from runs.run_directory import Run
from runs.speaker_model import build_model
from verification.records import Evaluation

CPU = torch.device("cpu")
SPEAKERS = ["a", "b", "c"]
KEY = "0123456789" * 4

# wandb's own threads, where a test ends wandb while a run given up still waits.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


@pytest.fixture
def model(miniature):
    return build_model(miniature(), SPEAKERS, {"": "digest"}, CPU)


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc either
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens


def offline_folders(run: Run) -> list:
    return list(run.directory.glob("wandb/offline-run-*"))


def test_auto_goes_offline_without_a_key(miniature, no_key, model, capsys, monkeypatch):
    monkeypatch.setattr(builtins, "input", None)  # a prompt would fail
    run = Run.create(miniature("wandb.mode=auto"))
    run.log_epoch({"epoch": 1, "train/loss": 2.0})
    save_checkpoint(run.directory / "best.pt", model)
    run.mirror.finish()
    assert "offline; upload with: wandb sync" in capsys.readouterr().out
    assert len(offline_folders(run)) == 1


def test_wandb_not_installed(miniature, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = Run.create(miniature("wandb.mode=auto"))
    run.log_epoch({"epoch": 1})
    run.mirror.finish()
    assert "cannot be imported" in capsys.readouterr().out


def test_every_choice_of_the_sweep_is_a_training(monkeypatch):
    """As `wandb agent` starts it; a distribution is tried at both its ends."""
    sweep = sweeps.load_sweep_config(str(REPOSITORY / "init" / "sweep.yml"))
    choices = {
        name: choice.get("values") or [choice["min"], choice["max"]]
        for name, choice in sweep["parameters"].items()
    }
    started = []
    monkeypatch.setattr(training, "train", lambda p, _: started.append(p))
    monkeypatch.chdir(REPOSITORY)
    for values in itertools.product(*choices.values()):
        drawn = dict(zip(choices, values, strict=True))
        command = {"args": {name: {"value": value} for name, value in drawn.items()}}
        filled = sweeps.create_sweep_command_args(command)
        filled |= {"env": [], "interpreter": [], "program": [sweep["program"]]}
        words = [
            word
            for part in sweep["command"]
            for word in (filled[part[2:-1]] if part.startswith("${") else [part])
        ]
        assert (REPOSITORY / words[0]).exists()
        assert training.main(words[1:]) == 0
        for name, value in drawn.items():
            assert operator.attrgetter(name)(started[-1]) == value
    assert len(set(map(Parameters.as_yaml, started))) == len(started)
    assert started[0].dataset.development_fraction > 0  # or it had no such metric
    assert sweep["metric"]["name"] == "development/eer"


def test_a_sweep_chooses_the_page(miniature, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    run = Run.create(miniature("wandb.mode=offline"))
    run.mirror.finish()
    (page,) = (r.run for r in records(run.directory) if r.HasField("run"))
    assert run.mirror.wandb_id == page.run_id == "chosen"


def test_disabled_touches_nothing(miniature, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = Run.create(miniature("wandb.mode=disabled"))
    run.mirror.finish()
    assert os.listdir(run.directory) == ["parameters.yml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_key_file(miniature, no_key, tmp_path, capsys):
    path = tmp_path / "key.txt"
    path.write_text("secret")
    path.chmod(stat.S_IWUSR)
    Run.create(
        miniature("wandb.mode=auto", f"wandb.api_key_file={path}")
    ).mirror.finish()
    assert "offline" in capsys.readouterr().out


def records(run: Path) -> list:
    """What W&B wrote down of a run offline, once all is there: `finish` does not wait
    for the disk."""
    for _ in range(300):
        files = sorted(run.glob("wandb/*run-*/*.wandb"))
        found = [list(records_of(file)) for file in files]
        if all(of and of[-1].HasField("exit") for of in found):
            break
        time.sleep(0.1)
    return [record for of in found for record in of]


def records_of(path: Path) -> Iterator:
    """The protobufs of a log in LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

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


def named(items) -> dict:
    """Name -> value; a medium's fields stand below its own name."""
    found = {}
    for item in items:
        name, *fields = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if fields:
            found.setdefault(name, {})["/".join(fields)] = value
        else:
            assert name not in found
            found[name] = value
    return found


def steps_of(run: Path) -> list[dict]:
    return [named(r.history.item) for r in records(run) if r.HasField("history")]


def summary_of(run: Path) -> dict:
    summary = {}
    for record in records(run):
        summary |= named(record.summary.update)
    return summary


def artifacts_of(run: Path, kind: str) -> list:
    found = [r.request.log_artifact.artifact for r in records(run)]
    found += [r.artifact for r in records(run)]
    return [artifact for artifact in found if artifact.type == kind]


def files_of(artifact) -> dict:
    """Path in the artifact -> file."""
    return {entry.path: entry.local_path for entry in artifact.manifest.contents}


def curves(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_page_of_a_mixture_tells_its_corpora_apart(miniature, no_key):
    run = training.train(miniature(*MIXTURE, "wandb.mode=offline", "training.epochs=1"))
    (last,) = steps_of(run)
    (row,) = curves(run)
    tests = ("test/one", "test/two")
    images = {
        f"figures/{t}/{n}" for t in tests for n in ("det", "scores", "embeddings")
    }
    assert images == {name for name in last if name.startswith("figures/")}
    tables = {"results", *(f"{test}/errors" for test in tests)}
    measured = {f"{test}/{n}" for test in tests for n in ("eer", "min_dcf", "cllr")}
    validated = {f"validation/{label}/loss" for label in ("one", "two")}
    assert tables | measured | validated | set(row) <= set(last)
    assert not {"errors", "test/eer", "figures/det"} & set(last)
    assert validated < set(summary_of(run))


@pytest.mark.parametrize("log_audio", [False, True])
def test_the_page_holds_all_that_a_run_leaves(
    miniature, no_key, monkeypatch, tmp_path, log_audio
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "key.txt").write_text(KEY)
    p = miniature(
        "wandb.mode=offline",
        f"wandb.api_key_file={tmp_path / 'key.txt'}",
        f"wandb.log_audio={str(log_audio).lower()}",
        "training.epochs=3",
        "dataset.development_fraction=0.25",
    )
    run = training.train(p)

    steps, metrics = steps_of(run), curves(run)
    assert [step["_step"] for step in steps] == [1, 2, 3]
    last = {name: steps[-1].pop(name) for name in set(steps[-1]) - set(metrics[-1])}
    for step, row in zip(steps, metrics, strict=True):
        assert {k: v for k, v in step.items() if not k.startswith("_")} == row
    figures = {"figures/det", "figures/scores", "figures/embeddings"}
    measured = ("eer", "min_dcf", "cllr")
    names = {
        f"{split}/{name}" for split in ("development", "test") for name in measured
    }
    tables = {"results", "errors"}
    assert {k for k in last if not k.startswith("_")} == figures | names | tables
    files = next(run.glob("wandb/offline-run-*/files"))
    for name in figures:
        image = (run / f"{name.removeprefix('figures/')}.png").read_bytes()
        assert (files / last[name]["path"]).read_bytes() == image
    defined = {r.metric.glob_name or r.metric.name: r.metric for r in records(run)}
    assert defined["*"].step_metric == "epoch"
    speed = defined["train/audio_seconds_per_second"]
    assert speed.step_metric == "spent/seconds"
    assert defined["test/eer"].step_metric == "epoch"
    assert defined["test/eer"].summary.min
    hidden = {name for name, metric in defined.items() if metric.options.hidden}
    spent = {name for name in metrics[-1] if name.startswith("spent/")}
    assert hidden == {"epoch", "step", *spent}
    (page,) = (r.run for r in records(run) if r.HasField("run"))
    assert page.run_group == run.parent.name == "runs"
    assert [r.exit.exit_code for r in records(run) if r.HasField("exit")] == [0]

    summary = summary_of(run)
    report = json.loads((run / "report.json").read_text())
    assert not {"identification", "verification"} & set(summary)
    for split in ("development", "test"):
        found = report["verification"][split]["systems"]["trained"]
        for name in measured:
            assert last[f"{split}/{name}"] == found[name]
            lowest = (split, name) == ("test", "eer")
            expected = {"min": found[name]} if lowest else found[name]
            assert summary[f"{split}/{name}"] == expected
    for name in ("loss", "accuracy", "top_5_accuracy"):
        assert summary[f"validation/{name}"] == report["identification"][name]

    models = artifacts_of(run, "model")
    assert len({model.name for model in models}) == 1
    assert [(list(files_of(model)), {*model.aliases}) for model in models] == [
        (["last.pt"], {"latest", "last"}),
        (["best.pt"], {"latest", "best"}),
    ]
    (corpus,) = artifacts_of(run, "dataset")
    assert corpus.use_after_commit  # an input
    splits = prepare(p.dataset, p.front_end)
    parts = ("train", "validation", "development", "test")
    assert json.loads(corpus.metadata) == {
        "digests": splits.pack.digests,
        "utterances": {name: len(getattr(splits, name)) for name in parts},
    }
    ((name, path),) = files_of(corpus).items()
    assert name == "corpus.json"
    assert json.loads(Path(path).read_text()) == json.loads(corpus.metadata)
    logged = {}
    for table in artifacts_of(run, "run_table"):
        logged |= files_of(table)
    table = json.loads(Path(logged["results.table.json"]).read_text())
    assert table["columns"] == ["split", "system", *REPORT_COLUMNS]
    assert len(table["data"]) == last["results"]["nrows"]
    table = json.loads(Path(logged["errors.table.json"]).read_text())
    rows = [row.split("\t") for row in (run / "errors.tsv").read_text().splitlines()]
    images = ["enrolment spectrogram", "test spectrogram"]
    players = ["enrolment audio", "test audio"] if log_audio else []
    assert table["columns"] == [*rows[0], *images, *players]
    assert [list(map(str, row[:6])) for row in table["data"]] == rows[1:]
    assert {row[5] for row in table["data"]} == {"false alarm", "miss"}

    sounds = {name for name in logged if name.endswith(".wav")}
    pack = splits.pack
    for row in table["data"]:
        for name, image, player in zip(
            row[:2], row[6:8], row[8:] or [None] * 2, strict=True
        ):
            (entry,) = (entry for entry in pack.entries if entry.id == name)
            said = pack.samples[entry.offset : entry.offset + entry.samples].numpy()
            picture = wandb_mirror.colour_spectrogram(said, pack.sample_rate)
            with PIL.Image.open(logged[image["path"]]) as drawn:
                assert np.array_equal(drawn, picture)
            if log_audio:
                found, rate = soundfile.read(logged[player["path"]], dtype="int16")
                assert rate == pack.sample_rate
                assert np.array_equal(found, said)
    assert bool(sounds) == log_audio
    everywhere = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert log_audio or not [path for path in everywhere if path.suffix == ".wav"]
    assert keyed(tmp_path) == [tmp_path / "key.txt"]


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("place", "call"),  # in an epoch, before one's checkpoint, after all
    [("training_epoch", 2), ("_epoch_line", 2), ("evaluate", 1)],
)
def test_a_resumed_run_is_not_logged_twice(miniature, no_key, monkeypatch, place, call):
    p = miniature("run.name=mine", "wandb.mode=offline")
    real, calls = getattr(training, place), itertools.count(1)

    def struck(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, place, struck)
    with pytest.raises(KeyboardInterrupt):
        training.train(p)
    run = training.train(p, resume=p.run.directory / "mine")
    steps, metrics = steps_of(run), curves(run)
    assert [step["epoch"] for step in steps] == [step["_step"] for step in steps]
    # these differ where an epoch is repeated
    timed, spent = "train/audio_seconds_per_second", "spent/seconds"
    for name in set(metrics[0]) - {"epoch", timed, spent}:
        found = [(step["_step"], step[name]) for step in steps if name in step]
        assert found == [(row["epoch"], row[name]) for row in metrics], name
    assert sum(timed in step for step in steps) == 2
    for name in ("results", "errors", "figures/det", "test/eer"):
        assert [step["_step"] for step in steps if name in step] == [2]


def test_a_value_that_is_not_finite_alerts(miniature, no_key):
    p = miniature("run.name=mine", "wandb.mode=offline", "training.optimizer.lr=1e30")
    with pytest.raises(training.NotFiniteError) as stopped:
        training.train(p)
    of_run = records(run := p.run.directory / "mine")
    (alert,) = (r.alert for r in of_run if r.HasField("alert"))
    assert alert.text == f"{run}: {stopped.value}"
    assert alert.level == "ERROR"
    assert [r.exit.exit_code for r in of_run if r.HasField("exit")] == [1]


class _Handler(BaseHTTPRequestHandler):
    """As much of W&B's interface as a run needs, as long as the server is well."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body, server = (
            self.rfile.read(int(self.headers["Content-Length"] or 0)),
            self.server,
        )
        trouble = server.trouble
        if trouble == "hangs":
            server.over.wait()
        if trouble in ("hangs", "disappears"):
            return
        answer = {}
        if trouble is None and self.path == "/graphql":
            answer = {"data": self.answer(**json.loads(body))}
        answer = json.dumps(answer).encode()
        self.send_response(trouble or 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.do_POST()

    def do_PUT(self):
        self.do_POST()

    def answer(self, query, variables, **_):
        if "upsertBucket" in query:
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": variables["name"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            url = f"{self.server.url}/upload"
            files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
            answer = {"runID": "b", "uploadHeaders": [], "files": files}
            return {"createRunFiles": answer}
        return {}


class WandbServer(ThreadingHTTPServer):
    """A W&B in good health until it gets into `trouble`: a status with which it answers
    all, `hangs` or `disappears`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble = None
        self.over = threading.Event()

    def handle_error(self, *_):
        pass  # whoever asked has gone


@pytest.fixture
def server(monkeypatch, tmp_path, no_key) -> Iterator[WandbServer]:
    """Where wandb finds it, and with a key in a file."""
    wandb.teardown()  # a test without a server left wandb's own address behind
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "key.txt").write_text(f"{KEY}\n")
    (tmp_path / "key.txt").chmod(0o600)
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
def online(miniature, tmp_path):
    return miniature(
        "run.name=mine",
        "wandb.mode=auto",
        f"wandb.api_key_file={tmp_path / 'key.txt'}",
    )


def keyed(folder: Path) -> list[Path]:
    """The files that hold the key."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if KEY.encode() in path.read_bytes()]


def seconds(action, *arguments) -> float:
    began = time.monotonic()
    action(*arguments)
    return time.monotonic() - began


TROUBLES = [500, "hangs", "disappears"]


@pytest.mark.reliability
@pytest.mark.parametrize("trouble", [401, *TROUBLES])
def test_trouble_at_the_start_goes_offline(
    server, impatient, online, tmp_path, capfd, trouble
):
    server.trouble = trouble
    began = time.monotonic()
    run = Run.create(online)
    assert time.monotonic() - began < wandb_mirror.START_SECONDS + 0.5
    assert max(seconds(run.log_epoch, {"epoch": e}) for e in (1, 2)) < 0.1
    assert seconds(run.mirror.finish) < wandb_mirror.END_SECONDS + 0.5
    shown = capfd.readouterr()
    assert "cannot go online" in shown.out
    assert "offline; upload with: wandb sync" in shown.out
    assert KEY not in shown.out + shown.err
    assert keyed(tmp_path) == [tmp_path / "key.txt"]
    assert [step["epoch"] for step in steps_of(run.directory)] == [1, 2]
    assert len(curves(run.directory)) == 2


@pytest.mark.reliability
@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_in_mid_run_is_waited_for_at_the_end_only(
    server, impatient, online, model, tmp_path, capfd, trouble
):
    run = Run.create(online)
    run.log_epoch({"epoch": 1})
    server.trouble = trouble
    for name in ("last", "best"):
        save_checkpoint(run.directory / f"{name}.pt", model)
    assert seconds(run.log_epoch, {"epoch": 2}) < 0.1
    evaluation, splits = (
        Evaluation({}, {}, []),
        prepare(online.dataset, online.front_end),
    )
    assert seconds(run.mirror.log_evaluation, evaluation, splits) < 0.1
    assert seconds(run.mirror.finish) < wandb_mirror.END_SECONDS + 0.5
    shown = capfd.readouterr()
    assert f"W&B: logging to {server.url}/e/p/runs/" in shown.out
    assert ", for wandb sync" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert KEY not in shown.out + shown.err
    assert keyed(tmp_path) == [tmp_path / "key.txt"]
    wandb.teardown()  # has all written
    assert [step["epoch"] for step in steps_of(run.directory)] == [1, 2]
    assert len(curves(run.directory)) == 2


@pytest.mark.reliability
def test_training_ends_with_its_report_whatever_its_server_does(
    server, impatient, online, tmp_path, capfd, monkeypatch
):
    def hang(_):
        server.trouble = "hangs"

    for name in ("draw_verification", "write_map"):  # slow, and no matter here
        monkeypatch.setattr(evaluation_files, name, lambda *_: {})
    run = training.train(online, watch=hang)
    shown = capfd.readouterr()
    assert ", for wandb sync" in shown.out
    assert f"run: {run}" in shown.out
    assert KEY not in shown.out + shown.err
    assert keyed(tmp_path) == [tmp_path / "key.txt"]
    assert {"report.json", "scores.txt", "best.pt"} < set(os.listdir(run))
    assert [row["epoch"] for row in curves(run)] == [1, 2]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_process_list_does_not_show_the_key(server, impatient, online, capsys):
    run = Run.create(online)
    seen, cores = [], 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (
                (process / name).read_bytes() for name in ("cmdline", "environ")
            )
        except OSError:
            continue  # ended, or somebody else's
        cores += b"wandb-core" in command
        seen += [process.name] * (KEY.encode() in command + variables)
    run.mirror.finish()
    assert cores
    assert not seen
    assert "wandb sync" not in capsys.readouterr().out


@pytest.mark.reliability
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_of_wandbs_that_dies(server, impatient, online, capfd):
    run = Run.create(online)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text()
        except OSError:
            continue
        if "(wandb-core)" in status and status.split()[3] == str(os.getpid()):
            os.kill(int(process.name), signal.SIGKILL)
    for epoch in (1, 2):
        run.log_epoch({"epoch": epoch})
    run.mirror.finish()
    shown = capfd.readouterr()
    assert shown.out.count("no longer logging there") == 1
    assert len(curves(run.directory)) == 2


@pytest.mark.reliability
def test_exit_is_not_held_up_by_a_server_that_hangs(server, online, tmp_path):
    (tmp_path / "p.yml").write_text(online.as_yaml())
    program = (
        "import time, pathlib, runs, wandb_mirror\n"
        "from parameters import load_parameters\n"
        "wandb_mirror.START_SECONDS = wandb_mirror.END_SECONDS = 3\n"
        "run = runs.Run.create(load_parameters(pathlib.Path('p.yml')))\n"
        "run.log_epoch({'epoch': 1})\n"
        "print('finishing', time.time())\n"
        "run.mirror.finish()\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    server.trouble = "hangs"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    finishing = float(done.stdout.split("finishing ")[1].split()[0])
    assert time.time() - finishing < 10


@pytest.mark.reliability
@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_wandb_that_never_returns(miniature, monkeypatch, capsys, place):
    over = threading.Event()

    def hang(*_, **__):
        over.wait()
        raise SystemExit  # of its thread, in silence

    def done(*_, **__):
        pass

    page = SimpleNamespace(log=done, finish=done, define_metric=done, dir="x/files")
    module = SimpleNamespace(init=lambda **_: page, Settings=done, teardown=done)
    setattr(module if place == "init" else page, place, hang)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(wandb_mirror, "START_SECONDS", 0.3)
    monkeypatch.setattr(wandb_mirror, "END_SECONDS", 0.3)
    began = time.monotonic()
    run = Run.create(miniature("wandb.mode=offline"))
    for epoch in range(1, 100):
        run.log_epoch({"epoch": epoch})
    run.mirror.finish()
    over.set()
    assert time.monotonic() - began < 1.5
    shown = capsys.readouterr().out
    assert ("not ready after 0.3 s, training goes on" in shown) == (place == "init")
    assert "W&B: not done after 0.3 s; what it has is in" in shown
    assert len(curves(run.directory)) == 99


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_key_file_that_others_can_read(
    miniature, no_key, monkeypatch, tmp_path, capsys, mode, warns
):
    path = tmp_path / "key.txt"
    path.write_text(KEY)
    path.chmod(mode)
    Run.create(
        miniature("wandb.mode=offline", f"wandb.api_key_file={path}")
    ).mirror.finish()
    warning = f"warning: {path}: others can read this key; chmod 600 {path}\n"
    assert (warning in capsys.readouterr().out) == warns
