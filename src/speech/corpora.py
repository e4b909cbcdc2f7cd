"""Where audio comes from: each corpus as one record, and several as a mixture.

`DatasetParameters` -> `utterances` -> `Utterance.source` -> `audio.load_recording`

To add a corpus, write a function that yields its utterances, in the module of its kind,
and add a row to `CORPORA`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from errors import UserError
from parameters import DatasetParameters
from speech.audio import Segment
from speech.folders import scan_folder
from speech.manifests import scan_manifests
from speech.published import (
    scan_commonvoice,
    scan_librispeech,
    scan_vctk,
    scan_voxceleb1,
)
from speech.synthetic import synthetic_utterances
from speech.utterances import SPEAKER_SPLITS, CorpusError, Utterance


def _resolved_root(parameters: DatasetParameters) -> list[str]:
    return [str(parameters.root.resolve())]


@dataclass(frozen=True)
class Corpus:
    """All that the program knows of one corpus, as functions of its `dataset` section.

    `place` is the path that errors name. `key` holds all that the utterances depend on,
    but not which speakers are held out; packs are named after it. In two corpora with
    equal `people`, equal speaker names mean the same person. `trials` is the published
    trial list, which names utterances by id.
    """

    scan: Callable[[DatasetParameters], Iterator[Utterance]]
    place: Callable[[DatasetParameters], Path] = lambda p: p.root
    key: Callable[[DatasetParameters], list] = _resolved_root
    people: Callable[[DatasetParameters], list] = lambda p: []
    trials: Callable[[DatasetParameters], Path | None] = lambda p: None


def _scan_synthetic(parameters: DatasetParameters) -> Iterator[Utterance]:
    for source in synthetic_utterances(parameters.synthetic, parameters.seed):
        yield Utterance(source.id, source.speaker_id, source, gender=source.gender)


CORPORA = {
    "synthetic": Corpus(
        _scan_synthetic,
        key=lambda p: [p.seed, p.synthetic.model_dump()],
        people=lambda p: [p.seed],
    ),
    "librispeech": Corpus(
        scan_librispeech,
        key=lambda p: [*_resolved_root(p), p.librispeech.model_dump()],
    ),
    "vctk": Corpus(scan_vctk, key=lambda p: [*_resolved_root(p), p.vctk.model_dump()]),
    "commonvoice": Corpus(
        scan_commonvoice,
        key=lambda p: [*_resolved_root(p), p.commonvoice.model_dump()],
    ),
    "voxceleb1": Corpus(  # tested by VoxCeleb1-O, cleaned
        scan_voxceleb1, trials=lambda p: p.root / "veri_test2.txt"
    ),
    "folder": Corpus(
        scan_folder,
        key=lambda p: _resolved_root(p) + ["unlabelled"] * (not p.labelled),
        people=_resolved_root,
    ),
    "manifest": Corpus(
        scan_manifests,
        place=lambda p: p.manifest.train,
        key=lambda p: [path and str(path.resolve()) for _, path in p.manifest],
        people=lambda p: [str(p.manifest.train.resolve())],
    ),
}


def utterances(parameters: DatasetParameters) -> list[Utterance]:
    """Return all utterances of a corpus, sorted by id, from at least two speakers.

    A mixture lists its corpora one after another and puts `label/` before the names of
    utterances and speakers. Raises `CorpusError` saying where, what was expected and
    what was found.
    """
    if parameters.name != "mixture":
        return _utterances(parameters)
    labelled, with_speakers = [], []
    for number, (label, corpus) in enumerate(parameters.corpora.items()):
        try:
            unlabelled = _utterances(corpus)
        except UserError as error:
            raise CorpusError(f"dataset.mixture.{number}: {error}") from None
        of_corpus = [
            replace(
                utterance,
                id=f"{label}/{utterance.id}",
                speaker=f"{label}/{utterance.speaker}",
                corpus=label,
            )
            for utterance in unlabelled
        ]
        labelled += of_corpus
        with_speakers += of_corpus if corpus.labelled else []
    _refuse_same_sources(with_speakers, "dataset.mixture")
    return labelled


def without_label(name: str, corpus: str) -> str:
    """Return what an utterance or a speaker of a mixture is called in its own
    corpus."""
    return name.removeprefix(f"{corpus}/") if corpus else name


def _utterances(parameters: DatasetParameters) -> list[Utterance]:
    corpus = CORPORA[parameters.name]
    where = corpus.place(parameters)
    try:
        ordered = sorted(corpus.scan(parameters), key=lambda utterance: utterance.id)
    except OSError as error:
        raise CorpusError(
            f"{error.filename or where}: cannot be used: {error.strerror}"
        ) from None
    split_of: dict[str, str] = {}
    for utterance in ordered:
        # Validation, or no split yet, counts as train: the speakers are the same.
        split = utterance.split if utterance.split in SPEAKER_SPLITS else "train"
        other = split_of.setdefault(utterance.speaker, split)
        if other != split:
            raise CorpusError(
                f"{where}: expected speaker {utterance.speaker} in one split, "
                f"found {other} and {split}"
            )
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise CorpusError(f"{where}: expected {one.id} once, found it twice")
    _refuse_same_sources(ordered, where)
    if len(split_of) < 2:
        raise CorpusError(
            f"{where}: expected at least two speakers, "
            f"found {', '.join(split_of) or 'none'}"
        )
    return ordered


def _refuse_same_sources(found: Sequence[Utterance], where: Path | str) -> None:
    """Raise `CorpusError` if two utterances are the same part of a file, behind
    symbolic links."""
    real_folder = cache(os.path.realpath)  # most files share theirs with others

    def real(path: Path) -> str:
        try:
            if path.is_symlink():
                return os.path.realpath(path)
            return os.path.join(real_folder(path.parent), path.name)
        except (OSError, ValueError):  # a name that is too long or has a zero byte
            return str(path)

    first: dict[Any, Utterance] = {}
    for utterance in found:
        source = utterance.source
        if isinstance(source, Path):
            source = Segment(source)
        if isinstance(source, Segment):
            source = replace(source, path=real(source.path))
        other = first.setdefault(source, utterance)
        if other is not utterance:
            raise CorpusError(
                f"{where}: expected each recording once, found {other.id} of "
                f"{other.speaker} and {utterance.id} of {utterance.speaker} in one file"
            )


def official_trials(parameters: DatasetParameters) -> Path | None:
    """Return the path of the trial list published with a corpus, or None."""
    return CORPORA[parameters.name].trials(parameters)


def pack_key(parameters: DatasetParameters) -> list:
    """Return what the pack of a corpus or a mixture is named after."""
    if parameters.name == "mixture":
        keys = (
            [label, *pack_key(corpus)] for label, corpus in parameters.corpora.items()
        )
        return [parameters.name, *keys]
    return [parameters.name, *CORPORA[parameters.name].key(parameters)]


def people_key(parameters: DatasetParameters) -> list:
    """Return a key of a corpus; in two corpora with equal keys, equal speaker names
    mean the same person."""
    return [parameters.name, *CORPORA[parameters.name].people(parameters)]
