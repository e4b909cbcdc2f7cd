"""Where tensors live: the device of a training, copies to it, and its memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from parameters import ModelParameters, ParameterError, TrainingParameters


def choose_device(training: TrainingParameters, model: ModelParameters) -> torch.device:
    """The device that `training.device` names; auto is the fastest available. Raises
    `ParameterError` for one that this machine lacks."""
    name = training.device
    # torch has no LSTM with projections on mps.
    mps = torch.backends.mps.is_available() and model.name != "dvector"
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise ParameterError(
            f"training.device: expected a device of this machine ({there}), got {name}"
        )
    return torch.device(name)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a GPU asynchronously, which takes pinned
    memory."""
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks: to map and clear fresh pages for every activation
    takes a third of a training step on a CPU."""
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_threshold = -1, -3
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(m_mmap_threshold, 2**30)
            library.mallopt(m_trim_threshold, 2**30)


@contextmanager
def memory_for_batches(batch_size: int) -> Iterator[None]:
    """Raise `ParameterError` where a GPU's memory runs out in the block."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ParameterError(
            "training.batch_size: expected utterances that the GPU has memory for, got "
            f"{batch_size}; fewer, or a larger training.accumulation, may fit"
        ) from None
