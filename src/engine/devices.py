"""Devices: which one to train on, copies to it, and its memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from parameters import ModelParameters, ParameterError, TrainingParameters


def choose_device(training: TrainingParameters, model: ModelParameters) -> torch.device:
    """Return the device that `training.device` names; auto is the fastest available.
    Raise `ParameterError` for a device that this machine lacks."""
    name = training.device
    # torch has no LSTM with projections on mps, and the d-vector needs it.
    mps = torch.backends.mps.is_available() and model.name != "dvector"
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(device for device, is_here in available.items() if is_here)
    if not available[name]:
        names = ", ".join(device for device, is_here in available.items() if is_here)
        raise ParameterError(
            f"training.device: expected a device of this machine ({names}), got {name}"
        )
    return torch.device(name)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a GPU asynchronously, from pinned memory."""
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for reuse. Otherwise mapping and clearing
    fresh pages for every activation takes a third of a training step on a CPU."""
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_threshold = -1, -3
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(m_mmap_threshold, 2**30)
            library.mallopt(m_trim_threshold, 2**30)


@contextmanager
def memory_for_batches(batch_size: int) -> Iterator[None]:
    """Raise `ParameterError` if the GPU's memory runs out within the context."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ParameterError(
            "training.batch_size: expected a batch that fits in the GPU's memory, got "
            f"{batch_size}; try fewer, or a larger training.accumulation"
        ) from None
