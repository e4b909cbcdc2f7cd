"""Utterances to batches: one packed array on disk, speaker splits, crops.

utterances -> `pack` -> `Pack` -> `split` -> `Splits` -> batches(epoch) -> `Batch`

B utterances in a batch, N samples. Decoding happens once; afterwards a batch is a
gather of slices of one memory-mapped array, and batch k of epoch e is a function of
(seed, e, k) alone.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine.devices import to_device
from engine.parallel import num_ranks, rank, share
from parameters import DatasetParameters, FrontEndParameters, Parameters
from speech.corpora import CorpusError, pack_key, utterances
from speech.packs import FULL_SCALE, Clips, Entry, Pack, pack

PARTS = ("train", "validation", "development", "test")
MAX_WARNINGS = 10  # printed; a pack's index holds them all
LONGEST = 120.0  # seconds; longer utterances are embedded in windows
WINDOW, WINDOW_HOP = 60.0, 50.0  # seconds, of those windows; the hop is a maximum
SPLIT_STREAM = 2**32 - 1  # as an epoch in a seed: training never reaches it


@dataclass(frozen=True)
class Batch:
    """Waveforms [B, N] in [-1, 1]; `lengths` [B] in samples, None without padding.

    `indices` [B] are places in the pack's entries. A training batch also has the
    `speakers` [B], as places in the training speakers, and the `seed` of all randomness
    in its step. Its waveforms may be longer than the `crop` samples to train on, since
    speeding speech up shortens it. With several processes each holds its share of the
    rows; `size` counts the rows of all.
    """

    waveforms: Tensor
    lengths: Tensor | None
    indices: Tensor
    speakers: Tensor | None = None
    seed: int | None = None
    crop: int | None = None
    size: int | None = None

    def parts(self, count: int) -> "list[Batch]":
        """Split the rows of a training batch into `count` batches."""
        names = ("waveforms", "indices", "speakers")
        split = (getattr(self, name).tensor_split(count) for name in names)
        return [
            replace(self, **dict(zip(names, part, strict=True)))
            for part in zip(*split, strict=True)
        ]


@dataclass(frozen=True)
class Splits:
    """Which entries of a pack belong to which split, and the training speakers.

    `validation` holds other utterances of the training speakers. Speakers of
    `development` and `test` are never trained on.
    """

    pack: Pack
    speakers: list[str]
    train: list[int]
    validation: list[int]
    development: list[int]
    test: list[int]

    def __post_init__(self) -> None:
        heard = {self.pack.entries[i].speaker for i in self.train + self.validation}
        unseen = {self.pack.entries[i].speaker for i in self.development + self.test}
        if heard & unseen:
            raise CorpusError(
                "speakers of development or test must not be in training, but "
                f"{', '.join(sorted(heard & unseen)[:5])} are"
            )

    def by_corpus(self, split: str) -> dict[str, list[int]]:
        """A split's entries under names such as `test`, in a mixture `test/label`; no
        name has an empty list."""
        indices: dict[str, list[int]] = {}
        for i in getattr(self, split):
            label = self.pack.entries[i].corpus
            indices.setdefault(f"{split}/{label}" if label else split, []).append(i)
        return indices

    def speakers_of(self, indices: Sequence[int]) -> list[str]:
        """The speaker of each of these entries."""
        return [self.pack.entries[i].speaker for i in indices]

    def summary(self) -> str:
        """One line for each split that is not empty, then the files with a fault."""
        parts = {
            name: [self.pack.entries[i] for i in indices]
            for split in PARTS
            for name, indices in self.by_corpus(split).items()
        }
        lines, width = [], max(12, *(len(name) + 1 for name in parts))
        for name, entries in parts.items():
            speakers = len({entry.speaker for entry in entries})
            minutes = sum(e.samples for e in entries) / self.pack.sample_rate / 60
            lines.append(
                f"{name:{width}}{speakers:6} speakers {len(entries):7} utterances"
                f"{minutes:9.1f} min"
            )
        faults = self.pack.warnings
        if faults:
            lines.append(f"{len(faults)} warnings:")
            lines += [f"  {line}" for line in faults[:MAX_WARNINGS]]
            lines += ["  ..."] * (len(faults) > MAX_WARNINGS)
        return "\n".join(lines)


def split(packed: Pack, parameters: DatasetParameters) -> Splits:
    """Split the speakers and utterances of a pack, each corpus by its own seed and
    fractions.

    Speakers that the corpus assigns to development or test stay there. If it assigns
    none, a fraction of the other speakers is held out, at least two. Utterances for
    validation are chosen in the same way, but every training speaker keeps at least one
    to train on.
    """
    of_corpus: dict[str, list[int]] = {label: [] for label in parameters.corpora}
    for i, entry in enumerate(packed.entries):
        of_corpus[entry.corpus].append(i)
    parts: dict[str, list] = {name: [] for name in ("speakers", *PARTS)}
    for label, corpus in parameters.corpora.items():
        for name, members in _split_corpus(packed, of_corpus[label], corpus).items():
            parts[name] += members
    return Splits(packed, **parts)


def _split_corpus(
    packed: Pack, indices: Sequence[int], parameters: DatasetParameters
) -> dict[str, list]:
    """The training speakers, and the entries of each split."""
    entries = {i: packed.entries[i] for i in indices}
    assigned = {entry.split for entry in entries.values()}  # by the corpus itself
    speakers = sorted(
        {e.speaker for e in entries.values() if e.split not in ("development", "test")}
    )
    rng = np.random.default_rng([parameters.seed, SPLIT_STREAM])
    shuffled = [speakers[i] for i in rng.permutation(len(speakers))]
    num_test = num_development = 0
    if "test" not in assigned and parameters.test_fraction > 0:
        num_test = max(2, round(parameters.test_fraction * len(speakers)))
    if "development" not in assigned and parameters.development_fraction > 0:
        num_development = max(2, round(parameters.development_fraction * len(speakers)))
    num_held_out = num_test + num_development
    split_of = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:num_test], "test")
    split_of |= dict.fromkeys(shuffled[num_test:num_held_out], "development")

    parts = {name: [] for name in PARTS}
    of_training_speaker: dict[str, list[int]] = {}
    for i, entry in entries.items():
        part = entry.split if entry.split in ("development", "test") else None
        part = part or split_of[entry.speaker]
        if part == "train":
            of_training_speaker.setdefault(entry.speaker, []).append(i)
        else:
            parts[part].append(i)
    for _, of_speaker in sorted(of_training_speaker.items()):
        num_validation = 0
        if "validation" in assigned:
            num_validation = sum(entries[i].split == "validation" for i in of_speaker)
        elif parameters.validation_fraction > 0:
            wanted = round(parameters.validation_fraction * len(of_speaker))
            num_validation = max(1, wanted)
        num_validation = min(num_validation, len(of_speaker) - 1)
        of_speaker = rng.permutation(of_speaker).tolist()
        of_speaker.sort(key=lambda i: entries[i].split != "validation")
        parts["validation"] += of_speaker[:num_validation]
        parts["train"] += of_speaker[num_validation:]
    return {"speakers": sorted(of_training_speaker), **parts}


def prepare(dataset: DatasetParameters, front_end: FrontEndParameters) -> Splits:
    """Scan, pack and split the corpora that the parameters name; raise
    `CorpusError`."""
    digest = hashlib.sha256(json.dumps(pack_key(dataset)).encode()).hexdigest()[:12]
    directory = dataset.packs / f"{dataset.name}-{digest}"
    rate, min_seconds = front_end.sample_rate, front_end.min_seconds
    return split(pack(utterances(dataset), directory, rate, min_seconds), dataset)


class TrainingBatches:
    """Epochs of training crops, one of every training utterance.

    In a mixture the weight of a corpus is the mean number of crops per utterance. A few
    utterances have one more crop, so that all batches have the same size.

    Each batch draws its crop duration from the encoder's. An utterance shorter than the
    crop is repeated to fill it, so nothing is padded. Waveforms are longer than the
    crop by what speed augmentation may need. With GE2E a batch holds several utterances
    of each of its speakers.
    """

    def __init__(
        self, splits: Splits, parameters: Parameters, device: torch.device
    ) -> None:
        self.splits, self.parameters, self.device = splits, parameters, device
        self.sample_rate = splits.pack.sample_rate
        self.clips = Clips.of(splits.pack, splits.train, device)
        class_of = {speaker: c for c, speaker in enumerate(splits.speakers)}
        self.speakers = np.array(
            [class_of[s] for s in splits.speakers_of(splits.train)]
        )
        order = np.argsort(self.speakers, kind="stable")
        self.by_speaker = np.split(order, np.cumsum(np.bincount(self.speakers))[:-1])
        labels = np.array([splits.pack.entries[i].corpus for i in splits.train])
        self.repeats = np.zeros(len(labels), np.int64)  # of each utterance in an epoch
        # utterances of a corpus, and how many of them are repeated once more
        self.repeated_once_more: list[tuple[np.ndarray, int]] = []
        for label, weight in parameters.dataset.weights.items():
            of_corpus = np.flatnonzero(labels == label)
            self.repeats[of_corpus] = int(weight)
            count = round(weight % 1 * len(of_corpus))
            self.repeated_once_more += [(of_corpus, count)] if count else []
        plan = self._plan(0)
        self.num_batches = len(plan)  # the same in every epoch
        least = max(2, num_ranks()) * parameters.training.accumulation
        smallest = min(map(len, plan), default=0)
        if smallest < least:
            raise CorpusError(
                f"training.batch_size: expected at least {least} utterances in every "
                f"batch to share out, got one of {smallest}"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.num_batches

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on, a function of (seed, epoch)
        alone."""
        for number, chosen in enumerate(self._plan(epoch)[first:], first):
            yield self._batch(epoch, number, chosen)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Which training utterances each batch of an epoch holds."""
        rng = np.random.default_rng([self.parameters.seed, epoch])
        if self.parameters.loss.groups:
            return self._grouped_plan(rng)
        repeats = self.repeats.copy()
        for utterances_of_corpus, count in self.repeated_once_more:
            repeats[rng.choice(utterances_of_corpus, count, replace=False)] += 1
        order = rng.permutation(np.arange(len(repeats)).repeat(repeats))
        batches = _even_parts(order, self.parameters.training.batch_size)
        # Batches of another size would compile the encoder again: a few utterances fill
        # all batches up to the first one's size.
        return list(np.resize(order, (len(batches), len(batches[0]))))

    def _grouped_plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of several utterances of each speaker. A speaker's last group is
        filled up with more crops of the same utterances."""
        sizes = self.parameters.loss.groups
        rounds: list[list[np.ndarray]] = []
        for utterances_of_speaker in self.by_speaker:
            repeats = self.repeats[utterances_of_speaker]  # whole under GE2E
            shuffled = rng.permutation(utterances_of_speaker.repeat(repeats))
            num_groups = -(-len(shuffled) // sizes.utterances_per_speaker)
            groups = np.resize(shuffled, (num_groups, sizes.utterances_per_speaker))
            for number, group in enumerate(groups):
                rounds += [[]] if number == len(rounds) else []
                rounds[number].append(group)
        plan = []
        for groups in rounds:
            order = rng.permutation(len(groups))
            parts = _even_parts(order, sizes.speakers_per_batch)
            plan += [np.concatenate([groups[i] for i in part]) for part in parts]
        # A batch of one speaker has nothing to tell apart.
        several = [part for part in plan if len(part) > sizes.utterances_per_speaker]
        return [several[i] for i in rng.permutation(len(several))]

    def _batch(self, epoch: int, number: int, chosen: np.ndarray) -> Batch:
        # 1 +: NumPy takes [seed, epoch] and [seed, epoch, 0] for the same seed
        rng = np.random.default_rng([self.parameters.seed, epoch, 1 + number])
        seconds = rng.choice(self.parameters.model.crop_seconds)
        size = round(seconds * self.sample_rate)
        speed = self.parameters.augmentation.speed
        longer = -(-size * (100 + speed.steps) // 100)
        positions = rng.random(len(chosen))
        seeds = rng.integers(2**63, size=num_ranks())
        of_rank = share(len(chosen))
        return Batch(
            waveforms=self.clips.cut(chosen[of_rank], positions[of_rank], longer),
            lengths=None,
            crop=size,
            indices=torch.tensor([self.splits.train[i] for i in chosen[of_rank]]),
            speakers=to_device(
                torch.from_numpy(self.speakers[chosen[of_rank]]), self.device
            ),
            seed=int(seeds[rank()]),
            size=len(chosen),
        )


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
        self.parts: list[list[tuple[int, int, int]]] = []
        for row in sorted(rows, key=lambda row: -row[0]):
            part = self.parts[-1] if self.parts else []
            if part and (len(part) + 1) * part[0][0] <= largest:
                part.append(row)
            else:
                self.parts.append([row])
        self.parts = self.parts[rank() :: num_ranks()]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            lengths, begins, indices = zip(*part, strict=True)
            pieces = [
                self.packed.samples[begin : begin + length]
                for begin, length in zip(begins, lengths, strict=True)
            ]
            waveforms = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
            yield Batch(
                waveforms=waveforms.to(self.device).float() / FULL_SCALE,
                lengths=torch.tensor(lengths, device=self.device),
                indices=torch.tensor(indices),
            )


def windows(entry: Entry, sample_rate: int) -> list[tuple[int, int]]:
    """Begin and end, in the pack, of an utterance or of each window of a long one."""
    size = entry.samples
    if size <= LONGEST * sample_rate:
        return [(entry.offset, entry.offset + size)]
    window = round(WINDOW * sample_rate)
    count = 1 + math.ceil((size - window) / (WINDOW_HOP * sample_rate))
    begins = np.linspace(entry.offset, entry.offset + size - window, count)
    return [(begin, begin + window) for begin in begins.astype(int).tolist()]
