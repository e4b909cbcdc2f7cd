"""The precision of a computation: bfloat16 where it is fast, or full float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def bfloat16_where_fast(device: str) -> torch.autocast:
    """Return a context in which an encoder computes in bfloat16 if the device has
    it."""
    return torch.autocast(device, torch.bfloat16, enabled=_has_bfloat16(device))


def _has_bfloat16(device: str) -> bool:
    # Older chips emulate bfloat16, which is slower than float32.
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute in full float32 on a GPU too. By default a GPU rounds convolutions and
    LSTMs to TF32, and scores would differ from a CPU's by 1e-3."""
    backends = (
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
        torch.backends.cuda.matmul,
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
