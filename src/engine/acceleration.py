"""Wrap an encoder for fast training: compiled, or shared among ranks."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.parallel import num_ranks
from errors import first_line
from parameters import ParameterError

# Compiling takes 42 s for each duration of crops and raises TitaNet-S from 22,600 to
# 40,400 audio seconds per second (H100), so it pays from this many hours of crops on.
MIN_HOURS_TO_COMPILE = 1500.0


def fast_encoder(
    encoder: nn.Module, device: torch.device, choice: str, hours: float = math.inf
) -> nn.Module:
    """Return an encoder wrapped for training on `hours` of crops.

    With several ranks the wrapper is DistributedDataParallel. Otherwise `choice`, the
    value of `training.compile`, decides whether it is torch.compile: `auto` compiles on
    a GPU from `MIN_HOURS_TO_COMPILE` on. Raises `ParameterError` if `always` is
    impossible.
    """
    if num_ranks() > 1:
        if choice == "always":
            raise ParameterError(
                "training.compile: expected auto or never with several processes, "
                "since batch norm spans all of them, got always"
            )
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            encoder, device_ids=device_ids, broadcast_buffers=False
        )
    # On a CPU compiling takes minutes and saves a tenth of the time.
    pays = device.type == "cuda" and hours >= MIN_HOURS_TO_COMPILE
    if choice == "never" or (choice == "auto" and not pays):
        return encoder
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = first_line(error)
        if choice == "always":
            raise ParameterError(
                f"training.compile: expected a compiler that works, got: {reason}"
            ) from None
        print(f"training.compile: not compiling, since no compiler works: {reason}")
        return encoder
    # One graph for each duration of crops; a dynamic graph takes as long to compile.
    return torch.compile(encoder, dynamic=False)


def gradients_of_all_ranks(
    encoder: nn.Module, last: bool
) -> AbstractContextManager[None]:
    """Return a context for one part of a batch: only the last synchronises gradients
    between the ranks."""
    return nullcontext() if last or num_ranks() == 1 else encoder.no_sync()
