"""Training in several processes: their ranks, and what they exchange.

    torchrun --nproc_per_node 2 src/train.py -p parameters.yml

b rows of this rank, B rows of all ranks. Ranks are the processes that torchrun started;
any other process is rank 0 of 1.
"""

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

PATIENCE = timedelta(days=1)  # to wait while rank 0 packs a corpus


@contextmanager
def ranks() -> Iterator[None]:
    """Join the ranks that torchrun started; only rank 0 prints.

    Each rank takes a GPU of its own if there are any. Does nothing in a process that
    torchrun did not start.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(sys.stdout if rank() == 0 else nowhere),
        ):
            yield
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo's words when another rank has ended
            raise
        raise SystemExit(f"rank {rank()}: stopped, since another has ended") from None
    # Not after an exception: nccl would first wait for collectives that the other ranks
    # may never join, for all of `PATIENCE`. The end of the process aborts them.
    dist.destroy_process_group()


def num_ranks() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; rank 0 writes and logs."""
    return dist.get_rank() if dist.is_initialized() else 0


def progress_options() -> dict[str, bool]:
    """Options for tqdm: only rank 0 shows progress, and none does if TQDM_DISABLE is
    set, which tqdm's notebook bars ignore."""
    return {"disable": True} if rank() > 0 or os.environ.get("TQDM_DISABLE") else {}


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run a block on rank 0, then on the others, which find what rank 0 wrote."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and num_ranks() > 1:
        dist.barrier()


def share(size: int) -> slice:
    """The rows of this rank, of `size` rows of all ranks."""
    return slice(
        rank() * size // num_ranks(),
        (rank() + 1) * size // num_ranks(),
    )


def total(x: Tensor) -> Tensor:
    """The sum of x over all ranks; the backward pass sums their gradients."""
    return all_reduce(x) if num_ranks() > 1 else x


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks in order of rank, [b, ...] -> [B, ...]; differentiable like
    `total`."""
    if num_ranks() == 1:
        return rows
    counts = torch.zeros(
        num_ranks(), dtype=torch.int64
    )  # on the CPU, so that no GPU is waited for
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    begin = int(counts[: rank()].sum())
    everybodys = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
    everybodys[begin : begin + len(rows)] = rows
    return total(everybodys)


def gather_lists(items: list[Any]) -> list[Any]:
    """The lists of all ranks, concatenated in order of rank."""
    if num_ranks() == 1:
        return items
    lists: list[list[Any]] = [[]] * num_ranks()
    dist.all_gather_object(lists, items)
    return [item for of_rank in lists for item in of_rank]


def anywhere(flag: bool) -> bool:
    """Whether the flag is true on any rank. Every rank must call this."""
    if num_ranks() == 1:
        return flag
    true = torch.tensor(int(flag))
    dist.all_reduce(true)
    return bool(true)
