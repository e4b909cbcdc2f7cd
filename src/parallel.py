"""One training in several processes: which of them this is, and what they share.

    torchrun --nproc_per_node 2 src/train.py -p parameters.yml

b rows of this process, B rows of all. The processes are torchrun's ranks; a process
that torchrun has not started is rank 0 of 1.
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

PATIENCE = timedelta(days=1)  # with a rank that packs a corpus meanwhile


@contextmanager
def ranks() -> Iterator[None]:
    """Join the processes that torchrun started, each with a GPU of its own where there
    are any, and let the first alone print; nothing where torchrun did not start this
    one."""
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
        if "by peer" not in str(error):  # gloo's words where a rank has gone
            raise
        raise SystemExit(f"rank {rank()}: stopped, since another has ended") from None
    # Not after an exception: nccl would first wait for collectives that the other ranks
    # may never join, for all of `PATIENCE`. The end of the process aborts them.
    dist.destroy_process_group()


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first, 0, writes and logs."""
    return dist.get_rank() if dist.is_initialized() else 0


def progress_options() -> dict[str, bool]:
    """For tqdm: the first rank alone shows progress, unless TQDM_DISABLE forbids it."""
    return {"disable": True} if rank() > 0 else {}


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The other ranks begin when the first is done and find what it has written."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and num_ranks() > 1:
        dist.barrier()


def share(size: int) -> slice:
    """This rank's rows of so many."""
    return slice(
        rank() * size // num_ranks(),
        (rank() + 1) * size // num_ranks(),
    )


def total(x: Tensor) -> Tensor:
    """The sum over all ranks; its gradient is the sum of theirs."""
    return all_reduce(x) if num_ranks() > 1 else x


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks in their order, [b, ...] -> [B, ...]; gradients as of
    `total`."""
    if num_ranks() == 1:
        return rows
    counts = torch.zeros(num_ranks(), dtype=torch.int64)  # on the CPU: waits for no GPU
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    begin = int(counts[: rank()].sum())
    everybodys = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
    everybodys[begin : begin + len(rows)] = rows
    return total(everybodys)


def gather_lists(own: list[Any]) -> list[Any]:
    """The lists of all ranks, end to end."""
    if num_ranks() == 1:
        return own
    lists: list[list[Any]] = [[]] * num_ranks()
    dist.all_gather_object(lists, own)
    return [item for found in lists for item in found]


def anywhere(flag: bool) -> bool:
    """Whether it is true of any rank; all of them learn it at the same place."""
    if num_ranks() == 1:
        return flag
    true = torch.tensor(int(flag))
    dist.all_reduce(true)
    return bool(true)
