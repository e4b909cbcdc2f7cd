"""Run directories, checkpoints and the W&B mirror."""

import builtins
import itertools
import json
import os
import stat
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import train as training
from dataset import prepare
from parameters import load_parameters
from runs import (
    Run,
    RunError,
    build_model,
    choose_device,
    load_checkpoint,
    load_model,
    save_checkpoint,
)

CPU = torch.device("cpu")
SPEAKERS = ["a", "b", "c"]


@pytest.fixture
def model(miniature):
    return build_model(miniature(), SPEAKERS, "digest", CPU)


def test_checkpoint_brings_the_model_back(tmp_path, model):
    save_checkpoint(tmp_path / "x.pt", model, epoch=3)
    loaded = load_model(tmp_path / "x.pt", CPU)
    assert loaded.parameters == model.parameters
    assert loaded.speakers == SPEAKERS
    for name, module in model.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(loaded.modules[name].state_dict()[key], tensor)
    assert load_checkpoint(tmp_path / "x.pt")["epoch"] == 3


def test_a_run_stands_for_its_best_checkpoint(tmp_path, model):
    save_checkpoint(tmp_path / "best.pt", model)
    assert load_model(tmp_path, CPU).speakers == SPEAKERS


def test_seed_draws_the_weights(miniature):
    one, same = (build_model(miniature(), SPEAKERS, "digest", CPU) for _ in range(2))
    other = build_model(miniature("seed=2"), SPEAKERS, "digest", CPU)
    first = [next(m.encoder.parameters()) for m in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", "cut", "pickle", "list", "foreign", "missing", "shape"],
)
def test_unusable_checkpoints_are_refused_unexecuted(
    tmp_path, monkeypatch, model, content
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    save_checkpoint(path, model)
    state = load_checkpoint(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif content == "pickle":
        torch.save({"version": 1, "parameters": Intruder()}, path)
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "foreign":
        torch.save({"state_dict": {}}, path)
    elif content == "missing":
        del state["encoder"]
        torch.save(state, path)
    else:
        state["speakers"] = SPEAKERS[:2]
        torch.save(state, path)
    with pytest.raises(RunError, match=str(path)) as caught:
        load_model(path, CPU)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "intruded").exists()


def checkpoint_refusal(path) -> str:
    with pytest.raises(RunError) as caught:
        load_model(path, CPU)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_every_flipped_bit_of_a_weight_is_noticed(tmp_path, model):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model)
    whole = path.read_bytes()
    weight = next(model.encoder.parameters()).detach().numpy().tobytes()
    place = whole.index(weight)
    for bit in range(0, 8 * len(weight), 37):
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        said = "not a readable checkpoint: other bytes than were written"
        assert checkpoint_refusal(path) == said


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path, model):
    save_checkpoint(tmp_path / "x.pt", model)
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert checkpoint_refusal(tmp_path / "y.pt").startswith("not a readable checkpoint")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.titanet.channels", 10**7),
        ("model.titanet.epilog_channels", 2**62),
        ("model.titanet.embedding_size", 10**12),
        ("front_end.n_fft", 2**40),
        ("front_end.num_mels", 2**40),
        ("model.dvector.num_layers", 10**9),
    ],
)
def test_a_checkpoint_gets_no_memory_for_what_it_claims(tmp_path, model, key, value):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model)
    state = load_checkpoint(path)
    *names, last = key.split(".")
    section = state["parameters"]
    for name in names:
        section = section[name]
    section[last] = value
    torch.save(state, path)
    assert checkpoint_refusal(path).startswith("the checkpoint does not fit: ")


@pytest.mark.parametrize("speakers", [None, 3, "abc", [1, 2, 3], {"a": 1}])
def test_a_checkpoint_names_its_speakers(tmp_path, model, speakers):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model)
    torch.save(load_checkpoint(path) | {"speakers": speakers}, path)
    assert checkpoint_refusal(path) == "the checkpoint does not name its speakers"


def test_nobody_is_advised_to_execute_a_checkpoint(tmp_path, model):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model)
    torch.save(load_checkpoint(path) | {"corpus": Intruder()}, path)
    reason = "damaged, or more than tensors and plain values"
    assert checkpoint_refusal(path) == f"not a readable checkpoint: {reason}"


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(RunError, match="got no such file"):
        load_model(tmp_path / "none.pt", CPU)


def test_failing_save_keeps_the_last_checkpoint(tmp_path, model, monkeypatch):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model, epoch=1)

    def full(*arguments):
        arguments[1].write(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left on device"):
        save_checkpoint(path, model, epoch=2)
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["x.pt"]


def test_run_directory_holds_the_parameters(miniature):
    p = miniature("run.name=mine")
    run = Run.create(p)
    assert run.directory == p.run.directory / "mine"
    assert load_parameters(run.directory / "parameters.yml") == p


def test_name_says_what_is_run(miniature):
    name = Run.create(miniature("model.name=dvector")).directory.name
    assert name.startswith("synthetic-dvector-arcface-")


def test_existing_run_is_never_overwritten(miniature):
    p = miniature("run.name=mine")
    Run.create(p).log_epoch({"epoch": 1})
    with pytest.raises(RunError, match="this run exists; choose another"):
        Run.create(p)
    assert (p.run.directory / "mine" / "metrics.jsonl").read_text()


def test_directory_that_cannot_be_written(tmp_path, miniature):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Run.create(miniature("run.name=mine"))


def test_reopened_run_forgets_unfinished_epochs(miniature):
    p = miniature("run.name=mine")
    run = Run.create(p)
    for epoch in (1, 2, 3):
        run.log_epoch({"epoch": epoch})
    run = Run.reopen(run.directory, p, 2, run.wandb_id)
    run.log_epoch({"epoch": 3, "again": True})
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[2])["again"]


def test_device_that_is_not_there(shipped):
    assert choose_device(shipped("training.device=cpu")) == CPU
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match=r"training.device: expected .*got cuda"):
            choose_device(shipped("training.device=cuda"))


# W&B


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc either
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens


def offline_folders(run: Run) -> list:
    return list(run.directory.glob("wandb/offline-run-*"))


def test_auto_goes_offline_without_a_key(miniature, no_key, capsys, monkeypatch):
    monkeypatch.setattr(builtins, "input", None)  # a prompt would fail
    run = Run.create(miniature("wandb.mode=auto"))
    run.log_epoch({"epoch": 1, "train/loss": 2.0})
    save_checkpoint(
        run.directory / "best.pt", build_model(miniature(), SPEAKERS, "digest", CPU)
    )
    run.finish()
    assert "offline; upload with: wandb sync" in capsys.readouterr().out
    assert len(offline_folders(run)) == 1


def test_key_that_does_not_work_goes_offline_and_is_never_shown(
    miniature, no_key, capfd, tmp_path
):
    key = "0123456789" * 4
    (tmp_path / "key.txt").write_text(key + "\n")
    p = miniature("wandb.mode=auto", f"wandb.api_key_file={tmp_path / 'key.txt'}")
    run = Run.create(p)
    run.log_epoch({"epoch": 1})
    run.finish()
    shown = capfd.readouterr()
    assert "cannot go online" in shown.out
    assert key not in shown.out + shown.err
    for path in run.directory.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    assert len(offline_folders(run)) == 1


def test_wandb_not_installed(miniature, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = Run.create(miniature("wandb.mode=auto"))
    run.log_epoch({"epoch": 1})
    run.finish()
    assert "cannot be imported" in capsys.readouterr().out


def test_disabled_touches_nothing(miniature, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = Run.create(miniature("wandb.mode=disabled"))
    run.finish()
    assert os.listdir(run.directory) == ["parameters.yml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_key_file(miniature, no_key, tmp_path, capsys):
    path = tmp_path / "key.txt"
    path.write_text("secret")
    path.chmod(stat.S_IWUSR)
    Run.create(miniature("wandb.mode=auto", f"wandb.api_key_file={path}")).finish()
    assert "offline" in capsys.readouterr().out


def test_failing_wandb_never_stops_a_run(miniature, no_key, capsys):
    run = Run.create(miniature("wandb.mode=offline"))
    run._wandb[1].finish()  # as if W&B had died underneath
    for epoch in (1, 2):
        run.log_epoch({"epoch": epoch})
    run.finish()
    assert capsys.readouterr().out.count("no longer logging there") <= 1
    assert len((run.directory / "metrics.jsonl").read_text().splitlines()) == 2


def records(run: Path) -> list:
    """What W&B wrote down of a run offline, once all is there: `finish` does not wait
    for the disk."""
    for _ in range(300):
        files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
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


def artifacts_of(run: Path, kind: str) -> dict:
    """Name -> {path in the artifact: file}."""
    found = [r.request.log_artifact.artifact for r in records(run)]
    found += [r.artifact for r in records(run)]
    return {
        artifact.name: {e.path: e.local_path for e in artifact.manifest.contents}
        for artifact in found
        if artifact.type == kind
    }


def curves(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("log_audio", [False, True])
def test_the_page_holds_all_that_a_run_leaves(
    miniature, no_key, monkeypatch, tmp_path, log_audio
):
    key = "0123456789" * 4
    monkeypatch.setenv("WANDB_API_KEY", key)
    (tmp_path / "key.txt").write_text(key)
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
    metric = next(r.metric for r in records(run) if r.metric.glob_name == "*")
    assert metric.step_metric == "epoch"

    summary = summary_of(run)
    report = json.loads((run / "report.json").read_text())
    assert not {"identification", "verification"} & set(summary)
    for split in ("development", "test"):
        found = report["verification"][split]["systems"]["trained"]
        for name in measured:
            assert summary[f"{split}/{name}"] == last[f"{split}/{name}"] == found[name]
    for name in ("loss", "accuracy", "top_5_accuracy"):
        assert summary[f"validation/{name}"] == report["identification"][name]

    (model,) = artifacts_of(run, "model").values()
    assert list(model) == ["best.pt"]
    logged = {}
    for manifest in artifacts_of(run, "run_table").values():
        for name, path in manifest.items():
            logged[name] = path
    table = json.loads(Path(logged["results.table.json"]).read_text())
    assert table["columns"] == ["split", "system", "EER", "minDCF", "Cllr", "on"]
    assert len(table["data"]) == last["results"]["nrows"]
    table = json.loads(Path(logged["errors.table.json"]).read_text())
    rows = [row.split("\t") for row in (run / "errors.tsv").read_text().splitlines()]
    players = ["enrolment audio", "test audio"] if log_audio else []
    assert table["columns"] == [*rows[0], *players]
    assert [list(map(str, row[:6])) for row in table["data"]] == rows[1:]
    assert {row[5] for row in table["data"]} == {"false alarm", "miss"}

    sounds = {name for name in logged if name.endswith(".wav")}
    if log_audio:
        pack = prepare(p).pack
        for row in table["data"]:
            for name, player in zip(row[:2], row[6:], strict=True):
                (entry,) = (entry for entry in pack.entries if entry.id == name)
                found, rate = soundfile.read(logged[player["path"]], dtype="int16")
                said = pack.samples[entry.offset : entry.offset + entry.samples]
                assert rate == pack.sample_rate
                assert np.array_equal(found, said.numpy())
    assert bool(sounds) == log_audio
    everywhere = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert log_audio or not [path for path in everywhere if path.suffix == ".wav"]
    keyed = [path for path in everywhere if key.encode() in path.read_bytes()]
    assert keyed == [tmp_path / "key.txt"]


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
    timed = "train/audio_seconds_per_second"  # differs where an epoch is repeated
    for name in set(metrics[0]) - {"epoch", timed}:
        found = [(step["_step"], step[name]) for step in steps if name in step]
        assert found == [(row["epoch"], row[name]) for row in metrics], name
    assert sum(timed in step for step in steps) == 2
    for name in ("results", "errors", "figures/det", "test/eer"):
        assert [step["_step"] for step in steps if name in step] == [2]
