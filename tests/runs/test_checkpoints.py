"""Checkpoints: what they hold, and what is refused as none."""

import os
import zipfile

import pytest
import torch

from conftest import CPU
from engine.files import FileError
from runs.checkpoints import RunError, load_checkpoint, load_model, save_checkpoint
from runs.speaker_model import build_model

SPEAKERS = ["a", "b", "c"]


@pytest.fixture
def path(tmp_path, model):
    """A sound checkpoint."""
    save_checkpoint(tmp_path / "best.pt", model, epoch=1)
    return tmp_path / "best.pt"


def refusal(path) -> str:
    """Why a file is refused, in one line that names it."""
    with pytest.raises(RunError) as caught:
        load_model(path, CPU)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("of_the_run", [False, True])
def test_checkpoint_brings_the_model_back(path, model, of_the_run):
    loaded = load_model(path.parent if of_the_run else path, CPU)
    assert loaded.config == model.config
    assert loaded.speakers == SPEAKERS
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert load_checkpoint(path)["epoch"] == 1


def test_weights_of_sixteen_bits_become_float32(path, model):
    expected = {name: t.half() for name, t in model.encoder.state_dict().items()}
    model.encoder.half()
    save_checkpoint(path, model)
    for name, tensor in load_model(path, CPU).encoder.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name].float())


def test_seed_draws_the_weights(miniature, model):
    same, other = (
        build_model(miniature(f"seed={seed}"), SPEAKERS, {}, CPU) for seed in (1, 2)
    )
    first, *others = (next(m.encoder.parameters()) for m in (model, same, other))
    assert [torch.equal(first, weight) for weight in others] == [True, False]


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", None, [1, 2], {"state_dict": {}}, Intruder()]
)
def test_files_that_are_no_checkpoints_are_refused_unexecuted(
    path, monkeypatch, content
):
    monkeypatch.chdir(path.parent)
    if content is None:
        os.truncate(path, path.stat().st_size // 2)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert "execut" not in refusal(path)  # torch would advise it
    assert "weights_only" not in refusal(path)
    assert not (path.parent / "intruded").exists()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("corpus", Intruder(), "more than tensors"),
        ("version", 1, "not a checkpoint"),
        ("encoder", None, "lacks encoder"),  # left out
        ("speakers", SPEAKERS[:2], "does not fit"),
        *(("speakers", value, "speakers") for value in (None, 3, "abc", [1], {"a": 1})),
        # It gets no memory for what it claims.
        ("parameters.model.titanet.channels", 10**7, "does not fit"),
        ("parameters.model.titanet.epilog_channels", 2**62, "does not fit"),
        ("parameters.model.titanet.embedding_size", 10**12, "does not fit"),
        ("parameters.front_end.n_fft", 2**40, "does not fit"),
        ("parameters.front_end.num_mels", 2**40, "does not fit"),
        ("parameters.model.dvector.num_layers", 10**9, "does not fit"),
    ],
)
def test_checkpoints_with_another_value_are_refused(path, key, value, named):
    section = state = load_checkpoint(path)
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    if key == "encoder":
        del state["encoder"]
    torch.save(state, path)
    assert named in refusal(path)


@pytest.mark.parametrize("hyper_parameters", [{}, Intruder()])
def test_a_checkpoint_of_lightning_is_named(path, hyper_parameters):
    state = {"state_dict": {}, "pytorch-lightning_version": "2.4.0"}
    path = path.with_suffix(".ckpt")
    torch.save(state | {"hyper_parameters": hyper_parameters}, path)
    for words in ("Lightning", ".nemo or .pt"):
        assert words in refusal(path)
    assert not os.path.exists("intruded")


def test_every_flipped_bit_of_a_weight_is_noticed(path, model):
    whole = path.read_bytes()
    weight = next(model.encoder.parameters()).detach().numpy().tobytes()
    place = whole.index(weight)
    for bit in range(0, 8 * len(weight), 37):
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert "not a readable checkpoint" in refusal(path)


def test_a_compressed_checkpoint_is_not_unpacked(path):
    packed, deflated = path.with_name("y.pt"), zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", deflated) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "not a readable checkpoint" in refusal(packed)


def test_no_such_checkpoint(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pt")


def test_failing_save_keeps_the_last_checkpoint(path, model, monkeypatch):
    def full(*arguments):
        arguments[1].write(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match=f"{path}: .*No space left on device"):
        save_checkpoint(path, model, epoch=2)
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(path.parent) == ["best.pt"]
