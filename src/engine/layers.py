"""Masks, and layers that compute what torch's layers do, but faster on a CPU.

`BatchNorm`, `Dropout`, `DepthwiseConv`, `Linear`: [B, T, C] -> [B, T, C]

B utterances, T frames, C channels, b rows of this rank, R ranks. The gains named here
were measured on a CPU with `benchmarks/train_step.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from engine.parallel import num_ranks, rank, total

try:
    from engine.kernels import depthwise
except ImportError:  # torch comes without Triton for CPUs and for Windows
    depthwise = None


def valid_positions(lengths: Tensor, size: int) -> Tensor:
    """Return True where a position lies within its row's length: [B] -> [B, size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean_over_time(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean over the valid frames: [B, T, C], [B, T, 1] of 0 and 1 ->
    [B, C]."""
    if valid is None:
        return x.mean(1)
    # A matrix product, since an elementwise product would copy all of x.
    return ((valid / valid.sum(1, keepdim=True)).transpose(1, 2) @ x).squeeze(1)


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, converted to float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all ranks and all axes but the last, [..., C] -> [..., C].

    It is torch's own where that will do. torch's does not span ranks (SyncBatchNorm
    works on GPUs only), and it is slow when compiled for a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        compiling_for_cpu = x.device.type == "cpu" and torch.compiler.is_compiling()
        if not self.training or (num_ranks() == 1 and not compiling_for_cpu):
            return super().forward(rows).view_as(x)
        normalised, mean, variance, num_rows = _Normalised.apply(
            at_least_float32(rows), self.weight, self.bias, self.eps
        )
        with torch.no_grad():
            unbiased = variance * (num_rows / (num_rows - 1))
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        return normalised.view_as(x).to(x.dtype)


def _sum_of_rows(rows: Tensor) -> Tensor:
    """Return the sum of rows, [b, C] -> [C].

    torch's compiler sums down one column after another on a CPU. Summing sixteen rows
    first reads memory in order and halves the time of batch norm's sums.
    """
    group_size = 16 if len(rows) % 16 == 0 else 1
    return rows.unflatten(0, (-1, group_size)).sum(1).sum(0)


def _moments_of_all(
    mean: Tensor, variance: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine each rank's mean [C], variance [C] and count [] of rows into those of all
    ranks (Chan et al., 1979)."""
    table = mean.new_zeros(num_ranks(), 2 * len(mean) + 1)  # [R, 2 C + 1]
    table[rank()] = torch.cat([mean, variance, count[None]])
    means, variances, counts = total(table).tensor_split((len(mean), 2 * len(mean)), 1)
    num_rows = counts.sum()
    shares = counts / num_rows  # [R, 1]
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, num_rows


class _Normalised(torch.autograd.Function):
    """Batch norm of rows [b, C] by the mean and variance of all ranks' rows.

    Returns the normalised rows, and the mean [C], biased variance [C] and number [] of
    all ranks' rows.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = _sum_of_rows(rows) / len(rows)
        variance = _sum_of_rows((rows - mean).square()) / len(rows)
        num_rows = mean.new_full((), len(rows))
        if num_ranks() > 1:
            mean, variance, num_rows = _moments_of_all(mean, variance, num_rows)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(rows, weight, mean, scale, num_rows)
        ctx.mark_non_differentiable(mean, variance, num_rows)
        return (rows - mean) * (scale * weight) + bias, mean, variance, num_rows

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: None) -> tuple:
        rows, weight, mean, scale, num_rows = ctx.saved_tensors
        of_bias = _sum_of_rows(gradient)
        of_weight = _sum_of_rows(gradient * (rows - mean)) * scale
        of_mean, of_scale = total(torch.stack([of_bias, of_weight])) / num_rows
        centred = gradient - of_mean - (rows - mean) * (scale * of_scale)
        return centred * (scale * weight), of_weight, of_bias, None


class Dropout(nn.Dropout):
    """Dropout that draws sixteen random bits for each value on a CPU.

    The probability is rounded to a multiple of 1 / 65,536. torch draws more bits; this
    takes a quarter of its time and saves a fifth of an eager training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        num_dropped = round(self.p * 2**16)  # of the 65,536 values of sixteen bits
        if x.device.type != "cpu" or not self.training or num_dropped == 0:
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = bits >= num_dropped - 2**15  # int16 starts at -2**15
        return x * (keep * (2**16 / (2**16 - num_dropped)))


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias: [..., C], [C', C], [C'] -> [..., C'].

    For float32 on a CPU it calls oneDNN, where torch's function calls MKL. oneDNN takes
    half the time on an AMD processor with AVX-512, and four fifths on Intel's.
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()  # slower, and not in ONNX
        or not torch.backends.mkldnn.is_available()
    ):
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2).contiguous()  # oneDNN is slow with gaps between the rows
    return _Products.apply(rows, weight.contiguous(), bias).unflatten(0, x.shape[:-1])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, [b, C], [C', C], [C'] -> [b, C'], by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Products(torch.autograd.Function):
    """A linear layer by oneDNN, with the gradient that oneDNN's own product lacks."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_bias = gradient.sum(0) if ctx.has_bias else None
        of_x = _product(gradient, weight.T.contiguous())
        # oneDNN is slow if the larger of two transposed matrices comes first.
        if len(weight) > weight.shape[1]:
            of_weight = _product(x.T, gradient.T).T
        else:
            of_weight = _product(gradient.T, x.T)
        return of_x, of_weight, of_bias


class DepthwiseConv(nn.Conv1d):
    """One filter per channel along time, without bias, [B, T, C] -> [B, T, C]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and depthwise is not None:
            return depthwise(x, self.weight[:, 0])
        if torch.compiler.is_exporting():
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        if torch.compiler.is_compiling():
            # The compiler turns this sum into one pass over memory, in any layout.
            frames, reach = x.shape[1], self.padding[0]
            x, taps = F.pad(x, (0, 0, reach, reach)), self.weight.unbind(2)  # [C, 1]
            return sum(x[:, k : k + frames] * tap[:, 0] for k, tap in enumerate(taps))
        # The fast channels-last kernels take [B, C, 1, T] with the channels innermost.
        # On a CPU they are 3 to 15 times as fast as conv1d.
        x = x.transpose(1, 2).unsqueeze(2)
        weight = self.weight.unsqueeze(2)
        # In bfloat16, oneDNN hangs with 16 channels and a kernel of 15.
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            x = F.conv2d(x, weight, padding=(0, self.padding[0]), groups=self.groups)
        return x.squeeze(2).transpose(1, 2)
