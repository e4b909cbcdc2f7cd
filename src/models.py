"""TitaNet S, M and L, and the d-vector baseline: features to embeddings.

features [B, M, T], frames [B] -> encoder -> embeddings [B, E], not normalised

B utterances, M mel bands, T frames, C channels, P channels of the epilog, W windows, E
embedding size. TitaNet is arXiv 2110.04410 in the form of its authors' NeMo recipes
(`titanet-small.yaml`, `titanet-large.yaml`); the d-vector is arXiv 1710.10467, section
3.

Inside TitaNet the layout is [B, T, C]: a pointwise convolution is a `Linear`, batch
norm sees [B * T, C], and only depthwise convolutions look along time. A batch without
padding, as in training, has frames None and is spared the masks.
"""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import (
    BatchNorm,
    DepthwiseConv,
    Dropout,
    at_least_float32,
    valid_positions,
)
from parameters import DVectorParameters, ModelParameters, TitaNetParameters

SIZES = {"s": (256, 1536), "m": (512, 3072), "l": (1024, 3072)}  # C, P
MEGA_KERNELS = (7, 11, 15)  # frames
SUB_BLOCKS = 3
SQUEEZE = 8
ATTENTION_CHANNELS = 128
VARIANCE_FLOOR = 1e-10


@dataclass(frozen=True)
class Layer:
    """A part of an encoder, for the eye."""

    name: str
    channels: int  # that it hands on
    weights: int
    sees: str  # how much of the features one of its outputs depends on


def _layer(name: str, channels: int, *modules: nn.Module, sees: str) -> Layer:
    weights = sum(w.numel() for module in modules for w in module.parameters())
    return Layer(name, channels, weights, sees)


class SubBlock(nn.Module):
    """Depthwise-separable convolution and batch norm, [B, T, C] -> [B, T, C']."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(in_channels, kernel)
        self.pointwise = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels, eps=1e-3)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            x = x * valid
        return self.norm(self.pointwise(self.depthwise(x)))


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Over the valid frames, [B, T, C] -> [B, C]; as a product, to spare a copy of
    x."""
    if valid is None:
        return x.mean(1)
    return ((valid / valid.sum(1, keepdim=True)).transpose(1, 2) @ x).squeeze(1)


class SqueezeExcitation(nn.Module):
    """Scale every channel by what the utterance's mean says, [B, T, C] -> [B, T, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // SQUEEZE, bias=False)
        self.excite = nn.Linear(channels // SQUEEZE, channels, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        scale = self.excite(self.squeeze(_mean(x, valid)).relu()).sigmoid()  # [B, C]
        return x * scale[:, None]


class Block(nn.Module):
    """Sub-blocks, squeeze-and-excitation and, in a mega block, the skip connection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        num_sub_blocks: int = 1,
        dropout: float = 0.0,
        skip: bool = False,
    ) -> None:
        super().__init__()
        sizes = [in_channels] + [out_channels] * num_sub_blocks
        self.sub_blocks = nn.ModuleList(
            SubBlock(size, out_channels, kernel) for size in sizes[:-1]
        )
        self.squeeze_excitation = SqueezeExcitation(out_channels)
        self.skip = (
            nn.Sequential(
                nn.Linear(in_channels, out_channels, bias=False),
                BatchNorm(out_channels, eps=1e-3),
            )
            if skip
            else None
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, T, C], [B, T, 1] -> [B, T, C']"""
        block_input = x
        x = self.sub_blocks[0](x, valid)
        for sub_block in self.sub_blocks[1:]:
            x = sub_block(self.dropout(x.relu()), valid)
        x = self.squeeze_excitation(x, valid)
        if self.skip is not None:
            x = x + self.skip(block_input)
        return self.dropout(x.relu())


def _deviation(variance: Tensor) -> Tensor:
    return variance.clamp(min=VARIANCE_FLOOR).sqrt()


def _squares(x: Tensor, mean: Tensor) -> Tensor:
    """Squared distances of the frames [B, T, P] from their mean [B, P], for a sum with
    the weights of that mean: to first order it does not change with the mean, which
    is therefore a constant here and spares the backward pass a sum over time."""
    return (x - mean.detach()[:, None]).square()


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over the valid frames.

    The attention reads each frame beside the utterance's own mean and deviation; those
    are constant over time, so they enter as one vector per utterance.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * channels, ATTENTION_CHANNELS)
        self.norm = BatchNorm(ATTENTION_CHANNELS)
        self.scores = nn.Linear(ATTENTION_CHANNELS, channels)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, T, P], [B, T, 1] -> [B, 2P]"""
        channels = x.shape[2]
        of_frame, of_utterance = self.hidden.weight.split((channels, 2 * channels), 1)
        hidden = F.linear(x, of_frame)  # [B, T, 128]
        x = at_least_float32(x)
        mean = _mean(x, valid)
        deviation = _deviation(_mean(_squares(x, mean), valid))
        statistics = torch.cat([mean, deviation], 1)  # [B, 2P]
        context = F.linear(statistics, of_utterance, self.hidden.bias)
        hidden = self.norm((hidden + context[:, None]).relu()).tanh()
        scores = at_least_float32(self.scores(hidden))  # [B, T, P]
        if valid is not None:
            scores = scores.masked_fill(valid == 0, -torch.inf)
        weights = (scores - scores.detach().amax(1, keepdim=True)).exp()
        total_weight = weights.sum(1)
        mean = (x * weights).sum(1) / total_weight
        deviation = _deviation((_squares(x, mean) * weights).sum(1) / total_weight)
        return torch.cat([mean, deviation], 1)


class TitaNet(nn.Module):
    """TitaNet; frames out are frames in, and padding never reaches a valid frame."""

    def __init__(self, parameters: TitaNetParameters, num_mels: int) -> None:
        super().__init__()
        channels, pooled = SIZES[parameters.size]
        channels = parameters.channels or channels
        pooled = parameters.epilog_channels or pooled
        self.embedding_size = parameters.embedding_size
        self.blocks = nn.ModuleList(
            [
                Block(num_mels, channels, kernel=3),
                *(
                    Block(
                        channels, channels, kernel, SUB_BLOCKS, parameters.dropout, True
                    )
                    for kernel in MEGA_KERNELS
                ),
                Block(channels, pooled, kernel=1),
            ]
        )
        self.pooling = AttentiveStatisticsPooling(pooled)
        self.norm = BatchNorm(2 * pooled)
        self.embedding = nn.Linear(2 * pooled, self.embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """[B, M, T], [B] -> [B, E]"""
        x = features.transpose(1, 2)  # [B, T, M]
        valid = None
        if frames is not None:
            valid = valid_positions(frames, x.shape[1])[..., None].to(x)  # [B, T, 1]
        for block in self.blocks:
            x = block(x, valid)  # [B, T, C], at last [B, T, P]
        return self.embedding(self.norm(self.pooling(x, valid)))

    def layers(self) -> list[Layer]:
        """Its parts from features to embedding; the frames that a block's filters see,
        apart from squeeze-and-excitation, which reads the whole utterance."""
        names = ["prolog", *(f"mega block, kernel {k}" for k in MEGA_KERNELS), "epilog"]
        layers, frames = [], 1
        for name, block in zip(names, self.blocks, strict=True):
            convolutions = [m for m in block.modules() if isinstance(m, DepthwiseConv)]
            frames += sum(m.kernel_size[0] - 1 for m in convolutions)
            channels = block.sub_blocks[-1].pointwise.out_features
            layers.append(_layer(name, channels, block, sees=f"{frames} frames"))
        pooled = self.embedding.in_features
        return [
            *layers,
            _layer(
                "attentive statistics",
                pooled,
                self.pooling,
                self.norm,
                sees="the utterance",
            ),
            _layer(
                "embedding", self.embedding_size, self.embedding, sees="the utterance"
            ),
        ]


class DVector(nn.Module):
    """The d-vector: an LSTM's last output in windows of 160 frames, half overlapping.

    An utterance shorter than a window is one window. The embedding is the mean of the
    windows' normalised embeddings times their mean length, so that a classifier trained
    on single windows reads whole utterances at about the scale it knows.
    """

    WINDOW = 160  # frames
    HOP = 80  # frames

    def __init__(self, parameters: DVectorParameters, num_mels: int) -> None:
        super().__init__()
        self.embedding_size = parameters.embedding_size
        # On a CPU torch says once that oneDNN has no such LSTM; nothing follows from
        # it.
        warnings.filterwarnings("ignore", "LSTM with projections")
        self.lstm = nn.LSTM(
            num_mels,
            parameters.hidden_size,
            parameters.num_layers,
            batch_first=True,
            proj_size=parameters.projection_size,
        )
        self.embedding = nn.Linear(parameters.projection_size, self.embedding_size)
        # torch's own weights are so small that embeddings of any two utterances are
        # almost the same; these, and a forget gate that starts open, learn at once.
        for name, weight in self.lstm.named_parameters():
            gates = weight.data.chunk(1 if name.startswith("weight_hr") else 4)
            for gate in gates:
                if name.startswith("bias"):
                    nn.init.zeros_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                else:
                    nn.init.orthogonal_(gate)
            if name.startswith("bias_ih"):
                nn.init.ones_(gates[1])

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """[B, M, T], [B] -> [B, E]"""
        missing = max(0, self.WINDOW - features.shape[2])
        x = F.pad(features, (0, missing)).transpose(1, 2)  # [B, T, M]
        windows = x.unfold(1, self.WINDOW, self.HOP).transpose(2, 3)  # [B, W, 160, M]
        if frames is None:
            frames = torch.full_like(features[:, 0, 0], features.shape[2]).long()
        last = frames.clamp(max=self.WINDOW) - 1  # of a window, [B]
        count = (frames - self.WINDOW).clamp(min=0) // self.HOP + 1  # of windows, [B]
        valid = valid_positions(count, windows.shape[1])[..., None]  # [B, W, 1]
        # torch's autocast would run cuDNN's LSTM in float16, whose gradients underflow.
        with torch.autocast(x.device.type, enabled=False):
            outputs, _ = self.lstm(
                at_least_float32(windows.flatten(0, 1))
            )  # [B * W, 160, ...]
        outputs = outputs.unflatten(0, windows.shape[:2])  # [B, W, 160, projection]
        index = last[:, None, None, None].expand(
            -1, *outputs.shape[1:2], 1, outputs.shape[3]
        )
        embeddings = (
            at_least_float32(self.embedding(outputs.gather(2, index)[:, :, 0])) * valid
        )
        lengths = embeddings.norm(dim=2, keepdim=True)  # [B, W, 1]
        mean_direction = F.normalize(embeddings, dim=2).sum(1) / count[:, None]
        return mean_direction * lengths.sum(1) / count[:, None]

    def layers(self) -> list[Layer]:
        """Its parts from features to embedding."""
        window = f"{self.WINDOW} frames"
        own = dict(self.lstm.named_parameters())
        return [
            *(
                Layer(
                    f"LSTM, {self.lstm.hidden_size} cells",
                    self.lstm.proj_size,
                    sum(w.numel() for n, w in own.items() if n.endswith(f"_l{number}")),
                    "the frames before",
                )
                for number in range(self.lstm.num_layers)
            ),
            _layer(
                "embedding of a window",
                self.embedding_size,
                self.embedding,
                sees=window,
            ),
        ]


def build_encoder(parameters: ModelParameters, num_mels: int) -> nn.Module:
    """The encoder that the parameters name, with fresh weights of torch's generator."""
    if parameters.name == "titanet":
        return TitaNet(parameters.titanet, num_mels)
    return DVector(parameters.dvector, num_mels)
