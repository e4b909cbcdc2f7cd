"""The archives of NeMo's checkpoints, which are not trusted.

model.nemo -> `read_members` -> model_config.yaml, model_weights.ckpt -> `read_tensors`

A `.nemo` file is a tar, sometimes gzipped, of these two files; the second is a flat
state dict. Nothing in them is executed or extracted, and the sizes they claim are
checked before memory is allocated.
"""

import gzip
import io
import tarfile
import zipfile
from pathlib import PurePosixPath
from typing import BinaryIO

import torch
from torch import Tensor

from errors import UserError, shown
from runs.checkpoints import load_tensors

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_BYTES = 2**29  # of an unpacked archive; TitaNet-L takes a fifth of it
MAX_CONFIG_BYTES = 2**22
MAX_MEMBERS = 100


class NemoError(UserError):
    """A `.nemo` file that is not a TitaNet, or a model that NeMo does not have."""


class _BoundedStream:
    """A stream that ends with an error at `MAX_BYTES`, whatever a tar's headers
    claim."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.tell = stream.tell

    def seek(self, position: int) -> None:
        self._refuse_beyond(position)
        self.stream.seek(position)

    def read(self, size: int) -> bytes:
        self._refuse_beyond(size)
        self._refuse_beyond(self.tell() + size)
        return self.stream.read(size)

    def _refuse_beyond(self, position: int) -> None:
        if not 0 <= position <= MAX_BYTES:
            raise NemoError(f"expected at most {MAX_BYTES} bytes, got {position}")


def read_members(file: BinaryIO) -> dict[str, bytes]:
    """Return the configuration and the weights; raise `NemoError` if a member could
    do harm."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if zipped else file
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=_BoundedStream(stream), mode="r:") as archive:
        for number, member in enumerate(archive):
            path, name = PurePosixPath(member.name), shown(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise NemoError(f"expected members inside the archive, got {name}")
            if number == MAX_MEMBERS:
                raise NemoError(f"expected at most {MAX_MEMBERS} members, got more")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise NemoError(f"{name}: expected a plain file, got a link or device")
            largest = MAX_CONFIG_BYTES if str(path) == CONFIG else MAX_BYTES
            if not 0 <= member.size <= largest:
                raise NemoError(
                    f"{name}: expected at most {largest} bytes, got {member.size}"
                )
            if str(path) in members:
                raise NemoError(f"{name}: expected once, got it twice")
            if str(path) in (CONFIG, WEIGHTS):
                members[str(path)] = archive.extractfile(member).read()
    for name in (CONFIG, WEIGHTS):
        if name not in members:
            raise NemoError(f"expected a member {name}, but it is missing")
    return members


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """Return the state dict in the content of the weights' file; raise `NemoError`
    unless it is flat, its tensors are finite, and none is larger than its storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > MAX_BYTES:
        raise NemoError(f"expected at most {MAX_BYTES} bytes, got {unpacked}")
    state = load_tensors(io.BytesIO(content), WEIGHTS)
    if not isinstance(state, dict):
        raise NemoError(f"{WEIGHTS}: expected named tensors, got {type(state)}")
    size = 0
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise NemoError(f"{WEIGHTS}: expected names, got {shown(key)}")
        if not isinstance(tensor, Tensor):
            raise NemoError(f"{key}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise NemoError(f"{key}: expected a dense tensor")
        size += tensor.nbytes
        # With strides of 0 a tensor can claim any shape without storing it.
        if tensor.nbytes > tensor.untyped_storage().nbytes() or size > MAX_BYTES:
            raise NemoError(f"{key}: expected no more values than the file holds")
        if not tensor.isfinite().all():
            raise NemoError(f"{key}: expected finite values")
    return state
