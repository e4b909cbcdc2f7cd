"""NeMo's checkpoints: its numbers, a round trip without loss, and hostile files."""

import gzip
import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from conftest import CPU, MINIATURE
from errors import UserError
from eval import main as eval_main
from exchange.nemo_archives import CONFIG, WEIGHTS, NemoError
from exchange.nemo_files import load_nemo, save_nemo
from nemo_checkpoint import main
from parameters import ParameterError
from runs.checkpoints import load_model, save_checkpoint
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
    theirs = {name: torch.from_numpy(values[rows]) for name, values in arrays}
    encoded = []
    model.encoder.blocks[-1].register_forward_hook(lambda *c: encoded.append(c[2].mT))
    lengths = theirs["lengths"]
    waveforms = theirs["waveforms"][:, : lengths.max()]
    features, frames = model.front_end(waveforms, lengths)
    embeddings = model.encoder(features, frames)
    logits = F.normalize(embeddings) @ model.criterion.classifier.weight.T
    assert torch.equal(frames, theirs["feature_lengths"])
    assert (embeddings - theirs["embeddings"]).abs().max() < 1e-5
    assert (logits - theirs["logits"]).abs().max() < 1e-5
    for row, length in enumerate(frames):
        for mine, name, tolerance in (
            (features, "features", 1e-4),
            (encoded[0], "encoded", 1e-5),
        ):
            difference = mine[row, :, :length] - theirs[name][row, :, :length]
            assert difference.abs().max() < tolerance


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
        (),
        ("loss.name=cross_entropy", "front_end.dither=0.0"),
        ("loss.arcface.scale=20.0", "loss.arcface.margin=0.3"),
        (*FULL, "model.titanet.size=s"),
        (*FULL, "model.titanet.size=s", "model.titanet.epilog_channels=3072"),
        (*FULL, "model.titanet.size=m"),
        (*FULL, "model.titanet.size=l"),
    ],
)
def test_import_of_an_export_is_the_identity(tmp_path, build, overrides):
    model, path = build(*overrides), tmp_path / "x.nemo"
    save_nemo(path, model)
    assert_same(model, load_nemo(path))
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert_same(model, load_nemo(path))


@pytest.mark.parametrize(
    ("rate", "window", "hop"),
    [
        (16_000, 0.025, 0.0101),  # a hop of 161.6 samples
        (16_000, 0.02504, 0.00572),  # 400.64 and 91.52 samples
        (44_100, 1103 / 44_100, 15 / 44_100),  # 15 less a rounding error
    ],
)
def test_windows_and_hops_are_exported_in_whole_samples(
    tmp_path, build, rate, window, hop
):
    settings = f"sample_rate={rate}", f"window_seconds={window}", f"hop_seconds={hop}"
    model = build("front_end.n_fft=2048", *(f"front_end.{s}" for s in settings))
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


def write(path, *members: tuple[str, bytes, dict]) -> None:
    """Write a tar; the attributes of its members need not be true."""
    with open(path, "wb") as file:
        for name, content, attributes in members:
            info = tarfile.TarInfo(name)
            for attribute, value in ({"size": len(content)} | attributes).items():
                setattr(info, attribute, value)
            padding = -len(content) % tarfile.BLOCKSIZE
            file.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(padding))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def write_parts(path, config, state) -> None:
    text = yaml.safe_dump(config).encode()
    write(path, (CONFIG, text, {}), (WEIGHTS, weights_of(state), {}))


def refusal(path) -> str:
    with pytest.raises(NemoError) as caught:
        load_nemo(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "nemo.models.EncDecCTCModel"),
        ("preprocessor", []),
        ("preprocessor._target_", BOMB),
        ("preprocessor.window", "hamming"),
        ("preprocessor.normalize", "all_features"),
        ("preprocessor.n_fft", 1024),
        ("preprocessor.features", 64),
        ("preprocessor.log_zero_guard_type", "clamp"),
        ("preprocessor.mag_power", 1.0),
        ("preprocessor.window_size", 0.02506),
        ("preprocessor.window_stride", "fast"),
        ("preprocessor.sample_rate", 10**9),
        ("preprocessor.preemph", 2.0),
        ("preprocessor.dither", BOMB),
        ("preprocessor.beamforming", True),
        ("encoder._target_", "x.ConformerEncoder"),
        ("encoder.activation", "swish"),
        ("encoder.conv_mask", False),
        ("encoder.jasper", []),
        ("encoder.jasper.0.stride", [2]),
        ("encoder.jasper.1.dilation", [2]),
        ("encoder.jasper.1.dropout", "much"),
        ("encoder.jasper.2.kernel", [9]),
        ("encoder.jasper.2.filters", 17),
        ("encoder.jasper.3.repeat", 5),
        ("encoder.jasper.3.residual", False),
        ("encoder.jasper.3.dropout", 0.5),
        ("encoder.jasper.4.se_context_size", 256),
        ("encoder.jasper.4.separable", False),
        ("decoder.pool_mode", "xvector"),
        ("loss", ["arcface"]),
        ("loss._target_", "a.CircleLoss"),
        ("loss._target_", BOMB),
        ("loss.scale", -1),
        ("train_ds.labels", ["ann", "bob", BOMB]),
        ("train_ds.labels", ["ann", "bob"]),
        ("train_ds.labels", ["ann", "bob", "bob"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, parts, key, value):
    config, state = parts
    *path, last = (int(p) if p.isdigit() else p for p in key.split("."))
    section = config
    for name in path:
        section = section[name]
    section[last] = value
    write_parts(tmp_path / "x.nemo", config, state)
    # What the parameters refuse has their name, such as `front_end.preemphasis`.
    assert re.search(rf"\b{last}\w*: expected ", refusal(tmp_path / "x.nemo"))


def test_older_ways_to_say_the_same_are_read(tmp_path, parts, build):
    config, state = parts
    config["preprocessor"] |= {"stft_conv": False, "pad_to": 16, "lowfreq": 0}
    del config["preprocessor"]["preemph"]
    config["decoder"]["emb_sizes"] = [24]
    config["loss"]["_target_"] = "somewhere.else.AngularSoftmaxLoss"
    for block in config["encoder"]["jasper"]:
        block |= {"kernel": block["kernel"][0], "stride": 1}
    write_parts(tmp_path / "x.nemo", config, state)
    assert_same(build(), load_nemo(tmp_path / "x.nemo"))


def test_unnamed_speakers_are_numbered(tmp_path, parts):
    config, state = parts
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
        ("decoder.emb_layers.0.0.bias", torch.ones(63)),
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


# Hostile archives


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


def deflated(content: bytes) -> bytes:
    """The same records, and one that unpacks to more than any memory should take."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
        with new.open("archive/data/bomb", "w", force_zip64=True) as bomb:
            for _ in range(600):
                bomb.write(bytes(2**20))
    return packed.getvalue()


def special(kind: bytes, name: str = "x", **attributes) -> tuple:
    return name, b"", {"type": kind, **attributes}


def huge(name: str, size: int) -> tuple:
    return name, b"", {"size": size}


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (lambda c, w: [], CONFIG),
        (lambda c, w: [(CONFIG, c)], WEIGHTS),
        (lambda c, w: [(WEIGHTS, w)], CONFIG),
        (lambda c, w: [(CONFIG, c), (f"./{CONFIG}", c)], CONFIG),
        (lambda c, w: [("/etc/passwd", b"x")], "/etc/passwd"),
        (lambda c, w: [("a/../../x", b"x")], "a/../../x"),
        (lambda c, w: [special(tarfile.SYMTYPE, WEIGHTS, linkname="/x")], WEIGHTS),
        (lambda c, w: [special(tarfile.LNKTYPE, CONFIG, linkname="x")], CONFIG),
        (lambda c, w: [special(tarfile.CHRTYPE, "device")], "device"),
        (lambda c, w: [special(tarfile.FIFOTYPE, "pipe")], "pipe"),
        (lambda c, w: [huge(WEIGHTS, 2**40)], WEIGHTS),
        (lambda c, w: [huge(CONFIG, 2**23)], CONFIG),
        (lambda c, w: [huge(WEIGHTS, -512)], "-512"),
        (lambda c, w: [special(tarfile.XHDTYPE, size=2**40)], str(2**40)),
        (lambda c, w: [special(tarfile.XHDTYPE, size=-512)], "-"),
        (lambda c, w: [special(tarfile.GNUTYPE_LONGNAME, size=2**62)], str(2**62)),
        (lambda c, w: [(f"f{i}", b"") for i in range(101)], "100"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, b"")], "archive"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, w[:-99])], "archive"),
        (lambda c, w: [(CONFIG, c), (WEIGHTS, deflated(w))], "bytes"),
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
    write(path, *((*member, {})[:3] for member in members(*sound)))
    assert named in refusal(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert named in refusal(path)
    assert not os.listdir(tmp_path / "empty")  # nothing ran, nothing was unpacked


@pytest.mark.parametrize("cut", [0, 1, 100, 511, 513, 3000, -2000])
@pytest.mark.parametrize("zipped", [False, True])
def test_cut_files_are_refused(tmp_path, build, cut, zipped):
    save_nemo(tmp_path / "x.nemo", build())
    content = (tmp_path / "x.nemo").read_bytes()
    if cut == -2000:
        content = content.rstrip(b"\0")  # the end of the weights, not of the padding
    content = (gzip.compress(content) if zipped else content)[:cut]
    (tmp_path / "x.nemo").write_bytes(content)
    assert refusal(tmp_path / "x.nemo")


def test_no_such_file(tmp_path):
    assert refusal(tmp_path / "x.nemo")
    (tmp_path / "x.nemo").mkdir()
    assert refusal(tmp_path / "x.nemo")


# Where a run is expected, a file does


def test_import_and_export_on_the_command_line(tmp_path, build, capsys):
    model = build()
    paths = [str(tmp_path / name) for name in ("a.pt", "a.nemo", "b.pt")]
    save_checkpoint(tmp_path / "a.pt", model)
    assert main(["export", paths[0], paths[1]]) == 0
    assert main(["import", paths[1], paths[2]]) == 0
    assert_same(model, load_model(tmp_path / "b.pt", CPU))
    assert f"{paths[2]}: 0.03 M weights, 3 speakers" in capsys.readouterr().out
    assert main(["import", paths[1], paths[2]]) == 2
    assert capsys.readouterr().err.startswith(f"error: {paths[2]}: expected a new file")
    assert main(["export", paths[1], str(tmp_path / "c.nemo")]) == 2


def test_a_nemo_file_is_evaluated_like_a_run(tmp_path, miniature, capsys):
    run = train(miniature("run.name=mine"))
    assert main(["export", str(run), str(tmp_path / "x.nemo")]) == 0
    assert main(["import", str(tmp_path / "x.nemo"), str(tmp_path / "x.pt")]) == 0
    corpus = [f"dataset.packs={tmp_path / 'packs'}", "dataset.seed=7"]
    corpus += [value for value in MINIATURE if value.startswith("dataset.")]
    tables = []
    for checkpoint in (run, tmp_path / "x.nemo", tmp_path / "x.pt"):
        capsys.readouterr()
        assert eval_main(["--checkpoint", str(checkpoint), *corpus]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [line.partition(" trained ")[2].split() for line in lines]
        tables.append([row for row in rows if row])
    assert len(tables[0]) == 1
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("kind", ["nemo", "run"])
def test_fine_tuning_starts_from_the_encoder(tmp_path, miniature, kind):
    source = train(miniature("run.name=first", "loss.name=cross_entropy"))
    start = load_model(source, CPU)
    if kind == "nemo":
        save_nemo(tmp_path / "x.nemo", start)
        source = tmp_path / "x.nemo"
    tiny = [f"training.optimizer.{rate}=1e-9" for rate in ("lr", "muon_lr")]
    other = ("dataset.seed=3", f"training.init_from={source}", "training.epochs=1")
    tuned = load_model(train(miniature("run.name=tuned", *other, *tiny)), CPU)
    for mine, theirs in zip(
        tuned.encoder.parameters(), start.encoder.parameters(), strict=True
    ):
        assert (mine - theirs).abs().max() < 1e-6  # such a rate leaves it in place
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
