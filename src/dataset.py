"""Utterances to batches: one packed array on disk, speaker splits, crops.

utterances -> `pack` -> `Pack` -> `split` -> `Splits` -> batches(epoch) -> `Batch`

B utterances in a batch, N samples, U training utterances. Decoding happens once;
afterwards a batch is a gather of slices of one memory-mapped array, and batch k of
epoch e is a function of (seed, e, k) alone.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine.devices import to_device
from engine.parallel import num_ranks, rank, share
from parameters import (
    UNLABELLED,
    DatasetParameters,
    FrontEndParameters,
    GroupParameters,
    Parameters,
)
from speech.corpora import pack_key, utterances
from speech.duplicates import copies, doubtful_names
from speech.packs import FULL_SCALE, Entry, Pack, SoundBank, pack
from speech.utterances import CorpusError

SPLIT_NAMES = ("train", "validation", "development", "test")
MAX_WARNINGS = 10  # printed; a pack's index holds them all
MAX_UNCUT_SECONDS = 120.0  # longer utterances are embedded in windows
WINDOW_SECONDS, MAX_HOP_SECONDS = 60.0, 50.0  # of those windows
NUM_ANCHORS = 4096  # utterances whose teacher's vectors a batch is compared with
SPLIT_STREAM = 2**32 - 1  # in place of an epoch in a seed; no training gets so far


@dataclass(frozen=True)
class Batch:
    """Waveforms [B, N] in [-1, 1]; `lengths` [B] in samples, None without padding.

    `indices` [B] index the pack's entries. A training batch also has `speakers` [B],
    which index the training speakers, or are -1 for unlabelled utterances, and the
    `seed` of all randomness in its step. With a teacher it has its unit vectors of the
    utterances, `targets` [B, E], and of other utterances, `anchors` [A, E]. Its
    waveforms may be longer than the `crop` samples to train on, since speech that is
    sped up gets shorter. With several processes each batch holds this process's rows;
    `size` counts the rows of all processes.
    """

    waveforms: Tensor
    lengths: Tensor | None
    indices: Tensor
    speakers: Tensor | None = None
    seed: int | None = None
    crop: int | None = None
    size: int | None = None
    targets: Tensor | None = None
    anchors: Tensor | None = None

    def parts(self, count: int) -> "list[Batch]":
        """Split the rows of a training batch into `count` batches."""
        names = ["waveforms", "indices", "speakers"]
        names += ["targets"] if self.targets is not None else []
        split = (getattr(self, name).tensor_split(count) for name in names)
        return [
            replace(self, **dict(zip(names, part, strict=True)))
            for part in zip(*split, strict=True)
        ]


@dataclass(frozen=True)
class Splits:
    """Which entries of a pack belong to which split, and the training speakers.

    `validation` holds other utterances of the training speakers. Speakers of
    `development` and `test` are never trained on. `unlabelled` utterances, whose
    speakers are not known, are trained on through a teacher.
    """

    pack: Pack
    speakers: list[str]
    train: list[int]
    validation: list[int]
    development: list[int]
    test: list[int]
    unlabelled: list[int] = field(default_factory=list)

    @property
    def trained(self) -> list[int]:
        """All entries to train on, labelled or not."""
        return self.train + self.unlabelled

    def __post_init__(self) -> None:
        heard = set(self.speakers_of(self.train + self.validation))
        unseen = set(self.speakers_of(self.development + self.test))
        if heard & unseen:
            raise CorpusError(
                "expected no training speakers in development or test, got "
                f"{', '.join(sorted(heard & unseen)[:5])}"
            )

    def by_corpus(self, split: str) -> dict[str, list[int]]:
        """Return a split's entries by name: `test`, or in a mixture `test/label` for
        each corpus. A name without entries is left out."""
        indices: dict[str, list[int]] = {}
        for i in getattr(self, split):
            label = self.pack.entries[i].corpus
            indices.setdefault(f"{split}/{label}" if label else split, []).append(i)
        return indices

    def speakers_of(self, indices: Sequence[int]) -> list[str]:
        """Return the speaker of each of these entries."""
        return [self.pack.entries[i].speaker for i in indices]

    def classes_of(self, indices: Sequence[int]) -> list[int]:
        """Return the class of each of these entries, which is the index of its speaker
        in `speakers`. The entries must be of training speakers."""
        class_of = {speaker: c for c, speaker in enumerate(self.speakers)}
        return [class_of[speaker] for speaker in self.speakers_of(indices)]

    def summary(self) -> str:
        """Return a line for each split that is not empty, then the warnings."""
        entries_of = {
            name: [self.pack.entries[i] for i in indices]
            for split in (*SPLIT_NAMES, "unlabelled")
            for name, indices in self.by_corpus(split).items()
        }
        lines, width = [], max(12, *(len(name) + 1 for name in entries_of))
        for name, entries in entries_of.items():
            num_speakers = len({entry.speaker for entry in entries})
            minutes = sum(e.samples for e in entries) / self.pack.sample_rate / 60
            lines.append(
                f"{name:{width}}{num_speakers:6} speakers {len(entries):7} utterances"
                f"{minutes:9.1f} min"
            )
        if faults := self.pack.warnings:
            lines.append(f"{len(faults)} warnings:")
            lines += [f"  {line}" for line in faults[:MAX_WARNINGS]]
            if len(faults) > MAX_WARNINGS:
                lines.append("  ...")
        return "\n".join(lines)


def prepare(dataset: DatasetParameters, front_end: FrontEndParameters) -> Splits:
    """Scan, pack and split the corpora of the parameters; raise `CorpusError`."""
    digest = hashlib.sha256(json.dumps(pack_key(dataset)).encode()).hexdigest()[:12]
    directory = dataset.packs / f"{dataset.name}-{digest}"
    rate, min_seconds = front_end.sample_rate, front_end.min_seconds
    return split(pack(utterances(dataset), directory, rate, min_seconds), dataset)


def split(packed: Pack, parameters: DatasetParameters) -> Splits:
    """Split the speakers and utterances of a pack, each corpus by its own seed and
    fractions.

    Speakers that the corpus assigns to development or test stay there. If it assigns
    none, a fraction of the other speakers is held out, at least two. Utterances for
    validation are chosen in the same way, but every training speaker keeps at least one
    to train on.

    A recording that a speaker has twice counts once. Raises `CorpusError` if two
    speakers have the same recording.
    """
    is_labelled = {label: c.labelled for label, c in parameters.corpora.items()}
    repeated = _repeated(packed, is_labelled)
    indices: dict[str, list[int]] = {label: [] for label in parameters.corpora}
    for i, entry in enumerate(packed.entries):
        if i not in repeated:
            indices[entry.corpus].append(i)
    names = ("speakers", *SPLIT_NAMES, "unlabelled")
    members: dict[str, list] = {name: [] for name in names}
    for label, corpus in parameters.corpora.items():
        if not corpus.labelled:
            members["unlabelled"] += indices[label]
            continue
        of_corpus = _split_corpus(packed, indices[label], corpus)
        for name, of_name in of_corpus.items():
            members[name] += of_name
    labelled = (e.speaker for e in packed.entries if is_labelled[e.corpus])
    doubts = [*doubtful_names(labelled), *repeated.values(), *packed.warnings]
    return Splits(replace(packed, warnings=doubts), **members)


def _repeated(packed: Pack, is_labelled: Mapping[str, bool]) -> dict[int, str]:
    """Return the entries that repeat another of their speaker, with a line for each;
    raise `CorpusError` for recordings of two speakers.

    `is_labelled` says of which corpora the speakers are known. A recording of another
    corpus repeats any that is the same.
    """
    entries = packed.entries
    known = [is_labelled[entry.corpus] for entry in entries]
    order = sorted(range(len(entries)), key=lambda i: not known[i])
    pairs = [(i, entries[i], entries[f]) for i, f in copies(packed, order).items()]
    contradictions = [
        f"{first.id} of {first.speaker} and {copy.id} of {copy.speaker}"
        for i, copy, first in pairs
        if copy.speaker != first.speaker and known[i]
    ]
    if contradictions:
        raise CorpusError(
            "dataset: expected each recording under one speaker, found "
            f"{len(contradictions)} under two: "
            f"{', '.join(contradictions[:MAX_WARNINGS])}; keep one of each, or none"
        )
    return {
        i: f"{copy.id}: the same recording as {first.id}, counted once"
        for i, copy, first in pairs
    }


def _split_corpus(
    packed: Pack, indices: Sequence[int], parameters: DatasetParameters
) -> dict[str, list]:
    """Return the training speakers, and the entries of each split."""
    entries = {i: packed.entries[i] for i in indices}
    assigned = {entry.split for entry in entries.values()}  # by the corpus itself
    rng = np.random.default_rng([parameters.seed, SPLIT_STREAM])
    labels = {entry.corpus for entry in entries.values()}
    speakers = {(entry.speaker, entry.split) for entry in entries.values()}
    speakers |= {(s, split) for corpus, s, split in packed.skipped if corpus in labels}
    split_of = _draw_speakers(speakers, assigned, parameters, rng)

    members: dict[str, list] = {name: [] for name in SPLIT_NAMES}
    of_training_speaker: dict[str, list[int]] = {}
    for i, entry in entries.items():
        if entry.split in ("development", "test"):
            members[entry.split].append(i)
        elif split_of[entry.speaker] != "train":
            members[split_of[entry.speaker]].append(i)
        else:
            of_training_speaker.setdefault(entry.speaker, []).append(i)
    for _, of_speaker in sorted(of_training_speaker.items()):
        num_validation = 0
        if "validation" in assigned:
            num_validation = sum(entries[i].split == "validation" for i in of_speaker)
        elif parameters.validation_fraction > 0:
            wanted = parameters.validation_fraction * len(of_speaker)
            num_validation = max(1, round(wanted))
        num_validation = min(num_validation, len(of_speaker) - 1)
        shuffled = rng.permutation(of_speaker).tolist()
        shuffled.sort(key=lambda i: entries[i].split != "validation")
        members["validation"] += shuffled[:num_validation]
        members["train"] += shuffled[num_validation:]
    return {"speakers": sorted(of_training_speaker), **members}


def _draw_speakers(
    names: Iterable[tuple[str, str | None]],
    assigned: set[str | None],
    parameters: DatasetParameters,
    rng: np.random.Generator,
) -> dict[str, str]:
    """Draw the split of each speaker that the corpus does not assign: train, or
    development or test if the corpus assigns no speaker to them. `names` are speakers,
    each with the split that the corpus assigns."""
    held_out = ("development", "test")
    speakers = sorted({name for name, split in names if split not in held_out})
    shuffled = [speakers[i] for i in rng.permutation(len(speakers))]
    split_of = dict.fromkeys(shuffled, "train")
    num_drawn = 0
    for split, fraction in (
        ("test", parameters.test_fraction),
        ("development", parameters.development_fraction),
    ):
        if split not in assigned and fraction > 0:
            count = max(2, round(fraction * len(speakers)))
            of_split = shuffled[num_drawn : num_drawn + count]
            split_of |= dict.fromkeys(of_split, split)
            num_drawn += count
    return split_of


class TrainingBatches:
    """Epochs of training crops, one of every training utterance.

    In a mixture the weight of a corpus is the mean number of crops per utterance. A few
    utterances have one more crop, so that all batches have the same size.

    Each batch draws one of the encoder's crop durations. An utterance shorter than the
    crop is repeated to fill it, so nothing is padded. Waveforms are longer than the
    crop by what speed augmentation may need. With GE2E a batch holds several utterances
    of each of its speakers. `targets` [U, E] are a teacher's vectors.
    """

    def __init__(
        self,
        splits: Splits,
        parameters: Parameters,
        device: torch.device,
        targets: Tensor | None = None,
    ) -> None:
        self.splits, self.parameters, self.device = splits, parameters, device
        self.sample_rate = splits.pack.sample_rate
        self.bank = SoundBank.of(splits.pack, splits.trained, device)
        classes = splits.classes_of(splits.train)
        classes += [UNLABELLED] * len(splits.unlabelled)
        self.classes = np.array(classes, np.int64)  # [U]
        self.trained = splits.trained
        self.labels = np.array([splits.pack.entries[i].corpus for i in self.trained])
        self.targets = None if targets is None else targets.to(device)
        batches = self._plan(0)
        self.num_batches = len(batches)  # the same in every epoch
        least = max(2, num_ranks()) * parameters.training.accumulation
        smallest = min(map(len, batches), default=0)
        if smallest < least:
            raise CorpusError(
                f"training.batch_size: expected at least {least} utterances in every "
                f"batch, for all ranks and parts, got a batch of {smallest}"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.num_batches

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from number `first` on. They depend on (seed,
        epoch) alone."""
        for number, chosen in enumerate(self._plan(epoch)[first:], first):
            # 1 +: NumPy takes [seed, epoch] and [seed, epoch, 0] for the same seed.
            seeds = [self.parameters.seed, epoch, 1 + number]
            yield self._cut(chosen, np.random.default_rng(seeds))

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Draw which training utterances each batch of an epoch holds."""
        rng = np.random.default_rng([self.parameters.seed, epoch])
        repeats = self._draw_repeats(rng)
        if groups := self.parameters.loss.groups:
            return _grouped_batches(self.classes, repeats, groups, rng)
        order = rng.permutation(np.arange(len(repeats)).repeat(repeats))
        batches = _even_parts(order, self.parameters.training.batch_size)
        # A new batch size would compile the encoder again, so all batches are as large
        # as the first: at its end, `order` starts again from its beginning.
        return list(np.resize(order, (len(batches), len(batches[0]))))

    def _draw_repeats(self, rng: np.random.Generator) -> np.ndarray:
        """Draw how often an epoch holds each training utterance, [U]. With a weight of
        1.5 it holds a random half of a corpus twice, and the other half once."""
        repeats = np.zeros(len(self.labels), np.int64)
        for label, weight in self.parameters.dataset.weights.items():
            of_corpus = np.flatnonzero(self.labels == label)
            repeats[of_corpus] = int(weight)
            num_again = round(weight % 1 * len(of_corpus))
            if num_again:
                repeats[rng.choice(of_corpus, num_again, replace=False)] += 1
        return repeats

    def _cut(self, chosen: np.ndarray, rng: np.random.Generator) -> Batch:
        """Cut this process's rows of a batch; `chosen` are the training utterances of
        all processes."""
        seconds = rng.choice(self.parameters.model.crop_seconds)
        crop = round(seconds * self.sample_rate)
        fastest = 100 + self.parameters.augmentation.speed.steps  # in percent
        length = -(-crop * fastest // 100)  # before the speed changes it
        positions = rng.random(len(chosen))
        seeds = rng.integers(2**63, size=num_ranks())
        mine = share(len(chosen))  # rows of this process
        classes = torch.from_numpy(self.classes[chosen[mine]])
        targets = anchors = None
        if self.targets is not None:
            targets = self.targets[torch.from_numpy(chosen[mine])]
            # The same for all ranks, and never of a batch's own utterances.
            others = np.setdiff1d(np.arange(len(self.targets)), chosen)
            anchors = rng.permutation(others)[:NUM_ANCHORS]
            anchors = self.targets[torch.from_numpy(anchors)]
        return Batch(
            waveforms=self.bank.cut(chosen[mine], positions[mine], length),
            lengths=None,
            indices=torch.tensor([self.trained[i] for i in chosen[mine]]),
            speakers=to_device(classes, self.device),
            seed=int(seeds[rank()]),
            crop=crop,
            size=len(chosen),
            targets=targets,
            anchors=anchors,
        )


def _grouped_batches(
    classes: np.ndarray,
    repeats: np.ndarray,
    sizes: GroupParameters,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Draw batches of several utterances of each speaker, from the class [U] of each
    utterance and how often to use it [U].

    A speaker's last group is filled up with more crops of the same utterances.
    """
    by_speaker = np.split(
        np.argsort(classes, kind="stable"), np.cumsum(np.bincount(classes))[:-1]
    )
    # Round r holds the r-th group of each speaker. A batch is drawn from one round, so
    # it never has two groups of a speaker.
    rounds: dict[int, list[np.ndarray]] = defaultdict(list)
    for of_speaker in by_speaker:
        shuffled = rng.permutation(of_speaker.repeat(repeats[of_speaker]))
        num_groups = -(-len(shuffled) // sizes.utterances_per_speaker)
        groups = np.resize(shuffled, (num_groups, sizes.utterances_per_speaker))
        for number, group in enumerate(groups):
            rounds[number].append(group)
    batches = []
    for groups in rounds.values():
        order = rng.permutation(len(groups))
        for part in _even_parts(order, sizes.speakers_per_batch):
            if len(part) > 1:  # the loss compares speakers, so it needs two
                batches.append(np.concatenate([groups[i] for i in part]))
    return [batches[i] for i in rng.permutation(len(batches))]


def _even_parts(order: np.ndarray, largest: int) -> list[np.ndarray]:
    """Split into the fewest near-equal parts of at most `largest` items, avoiding a
    part of one: batch norm needs two."""
    num_parts = max(1, min(-(-len(order) // largest), len(order) // 2))
    return np.array_split(order, num_parts)


class UtteranceBatches:
    """Whole utterances, zero-padded, sorted by length so that little is padded.

    A batch holds at most `batch_seconds` of audio with its padding, but at least one
    row. An utterance longer than two minutes is read in windows of one minute, a row
    each, which overlap by at least ten seconds. With several processes each reads its
    share of the batches.
    """

    def __init__(
        self,
        packed: Pack,
        indices: Sequence[int],
        batch_seconds: float,
        device: torch.device,
    ) -> None:
        self.packed, self.indices, self.device = packed, list(indices), device
        rows = [
            (end - begin, begin, index)
            for index in self.indices
            for begin, end in windows(packed.entries[index], packed.sample_rate)
        ]
        largest = batch_seconds * packed.sample_rate
        batches: list[list[tuple[int, int, int]]] = []
        for row in sorted(rows, key=lambda row: -row[0]):
            if batches and (len(batches[-1]) + 1) * batches[-1][0][0] <= largest:
                batches[-1].append(row)
            else:
                batches.append([row])
        self.batches = batches[rank() :: num_ranks()]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.batches:
            lengths, begins, indices = zip(*rows, strict=True)
            pieces = [
                torch.as_tensor(self.packed.samples[begin : begin + length])
                for begin, length in zip(begins, lengths, strict=True)
            ]
            waveforms = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
            yield Batch(
                waveforms=waveforms.to(self.device).float() / FULL_SCALE,
                lengths=torch.tensor(lengths, device=self.device),
                indices=torch.tensor(indices),
            )


def windows(entry: Entry, sample_rate: int) -> list[tuple[int, int]]:
    """Return the begin and end, in samples of the pack, of an utterance or of each
    window of a long one."""
    size = entry.samples
    if size <= MAX_UNCUT_SECONDS * sample_rate:
        return [(entry.offset, entry.offset + size)]
    window = round(WINDOW_SECONDS * sample_rate)
    count = 1 + math.ceil((size - window) / (MAX_HOP_SECONDS * sample_rate))
    begins = np.linspace(entry.offset, entry.offset + size - window, count)
    return [(begin, begin + window) for begin in begins.astype(int).tolist()]
