"""TitaNet S, M and L, and the d-vector baseline: features to embeddings.

features [B, M, T], frames [B] -> encoder -> embeddings [B, E], not normalised

TitaNet is arXiv 2110.04410 as its authors' NeMo recipes build it:

    features, transposed        [B, T, M]
    prolog                      [B, T, C]    kernel 3, one sub-block
    mega blocks 1, 2, 3         [B, T, C]    kernels 7, 11, 15, three sub-blocks, skip
    epilog                      [B, T, P]    kernel 1, one sub-block
    attentive statistics        [B, 2P]      mean and deviation over time
    batch norm, linear          [B, E]

    A block ends in squeeze-and-excitation; mega blocks have dropout.

    size    C      P      parameters with M = 80, E = 192, without a classifier
    s       256    1536    3,275,568
    m       512    3072   10,220,336
    l       1024   3072   22,122,288

The d-vector is the LSTM of arXiv 1710.10467, section 3.

B utterances, M mel bands, T frames, C channels, P channels of the epilog, E embedding
size, W windows. Channels come last: a pointwise convolution is a `Linear`, and only
depthwise convolutions look along time. A batch without padding, as in training, has
frames None and needs no masks.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import (
    BatchNorm,
    DepthwiseConv,
    Dropout,
    Linear,
    at_least_float32,
    linear,
    mean_over_time,
    valid_positions,
)
from parameters import DVectorParameters, ModelParameters, TitaNetParameters

SIZES = {"s": (256, 1536), "m": (512, 3072), "l": (1024, 3072)}  # C, P
MEGA_KERNELS = (7, 11, 15)  # frames
SUB_BLOCKS = 3  # of a mega block
SQUEEZE = 8  # channels per hidden channel of squeeze-and-excitation
ATTENTION_CHANNELS = 128
# In training: a product and a sum in the forward pass, and twice that in the backward
# pass, for the gradients of the weight and of its input.
FLOP_PER_PRODUCT = 6
VARIANCE_FLOOR = 1e-10
EPSILON = 1e-3  # of the blocks' batch norms; the others use torch's 1e-5


class SubBlock(nn.Module):
    """Depthwise and pointwise convolution, batch norm: [B, T, C] -> [B, T, C'].

    kernel x C + C x C' + 2 C' weights: no convolution of a block has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(in_channels, kernel)
        self.pointwise = Linear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels, eps=EPSILON)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            x = x * valid  # so that padding does not reach the last valid frames
        return self.norm(self.pointwise(self.depthwise(x)))


class SqueezeExcitation(nn.Module):
    """Scale each channel by 0 to 1, computed from the utterance's mean: [B, T, C] ->
    [B, T, C].

    Two linear layers, C to C / 8 to C, without bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // SQUEEZE, bias=False)
        self.excite = nn.Linear(channels // SQUEEZE, channels, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        hidden = self.squeeze(mean_over_time(x, valid)).relu()  # [B, C / 8]
        return x * self.excite(hidden).sigmoid()[:, None]


class Block(nn.Module):
    """Sub-blocks, squeeze-and-excitation, and a skip connection in a mega block.

    ReLU and dropout follow every sub-block; those of the last one come after
    squeeze-and-excitation and the skip connection.
    """

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
                Linear(in_channels, out_channels, bias=False),
                BatchNorm(out_channels, eps=EPSILON),
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
    """Return the square root of a variance with a floor: the gradient of the root would
    be huge near 0."""
    return variance.clamp(min=VARIANCE_FLOOR).sqrt()


def _squares(x: Tensor, mean: Tensor) -> Tensor:
    """Return squared distances of frames [B, T, P] from their weighted mean [B, P].

    The mean is detached, which saves a sum over time in the backward pass. This is
    exact only if the squares are then summed with the same weights: such a sum is least
    at the mean, so its gradient with respect to the mean is zero.
    """
    return (x - mean.detach()[:, None]).square()


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over the valid frames.

    scores [B, T, P] = W2 tanh(norm(relu(W1 [x; mean; deviation] + b1))) + b2

    The mean and the deviation of the utterance are constant over time: their share of
    W1's product is computed once per utterance, not once per frame.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * channels, ATTENTION_CHANNELS)
        self.norm = BatchNorm(ATTENTION_CHANNELS)
        self.scores = Linear(ATTENTION_CHANNELS, channels)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """[B, T, P], [B, T, 1] -> [B, 2P]"""
        channels = x.shape[2]
        for_frames, for_utterance = self.hidden.weight.split(
            (channels, 2 * channels), 1
        )
        hidden = linear(x, for_frames)  # [B, T, 128]
        x = at_least_float32(x)
        mean = mean_over_time(x, valid)  # [B, P]
        deviation = _deviation(mean_over_time(_squares(x, mean), valid))
        statistics = torch.cat([mean, deviation], 1)  # [B, 2P]
        context = F.linear(statistics, for_utterance, self.hidden.bias)
        hidden = self.norm((hidden + context[:, None]).relu()).tanh()  # [B, T, 128]
        scores = at_least_float32(self.scores(hidden))  # [B, T, P]
        if valid is not None:
            scores = scores.masked_fill(valid == 0, -torch.inf)
        # A softmax over time that divides once, after the frames are summed.
        weights = (scores - scores.detach().amax(1, keepdim=True)).exp()
        total_weight = weights.sum(1)
        mean = (x * weights).sum(1) / total_weight
        deviation = _deviation((_squares(x, mean) * weights).sum(1) / total_weight)
        return torch.cat([mean, deviation], 1)  # [B, 2P]


class TitaNet(nn.Module):
    """TitaNet. Every convolution keeps the number of frames."""

    def __init__(self, parameters: TitaNetParameters, num_mels: int) -> None:
        super().__init__()
        channels, pooled = SIZES[parameters.size]
        channels = parameters.channels or channels
        pooled = parameters.epilog_channels or pooled
        dropout = parameters.dropout
        self.embedding_size = parameters.embedding_size
        prolog = Block(num_mels, channels, kernel=3)
        mega_blocks = [
            Block(channels, channels, kernel, SUB_BLOCKS, dropout, skip=True)
            for kernel in MEGA_KERNELS
        ]
        epilog = Block(channels, pooled, kernel=1)
        self.blocks = nn.ModuleList([prolog, *mega_blocks, epilog])
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

    def products(self, frames: int) -> int:
        """Return the number of multiplications by weight matrices in a forward pass of
        an utterance; convolutions along time, 1 to 2 % more, are left out."""
        num_weights = sum(w.numel() for w in self.parameters() if w.ndim == 2)
        context = 2 * self.pooling.hidden.weight.numel() // 3
        squeezing = [m for m in self.modules() if isinstance(m, SqueezeExcitation)]
        used_once = context + self.embedding.weight.numel()  # in an utterance
        used_once += sum(w.numel() for m in squeezing for w in m.parameters())
        return used_once + (num_weights - used_once) * frames


class DVector(nn.Module):
    """The d-vector: an LSTM's last output in windows of 160 frames, half overlapping.

    A shorter utterance is one window; frames after the last whole window are dropped.
    The embedding is the mean of the windows' normalised embeddings times their mean
    norm, so that whole utterances have the scale of the single windows that the
    classifier was trained on.
    """

    WINDOW = 160  # frames
    HOP = 80  # frames

    def __init__(self, parameters: DVectorParameters, num_mels: int) -> None:
        super().__init__()
        self.embedding_size = parameters.embedding_size
        # PyTorch warns once that oneDNN lacks this LSTM; the result is the same.
        warnings.filterwarnings("ignore", "LSTM with projections")
        self.lstm = nn.LSTM(
            num_mels,
            parameters.hidden_size,
            parameters.num_layers,
            batch_first=True,
            proj_size=parameters.projection_size,
        )
        self.embedding = nn.Linear(parameters.projection_size, self.embedding_size)
        # With torch's own small weights, all utterances have almost the same embedding.
        # With these and a forget gate that starts open, it learns from the first step.
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
        last = frames.clamp(max=self.WINDOW) - 1  # index of a window's last frame, [B]
        num_windows = (frames - self.WINDOW).clamp(min=0) // self.HOP + 1  # [B]
        valid = valid_positions(num_windows, windows.shape[1])[..., None]  # [B, W, 1]
        # torch's autocast would run cuDNN's LSTM in float16, whose gradients underflow.
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(windows.flatten(0, 1))  # [B * W, 160, M]
            outputs, _ = self.lstm(x)  # [B * W, 160, projection]
        outputs = outputs.unflatten(0, windows.shape[:2])  # [B, W, 160, projection]
        index = last[:, None, None, None].expand(
            -1, outputs.shape[1], 1, outputs.shape[3]
        )
        outputs = outputs.gather(2, index)[:, :, 0]  # the last, [B, W, projection]
        embeddings = at_least_float32(self.embedding(outputs)) * valid  # [B, W, E]
        norms = embeddings.norm(dim=2, keepdim=True)  # [B, W, 1]
        mean_direction = F.normalize(embeddings, dim=2).sum(1) / num_windows[:, None]
        return mean_direction * norms.sum(1) / num_windows[:, None]

    def products(self, frames: int) -> int:
        """Return the number of multiplications by weight matrices in a forward pass of
        an utterance."""
        num_windows = max(0, frames - self.WINDOW) // self.HOP + 1
        per_frame = sum(w.numel() for w in self.lstm.parameters() if w.ndim == 2)
        return num_windows * (self.WINDOW * per_frame + self.embedding.weight.numel())


def build_encoder(parameters: ModelParameters, num_mels: int) -> nn.Module:
    """Build the encoder that the parameters name; torch's generator draws its
    weights."""
    if parameters.name == "titanet":
        return TitaNet(parameters.titanet, num_mels)
    return DVector(parameters.dvector, num_mels)
