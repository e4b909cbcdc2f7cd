"""What TitaNet does on its way: shapes, receptive fields, gates, attention.

waveforms [1, N] -> `walk` -> `Step`s: the shape after each part of the model
features [1, M, T] -> `look_inside` -> `Inside`: gates [C], frames and attention [T, P]
encoder -> `parts_of`, `receptive_fields`, `convolution_costs`: its weights, counted

All of it is read off a model by forward hooks or counted in its layers; nothing is
known beforehand. N samples, M mel bands, T frames, C channels, P channels of the
epilog.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.layers import DepthwiseConv
from models import Block, TitaNet
from transforms import FrontEnd


@dataclass(frozen=True)
class Step:
    """A part of the model, and the shape of what leaves it."""

    name: str
    shape: tuple[int, ...]
    weights: int = 0
    sees: str = ""  # the part of the features that one output depends on


@dataclass(frozen=True, eq=False)
class Inside:
    """What one utterance makes of the encoder's inner parts."""

    gates: list[NDArray[np.float32]]  # of each block, [C], 0 to 1
    frames: NDArray[np.float32]  # what leaves the epilog, [T, P]
    attention: NDArray[
        np.float32
    ]  # weights of the frames, [T, P]; each column sums to 1
    pooled: NDArray[np.float32]  # means, then deviations, [2P]


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What these modules return, in the order of their calls."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output.detach())

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def walk(front_end: FrontEnd, encoder: TitaNet, waveforms: Tensor) -> list[Step]:
    """The shapes of [1, N] on its way to [1, E]."""
    parts = [*encoder.blocks, encoder.norm, encoder.embedding]
    features, frames = front_end(waveforms)
    with _outputs_of(parts) as outputs:
        encoder(features, frames)
    layers = [
        Step(layer.name, tuple(output.shape), layer.weights, layer.sees)
        for layer, output in zip(encoder.layers(), outputs, strict=True)
    ]
    return [
        Step("waveform", tuple(waveforms.shape)),
        Step("front end", tuple(features.shape), sees="1 frame"),
        *layers,
    ]


@torch.no_grad()
def look_inside(encoder: TitaNet, features: Tensor) -> Inside:
    """Gates, frames and attention of one utterance's features [1, M, T]."""
    excited = [block.squeeze_excitation.excite for block in encoder.blocks]
    pooling, epilog = encoder.pooling, encoder.blocks[-1]
    with (
        _outputs_of(excited) as excitations,
        _outputs_of([epilog]) as frames,
        _outputs_of([pooling.scores]) as scores,
        _outputs_of([pooling]) as pooled,
    ):
        encoder(features)
    return Inside(
        [excitation[0].sigmoid().cpu().numpy() for excitation in excitations],
        frames[0][0].cpu().numpy(),
        scores[0][0].softmax(0).cpu().numpy(),
        pooled[0][0].cpu().numpy(),
    )


def parts_of(block: Block) -> list[tuple[str, int]]:
    """The layers of a block in the order of their work, each with its weights; a skip
    connection comes last."""
    parts: list[tuple[str, nn.Module]] = []
    for sub_block in block.sub_blocks:
        kernel = sub_block.depthwise.kernel_size[0]
        parts += [
            (f"depthwise convolution, kernel {kernel}", sub_block.depthwise),
            ("pointwise convolution", sub_block.pointwise),
            ("batch norm", sub_block.norm),
        ]
    parts.append(("squeeze-and-excitation", block.squeeze_excitation))
    if block.skip is not None:
        parts.append(("skip: linear, batch norm", block.skip))
    return [(name, sum(w.numel() for w in part.parameters())) for name, part in parts]


def _convolutions(encoder: TitaNet) -> list[DepthwiseConv]:
    return [m for m in encoder.modules() if isinstance(m, DepthwiseConv)]


def receptive_fields(encoder: TitaNet) -> list[tuple[int, int]]:
    """Kernel of each convolution along time, and the frames that are seen after it."""
    fields, seen = [], 1
    for convolution in _convolutions(encoder):
        kernel = convolution.kernel_size[0]
        seen += kernel - 1
        fields.append((kernel, seen))
    return fields


def convolution_costs(encoder: TitaNet) -> dict[int, tuple[int, int]]:
    """Numbers of weights in the mega blocks' convolutions, by kernel: depthwise plus
    pointwise, and a full convolution between as many channels."""
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
