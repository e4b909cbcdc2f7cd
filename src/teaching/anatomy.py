"""TitaNet from the inside: shapes, receptive fields, gates, attention.

encoder -> `layers`, `receptive_fields`, `convolution_costs` -> tables
waveforms [1, N] -> `walk` -> `Step`s: the shape after each part of the model
features [1, M, T] -> `look_inside` -> `Inside`: gates [C], frames and attention [T, P]
waveform [N] -> `describe` -> a vector for each stage of the model

Numbers are counted in a model's layers, values are read by forward hooks. N samples, M
mel bands, T frames, C channels, P channels of the epilog.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.layers import DepthwiseConv
from models import MEGA_KERNELS, DVector, TitaNet
from runs.speaker_model import SpeakerModel
from transforms import FrontEnd


@dataclass(frozen=True)
class Step:
    """A part of the model, and the shape of its output."""

    name: str
    shape: tuple[int, ...]
    weights: int = 0
    sees: str = ""  # the part of the features that one output depends on


@dataclass(frozen=True, eq=False)
class Inside:
    """The encoder's inner values for one utterance."""

    gates: list[NDArray[np.float32]]  # [C] for each block, 0 to 1
    frames: NDArray[np.float32]  # the epilog's output, [T, P]
    attention: NDArray[np.float32]  # [T, P]; the weights of a channel sum to 1
    pooled: NDArray[np.float32]  # means, then deviations, [2P]


def _num_weights(*modules: nn.Module) -> int:
    return sum(w.numel() for module in modules for w in module.parameters())


def layers(encoder: TitaNet | DVector) -> list[Step]:
    """Return an encoder's parts from features to embedding; shapes are [channels].

    What a part of TitaNet sees is counted for the convolutions up to it, without the
    means over the utterance that squeeze-and-excitation adds.
    """
    size = encoder.embedding_size
    if isinstance(encoder, DVector):
        cells, weights = encoder.lstm.hidden_size, list(encoder.lstm.named_parameters())
        lstm = [
            Step(
                f"LSTM, {cells} cells",
                (encoder.lstm.proj_size,),
                sum(w.numel() for name, w in weights if name.endswith(f"_l{number}")),
                "this frame and those before",
            )
            for number in range(encoder.lstm.num_layers)
        ]
        window = f"{encoder.WINDOW} frames"
        return [
            *lstm,
            Step("embedding", (size,), _num_weights(encoder.embedding), window),
        ]
    names = ["prolog", *(f"mega block, kernel {k}" for k in MEGA_KERNELS), "epilog"]
    fields = iter(receptive_fields(encoder))
    blocks = []
    for name, block in zip(names, encoder.blocks, strict=True):
        *_, (_, seen) = (next(fields) for _ in block.sub_blocks)
        channels = block.sub_blocks[-1].pointwise.out_features
        blocks.append(Step(name, (channels,), _num_weights(block), f"{seen} frames"))
    statistics, everything = encoder.embedding.in_features, "the utterance"
    pooling = _num_weights(encoder.pooling, encoder.norm)
    return [
        *blocks,
        Step("attentive statistics", (statistics,), pooling, everything),
        Step("embedding", (size,), _num_weights(encoder.embedding), everything),
    ]


def receptive_fields(encoder: TitaNet) -> list[tuple[int, int]]:
    """Return, for each convolution along time, its kernel and how many frames of the
    features its output depends on."""
    fields, seen = [], 1
    for module in encoder.modules():
        if isinstance(module, DepthwiseConv):
            kernel = module.kernel_size[0]
            seen += kernel - 1
            fields.append((kernel, seen))
    return fields


def convolution_costs(encoder: TitaNet) -> dict[int, tuple[int, int]]:
    """Return two numbers of weights by kernel of the mega blocks: of a depthwise and a
    pointwise convolution together, and of a full convolution of the same channels."""
    costs = {}
    for block in encoder.blocks:
        if block.skip is None:
            continue
        first = block.sub_blocks[0]
        kernel = first.depthwise.kernel_size[0]
        full = first.pointwise.weight.numel() * kernel
        separable = first.depthwise.weight.numel() + first.pointwise.weight.numel()
        costs[kernel] = (separable, full)
    return costs


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what these modules return, in the order of their calls."""
    outputs: list[Tensor] = []

    def collect(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output.detach())

    hooks = [module.register_forward_hook(collect) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def walk(front_end: FrontEnd, encoder: TitaNet, waveforms: Tensor) -> list[Step]:
    """Return each part with the shape of its output, from [1, N] to [1, E]."""
    parts = [*encoder.blocks, encoder.norm, encoder.embedding]
    features, frames = front_end(waveforms)
    with _outputs_of(parts) as outputs:
        encoder(features, frames)
    return [
        Step("waveform", tuple(waveforms.shape)),
        Step("front end", tuple(features.shape), sees="1 frame"),
        *(
            replace(layer, shape=tuple(output.shape))
            for layer, output in zip(layers(encoder), outputs, strict=True)
        ),
    ]


@torch.no_grad()
def look_inside(encoder: TitaNet, features: Tensor) -> Inside:
    """Return gates, frames and attention for one utterance's features [1, M, T]."""
    excitation = [block.squeeze_excitation.excite for block in encoder.blocks]
    pooling, epilog = encoder.pooling, encoder.blocks[-1]
    with (
        _outputs_of(excitation) as logits,
        _outputs_of([epilog]) as frames,
        _outputs_of([pooling.scores]) as scores,
        _outputs_of([pooling]) as pooled,
    ):
        encoder(features)
    return Inside(
        [logit[0].sigmoid().cpu().numpy() for logit in logits],
        frames[0][0].cpu().numpy(),
        scores[0][0].softmax(0).cpu().numpy(),
        pooled[0][0].cpu().numpy(),
    )


@torch.no_grad()
def describe(model: SpeakerModel, waveform: Tensor) -> dict[str, Tensor]:
    """Return a vector for each stage of TitaNet on the way of a waveform [N]: means and
    deviations over time of its channels, and at last the embedding [E]."""
    encoder, front_end = model.encoder, model.front_end
    log_mel = front_end.log_mel(waveform[None])[0].T  # [T, M]
    with _outputs_of([*encoder.blocks, encoder.pooling]) as outputs:
        embedding = model(waveform[None])[0]
    *frames, pooled = (output[0].float() for output in outputs)
    megas = (f"mega block {number}" for number in range(1, len(frames) - 1))
    over_time = dict(zip(("the prolog", *megas, "the epilog"), frames, strict=True))
    return {
        stage: torch.cat([x.mean(0), x.std(0)])
        for stage, x in {"the log-mel bands": log_mel, **over_time}.items()
    } | {"the pooling": pooled, "the embedding": embedding}
