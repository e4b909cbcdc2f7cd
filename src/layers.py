"""Masks, and the layers that have a faster form on a CPU.

Each layer is torch's own in all but speed: batch norm over the last axis and over all
ranks, dropout, and the depthwise convolution of channels-last layouts.

B utterances, T frames, C channels, b rows of this rank, R ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from parallel import num_ranks, rank, total


def valid_positions(lengths: Tensor, size: int) -> Tensor:
    """True where a position of a padded axis lies within its length: [B] -> [B,
    size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def at_least_float32(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all axes but the last, [..., C] -> [..., C], and over all ranks:
    torch's own SyncBatchNorm knows GPUs only. Compiled for a CPU, the rows are summed
    as in `_sum_of_rows`."""

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
    """[b, C] -> [C]; compiled for a CPU, a sum over all rows at once goes down column
    by column, and sixteen at a time take half as long."""
    together = 16 if len(rows) % 16 == 0 else 1
    return rows.unflatten(0, (-1, together)).sum(1).sum(0)


def _moments_of_all(
    mean: Tensor, variance: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each rank's own moments [C] of so many rows [] put together (Chan et al.,
    1979)."""
    table = mean.new_zeros(num_ranks(), 2 * len(mean) + 1)
    table[rank()] = torch.cat([mean, variance, count[None]])
    means, variances, counts = total(table).tensor_split((len(mean), 2 * len(mean)), 1)
    num_rows = counts.sum()
    shares = counts / num_rows  # [R, 1]
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, num_rows


class _Normalised(torch.autograd.Function):
    """Rows of all ranks [b, C] with mean 0 and variance 1, times weight, plus bias; and
    the mean [C], the biased variance [C] and the number [] of all rows."""

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
    """On a CPU with a probability in steps of 1 / 65,536: sixteen random bits for each
    value take a quarter of the time of torch's own draws."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)  # of all values of sixteen bits
        if x.device.type != "cpu" or not self.training or dropped == 0:
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = bits >= dropped - 2**15
        return x * (kept * (2**16 / (2**16 - dropped)))


class DepthwiseConv(nn.Conv1d):
    """One filter per channel along time, without bias, [B, T, C] -> [B, T, C]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # The sum over taps becomes one pass over memory, in any layout.
            frames, reach = x.shape[1], self.padding[0]
            x, taps = F.pad(x, (0, 0, reach, reach)), self.weight.unbind(2)  # [C, 1]
            return sum(x[:, k : k + frames] * tap[:, 0] for k, tap in enumerate(taps))
        # [B, C, 1, T] with the channels innermost is the layout that the fast
        # channels-last kernels take: 3 to 15 times conv1d's speed on a CPU.
        x = x.transpose(1, 2).unsqueeze(2)
        weight = self.weight.unsqueeze(2)
        x = F.conv2d(x, weight, padding=(0, self.padding[0]), groups=self.groups)
        return x.squeeze(2).transpose(1, 2)
