"""NVIDIA NeMo's speaker checkpoints, read and written without NeMo.

model.nemo <-> `load_nemo`, `save_nemo` <-> `SpeakerModel`

C channels, P channels of the epilog, M mel bands, F frequency bins, E embedding size, S
training speakers. A `.nemo` file is a tar, sometimes gzipped, of `model_config.yaml`
and `model_weights.ckpt`, a flat state dict; names are those of NeMo 2.7.3's
`EncDecSpeakerLabelModel`. Such files are not trusted: nothing in them is executed or
extracted, and the sizes they claim are checked before memory is allocated.

Embeddings are the same in both programs, but classifiers may name different speakers:
NeMo does not normalise its class vectors, ArcFace here does.
"""

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from engine.files import atomic_write
from engine.parameter_files import (
    SHIPPED,
    check_parameters,
    dump_yaml,
    load_parameters,
    parse_yaml,
)
from errors import UserError, shown
from models import SIZES, TitaNet
from parameters import Parameters
from runs.checkpoints import load_model, load_tensors
from runs.speaker_model import SpeakerModel, build_model

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_BYTES = 2**29  # of an archive, unpacked; TitaNet-L has a fifth of it
MAX_CONFIG_BYTES = 2**22
MAX_MEMBERS = 100
MAX_NAME = 100  # characters shown
# Linear layers here that are convolutions of width 1 in NeMo.
CONVOLUTIONS = (".conv", ".conv_layer", ".attention_layer.2", ".emb_layers.0.1")

# The values that NeMo's keys must have, if given, for a model to compute the same here.
# ANY: the value is read, or embeddings do not depend on it.
ANY = object()
MODEL = {"target": "nemo.collections.asr.models.EncDecSpeakerLabelModel"}
PREPROCESSOR = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": ANY,
    "window_size": ANY,
    "window_stride": ANY,
    "n_fft": ANY,
    "features": ANY,
    "preemph": ANY,
    "dither": ANY,
    "normalize": "per_feature",
    "window": "hann",
    "frame_splicing": 1,
    "n_window_size": None,
    "n_window_stride": None,
    "log": True,
    "log_zero_guard_type": "add",
    "log_zero_guard_value": 2**-24,
    "mag_power": 2.0,
    "exact_pad": False,
    **dict.fromkeys(("lowfreq", "highfreq", "mel_norm"), ANY),  # the file has the bands
    **dict.fromkeys(("pad_to", "pad_value"), ANY),  # beyond the utterance's frames
    **dict.fromkeys(("nb_augmentation_prob", "nb_max_freq", "rng"), ANY),  # training's
    **dict.fromkeys(("stft_conv", "stft_exact_pad", "use_torchaudio"), ANY),  # obsolete
}
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConvASREncoder",
    "jasper": ANY,
    "feat_in": ANY,
    "activation": "relu",
    "normalization_mode": "batch",
    "norm_groups": -1,
    "residual_mode": "add",
    "conv_mask": True,
    "frame_splicing": 1,
    "quantize": False,
    "init_mode": ANY,
}
BLOCK = {
    "stride": [1],
    "dilation": [1],
    "separable": True,
    "se": True,
    "se_context_size": -1,
    "se_reduction_ratio": 8,
    "se_interpolation_mode": ANY,  # of a limited context
    "groups": 1,
    "heads": -1,
    "residual_mode": "add",
    "residual_dense": False,
    "kernel_size_factor": 1.0,
    "stride_last": False,
    "future_context": -1,
}
DECODER = {
    "_target_": "nemo.collections.asr.modules.SpeakerDecoder",
    "feat_in": ANY,
    "num_classes": ANY,
    "emb_sizes": ANY,
    "pool_mode": "attention",
    "attention_channels": 128,
    "angular": ANY,  # the loss says
    "init_mode": ANY,
}
LOSSES = {
    "arcface": "nemo.collections.asr.losses.angularloss.AngularSoftmaxLoss",
    "cross_entropy": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss",
}


class NemoError(UserError):
    """A `.nemo` file that is not a TitaNet, or a model that NeMo does not have."""


class _Bounded:
    """A stream that ends at `MAX_BYTES`, whatever the headers of a tar claim."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.tell = stream.tell

    def seek(self, position: int) -> None:
        self._refuse_beyond(position)
        self.stream.seek(position)

    def read(self, size: int) -> bytes:
        self._refuse_beyond(size)
        self._refuse_beyond(self.tell() + size)
        return self.stream.read(size)

    def _refuse_beyond(self, position: int) -> None:
        if not 0 <= position <= MAX_BYTES:
            raise NemoError(f"expected at most {MAX_BYTES} bytes, got {position}")


def _read_members(file: BinaryIO) -> dict[str, bytes]:
    """The configuration and the weights; other members must be harmless."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if zipped else file
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
        for number, member in enumerate(archive):
            path, name = PurePosixPath(member.name), shown(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise NemoError(f"expected members inside the archive, got {name}")
            if number == MAX_MEMBERS:
                raise NemoError(f"expected at most {MAX_MEMBERS} members, got more")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise NemoError(f"{name}: expected a plain file, got a link or device")
            largest = MAX_CONFIG_BYTES if str(path) == CONFIG else MAX_BYTES
            if not 0 <= member.size <= largest:
                raise NemoError(
                    f"{name}: expected at most {largest} bytes, got {member.size}"
                )
            if str(path) in members:
                raise NemoError(f"{name}: expected once, given twice")
            if str(path) in (CONFIG, WEIGHTS):
                members[str(path)] = archive.extractfile(member).read()
    for name in (CONFIG, WEIGHTS):
        if name not in members:
            raise NemoError(f"expected a member {name}, but it is missing")
    return members


def _read_tensors(content: bytes) -> dict[str, Tensor]:
    """A flat state dict of finite tensors, none larger than its storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > MAX_BYTES:
        raise NemoError(f"expected at most {MAX_BYTES} bytes, got {unpacked}")
    state = load_tensors(io.BytesIO(content), WEIGHTS)
    if not isinstance(state, dict):
        raise NemoError(f"{WEIGHTS}: expected named tensors, got {type(state)}")
    size = 0
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise NemoError(f"{WEIGHTS}: expected names, got {shown(key)}")
        if not isinstance(tensor, Tensor):
            raise NemoError(f"{key}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise NemoError(f"{key}: expected a dense tensor")
        size += tensor.nbytes
        # With strides of 0 a tensor can claim any shape without storing it.
        if tensor.nbytes > tensor.untyped_storage().nbytes() or size > MAX_BYTES:
            raise NemoError(f"{key}: expected no more values than the file holds")
        if not tensor.isfinite().all():
            raise NemoError(f"{key}: expected finite values")
    return state


def _modules(model: SpeakerModel) -> Iterator[tuple[str, nn.Module]]:
    """NeMo's names of the modules that have weights."""
    encoder = model.encoder
    for number, block in enumerate(encoder.blocks):
        name = f"encoder.encoder.{number}"
        for place, sub_block in enumerate(block.sub_blocks):
            yield f"{name}.mconv.{5 * place}.conv", sub_block.depthwise
            yield f"{name}.mconv.{5 * place + 1}.conv", sub_block.pointwise
            yield f"{name}.mconv.{5 * place + 2}", sub_block.norm
        after = 5 * len(block.sub_blocks) - 2
        yield f"{name}.mconv.{after}.fc.0", block.squeeze_excitation.squeeze
        yield f"{name}.mconv.{after}.fc.2", block.squeeze_excitation.excite
        if block.skip is not None:
            yield f"{name}.res.0.0.conv", block.skip[0]
            yield f"{name}.res.0.1", block.skip[1]
    yield "decoder._pooling.attention_layer.0.conv_layer", encoder.pooling.hidden
    yield "decoder._pooling.attention_layer.0.bn", encoder.pooling.norm
    yield "decoder._pooling.attention_layer.2", encoder.pooling.scores
    yield "decoder.emb_layers.0.0", encoder.norm
    yield "decoder.emb_layers.0.1", encoder.embedding
    yield "decoder.final", model.criterion.classifier


def _tensors(model: SpeakerModel) -> dict[str, Tensor]:
    """The model's own tensors under NeMo's names and in NeMo's shapes."""
    tensors = {
        "preprocessor.featurizer.window": model.front_end.window,
        "preprocessor.featurizer.fb": model.front_end.filterbank[None],
    }
    for name, module in _modules(model):
        for leaf, tensor in module.state_dict().items():
            flat = name.endswith(CONVOLUTIONS) and tensor.ndim == 2
            tensors[f"{name}.{leaf}"] = tensor[..., None] if flat else tensor
    return tensors


def _blocks(encoder: TitaNet) -> list[dict[str, Any]]:
    """The configuration of each block, apart from `BLOCK`."""
    return [
        {
            "filters": block.sub_blocks[0].pointwise.out_features,
            "repeat": len(block.sub_blocks),
            "kernel": list(block.sub_blocks[0].depthwise.kernel_size),
            "dropout": block.dropout.p,
            "residual": block.skip is not None,
        }
        for block in encoder.blocks
    ]


def _last_name(dotted: Any) -> Any:
    return dotted.rpartition(".")[2] if isinstance(dotted, str) else dotted


def _honour(section: Any, where: str, honoured: Mapping[str, Any]) -> None:
    """Refuse the first key whose value would be computed differently here."""
    if not isinstance(section, dict):
        raise NemoError(f"{where}: expected a section, got {shown(section)}")
    for key, value in section.items():
        if key not in honoured:
            raise NemoError(f"{where}.{key}: expected no such key")
        expected = honoured[key]
        if key in ("target", "_target_"):  # versions moved classes, not their names
            expected, value = _last_name(expected), _last_name(value)
        if isinstance(expected, list) and not isinstance(value, list):
            expected = expected[0]
        if expected is not ANY and value != expected:
            raise NemoError(f"{where}.{key}: expected {expected!r}, got {shown(value)}")


def _whole_samples(preprocessor: Mapping[str, Any], key: str) -> float:
    """Read seconds, a whole number of samples; NeMo would round others down."""
    seconds, rate = preprocessor.get(key), preprocessor.get("sample_rate")
    numbers = isinstance(seconds, int | float) and isinstance(rate, int)
    if not (numbers and abs(seconds * rate) < MAX_BYTES):
        raise NemoError(
            f"preprocessor.{key}: expected seconds, got {shown(seconds)} "
            f"at a sample_rate of {shown(rate)}"
        )
    if int(seconds * rate) != round(seconds * rate):
        raise NemoError(f"preprocessor.{key}: expected whole samples, got {seconds} s")
    return seconds


def _shape(state: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state:
        raise NemoError(f"{key}: expected this tensor, but it is missing")
    if state[key].ndim != ndim:
        raise NemoError(f"{key}: expected {ndim} axes, got {list(state[key].shape)}")
    return tuple(state[key].shape)


def _read_parameters(
    config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Parameters:
    """Parameters from the configuration and the shapes; the rest as shipped."""
    _honour({"target": config.get("target")}, WEIGHTS, MODEL)
    for name, honoured in (
        ("preprocessor", PREPROCESSOR),
        ("encoder", ENCODER),
        ("decoder", DECODER),
    ):
        _honour(config.get(name), name, honoured)
    source, loss = config["preprocessor"], config.get("loss") or {}
    _, num_mels, bins = _shape(state, "preprocessor.featurizer.fb", 3)
    read = (("n_fft", 2 * (bins - 1)), ("features", num_mels))
    _honour({key: source.get(key) for key, _ in read}, "preprocessor", dict(read))
    values = load_parameters(SHIPPED).as_dict()
    values["front_end"] |= {
        "sample_rate": source.get("sample_rate"),
        "window_seconds": _whole_samples(source, "window_size"),
        "hop_seconds": _whole_samples(source, "window_stride"),
        "n_fft": 2 * (bins - 1),
        "num_mels": num_mels,
        "preemphasis": source.get("preemph", 0.97) or 0.0,
        "dither": source.get("dither", 1e-5),
        "normalization": "per_feature",
    }
    channels = _shape(state, "encoder.encoder.0.mconv.1.conv.weight", 3)[0]
    pooled = _shape(state, "encoder.encoder.4.mconv.1.conv.weight", 3)[0]
    size = next((s for s, sizes in SIZES.items() if sizes == (channels, pooled)), "s")
    blocks = config["encoder"].get("jasper")
    if not isinstance(blocks, list) or len(blocks) != 5:
        raise NemoError(f"encoder.jasper: expected 5 blocks, got {shown(blocks)}")
    for number, block in enumerate(blocks):
        keys = (*BLOCK, "filters", "repeat", "kernel", "dropout", "residual")
        _honour(block, f"encoder.jasper.{number}", dict.fromkeys(keys, ANY) | BLOCK)
    values["model"]["name"] = "titanet"
    values["model"]["titanet"] |= {
        "size": size,
        "channels": None if channels == SIZES[size][0] else channels,
        "epilog_channels": None if pooled == SIZES[size][1] else pooled,
        "embedding_size": _shape(state, "decoder.emb_layers.0.1.weight", 3)[0],
        "dropout": blocks[1].get("dropout"),
    }
    by_class = {_last_name(target): name for name, target in LOSSES.items()}
    target = loss.get("_target_", LOSSES["cross_entropy"])
    if not isinstance(target, str) or _last_name(target) not in by_class:
        raise NemoError(
            f"loss._target_: expected {' or '.join(by_class)}, got {shown(target)}"
        )
    target = _last_name(target)
    values["loss"]["name"] = by_class[target]
    if by_class[target] == "arcface":
        angular = {"scale": loss.get("scale", 20.0), "margin": loss.get("margin", 1.35)}
        values["loss"]["arcface"] |= angular
    return check_parameters(values)


def _read_speakers(config: Mapping[str, Any], count: int) -> list[str]:
    """The speakers of the classifier's rows, numbered if the file has no names."""
    training = config.get("train_ds")
    labels = training.get("labels") if isinstance(training, dict) else None
    if labels is None:
        return [f"class {number}" for number in range(count)]
    names = isinstance(labels, list) and all(isinstance(x, str | int) for x in labels)
    if not names or len({str(label) for label in labels}) != count:
        raise NemoError(
            f"train_ds.labels: expected {count} different names, got {shown(labels)}"
        )
    return [str(label) for label in labels]


def _refuse_other_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    for key in (*expected, *state):
        if key not in state:
            raise NemoError(f"{key}: expected this tensor, but it is missing")
        if key not in expected:
            raise NemoError(f"{key[:MAX_NAME]}: expected no such tensor")
        shapes = [list(tensors[key].shape) for tensors in (expected, state)]
        if shapes[0] != shapes[1]:
            raise NemoError(f"{key}: expected the shape {shapes[0]}, got {shapes[1]}")


def _load(file: BinaryIO) -> SpeakerModel:
    members = _read_members(file)
    state = _read_tensors(members[WEIGHTS])
    text = members[CONFIG].decode()
    config = parse_yaml(text, CONFIG)
    if not isinstance(config, dict):
        raise NemoError(f"{CONFIG}: expected sections, got {shown(config)}")
    parameters = _read_parameters(config, state)
    speakers = _read_speakers(config, _shape(state, "decoder.final.weight", 2)[0])
    # Shapes are compared without memory for them: a file may claim any.
    with torch.device("meta"):
        outline = build_model(parameters, speakers, {}, torch.device("meta"))
    _refuse_other_shapes(state, _tensors(outline))
    for number, expected in enumerate(_blocks(outline.encoder)):
        block = config["encoder"]["jasper"][number]
        _honour(block, f"encoder.jasper.{number}", BLOCK | expected)
    model = build_model(parameters, speakers, {}, torch.device("cpu"))
    for key, tensor in _tensors(model).items():
        tensor.copy_(state[key])
    return model.eval()


def load_nemo(path: Path) -> SpeakerModel:
    """The front end, encoder, classifier and speakers of a `.nemo` file, on the CPU.

    All that the file does not hold, such as the optimizer, is as in the shipped
    `parameters.yml`. Raises `NemoError` for a file that cannot be read, that is not
    what it claims to be, or that would be computed differently here.
    """
    try:
        with open(path, "rb") as file:
            return _load(file)
    except OSError as error:
        reason = error.strerror or str(error)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = f"not a readable archive: {error}"
    except (UserError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
    raise NemoError(f"{path}: {reason}")


def _nemo_seconds(samples: int, sample_rate: int) -> float:
    """Seconds that NeMo, which rounds down, converts back to exactly `samples`."""
    seconds = samples / sample_rate
    too_low = int(seconds * sample_rate) < samples
    return math.nextafter(seconds, math.inf) if too_low else seconds


def _config(model: SpeakerModel) -> dict[str, Any]:
    """The `model_config.yaml` from which NeMo builds the same model."""
    parameters, encoder = model.config, model.encoder
    front_end, masks = parameters.front_end, parameters.augmentation.spec_augment
    loss = {"_target_": LOSSES[parameters.loss.name]}
    if parameters.loss.name == "arcface":
        loss |= {
            "scale": parameters.loss.arcface.scale,
            "margin": parameters.loss.arcface.margin,
        }
    data = {"manifest_filepath": None, "sample_rate": front_end.sample_rate}
    keys = ("stride", "dilation", "separable", "se", "se_context_size")
    return {
        "train_ds": {**data, "labels": model.speakers, "batch_size": 64},
        "validation_ds": {**data, "labels": None, "batch_size": 64},
        "preprocessor": {
            "_target_": PREPROCESSOR["_target_"],
            "normalize": "per_feature",
            "window_size": _nemo_seconds(front_end.window_size, front_end.sample_rate),
            "sample_rate": front_end.sample_rate,
            "window_stride": _nemo_seconds(front_end.hop_size, front_end.sample_rate),
            "window": "hann",
            "features": front_end.num_mels,
            "n_fft": front_end.n_fft,
            "frame_splicing": 1,
            "preemph": front_end.preemphasis,
            "dither": front_end.dither,
        },
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "freq_masks": masks.frequency_masks,
            "freq_width": masks.frequency_width,
            "time_masks": masks.time_masks,
            "time_width": masks.time_fraction,
        },
        "encoder": {
            "_target_": ENCODER["_target_"],
            "feat_in": front_end.num_mels,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [
                block | {key: BLOCK[key] for key in keys} for block in _blocks(encoder)
            ],
        },
        "decoder": {
            "_target_": DECODER["_target_"],
            "feat_in": encoder.pooling.scores.out_features,
            "num_classes": len(model.speakers),
            "pool_mode": "attention",
            "emb_sizes": encoder.embedding_size,
            "angular": parameters.loss.name == "arcface",
        },
        "loss": loss,
        "target": "nemo.collections.asr.models.label_models.EncDecSpeakerLabelModel",
    }


def save_nemo(path: Path, model: SpeakerModel) -> None:
    """Write a model as a `.nemo` file; raise `NemoError` if NeMo has no such model."""
    parameters = model.config
    for key, value, known in (
        ("model.name", parameters.model.name, ("titanet",)),
        (
            "front_end.normalization",
            parameters.front_end.normalization,
            ("per_feature",),
        ),
        ("loss.name", parameters.loss.name, tuple(LOSSES)),
    ):
        if value not in known:
            raise NemoError(
                f"{key}: expected {' or '.join(known)}, which NeMo has, got {value}"
            )
    weights = io.BytesIO()
    tensors = {k: v.cpu().contiguous() for k, v in _tensors(model).items()}
    torch.save(tensors, weights)
    members = {CONFIG: dump_yaml(_config(model)).encode(), WEIGHTS: weights.getvalue()}
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load_any_model(path: Path, device: torch.device) -> SpeakerModel:
    """The model of a run, of a checkpoint file or of a `.nemo` file."""
    return (
        load_nemo(path).to(device)
        if path.suffix == ".nemo"
        else load_model(path, device)
    )
