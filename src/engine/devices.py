"""Choose the device to compute on, copies to it, and errors about it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from errors import UserError, first_line
from parameters import ModelParameters, ParameterError, TrainingParameters


class DeviceError(UserError):
    """A device that this machine lacks, or a GPU that is full or cannot compute."""


def choose_device(training: TrainingParameters, model: ModelParameters) -> torch.device:
    """Return the device that `training.device` names, as `usable_device` does; raise
    `ParameterError` if it cannot be used."""
    try:
        return usable_device(training.device, model, "training.device=cpu")
    except DeviceError as error:
        raise ParameterError(f"training.device: {error}") from None


def usable_device(name: str, model: ModelParameters, way_out: str) -> torch.device:
    """Return a device by its name; auto is the fastest available.

    Raises `DeviceError` for a device that this machine lacks, and with a `way_out` for
    a GPU that is full or that torch has no kernels for.
    """
    # torch has no LSTM with projections on mps, and the d-vector needs it.
    mps = torch.backends.mps.is_available() and model.name != "dvector"
    available = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(device for device, is_here in available.items() if is_here)
    if not available[name]:
        names = ", ".join(device for device, is_here in available.items() if is_here)
        raise DeviceError(f"expected a device of this machine ({names}), got {name}")
    device = torch.device(name)
    with errors_of_gpu(way_out):
        torch.ones(1).to(device).add(1).item()
    return device


@contextmanager
def errors_of_gpu(way_out: str) -> Iterator[None]:
    """Raise `DeviceError` in place of torch's errors about a GPU within the context,
    with a `way_out` such as an option that chooses the CPU."""
    try:
        yield
    except RuntimeError as error:
        text = first_line(error)
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
            fault = "the GPU's memory is full"
        elif "no kernel image" in text:
            fault = f"torch {torch.__version__} has no kernels for this GPU"
        elif text.startswith("CUDA error"):
            fault = f"the GPU cannot be used: {text}"
        else:
            raise
        raise DeviceError(f"{fault}; compute on the CPU with {way_out}") from None


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
