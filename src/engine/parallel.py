"""Training in several processes, and what they exchange.

    torchrun --nproc_per_node 2 src/train.py -p parameters.yml

b rows of this rank, B rows of all ranks. A rank is one of the processes that torchrun
started; any other process is rank 0 of 1.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

TIMEOUT = timedelta(days=1)  # other ranks wait while rank 0 packs a corpus


@contextmanager
def ranks() -> Iterator[None]:
    """Join the other ranks; only rank 0 prints, and each rank takes a GPU of its own if
    there are GPUs. Does nothing in a process that torchrun did not start."""
    if not dist.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        with (
            open(os.devnull, "w") as null,
            redirect_stdout(sys.stdout if rank() == 0 else null),
        ):
            yield
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo says so when another rank has ended
            raise
        raise SystemExit(f"rank {rank()}: stopped, since another ended") from None
    # Not after an exception: nccl would wait `TIMEOUT` for collectives that other ranks
    # may never join. The end of the process aborts them.
    dist.destroy_process_group()


def num_ranks() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; rank 0 writes and logs."""
    return dist.get_rank() if dist.is_initialized() else 0


def progress_options() -> dict[str, bool]:
    """Return options for tqdm: only rank 0 shows progress, and no rank does if
    TQDM_DISABLE is set. Without them tqdm's bars in notebooks ignore TQDM_DISABLE."""
    return {"disable": True} if rank() > 0 or os.environ.get("TQDM_DISABLE") else {}


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on rank 0 first, so that the other ranks find what it wrote."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and num_ranks() > 1:
        dist.barrier()


def share(size: int) -> slice:
    """Return which of `size` rows belong to this rank."""
    return slice(rank() * size // num_ranks(), (rank() + 1) * size // num_ranks())


def total(x: Tensor) -> Tensor:
    """Return the sum of x over all ranks; the backward pass sums their gradients."""
    return all_reduce(x) if num_ranks() > 1 else x


def gather(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, [b, ...] -> [B, ...]; differentiable like
    `total`."""
    if num_ranks() == 1:
        return rows
    # On the CPU: reading the counts of a GPU would wait for it.
    counts = torch.zeros(num_ranks(), dtype=torch.int64)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    begin = int(counts[: rank()].sum())
    gathered = rows.new_zeros(int(counts.sum()), *rows.shape[1:])  # [B, ...]
    gathered[begin : begin + len(rows)] = rows
    return total(gathered)


def gather_lists(items: list[Any]) -> list[Any]:
    """Concatenate the lists of all ranks, in order of rank."""
    if num_ranks() == 1:
        return items
    lists: list[list[Any]] = [[]] * num_ranks()
    dist.all_gather_object(lists, items)
    return list(itertools.chain.from_iterable(lists))


def anywhere(flag: bool) -> bool:
    """Return whether the flag is true on any rank. Every rank must call this."""
    if num_ranks() == 1:
        return flag
    num_true = torch.tensor(int(flag))
    dist.all_reduce(num_true)
    return bool(num_true)
