"""An encoder wrapped for fast training: compiled, or shared among ranks."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.parallel import num_ranks
from parameters import ParameterError

# Hours of crops from which compiling pays on a GPU: it takes 42 s for each duration of
# crops and raises TitaNet-S from 22,600 to 40,400 audio seconds a second (H100).
COMPILING_PAYS = 1500.0


def fast_encoder(
    encoder: nn.Module, device: torch.device, choice: str, hours: float = math.inf
) -> nn.Module:
    """Wrap an encoder for training: with several ranks in DistributedDataParallel, else
    in torch.compile as `choice`, the value of `training.compile`, says. `auto` compiles
    on a GPU if the `hours` of crops reach `COMPILING_PAYS`. Raises `ParameterError`
    where `always` cannot be had."""
    if num_ranks() > 1:
        if choice == "always":
            raise ParameterError(
                "training.compile: expected auto or never in several processes, whose "
                "batch norms talk to each other, got always"
            )
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            encoder, device_ids=device_ids, broadcast_buffers=False
        )
    # On a CPU compiling takes minutes and saves a tenth.
    pays = device.type == "cuda" and hours >= COMPILING_PAYS
    if choice == "never" or (choice == "auto" and not pays):
        return encoder
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if choice == "always":
            raise ParameterError(
                f"training.compile: expected a compiler that works, got: {reason}"
            ) from None
        print(f"training.compile: not compiling, since no compiler works: {reason}")
        return encoder
    # One graph for each duration of crops: a dynamic one would take as long.
    return torch.compile(encoder, dynamic=False)


def gradients_of_all_ranks(
    encoder: nn.Module, last: bool
) -> AbstractContextManager[None]:
    """A context in which only the last part of a batch synchronises gradients."""
    return nullcontext() if last or num_ranks() == 1 else encoder.no_sync()
