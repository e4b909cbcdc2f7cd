"""Checkpoints: what they hold, and what is no checkpoint."""

import os
import zipfile

import pytest
import torch

from engine.devices import choose_device
from runs.checkpoints import RunError, load_checkpoint, load_model, save_checkpoint
from runs.speaker_model import build_model

CPU = torch.device("cpu")
SPEAKERS = ["a", "b", "c"]


@pytest.fixture
def model(miniature):
    return build_model(miniature(), SPEAKERS, {"": "digest"}, CPU)


def test_checkpoint_brings_the_model_back(tmp_path, model):
    save_checkpoint(tmp_path / "x.pt", model, epoch=3)
    loaded = load_model(tmp_path / "x.pt", CPU)
    assert loaded.config == model.config
    assert loaded.speakers == SPEAKERS
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert load_checkpoint(tmp_path / "x.pt")["epoch"] == 3


def test_weights_of_sixteen_bits_become_float32(tmp_path, model):
    expected = {name: t.half() for name, t in model.encoder.state_dict().items()}
    model.encoder.half()
    save_checkpoint(tmp_path / "x.pt", model)
    for name, tensor in load_model(tmp_path / "x.pt", CPU).encoder.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name].float())


def test_a_run_stands_for_its_best_checkpoint(tmp_path, model):
    save_checkpoint(tmp_path / "best.pt", model)
    assert load_model(tmp_path, CPU).speakers == SPEAKERS


def test_seed_draws_the_weights(miniature):
    one, same = (
        build_model(miniature(), SPEAKERS, {"": "digest"}, CPU) for _ in range(2)
    )
    other = build_model(miniature("seed=2"), SPEAKERS, {"": "digest"}, CPU)
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


def test_device_that_is_not_there(shipped):
    assert choose_device(shipped("training.device=cpu")) == CPU
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match=r"training.device: expected .*got cuda"):
            choose_device(shipped("training.device=cuda"))
