"""Recordings to packs: decoded once into one array on disk, from which pieces are cut.

utterances -> `pack` -> `Pack` -> `SoundBank` -> pieces [B, N]

B pieces in a batch, N samples.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from engine.devices import to_device
from engine.files import file_digest, locked
from engine.parallel import progress_options
from speech.audio import (
    FULL_SCALE,
    MIN_SECONDS,
    AudioError,
    Recording,
    Segment,
    load_recording,
)
from speech.corpora import without_label
from speech.examination import NARROW_BAND, examine
from speech.samples import Samples, in_blocks
from speech.synthetic import SyntheticUtterance
from speech.utterances import CorpusError, Utterance

PACK_VERSION = 5
SAMPLES, INDEX = "samples.int16", "index.json"  # the files of a pack


@dataclass(frozen=True)
class Entry:
    """One utterance of a pack; `offset` and `samples` count samples."""

    id: str
    speaker: str
    split: str | None
    gender: str | None
    session: str | None
    offset: int
    samples: int
    corpus: str = ""  # its label in a mixture


@dataclass(frozen=True)
class Pack:
    """All utterances end to end in one memory-mapped array, which is read-only:
    writing to it crashes the process."""

    samples: Tensor | Samples  # int16 [all samples]
    entries: list[Entry]
    sample_rate: int  # Hz
    # One line for each file skipped, one if files lack the upper band, and one for
    # each doubt about a file; the first of each kind of doubt counts the others.
    warnings: list[str]
    digests: dict[str, str]  # of each corpus, by its label; the same on every machine
    # Corpus, speaker and split of each file skipped. Who is held out does not depend on
    # whether a file can be used, so these speakers are drawn with the others.
    skipped: Sequence[Sequence[str | None]] = ()

    @property
    def digest(self) -> str:
        """The digest of all corpora together; it is the same on every machine."""
        if list(self.digests) == [""]:
            return self.digests[""]
        return hashlib.sha256(json.dumps(self.digests).encode()).hexdigest()


def _fingerprint(
    corpus: Sequence[Utterance], sample_rate: int, min_seconds: float
) -> str:
    """Return a digest of the names, sizes and modification times of all sources."""
    digest = hashlib.sha256(f"{PACK_VERSION} {sample_rate} {min_seconds}".encode())
    for u in corpus:
        source = Segment(u.source) if isinstance(u.source, Path) else u.source
        if isinstance(source, Segment):
            path = os.path.abspath(source.path)
            try:
                state = os.stat(path)
                version = (state.st_size, state.st_mtime_ns)
            except (OSError, ValueError):  # ValueError: a name with a zero byte
                version = "missing"
            source = (path, version, source.offset, source.duration, source.channel)
        row = (u.id, u.speaker, u.split, u.gender, u.session, source)
        digest.update(f"{row!r}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_pack(directory: Path, fingerprint: str | None = None) -> Pack | None:
    """Open the pack in a directory; return None if there is no pack, or none with this
    fingerprint."""
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        if fingerprint not in (None, index["fingerprint"]):
            return None
        # Read-only, although torch warns: the system counts a writable mapping as used
        # memory, and refuses one that is larger than its memory.
        samples = np.memmap(directory / SAMPLES, np.int16, mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            mapped = torch.from_numpy(samples)
        entries = [Entry(*row) for row in index["entries"]]
        if len(samples) != entries[-1].offset + entries[-1].samples:
            return None
        return Pack(
            mapped,
            entries,
            index["sample_rate"],
            index["warnings"],
            # Packs from before there were mixtures have a single digest.
            index.get("digests") or {"": index["digest"]},
            index.get("skipped", ()),
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _recordings(
    corpus: Sequence[Utterance], sample_rate: int, min_seconds: float, is_speech: bool
) -> Iterator[tuple[Utterance, tuple[Recording, str, list[str]] | AudioError]]:
    """Decode with all cores; yield each utterance, in order, with its recording, its
    content and what is doubtful in it, or with the error if it cannot be used.

    The content identifies a source by a digest of its file, not of the decoded samples,
    which differ in their last bit from machine to machine. Threads suffice, since the
    decoders release Python's lock. The queue is bounded, so memory is too, even if the
    disk is slow.
    """
    digest_of = cache(file_digest)  # a file may hold many utterances

    def load(utterance: Utterance) -> tuple[Recording, str, list[str]] | AudioError:
        source = utterance.source
        try:
            recording = load_recording(source, sample_rate, min_seconds)
            doubts = examine(recording, sample_rate, is_speech)
            if isinstance(source, SyntheticUtterance):
                return recording, repr(source), doubts
            segment = Segment(source) if isinstance(source, Path) else source
            digest = digest_of(segment.path)
            return recording, f"{digest} {segment.offset} {segment.duration}", doubts
        except AudioError as error:
            return error
        except OSError as error:
            return AudioError(f"cannot be read: {error.strerror}")

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        queue = deque()
        for utterance in corpus:
            queue.append((utterance, pool.submit(load, utterance)))
            if len(queue) > 4 * workers:
                ready, future = queue.popleft()
                yield ready, future.result()
        for ready, future in queue:
            yield ready, future.result()


def pack(
    corpus: Sequence[Utterance],
    directory: Path,
    sample_rate: int,
    min_seconds: float = MIN_SECONDS,
    is_speech: bool = True,
) -> Pack:
    """Decode a corpus into a directory, or open the pack there if nothing has changed.

    The directory is `directory` with the sample rate and `min_seconds` added to its
    name, so that packs of two rates do not replace each other. It appears complete or
    not at all. Files that cannot be read, are shorter than `min_seconds` or are refused
    by `examine` are skipped and listed in the pack's warnings, as are doubts about
    other files. Raises `CorpusError` if no file is left or the directory cannot be
    written.
    """
    requirements = sample_rate, min_seconds, is_speech
    directory = directory.with_name(f"{directory.name}-{sample_rate}-{min_seconds:g}")
    try:
        fingerprint = _fingerprint(corpus, sample_rate, min_seconds)
        packed = open_pack(directory, fingerprint)
        if packed is None:
            target = Path(os.path.realpath(directory))  # a link stays
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent) as held:
                if held:
                    _remove_remains(target.parent)
                # Another process may have packed it in the meantime.
                packed = open_pack(directory, fingerprint)
                if packed is None:
                    _write_pack(corpus, target, requirements, fingerprint)
                    packed = open_pack(directory, fingerprint)
    except OSError as error:
        raise CorpusError(f"{directory}: cannot pack the corpus: {error}") from None
    if packed is None:
        raise CorpusError(f"{directory}: the pack just written cannot be read back")
    return packed


def _remove_remains(folder: Path) -> None:
    """Remove what packing left in a folder whenever it was killed. Whoever packs there
    now must have the folder's lock."""
    for samples in folder.glob(f".*-*/{SAMPLES}"):
        partial = samples.parent
        if re.fullmatch(r"\..+-\w{8}", partial.name) and (
            {SAMPLES, INDEX} >= set(os.listdir(partial))
        ):
            shutil.rmtree(partial, ignore_errors=True)


def _write_pack(
    corpus: Sequence[Utterance],
    directory: Path,
    requirements: tuple[int, float, bool],
    fingerprint: str,
) -> None:
    partial = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    mode = stat.S_IMODE(directory.stat().st_mode) if directory.exists() else None
    partial.mkdir(0o777 if mode is None else 0o700)
    try:
        samples = partial / SAMPLES
        contents = _write_samples(samples, corpus, *requirements)
        index = {"fingerprint": fingerprint, **contents}
        (partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
        if mode is not None:
            partial.chmod(mode)
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_samples(
    path: Path,
    corpus: Sequence[Utterance],
    sample_rate: int,
    min_seconds: float,
    is_speech: bool,
) -> dict[str, int | list | dict]:
    """Decode a corpus into one file; return sample rate, entries, warnings and digests
    for the pack's index."""
    entries, faults, skipped, offset, num_narrow = [], [], [], 0, 0
    doubtful: dict[str, list[str]] = {}  # lines by kind
    labels = dict.fromkeys(u.corpus for u in corpus)
    digests = {label: hashlib.sha256(f"{sample_rate}".encode()) for label in labels}
    with (
        path.open("wb") as file,
        tqdm(
            total=len(corpus),
            desc="packing",
            unit="utt",
            leave=False,
            **progress_options(),
        ) as progress,
    ):
        for u, loaded in _recordings(corpus, sample_rate, min_seconds, is_speech):
            progress.update()
            if isinstance(loaded, AudioError):
                faults.append(f"skipped {u.id}: {loaded}")
                skipped.append((u.corpus, u.speaker, u.split))
                continue
            recording, content, doubts = loaded
            if recording.rate < sample_rate or NARROW_BAND in doubts:
                num_narrow += is_speech
            for doubt in doubts:
                if doubt != NARROW_BAND:
                    kind = re.split("[,:]", doubt)[0]
                    doubtful.setdefault(kind, []).append(f"{u.id}: {doubt}")
            for block in in_blocks(recording.samples):
                file.write(block)
            length = len(recording.samples)
            details = (u.split, u.gender, u.session)
            entries.append(Entry(u.id, u.speaker, *details, offset, length, u.corpus))
            names = (without_label(name, u.corpus) for name in (u.id, u.speaker))
            digests[u.corpus].update(json.dumps([*names, *details, content]).encode())
            offset += length
        file.flush()
        os.fsync(file.fileno())
    _expect_audio_of_each(corpus, entries, faults)
    if num_narrow:
        faults.append(
            f"{num_narrow} of {len(entries)} files lack the upper band, as recordings "
            f"below {sample_rate} Hz do; augmentation.telephone prepares training for "
            "that"
        )
    return {
        "sample_rate": sample_rate,
        "entries": [list(asdict(entry).values()) for entry in entries],
        "warnings": faults + _in_order(doubtful.values()),
        "digests": {label: digest.hexdigest() for label, digest in digests.items()},
        "skipped": skipped,
    }


def _in_order(kinds: Iterable[Sequence[str]]) -> list[str]:
    """Return the first line of each kind, with the number of others, before all others,
    since only a few are printed."""
    firsts, others = [], []
    for first, *rest in kinds:
        firsts.append(f"{first}; {len(rest)} others are similar" if rest else first)
        others += rest
    return firsts + others


def _expect_audio_of_each(
    corpus: Sequence[Utterance], entries: Sequence[Entry], faults: Sequence[str]
) -> None:
    """Raise `CorpusError` if none of the files of a corpus, or of those that it assigns
    to a split, could be decoded."""
    usable = {(entry.corpus, entry.split) for entry in entries}
    for label, split in dict.fromkeys((u.corpus, u.split) for u in corpus):
        if (label, split) not in usable:
            ids = [u.id for u in corpus if (u.corpus, u.split) == (label, split)]
            first = next(f for f in faults if f.startswith(f"skipped {ids[0]}: "))
            where = (label or "the corpus") + (f" for {split}" if split else "")
            raise CorpusError(
                f"none of the {len(ids)} files of {where} can be used; "
                f"the first: {first}"
            )


class SoundBank:
    """Sounds end to end in one array, from which batches of pieces are cut.

    With a GPU the samples lie in its memory if all tensors then take at most half of
    what this process can have. Otherwise pieces are cut in main memory and copied.
    """

    def __init__(
        self,
        samples: Tensor,
        offsets: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        self.samples, self.device = samples, device  # int16
        self.offsets, self.lengths = np.array(offsets), np.array(lengths)  # [sounds]
        self.resident = False
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device)  # by torch, used or not
            taken = torch.cuda.memory_allocated(device)
            self.resident = taken + samples.nbytes <= free / 2
        if self.resident:
            self.samples = samples.to(device)

    @classmethod
    def of(
        cls, packed: Pack, indices: Sequence[int], device: torch.device
    ) -> "SoundBank":
        """Return a bank of these entries of a pack."""
        entries = [packed.entries[i] for i in indices]
        offsets = [entry.offset for entry in entries]
        lengths = [entry.samples for entry in entries]
        return cls(packed.samples, offsets, lengths, device)

    @classmethod
    def simulated(cls, waveforms: Tensor, device: torch.device) -> "SoundBank":
        """Return a bank of the rows of [sounds, N], each scaled to its peak."""
        peaks = waveforms.abs().amax(1, keepdim=True).clamp(min=1e-9)
        samples = (waveforms / peaks * (FULL_SCALE - 1)).round().to(torch.int16)
        count, size = waveforms.shape
        offsets = range(0, count * size, size)
        return cls(samples.flatten(), offsets, [size] * count, device)

    def __len__(self) -> int:
        return len(self.lengths)

    def whole(self, chosen: np.ndarray, size: int) -> Tensor:
        """Return these sounds from their beginnings, with zeros after their ends:
        float32 [B, size] in [-1, 1]."""
        lengths = np.minimum(self.lengths[chosen], size)
        return self._rows(self.offsets[chosen], lengths, size, repeat=False)

    def cut(self, chosen: np.ndarray, positions: np.ndarray, size: int) -> Tensor:
        """Cut a piece of each of these sounds: float32 [B, size] in [-1, 1].

        `positions` [B] in [0, 1) choose where a piece starts, between the sound's first
        sample and the last start at which the piece fits. A shorter sound is repeated.
        """
        lengths = self.lengths[chosen]
        starts = (positions * (np.maximum(lengths - size, 0) + 1)).astype(np.int64)
        begins = self.offsets[chosen] + starts
        return self._rows(begins, np.minimum(lengths, size), size, repeat=True)

    def _rows(
        self, begins: np.ndarray, lengths: np.ndarray, size: int, repeat: bool
    ) -> Tensor:
        """Copy stretches of at most `size` samples, repeated or with zeros after
        them."""
        if self.resident:
            stretches = torch.from_numpy(np.stack([begins, lengths])[..., None])
            begin, length = to_device(stretches, self.device)  # [B, 1] each
            positions = torch.arange(size, device=self.device)
            rows = self.samples[begin + positions % length].float() / FULL_SCALE
            return rows if repeat else rows * (positions < length)
        rows = torch.zeros(len(begins), size, dtype=torch.int16)
        pairs = zip(begins.tolist(), lengths.tolist(), strict=True)
        for row, (begin, length) in zip(rows, pairs, strict=True):
            piece = self.samples[begin : begin + length]
            row[:length] = piece
            if repeat and length < size:
                row[:] = piece.repeat(-(-size // length))[:size]
        return to_device(rows, self.device).float() / FULL_SCALE
