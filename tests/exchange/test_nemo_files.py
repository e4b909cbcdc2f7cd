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

from conftest import MINIATURE
from errors import UserError
from eval import main as eval_main
from exchange.nemo_files import CONFIG, WEIGHTS, NemoError, load_nemo, save_nemo
from nemo_checkpoint import main
from parameters import ParameterError
from runs.checkpoints import load_model, save_checkpoint
from runs.speaker_model import build_model
from train import train

CPU = torch.device("cpu")
SPEAKERS = ["ann", "bob", "eve"]
TINY = "reference/nemo/titanet-tiny"


@pytest.fixture
def reference(shared) -> dict[str, torch.Tensor]:
    arrays = np.load(shared / f"{TINY}.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@torch.inference_mode()
@pytest.mark.parametrize("batched", [True, False])
def test_numbers_are_nemos(shared, reference, batched):
    model = load_nemo(shared / f"{TINY}.nemo")
    encoded = []
    model.encoder.blocks[-1].register_forward_hook(lambda *c: encoded.append(c[2]))
    rows = [slice(0, 3)] if batched else [slice(i, i + 1) for i in range(3)]
    for row in rows:
        lengths = reference["lengths"][row]
        waveforms = reference["waveforms"][row, : lengths.max()]
        features, frames = model.front_end(waveforms, lengths)
        embeddings = model.encoder(features, frames)
        logits = F.normalize(embeddings) @ model.criterion.classifier.weight.T
        assert torch.equal(frames, reference["feature_lengths"][row])
        for mine, name, tolerance in (
            (features, "features", 1e-4),
            (encoded[-1].transpose(1, 2), "encoded", 1e-5),
        ):
            for i, length in enumerate(frames):
                theirs = reference[name][row][i, :, :length]
                assert (mine[i, :, :length] - theirs).abs().max() < tolerance
        assert (embeddings - reference["embeddings"][row]).abs().max() < 1e-5
        assert (logits - reference["logits"][row]).abs().max() < 1e-5


@pytest.fixture
def build(miniature):
    def with_statistics(*overrides: str):
        """A model with batch-norm statistics as after training, not as at birth."""
        model = build_model(miniature(*overrides), SPEAKERS, {"": "digest"}, CPU)
        for name, tensor in model.encoder.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith("tracked"):
                tensor.fill_(17)
        model.front_end.filterbank.mul_(1.01)  # a file brings its own
        return model

    return with_statistics


def assert_same(model, other) -> None:
    assert other.speakers == model.speakers
    mine, theirs = model.config, other.config
    assert theirs.front_end == mine.front_end
    assert theirs.model.titanet == mine.model.titanet
    assert theirs.loss.name == mine.loss.name
    mine, theirs = model.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.titanet.channels=16", "model.titanet.epilog_channels=32"),
        ("loss.name=cross_entropy", "front_end.dither=0.0"),
        ("loss.arcface.scale=20.0", "loss.arcface.margin=0.3"),
    ],
)
def test_import_of_an_export_is_the_identity(tmp_path, build, overrides):
    model = build(*overrides)
    save_nemo(tmp_path / "x.nemo", model)
    loaded = load_nemo(tmp_path / "x.nemo")
    assert_same(model, loaded)
    arcface = loaded.config.loss.arcface
    assert arcface.scale == model.config.loss.arcface.scale
    assert arcface.margin == model.config.loss.arcface.margin


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.titanet.size=s",),
        ("model.titanet.size=s", "model.titanet.epilog_channels=3072"),
        ("model.titanet.size=m",),
        ("model.titanet.size=l",),
    ],
)
def test_full_sizes_come_back(tmp_path, shipped, overrides):
    speakers = [f"speaker {number}" for number in range(1211)]
    model = build_model(shipped(*overrides), speakers, {"": "digest"}, CPU)
    save_nemo(tmp_path / "x.nemo", model)
    assert_same(model, load_nemo(tmp_path / "x.nemo"))


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
    with tarfile.open(tmp_path / "x.nemo") as archive:
        config = yaml.safe_load(archive.extractfile(f"./{CONFIG}"))
    source = config["preprocessor"]
    # As NeMo computes them.
    assert int(source["window_size"] * rate) == model.front_end.window.numel()
    assert int(source["window_stride"] * rate) == model.front_end.hop
    waveforms, lengths = torch.randn(1, rate), torch.tensor([rate])
    features, frames = model.front_end.eval()(waveforms, lengths)
    again, frames_again = load_nemo(tmp_path / "x.nemo").front_end(waveforms, lengths)
    assert torch.equal(frames, frames_again)
    assert torch.equal(features, again)


def test_gzipped_archives_are_read(tmp_path, build):
    model = build()
    save_nemo(tmp_path / "x.nemo", model)
    zipped = gzip.compress((tmp_path / "x.nemo").read_bytes())
    (tmp_path / "x.nemo").write_bytes(zipped)
    assert_same(model, load_nemo(tmp_path / "x.nemo"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.name=dvector", "model.name: expected titanet"),
        ("front_end.normalization=mean", "front_end.normalization: expected per_f"),
        ("loss.name=cosface", "loss.name: expected arcface or cross_entropy"),
        ("loss.name=ge2e", "loss.name: expected arcface or cross_entropy"),
    ],
)
def test_what_nemo_lacks_is_not_exported(tmp_path, build, overrides, message):
    with pytest.raises(NemoError, match=message):
        save_nemo(tmp_path / "x.nemo", build(overrides))
    assert not os.listdir(tmp_path)


# What a file says

BOMB = ["x"] * 10  # written out, ten thousand million of them
for _ in range(9):
    BOMB = [BOMB] * 10


@pytest.fixture
def parts(tmp_path, build):
    """The configuration and the tensors of a sound file."""
    save_nemo(tmp_path / "sound.nemo", build())
    with tarfile.open(tmp_path / "sound.nemo") as archive:
        config = yaml.safe_load(archive.extractfile(f"./{CONFIG}"))
        weights = io.BytesIO(archive.extractfile(f"./{WEIGHTS}").read())
    return config, torch.load(weights, weights_only=True)


def weights_of(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def member(name: str, content: bytes = b"", **attributes) -> tuple:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def write(path, *members) -> None:
    with open(path, "wb") as file:
        for info, content in members:
            padding = -len(content) % tarfile.BLOCKSIZE
            file.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(padding))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def write_parts(path, config, state) -> None:
    text = yaml.safe_dump(config).encode()
    write(path, member(CONFIG, text), member(WEIGHTS, weights_of(state)))


def refusal(path) -> str:
    with pytest.raises(NemoError) as caught:
        load_nemo(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", "nemo.models.EncDecCTCModel", "target: expected 'EncDecSpeaker"),
        ("preprocessor.window", "hamming", "window: expected 'hann', got 'hamming'"),
        ("preprocessor.normalize", "all_features", "expected 'per_feature', got 'all"),
        ("preprocessor.n_fft", 1024, "n_fft: expected 512, got 1024"),
        ("preprocessor.features", 64, "features: expected 80, got 64"),
        ("preprocessor.log_zero_guard_type", "clamp", "expected 'add', got 'clamp'"),
        ("preprocessor.mag_power", 1.0, "mag_power: expected 2.0, got 1.0"),
        ("preprocessor.window_size", 0.02506, "window_size: expected whole samples"),
        ("preprocessor.window_stride", "fast", "window_stride: expected seconds"),
        ("preprocessor.window_size", 0.02, r"window: expected the shape \[320\]"),
        ("preprocessor.sample_rate", 10**9, "sample_rate: expected at most"),
        ("preprocessor.preemph", 2.0, "front_end.preemphasis: expected"),
        ("preprocessor.beamforming", True, "beamforming: expected no such key"),
        ("preprocessor", [], r"preprocessor: expected a section, got \[\]"),
        ("encoder._target_", "x.ConformerEncoder", "_target_: expected 'ConvASREnc"),
        ("encoder.activation", "swish", "activation: expected 'relu', got 'swish'"),
        ("encoder.conv_mask", False, "conv_mask: expected True, got False"),
        ("encoder.jasper", [], "encoder.jasper: expected 5 blocks"),
        ("encoder.jasper.1.dilation", [2], r"dilation: expected \[1\], got"),
        ("encoder.jasper.0.stride", [2], r"stride: expected \[1\], got \[2\]"),
        (
            "encoder.jasper.2.kernel",
            [9],
            r"2.kernel: expected \[11\], got \[9\]",
        ),
        ("encoder.jasper.2.filters", 17, "jasper.2.filters: expected 16, got 17"),
        ("encoder.jasper.3.repeat", 5, "jasper.3.repeat: expected 3, got 5"),
        ("encoder.jasper.3.residual", False, "jasper.3.residual: expected True"),
        ("encoder.jasper.3.dropout", 0.5, "jasper.3.dropout: expected 0.1, got 0.5"),
        ("encoder.jasper.1.dropout", "much", "model.titanet.dropout: expected a num"),
        ("encoder.jasper.4.se_context_size", 256, "se_context_size: expected -1"),
        ("encoder.jasper.4.separable", False, "separable: expected True, got False"),
        ("decoder.pool_mode", "xvector", "pool_mode: expected 'attention'"),
        ("loss._target_", "a.CircleLoss", "loss._target_: expected AngularSoftmaxLoss"),
        ("loss.scale", -1, "loss.arcface.scale: expected above 0"),
        ("loss._target_", BOMB, "loss._target_: expected AngularSoftmaxLoss"),
        ("preprocessor._target_", BOMB, "_target_: expected 'AudioToMel"),
        ("preprocessor.dither", BOMB, r"front_end.dither: expected"),
        ("train_ds.labels", ["ann", "bob", BOMB], "labels: expected 3 different names"),
        ("train_ds.labels", ["ann", "bob"], "labels: expected 3 different names"),
        ("train_ds.labels", ["ann", "bob", "bob"], "expected 3 different names"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path, parts, key, value, message
):
    config, state = parts
    *path, last = (int(p) if p.isdigit() else p for p in key.split("."))
    section = config
    for name in path:
        section = section[name]
    section[last] = value
    write_parts(tmp_path / "x.nemo", config, state)
    said = refusal(tmp_path / "x.nemo")
    assert re.search(message, said), said


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


def expanded(state) -> None:
    key = "decoder.final.weight"
    state[key] = torch.zeros(1).expand(10**6, 10**6)


WRONG_TENSORS = {
    "missing": (
        lambda s: s.pop("decoder.emb_layers.0.0.bias"),
        "decoder.emb_layers.0.0.bias: expected this tensor, but it is missing",
    ),
    "size not to be read": (
        lambda s: s.pop("decoder.final.weight"),
        "decoder.final.weight: expected this tensor, but it is missing",
    ),
    "extra": (
        lambda s: s.update({"encoder.encoder.5.mconv.0.conv.weight": torch.ones(1)}),
        "encoder.encoder.5.mconv.0.conv.weight: expected no such tensor",
    ),
    "bias under an angular loss": (
        lambda s: s.update({"decoder.final.bias": torch.ones(3)}),
        "decoder.final.bias: expected no such tensor",
    ),
    "shape": (
        lambda s: s.update({"decoder.emb_layers.0.0.bias": torch.ones(63)}),
        "decoder.emb_layers.0.0.bias: expected the shape [64], got [63]",
    ),
    "kernel": (
        lambda s: s.update(
            {"encoder.encoder.1.mconv.0.conv.weight": torch.ones(16, 1, 9)}
        ),
        "expected the shape [16, 1, 7], got [16, 1, 9]",
    ),
    "axes": (
        lambda s: s.update({"preprocessor.featurizer.fb": torch.ones(80, 257)}),
        "preprocessor.featurizer.fb: expected 3 axes, got [80, 257]",
    ),
    "not finite": (
        lambda s: s["decoder.final.weight"].fill_(torch.nan),
        "decoder.final.weight: expected finite values",
    ),
    "not a tensor": (
        lambda s: s.update({"decoder.final.weight": [1.0]}),
        "decoder.final.weight: expected a tensor, got list",
    ),
    "sparse": (
        lambda s: s.update({"decoder.final.weight": torch.eye(3).to_sparse()}),
        "decoder.final.weight: expected a dense tensor",
    ),
    "larger than the file": (expanded, "expected no more values than the file holds"),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_wrong_tensors_are_refused_by_name(tmp_path, parts, kind):
    config, state = parts
    change, message = WRONG_TENSORS[kind]
    change(state)
    write_parts(tmp_path / "x.nemo", config, state)
    assert message in refusal(tmp_path / "x.nemo")


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


def huge_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tuple:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    return info, b""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda c, w: [], f"expected a member {CONFIG}"),
        (lambda c, w: [member(CONFIG, c)], f"expected a member {WEIGHTS}"),
        (lambda c, w: [member(WEIGHTS, w)], f"expected a member {CONFIG}"),
        (
            lambda c, w: [member(CONFIG, c), member(f"./{CONFIG}", c)],
            "expected once, given twice",
        ),
        (lambda c, w: [member("/etc/passwd", b"x")], "expected members inside"),
        (lambda c, w: [member("a/../../x", b"x")], "expected members inside"),
        (
            lambda c, w: [
                member(WEIGHTS, type=tarfile.SYMTYPE, linkname="/etc/passwd")
            ],
            "expected a plain file",
        ),
        (
            lambda c, w: [member(CONFIG, type=tarfile.LNKTYPE, linkname="x")],
            "expected a plain file",
        ),
        (lambda c, w: [member("d", type=tarfile.CHRTYPE)], "expected a plain file"),
        (lambda c, w: [member("p", type=tarfile.FIFOTYPE)], "expected a plain file"),
        (lambda c, w: [huge_header(WEIGHTS, 2**40)], "expected at most"),
        (lambda c, w: [huge_header(CONFIG, 2**23)], "expected at most"),
        (lambda c, w: [huge_header(WEIGHTS, -512)], "expected at most"),
        (lambda c, w: [huge_header("x", 2**40, tarfile.XHDTYPE)], "expected at most"),
        (lambda c, w: [huge_header("x", -512, tarfile.XHDTYPE)], "expected at most"),
        (
            lambda c, w: [huge_header("x", 2**62, tarfile.GNUTYPE_LONGNAME)],
            "expected at most",
        ),
        (lambda c, w: [member(f"f{i}") for i in range(101)], "expected at most 100"),
        (lambda c, w: [member(CONFIG, c), member(WEIGHTS, b"")], "not a readable"),
        (lambda c, w: [member(CONFIG, c), member(WEIGHTS, w[:-99])], "not a readable"),
        (
            lambda c, w: [member(CONFIG, c), member(WEIGHTS, deflated(w))],
            "expected at most",
        ),
        (
            lambda c, w: [
                member(CONFIG, c),
                member(WEIGHTS, weights_of({"a": Intruder()})),
            ],
            "not a readable checkpoint",
        ),
        (
            lambda c, w: [member(CONFIG, c), member(WEIGHTS, weights_of([1, 2]))],
            "expected named tensors",
        ),
        (
            lambda c, w: [member(CONFIG, b"a: [1"), member(WEIGHTS, w)],
            f"{CONFIG}:1: ",
        ),
        (
            lambda c, w: [
                member(CONFIG, b"!!python/name:os.mkdir"),
                member(WEIGHTS, w),
            ],
            "could not determine a constructor",
        ),
        (lambda c, w: [member(CONFIG, b"\xff"), member(WEIGHTS, w)], "can't decode"),
        (
            lambda c, w: [member(CONFIG, b"- 1"), member(WEIGHTS, w)],
            "expected sections",
        ),
        (lambda c, w: [member(CONFIG, b"a: 1"), member(WEIGHTS, w)], "expected '"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, monkeypatch, parts, members, message):
    config, state = parts
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    content = yaml.safe_dump(config).encode(), weights_of(state)
    write(tmp_path / "x.nemo", *members(*content))
    assert message in refusal(tmp_path / "x.nemo")
    zipped = gzip.compress((tmp_path / "x.nemo").read_bytes())
    (tmp_path / "x.nemo").write_bytes(zipped)
    assert message in refusal(tmp_path / "x.nemo")
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
    assert refusal(tmp_path / "x.nemo") == "No such file or directory"
    (tmp_path / "x.nemo").mkdir()
    assert refusal(tmp_path / "x.nemo") == "Is a directory"


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
    said = f"error: {paths[2]}: expected a new file, this one exists\n"
    assert capsys.readouterr().err == said
    assert main(["export", paths[1], str(tmp_path / "c.nemo")]) == 2


def test_a_nemo_file_is_evaluated_like_a_run(tmp_path, miniature, capsys):
    run = train(miniature("run.name=mine"))
    assert main(["export", str(run), str(tmp_path / "x.nemo")]) == 0
    assert main(["import", str(tmp_path / "x.nemo"), str(tmp_path / "x.pt")]) == 0
    corpus = (
        *(f"dataset.packs={tmp_path / 'packs'}", "dataset.seed=7"),
        *(value for value in MINIATURE if value.startswith("dataset.")),
    )
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
    other = ("dataset.seed=3", f"training.init_from={source}", "training.epochs=1")
    of = "training.optimizer"
    rates = (f"{of}.lr=1e-9", f"{of}.muon_lr=1e-9", f"{of}.warmup=0.0")
    tuned = load_model(train(miniature("run.name=tuned", *other, *rates)), CPU)
    for mine, theirs in zip(
        tuned.encoder.parameters(), start.encoder.parameters(), strict=True
    ):
        assert (mine - theirs).abs().max() < 1e-6  # such a rate leaves it in place
    assert tuned.speakers != start.speakers
    assert len(tuned.criterion.classifier.weight) == len(tuned.speakers)


def test_fine_tuning_of_another_architecture(tmp_path, build, miniature):
    save_nemo(tmp_path / "x.nemo", build())
    init = f"training.init_from={tmp_path / 'x.nemo'}"
    with pytest.raises(ParameterError) as caught:
        train(miniature(init, "model.titanet.channels=24"))
    assert str(caught.value) == (
        f"model.titanet.channels: expected 16, which {tmp_path / 'x.nemo'} has, got 24"
    )
    with pytest.raises(ParameterError, match=r"model.name: expected 'titanet'"):
        train(miniature(init, "model.name=dvector"))
    with pytest.raises(ParameterError, match=r"front_end.hop_seconds: expected 0.01"):
        train(miniature(init, "front_end.hop_seconds=0.0125"))


def test_fine_tuning_never_tests_whom_the_encoder_has_heard(miniature):
    source = train(miniature("run.name=first", "dataset.test_fraction=0.5"))
    fewer = miniature(f"training.init_from={source}", "dataset.test_fraction=0.25")
    train(fewer)  # the same shuffle: its test speakers are among those of the first
    with pytest.raises(UserError, match="expected to test speakers that the model was"):
        train(miniature(f"training.init_from={source}", "dataset.test_fraction=0.75"))
