"""NeMo's configuration of a speaker model, read into parameters and written from them.

model_config.yaml, tensors -> `read_parameters` -> `Parameters`
`SpeakerModel` -> `nemo_config` -> model_config.yaml

If a key or value would change the embeddings in a way that this program does not
compute, an error names it.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine.parameter_files import SHIPPED, check_parameters, load_parameters
from errors import shown
from exchange.nemo_archives import MAX_BYTES, WEIGHTS, NemoError
from models import SIZES, TitaNet
from parameters import Parameters, merged
from runs.speaker_model import SpeakerModel

# The values that NeMo's keys must have if a file sets them. With others, embeddings
# here would differ from NeMo's. ANY: the value is read, or it changes no embedding.
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
    # The weights hold the filterbank itself.
    **dict.fromkeys(("lowfreq", "highfreq", "mel_norm"), ANY),
    # These affect only what follows an utterance's last frame.
    **dict.fromkeys(("pad_to", "pad_value"), ANY),
    # These affect training only.
    **dict.fromkeys(("nb_augmentation_prob", "nb_max_freq", "rng"), ANY),
    # These are obsolete.
    **dict.fromkeys(("stft_conv", "stft_exact_pad", "use_torchaudio"), ANY),
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
    "se_interpolation_mode": ANY,  # matters only with a limited context
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
    "angular": ANY,  # follows from the loss
    "init_mode": ANY,
}
LOSSES = {
    "arcface": "nemo.collections.asr.losses.angularloss.AngularSoftmaxLoss",
    "cross_entropy": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss",
}


def _blocks(encoder: TitaNet) -> list[dict[str, Any]]:
    """Return the keys of each block's configuration that are not in `BLOCK`."""
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


def _refuse_others(section: Any, where: str, supported: Mapping[str, Any]) -> None:
    """Raise `NemoError` for the first key or value that is not `supported`."""
    if not isinstance(section, dict):
        raise NemoError(f"{where}: expected a section, got {shown(section)}")
    for key, value in section.items():
        if key not in supported:
            raise NemoError(f"{where}.{key}: expected no such key")
        expected = supported[key]
        if key in ("target", "_target_"):  # versions moved classes, not their names
            expected, value = _last_name(expected), _last_name(value)
        if isinstance(expected, list) and not isinstance(value, list):
            expected = expected[0]
        if expected is not ANY and value != expected:
            raise NemoError(f"{where}.{key}: expected {expected!r}, got {shown(value)}")


def _whole_samples(preprocessor: Mapping[str, Any], key: str) -> float:
    """Return the seconds of a key; raise `NemoError` unless they are a whole number of
    samples, since NeMo would round down."""
    seconds, rate = preprocessor.get(key), preprocessor.get("sample_rate")
    are_numbers = isinstance(seconds, int | float) and isinstance(rate, int)
    if not (are_numbers and abs(seconds * rate) < MAX_BYTES):
        raise NemoError(
            f"preprocessor.{key}: expected seconds, got {shown(seconds)} "
            f"at a sample_rate of {shown(rate)}"
        )
    if int(seconds * rate) != round(seconds * rate):
        raise NemoError(f"preprocessor.{key}: expected whole samples, got {seconds} s")
    return seconds


def _shape(state: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    """Return a tensor's shape; raise `NemoError` unless it has `ndim` axes."""
    if key not in state:
        raise NemoError(f"{key}: expected this tensor, but it is missing")
    if state[key].ndim != ndim:
        raise NemoError(f"{key}: expected {ndim} axes, got {list(state[key].shape)}")
    return tuple(state[key].shape)


def _read_front_end(
    source: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the values of `FrontEndParameters`."""
    _, num_mels, bins = _shape(state, "preprocessor.featurizer.fb", 3)
    n_fft = 2 * (bins - 1)
    sizes = {key: source.get(key) for key in ("n_fft", "features")}
    _refuse_others(sizes, "preprocessor", {"n_fft": n_fft, "features": num_mels})
    return {
        "sample_rate": source.get("sample_rate"),
        "window_seconds": _whole_samples(source, "window_size"),
        "hop_seconds": _whole_samples(source, "window_stride"),
        "n_fft": n_fft,
        "num_mels": num_mels,
        "preemphasis": source.get("preemph", 0.97) or 0.0,
        "dither": source.get("dither", 1e-5),
        "normalization": "per_feature",
    }


def _read_encoder(blocks: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the values of `TitaNetParameters` that a file determines."""
    channels = _shape(state, "encoder.encoder.0.mconv.1.conv.weight", 3)[0]
    pooled = _shape(state, "encoder.encoder.4.mconv.1.conv.weight", 3)[0]
    size = next((s for s, sizes in SIZES.items() if sizes == (channels, pooled)), "s")
    if not isinstance(blocks, list) or len(blocks) != 5:
        raise NemoError(f"encoder.jasper: expected 5 blocks, got {shown(blocks)}")
    for number, block in enumerate(blocks):
        keys = (*BLOCK, "filters", "repeat", "kernel", "dropout", "residual")
        supported = dict.fromkeys(keys, ANY) | BLOCK
        _refuse_others(block, f"encoder.jasper.{number}", supported)
    return {
        "size": size,
        "channels": None if channels == SIZES[size][0] else channels,
        "epilog_channels": None if pooled == SIZES[size][1] else pooled,
        "embedding_size": _shape(state, "decoder.emb_layers.0.1.weight", 3)[0],
        "dropout": blocks[1].get("dropout"),
    }


def _read_loss(loss: Any) -> dict[str, Any]:
    """Return the values of `LossParameters` that a file determines."""
    if not isinstance(loss, Mapping):
        raise NemoError(f"loss: expected a section, got {shown(loss)}")
    by_class = {_last_name(target): name for name, target in LOSSES.items()}
    target = loss.get("_target_", LOSSES["cross_entropy"])
    if not isinstance(target, str) or _last_name(target) not in by_class:
        raise NemoError(
            f"loss._target_: expected {' or '.join(by_class)}, got {shown(target)}"
        )
    name = by_class[_last_name(target)]
    if name != "arcface":
        return {"name": name}
    angular = {"scale": loss.get("scale", 20.0), "margin": loss.get("margin", 1.35)}
    return {"name": name, "arcface": angular}


def read_parameters(
    config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Parameters:
    """Return the parameters that the configuration and the shapes of the tensors
    determine; all others are those of the shipped `parameters.yml`."""
    _refuse_others({"target": config.get("target")}, WEIGHTS, MODEL)
    for name, supported in (
        ("preprocessor", PREPROCESSOR),
        ("encoder", ENCODER),
        ("decoder", DECODER),
    ):
        _refuse_others(config.get(name), name, supported)
    update = {
        "front_end": _read_front_end(config["preprocessor"], state),
        "model": {
            "name": "titanet",
            "titanet": _read_encoder(config["encoder"].get("jasper"), state),
        },
        "loss": _read_loss(config.get("loss") or {}),
    }
    return check_parameters(merged(load_parameters(SHIPPED).as_dict(), update))


def refuse_other_blocks(config: Mapping[str, Any], encoder: TitaNet) -> None:
    """Raise `NemoError` unless the configuration describes the encoder's blocks."""
    for number, expected in enumerate(_blocks(encoder)):
        block = config["encoder"]["jasper"][number]
        _refuse_others(block, f"encoder.jasper.{number}", BLOCK | expected)


def read_speakers(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """Return the speaker of each row of the classifier, numbered if the file does not
    name them."""
    count = _shape(state, "decoder.final.weight", 2)[0]
    training = config.get("train_ds")
    labels = training.get("labels") if isinstance(training, dict) else None
    if labels is None:
        return [f"class {number}" for number in range(count)]
    are_names = isinstance(labels, list) and all(
        isinstance(label, str | int) for label in labels
    )
    if not are_names or len({str(label) for label in labels}) != count:
        raise NemoError(
            f"train_ds.labels: expected {count} different names, got {shown(labels)}"
        )
    return [str(label) for label in labels]


def _nemo_seconds(samples: int, sample_rate: int) -> float:
    """Return the seconds that NeMo converts back to `samples`, though it rounds
    down."""
    seconds = samples / sample_rate
    too_low = int(seconds * sample_rate) < samples
    return math.nextafter(seconds, math.inf) if too_low else seconds


def nemo_config(model: SpeakerModel) -> dict[str, Any]:
    """Return the `model_config.yaml` from which NeMo builds the same model."""
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
