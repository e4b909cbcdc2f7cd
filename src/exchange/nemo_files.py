"""Read and write NVIDIA NeMo's speaker checkpoints, without NeMo.

model.nemo <-> `load_nemo`, `save_nemo` <-> `SpeakerModel`

Names are those of NeMo 2.7.3's `EncDecSpeakerLabelModel`. Embeddings are the same in
both programs, but classifiers may choose different speakers: NeMo does not normalise
its class vectors, while ArcFace here does.
"""

import io
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from engine.files import atomic_write
from engine.parameter_files import dump_yaml, parse_yaml
from errors import UserError, shown
from exchange.nemo_archives import (
    CONFIG,
    WEIGHTS,
    NemoError,
    read_members,
    read_tensors,
)
from exchange.nemo_configuration import (
    LOSSES,
    nemo_config,
    read_parameters,
    read_speakers,
    refuse_other_blocks,
)
from runs.checkpoints import load_model
from runs.speaker_model import SpeakerModel, build_model

TELEPHONE_ENCODER = "titanet-s-telephone.pt"  # of earlier versions
# The modules that are convolutions of width 1 in NeMo and linear layers here.
NARROW_CONVOLUTIONS = (".conv", ".conv_layer", ".attention_layer.2", ".emb_layers.0.1")


def _modules(model: SpeakerModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that have weights, with their names in NeMo."""
    encoder = model.encoder
    for number, block in enumerate(encoder.blocks):
        name = f"encoder.encoder.{number}"
        # NeMo's sub-block is five modules. ReLU and dropout have no weights, and the
        # last sub-block lacks them.
        for index, sub_block in enumerate(block.sub_blocks):
            yield f"{name}.mconv.{5 * index}.conv", sub_block.depthwise
            yield f"{name}.mconv.{5 * index + 1}.conv", sub_block.pointwise
            yield f"{name}.mconv.{5 * index + 2}", sub_block.norm
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
    """Return the model's own tensors under NeMo's names and in NeMo's shapes."""
    tensors = {
        "preprocessor.featurizer.window": model.front_end.window,
        "preprocessor.featurizer.fb": model.front_end.filterbank[None],
    }
    for name, module in _modules(model):
        for leaf, tensor in module.state_dict().items():
            flat = name.endswith(NARROW_CONVOLUTIONS) and tensor.ndim == 2
            tensors[f"{name}.{leaf}"] = tensor[..., None] if flat else tensor
    return tensors


def _refuse_other_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise `NemoError` for the first tensor that is missing, unknown, or of another
    shape."""
    for key in (*expected, *state):
        if key not in state:
            raise NemoError(f"{key}: expected this tensor, but it is missing")
        if key not in expected:
            raise NemoError(f"{key}: expected no such tensor")
        right, given = list(expected[key].shape), list(state[key].shape)
        if given != right:
            raise NemoError(f"{key}: expected the shape {right}, got {given}")


def _load(file: BinaryIO) -> SpeakerModel:
    members = read_members(file)
    state = read_tensors(members[WEIGHTS])
    text = members[CONFIG].decode()
    config = parse_yaml(text, CONFIG)
    if not isinstance(config, dict):
        raise NemoError(f"{CONFIG}: expected sections, got {shown(config)}")
    parameters, speakers = read_parameters(config, state), read_speakers(config, state)
    # The outline takes no memory, since a file may claim any sizes.
    with (meta := torch.device("meta")):
        outline = build_model(parameters, speakers, {}, meta)
    _refuse_other_shapes(state, _tensors(outline))
    refuse_other_blocks(config, outline.encoder)
    model = build_model(parameters, speakers, {}, torch.device("cpu"))
    for key, tensor in _tensors(model).items():
        tensor.copy_(state[key])
    return model.eval()


def load_nemo(path: Path) -> SpeakerModel:
    """Return the front end, encoder, classifier and speakers of a `.nemo` file, on the
    CPU.

    Parameters that the file does not hold, such as the optimizer's, are those of the
    shipped `parameters.yml`. Raises `NemoError` for a file that is unreadable or
    damaged, or whose embeddings would differ here.
    """
    try:
        with open(path, "rb") as file:
            return _load(file)
    except OSError as error:
        reason = error.strerror or str(error)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = f"not a readable archive: {error}"
    except UserError as error:
        reason = str(error)
    except Exception as error:  # which one depends on how the file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
    raise NemoError(f"{path}: {reason}")


def save_nemo(path: Path, model: SpeakerModel) -> None:
    """Write a model as a `.nemo` file; raise `NemoError` if NeMo lacks its kind.

    The bias of the last layer takes in the centre, so that embeddings are equal.
    """
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
    bias = "decoder.emb_layers.0.1.bias"
    tensors[bias] = model.backend.centred(tensors[bias])
    torch.save(tensors, weights)
    members = {
        CONFIG: dump_yaml(nemo_config(model)).encode(),
        WEIGHTS: weights.getvalue(),
    }
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load_any_model(path: Path, device: torch.device) -> SpeakerModel:
    """Return the model of a run, of a checkpoint file or of a `.nemo` file.

    The encoder that was released for telephones is now one for noise and rooms too.
    """
    if path.name == TELEPHONE_ENCODER and not path.exists():
        path = path.with_name("titanet-s-wild.pt")
        print(f"{path} serves telephones too: opening it", file=sys.stderr)
    if path.suffix == ".nemo":
        return load_nemo(path).to(device)
    return load_model(path, device)
