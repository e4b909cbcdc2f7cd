"""NeMo's checkpoints: its numbers, a round trip without loss, and hostile files."""

import gzip
import io
import os
import re
import tarfile
import zipfile
from dataclasses import replace
from functools import reduce
from operator import getitem

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from conftest import CPU, MINIATURE
from errors import UserError
from eval import main as eval_main
from exchange.nemo_archives import CONFIG, MAX_BYTES, WEIGHTS, NemoError
from exchange.nemo_files import load_any_model, load_nemo, save_nemo
from nemo_checkpoint import main
from parameters import ParameterError
from runs.checkpoints import load_model
from runs.speaker_model import build_model
from train import train

SPEAKERS = ["ann", "bob", "eve"]
MEMBERS = CONFIG, WEIGHTS
TINY = "reference/nemo/titanet-tiny"


@torch.inference_mode()
@pytest.mark.parametrize("rows", [[0, 1, 2], [0], [1], [2]])
def test_numbers_are_nemos(shared, rows):
    model = load_nemo(shared / f"{TINY}.nemo")
    arrays = np.load(shared / f"{TINY}.npz").items()
    theirs = {k: torch.from_numpy(array[rows]) for k, array in arrays if array.ndim}
    lengths = theirs["lengths"]
    features, frames = model.front_end(theirs["waveforms"][:, : max(lengths)], lengths)
    assert torch.equal(frames, theirs["feature_lengths"])
    for mine, right, length in zip(features, theirs["features"], frames, strict=True):
        assert (mine[:, :length] - right[:, :length]).abs().max() < 1e-4
    embeddings = model.encoder(features, frames)
    logits = F.normalize(embeddings) @ model.criterion.classifier.weight.T
    assert (embeddings - theirs["embeddings"]).abs().max() < 1e-5
    assert (logits - theirs["logits"]).abs().max() < 1e-5


@pytest.fixture
def build(miniature):
    def build(*overrides: str):
        model = build_model(miniature(*overrides), SPEAKERS, {"": "digest"}, CPU)
        for name, tensor in model.encoder.state_dict().items():
            if name.endswith(("mean", "var", "tracked")):  # as after training
                tensor.copy_(torch.rand(tensor.shape) + 2)
        model.front_end.filterbank.mul_(1.01)  # a file brings its own
        return model

    return build


def assert_same(one, other) -> None:
    assert other.speakers == one.speakers
    mine, theirs = one.config, other.config
    assert theirs.front_end == mine.front_end
    assert theirs.model.titanet == mine.model.titanet
    assert theirs.loss.name == mine.loss.name
    assert theirs.loss.arcface == mine.loss.arcface
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)


def config_and_weights(path) -> tuple[dict, dict]:
    with tarfile.open(path) as archive:
        config, weights = (archive.extractfile(f"./{n}").read() for n in MEMBERS)
    return yaml.safe_load(config), torch.load(io.BytesIO(weights), weights_only=True)


FULL = ("model.titanet.channels=null", "model.titanet.epilog_channels=null")


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss.name=cross_entropy", "front_end.dither=0.0"),
        ("loss.arcface.scale=20.0", "loss.arcface.margin=0.3"),
        (*FULL, "model.titanet.size=s", "model.titanet.epilog_channels=3072"),
        *((*FULL, f"model.titanet.size={size}") for size in "sml"),
    ],
)
def test_import_of_an_export_is_the_identity(tmp_path, build, overrides):
    model, path = build(*overrides), tmp_path / "x.nemo"
    save_nemo(path, model)
    assert_same(model, load_nemo(path))
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert_same(model, load_nemo(path))


@torch.inference_mode()
def test_an_export_takes_in_the_centre(tmp_path, build):
    model, waveforms = build().eval(), torch.randn(2, 16_000)
    model.backend = replace(model.backend, centre=torch.ones(24))
    save_nemo(tmp_path / "x.nemo", model)
    exported = load_nemo(tmp_path / "x.nemo")
    torch.testing.assert_close(exported(waveforms), model(waveforms))


@pytest.mark.parametrize(
    ("rate", "window", "hop"),
    [
        (16_000, 0.025, 0.0101),  # a hop of 161.6 samples
        (16_000, 0.02504, 0.00572),  # 400.64 and 91.52 samples
        (44_100, 1103 / 44_100, 15 / 44_100),  # 15 less a rounding error
    ],
)
def test_windows_and_hops_are_whole_samples(tmp_path, build, rate, window, hop):
    sizes = f"window_seconds: {window}, hop_seconds: {hop}, n_fft: 2048"
    model = build(f"front_end={{sample_rate: {rate}, {sizes}}}")
    save_nemo(tmp_path / "x.nemo", model)
    source = config_and_weights(tmp_path / "x.nemo")[0]["preprocessor"]
    # As NeMo computes them.
    assert int(source["window_size"] * rate) == model.front_end.window.numel()
    assert int(source["window_stride"] * rate) == model.front_end.hop
    waveforms, lengths = torch.randn(1, rate), torch.tensor([rate])
    features, frames = model.front_end.eval()(waveforms, lengths)
    again, frames_again = load_nemo(tmp_path / "x.nemo").front_end(waveforms, lengths)
    assert torch.equal(frames, frames_again)
    assert torch.equal(features, again)


@pytest.mark.parametrize(
    "override",
    ["model.name=dvector", "front_end.normalization=mean", "loss.name=cosface"],
)
def test_what_nemo_lacks_is_not_exported(tmp_path, build, override):
    key, _, value = override.partition("=")
    with pytest.raises(NemoError, match=f"^{key}: expected .*, got {value}$"):
        save_nemo(tmp_path / "x.nemo", build(override))
    assert not os.listdir(tmp_path)


BOMB = ["x"] * 10  # written out, ten thousand million of them
for _ in range(9):
    BOMB = [BOMB] * 10


@pytest.fixture
def parts(tmp_path, build):
    save_nemo(tmp_path / "sound.nemo", build())
    return config_and_weights(tmp_path / "sound.nemo")


def weights_of(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def write(path, *members: tuple) -> None:
    """Write a tar; the attributes of its members need not be true."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content, *attributes in members:
            info = tarfile.TarInfo(name)
            for attribute, value in {"size": len(content), **dict(*attributes)}.items():
                setattr(info, attribute, value)
            archive.addfile(info)
            archive.fileobj.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))


def write_parts(path, config, state) -> None:
    text = yaml.safe_dump(config).encode()
    write(path, (CONFIG, text), (WEIGHTS, weights_of(state)))


def refusal(path) -> str:
    with pytest.raises(NemoError) as caught:
        load_nemo(path)
    where, message = str(caught.value).split(": ", 1)
    assert where == str(path)
    assert "\n" not in message
    return message


REFUSED = (
    ((), {"target": "nemo.models.EncDecCTCModel", "preprocessor": []}),
    ((), {"loss": ["arcface"]}),
    (("preprocessor",), {"_target_": BOMB, "window": "hamming", "n_fft": 1024}),
    (("preprocessor",), {"normalize": "all_features", "features": 64, "mag_power": 1}),
    (("preprocessor",), {"log_zero_guard_type": "clamp", "window_size": 0.02506}),
    (("preprocessor",), {"window_stride": "fast", "sample_rate": 10**9}),
    (("preprocessor",), {"preemph": 2.0, "dither": BOMB, "beamforming": True}),
    (("encoder",), {"_target_": "x.ConformerEncoder", "activation": "swish"}),
    (("encoder",), {"conv_mask": False, "jasper": []}),
    (("encoder", "jasper", 0), {"stride": [2]}),
    (("encoder", "jasper", 1), {"dilation": [2], "dropout": "much"}),
    (("encoder", "jasper", 2), {"kernel": [9], "filters": 17}),
    (("encoder", "jasper", 3), {"repeat": 5, "residual": False, "dropout": 0.5}),
    (("encoder", "jasper", 4), {"se_context_size": 256, "separable": False}),
    (("decoder",), {"pool_mode": "xvector"}),
    (("loss",), {"_target_": "a.CircleLoss", "scale": -1}),
    (("loss",), {"_target_": BOMB}),
    (("train_ds",), {"labels": ["ann", "bob", BOMB]}),
    (("train_ds",), {"labels": ["ann", "bob"]}),
    (("train_ds",), {"labels": ["ann", "bob", "bob"]}),
)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(section, *item) for section, values in REFUSED for item in values.items()],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, parts, section, key, value):
    config, state = parts
    reduce(getitem, section, config)[key] = value
    write_parts(tmp_path / "x.nemo", config, state)
    # What the parameters refuse has their name, such as `front_end.preemphasis`.
    assert re.search(rf"\b{key}\w*: expected ", refusal(tmp_path / "x.nemo"))


def test_files_that_say_it_otherwise_or_say_less_are_read(tmp_path, parts, build):
    config, state = parts
    config["preprocessor"] |= {"stft_conv": False, "pad_to": 16, "lowfreq": 0}
    del config["preprocessor"]["preemph"]
    config["decoder"]["emb_sizes"] = [24]
    config["loss"]["_target_"] = "somewhere.else.AngularSoftmaxLoss"
    for block in config["encoder"]["jasper"]:
        block |= {"kernel": block["kernel"][0], "stride": 1}
    write_parts(tmp_path / "x.nemo", config, state)
    assert_same(build(), load_nemo(tmp_path / "x.nemo"))
    config["train_ds"] = None
    write_parts(tmp_path / "x.nemo", config, state)
    speakers = load_nemo(tmp_path / "x.nemo").speakers
    assert speakers == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoder.emb_layers.0.0.bias", None),  # missing
        ("decoder.final.weight", None),
        ("encoder.encoder.5.mconv.0.conv.weight", torch.ones(1)),  # one too many
        ("decoder.final.bias", torch.ones(3)),  # which an angular loss does not have
        ("encoder.encoder.1.mconv.0.conv.weight", torch.ones(16, 1, 9)),
        ("preprocessor.featurizer.window", torch.ones(320)),
        ("preprocessor.featurizer.fb", torch.ones(80, 257)),
        ("decoder.final.weight", torch.full((3, 24), torch.nan)),
        ("decoder.final.weight", [1.0]),
        ("decoder.final.weight", torch.eye(3).to_sparse()),
        ("decoder.final.weight", torch.zeros(1).expand(10**6, 10**6)),  # 4 TB, it says
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path, parts, key, value):
    config, state = parts
    state[key] = value
    if value is None:
        del state[key]
    write_parts(tmp_path / "x.nemo", config, state)
    assert refusal(tmp_path / "x.nemo").startswith(f"{key}: expected ")


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


def with_bomb(content: bytes) -> bytes:
    """Add a record that unpacks to more than any memory should take."""
    packed = io.BytesIO(content)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", bytes(MAX_BYTES))
    return packed.getvalue()


def header(name: str, **attributes) -> tuple:
    return name, b"", attributes


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (lambda c, w: [], CONFIG),
        (lambda c, w: [(CONFIG, c)], WEIGHTS),
        (lambda c, w: [(WEIGHTS, w)], CONFIG),
        (lambda c, w: [(CONFIG, c), (f"./{CONFIG}", c)], CONFIG),
        (lambda c, w: [("/etc/passwd", b"x")], "/etc/passwd"),
        (lambda c, w: [("a/../../x", b"x")], "a/../../x"),
        (lambda c, w: [header(WEIGHTS, type=tarfile.SYMTYPE, linkname="/x")], WEIGHTS),
        (lambda c, w: [header(CONFIG, type=tarfile.LNKTYPE, linkname="x")], CONFIG),
        (lambda c, w: [header("device", type=tarfile.CHRTYPE)], "device"),
        (lambda c, w: [header("pipe", type=tarfile.FIFOTYPE)], "pipe"),
        (lambda c, w: [header(WEIGHTS, size=2**40)], WEIGHTS),
        (lambda c, w: [header(CONFIG, size=2**23)], CONFIG),
        (lambda c, w: [header(WEIGHTS, size=-512)], "-512"),
        (lambda c, w: [header("x", type=tarfile.XHDTYPE, size=2**40)], str(2**40)),
        (lambda c, w: [header("x", type=tarfile.XHDTYPE, size=-512)], "-"),
        (lambda c, w: [header("x", type=tarfile.GNUTYPE_LONGNAME, size=2**62)], "4611"),
        (lambda c, w: [(f"f{i}", b"") for i in range(101)], "100"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, b"")], "archive"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, w[:-99])], "archive"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, with_bomb(w))], "bytes"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, weights_of({"a": Intruder()}))], WEIGHTS),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, weights_of([1, 2]))], WEIGHTS),
        (lambda c, w: [(CONFIG, b"a: [1"), (WEIGHTS, w)], f"{CONFIG}:1: "),
        (lambda c, w: [(CONFIG, b"!!python/name:os.mkdir"), (WEIGHTS, w)], CONFIG),
        (lambda c, w: [(CONFIG, b"\xff"), (WEIGHTS, w)], "0xff"),
        (lambda c, w: [(CONFIG, b"- 1"), (WEIGHTS, w)], CONFIG),
        (lambda c, w: [(CONFIG, b"a: 1"), (WEIGHTS, w)], "target"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, monkeypatch, parts, members, named):
    config, state = parts
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    sound = yaml.safe_dump(config).encode(), weights_of(state)
    path = tmp_path / "x.nemo"
    write(path, *members(*sound))
    assert named in refusal(path)
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert named in refusal(path)
    assert not os.listdir(tmp_path / "empty")  # nothing ran, nothing was unpacked


@pytest.mark.parametrize("cut", [0, 1, 100, 511, 513, 3000, -2000])
def test_missing_and_cut_files_are_refused(tmp_path, build, cut):
    path = tmp_path / "x.nemo"
    assert refusal(path)
    save_nemo(path, build())
    # Without the padding, -2000 is in the weights.
    content = path.read_bytes().rstrip(b"\0")
    for form in (content, gzip.compress(content)):
        path.write_bytes(form[:cut])
        assert refusal(path)
    path.unlink()
    path.mkdir()
    assert refusal(path)


def test_the_command_line_exports_imports_and_evaluates(tmp_path, miniature, capsys):
    run = train(miniature("run.name=mine"))
    nemo, imported = (str(tmp_path / name) for name in ("x.nemo", "x.pt"))
    assert main(["export", str(run), nemo]) == 0
    assert main(["import", nemo, imported]) == 0
    assert f"{imported}: 0.03 M weights, 6 speakers" in capsys.readouterr().out
    assert_same(load_model(run, CPU), load_model(tmp_path / "x.pt", CPU))
    assert main(["import", nemo, imported]) == 2
    assert capsys.readouterr().err.startswith(f"error: {imported}: expected a new file")
    assert main(["export", nemo, str(tmp_path / "y.nemo")]) == 2
    corpus = [f"dataset.packs={tmp_path / 'packs'}", "dataset.seed=7"]
    corpus += [value for value in MINIATURE if value.startswith("dataset.")]
    tables = []
    for checkpoint in (str(run), nemo, imported):
        capsys.readouterr()
        assert eval_main(["--checkpoint", checkpoint, *corpus]) == 0
        tables.append(re.findall(r" trained +(.*\d)", capsys.readouterr().out))
    assert len(tables[0]) == 1
    assert tables[0] == tables[1] == tables[2]


def test_fine_tuning_starts_from_the_encoder(tmp_path, miniature):
    run = train(miniature("run.name=first", "loss.name=cross_entropy"))
    start = load_model(run, CPU)
    save_nemo(tmp_path / "x.nemo", start)
    other = ["dataset.seed=3", "training.epochs=1"]  # at rates that leave it in place:
    other += [f"training.optimizer.{rate}=1e-9" for rate in ("lr", "muon_lr")]
    for source in (run, tmp_path / "x.nemo"):
        p = miniature(*other, f"training.init_from={source}")
        tuned = load_model(train(p), CPU)
        weights, begun = (dict(m.encoder.named_parameters()) for m in (tuned, start))
        torch.testing.assert_close(weights, begun, atol=1e-6, rtol=0)
        assert tuned.speakers != start.speakers
        assert len(tuned.criterion.classifier.weight) == len(tuned.speakers)


@pytest.mark.parametrize(
    ("override", "has"),
    [
        ("model.titanet.channels=24", "16"),
        ("model.name=dvector", "'titanet'"),
        ("front_end.hop_seconds=0.0125", "0.01"),
    ],
)
def test_fine_tuning_of_another_architecture(tmp_path, build, miniature, override, has):
    save_nemo(tmp_path / "x.nemo", build())
    key, _, value = override.partition("=")
    p = miniature(f"training.init_from={tmp_path / 'x.nemo'}", override)
    with pytest.raises(ParameterError, match=f"^{key}: expected {has}, .*{value}"):
        train(p)


def test_fine_tuning_never_tests_whom_the_encoder_has_heard(miniature):
    source = train(miniature("run.name=first", "dataset.test_fraction=0.5"))
    fewer = miniature(f"training.init_from={source}", "dataset.test_fraction=0.25")
    train(fewer)  # the same shuffle: its test speakers are among those of the first
    with pytest.raises(UserError, match="test speakers"):
        train(miniature(f"training.init_from={source}", "dataset.test_fraction=0.75"))


def test_the_telephone_encoders_name_opens_the_one(tmp_path, checkpoint, capsys):
    checkpoint().rename(tmp_path / "titanet-s-wild.pt")
    opened = load_any_model(tmp_path / "titanet-s-telephone.pt", CPU)
    assert opened.speakers == ["a", "b"]
    assert "titanet-s-wild.pt serves telephones too" in capsys.readouterr().err
