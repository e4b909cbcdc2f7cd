"""Where audio comes from: published corpora, folders of speakers, the embedded corpus.

`DatasetParameters` -> `utterances` -> `Utterance.source` -> `audio.load_recording`

A corpus is one record, of `CORPORA`; a mixture is several, told apart by labels.
LibriSpeech is openslr.org/12 (Panayotov et al., ICASSP 2015); VCTK is version 0.92,
doi.org/10.7488/ds/2645; VoxCeleb1 is arXiv 1706.08612; Common Voice is Ardila et al.,
LREC 2020; manifests are NVIDIA NeMo's.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from errors import UserError
from parameters import DatasetParameters
from speech.audio import Segment
from speech.downloads import fetched, unpacked
from speech.synthetic import SyntheticUtterance, synthetic_utterances

SPLITS = ("train", "development", "test")
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")

LIBRISPEECH_URL = "https://www.openslr.org/resources/12"
LIBRISPEECH_SHA256 = {  # subset: sum of its archive, as torchaudio publishes it
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": (
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    "train-clean-360": (
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"
    ),
    "train-other-500": (
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"
    ),
}
VCTK_URL = (
    "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip"
)
# of the archive, as torchaudio publishes it
VCTK_SHA256 = "f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c"
COMMON_VOICE_PAGE = "https://commonvoice.mozilla.org/datasets"
COMMON_VOICE_GENDERS = {  # what releases call them, newer ones at length
    "female": "f",
    "female_feminine": "f",
    "male": "m",
    "male_masculine": "m",
}
VOXCELEB_PAGE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
VOXCELEB_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
VOXCELEB_ID = r"(id\d{5}/[^/\s]+/\d{5}\.wav)"  # speaker, video, utterance
VOXCELEB_LISTS = {  # name: its lines, and what they look like
    "veri_test2.txt": (
        f"[01] {VOXCELEB_ID} {VOXCELEB_ID}",
        "`1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav`",
    ),
    "iden_split.txt": (f"([123]) {VOXCELEB_ID}", "`1 id10003/na8-QEFmj44/00003.wav`"),
}
OPENSLR28_URL = "https://www.openslr.org/resources/28/rirs_noises.zip"
OPENSLR28_MD5 = "e6f48e257286e05de56413b4779d8ffb"


class CorpusError(UserError):
    """A corpus that cannot be used as it is."""


@dataclass(frozen=True)
class Utterance:
    """Speech of one speaker and where to find it."""

    id: str  # unique in its corpus, without whitespace
    speaker: str
    source: Path | Segment | SyntheticUtterance
    split: str | None = None  # of `dataset.Splits`, where the corpus says so
    gender: str | None = None  # f or m where known
    session: str | None = None  # chapter, video or day of the speaker, where known
    corpus: str = ""  # its label in a mixture


def _resolved_root(parameters: DatasetParameters) -> list[str]:
    return [str(parameters.root.resolve())]


@dataclass(frozen=True)
class Corpus:
    """All that the program knows of one corpus, as functions of its `dataset` section.

    `key` is what its utterances depend on, whichever speakers are held out; packs are
    named after it. Where `people` are equal, equal speaker names mean the same person.
    `trials` is the published trial list, which names utterances by id; VoxCeleb1's is
    VoxCeleb1-O, cleaned.
    """

    scan: Callable[[DatasetParameters], Iterator[Utterance]]
    place: Callable[[DatasetParameters], Path] = lambda p: p.root
    key: Callable[[DatasetParameters], list] = _resolved_root
    people: Callable[[DatasetParameters], list] = lambda p: []
    trials: Callable[[DatasetParameters], Path | None] = lambda p: None


def utterances(parameters: DatasetParameters) -> list[Utterance]:
    """All utterances of a corpus, sorted by id, from at least two speakers.

    A mixture lists its corpora one after another and puts `label/` before the names of
    utterances and speakers. Raises `CorpusError` saying where, what was expected and
    what was found.
    """
    if parameters.name != "mixture":
        return _utterances(parameters)
    labelled = []
    for place, (label, corpus) in enumerate(parameters.corpora.items()):
        try:
            unlabelled = _utterances(corpus)
        except UserError as error:
            raise CorpusError(f"dataset.mixture.{place}: {error}") from None
        labelled += [
            replace(
                utterance,
                id=f"{label}/{utterance.id}",
                speaker=f"{label}/{utterance.speaker}",
                corpus=label,
            )
            for utterance in unlabelled
        ]
    return labelled


def without_label(name: str, corpus: str) -> str:
    """What an utterance or a speaker of a mixture is called in its own corpus."""
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
    splits: dict[str, str] = {}
    for utterance in ordered:
        # validation is of the speakers of training
        split = utterance.split if utterance.split in SPLITS else "train"
        other = splits.setdefault(utterance.speaker, split)
        if other != split:
            raise CorpusError(
                f"{where}: expected speaker {utterance.speaker} in one split, "
                f"found {other} and {split}"
            )
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise CorpusError(f"{where}: expected {one.id} once, found it twice")
    if len(splits) < 2:
        raise CorpusError(
            f"{where}: expected at least two speakers, "
            f"found {', '.join(splits) or 'none'}"
        )
    return ordered


def official_trials(parameters: DatasetParameters) -> Path | None:
    """The list of trials published with one corpus, if there is one."""
    return CORPORA[parameters.name].trials(parameters)


def pack_key(parameters: DatasetParameters) -> list:
    """What the pack of a corpus or a mixture is named after."""
    if parameters.name == "mixture":
        keys = (
            [label, *pack_key(corpus)] for label, corpus in parameters.corpora.items()
        )
        return [parameters.name, *keys]
    return [parameters.name, *CORPORA[parameters.name].key(parameters)]


def people_key(parameters: DatasetParameters) -> list:
    """Equal for two corpora in which equal speaker names mean the same person."""
    return [parameters.name, *CORPORA[parameters.name].people(parameters)]


def _scan_synthetic(parameters: DatasetParameters) -> Iterator[Utterance]:
    for source in synthetic_utterances(parameters.synthetic, parameters.seed):
        yield Utterance(source.id, source.speaker_id, source, gender=source.gender)


def _scan_librispeech(parameters: DatasetParameters) -> Iterator[Utterance]:
    home = parameters.root / "LibriSpeech"
    chosen = [
        (subset, split)
        for split in SPLITS
        for subset in getattr(parameters.librispeech, split)
    ]
    subsets = [subset for subset, _ in chosen]
    for subset, split in chosen:
        if subset not in LIBRISPEECH_SHA256:
            raise CorpusError(
                f"dataset.librispeech.{split}: expected subsets among "
                f"{', '.join(LIBRISPEECH_SHA256)}, got {subset!r}"
            )
        if subsets.count(subset) > 1:
            raise CorpusError(
                f"dataset.librispeech.{split}: expected {subset} once, got it twice"
            )
    for subset in subsets:
        if parameters.download and not (home / subset).exists():
            _download_librispeech(parameters.root, subset)
        _expect_folder(
            home / subset,
            f"LibriSpeech's {subset} (set dataset.download=true to fetch it)",
        )
    genders = _table_genders(home / "SPEAKERS.TXT", "|", 1)
    for subset, split in chosen:
        if split == "train" and not parameters.librispeech.test:
            split = None  # speakers will be held out of it
        for path in _files(home / subset, "<speaker>/<chapter>/*.flac"):
            speaker, chapter = path.parts[-3:-1]
            gender = genders.get(speaker)
            yield Utterance(path.stem, speaker, path, split, gender, chapter)


def _scan_vctk(parameters: DatasetParameters) -> Iterator[Utterance]:
    root = parameters.root
    home = root / "VCTK-Corpus-0.92"
    if parameters.download and not home.exists():
        with unpacked(VCTK_URL, "sha256", VCTK_SHA256, root) as scratch:
            os.rename(scratch, home)
    audio = home / "wav48_silence_trimmed"
    _expect_folder(audio, "VCTK 0.92 (set dataset.download=true to fetch it)")
    genders = _table_genders(home / "speaker-info.txt", None, 2)
    for path in _files(audio, f"<speaker>/*_{parameters.vctk.microphone}.flac"):
        speaker = path.parent.name
        yield Utterance(path.stem, speaker, path, gender=genders.get(speaker))


def _scan_voxceleb1(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Speakers in the VoxCeleb1-O trials are tested; the others are trained on.

    Validation takes the others' utterances that the closed-set identification split
    marks as test (3). Those that it marks as validation (2) are trained on.
    """
    root = parameters.root
    candidates = root / "wav", root / "dev" / "wav", root / "test" / "wav"
    homes = [place for place in candidates if place.is_dir()]
    if not homes:
        raise CorpusError(
            f"{root}: expected VoxCeleb1's wav, or dev/wav and test/wav, found none; "
            f"its audio is given out on request: {VOXCELEB_PAGE}"
        )
    trials = _voxceleb_list(parameters, "veri_test2.txt")
    unheard = {name: number for number, pair in enumerate(trials, 1) for name in pair}
    test_speakers = {name.split("/")[0] for name in unheard}
    parts = _voxceleb_list(parameters, "iden_split.txt")
    validation = {name for part, name in parts if part == "3"}
    genders = _table_genders(root / "vox1_meta.csv", None, 2)
    for home in homes:
        for path in _files(home, "<speaker>/<video>/*.wav"):
            name = path.relative_to(home).as_posix()
            speaker, video, _ = name.split("/")
            split = "validation" if name in validation else "train"
            if speaker in test_speakers:
                split = "test"
            yield Utterance(name, speaker, path, split, genders.get(speaker), video)
            unheard.pop(name, None)
    if unheard:
        name, number = next(iter(unheard.items()))
        raise CorpusError(
            f"{root / 'veri_test2.txt'}:{number}: expected the audio of {name}, "
            f"found none in {', '.join(map(str, homes))}"
        )


def _voxceleb_list(parameters: DatasetParameters, name: str) -> list[tuple[str, ...]]:
    """One of `VOXCELEB_LISTS`, fetched where it is missing and may be."""
    path = parameters.root / name
    if parameters.download and not path.exists():
        with fetched(f"{VOXCELEB_URL}/{name}", parameters.root) as partial:
            _matching_lines(partial, *VOXCELEB_LISTS[name])
    if not path.is_file():
        raise CorpusError(
            f"{path}: expected VoxCeleb1's list (set dataset.download=true to fetch "
            "it), found nothing"
        )
    return _matching_lines(path, *VOXCELEB_LISTS[name])


def _matching_lines(path: Path, pattern: str, example: str) -> list[tuple[str, ...]]:
    """The groups of a pattern that each line matches; raise `CorpusError` if not."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        raise CorpusError(f"{path}: expected lines such as {example}, found none")
    matches = [re.fullmatch(pattern, line) for line in lines]
    if None in matches:
        number = matches.index(None)
        raise CorpusError(
            f"{path}:{number + 1}: expected a line such as {example}, "
            f"found {lines[number]!r}"
        )
    return [match.groups() for match in matches]


def _scan_commonvoice(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Clips that listeners validated, of speakers with enough of them.

    `validated.tsv` holds the clips of train, dev and test, which have every sentence
    once, and further clips of the same speakers.
    """
    root, options = parameters.root, parameters.commonvoice
    _expect_folder(root, "the folder of dataset.root")
    tables = {path.parent.name: path for path in sorted(root.glob("*/validated.tsv"))}
    if not tables:
        raise CorpusError(
            f"{root}: expected <locale>/validated.tsv and <locale>/clips of a Common "
            f"Voice release, found none; it is given out at {COMMON_VOICE_PAGE}"
        )
    for locale in options.locales:
        if locale not in tables:
            raise CorpusError(
                f"dataset.commonvoice.locales: expected some of {', '.join(tables)}, "
                f"got {locale!r}"
            )
    clips: dict[str, list[tuple[str, Path]]] = {}  # of each speaker
    genders: dict[str, str] = {}
    for locale, table in tables.items():
        if options.locales and locale not in options.locales:
            continue
        for row in _table_rows(
            table, ("client_id", "path"), delimiter="\t", quoting=csv.QUOTE_NONE
        ):
            speaker, name = _quote(row["client_id"]), row["path"]
            if not (speaker and name):
                raise CorpusError(
                    f"{table}: expected client_id and path in every row, found none of "
                    f"{row['path'] or row['client_id']!r}"
                )
            if not name.endswith(".mp3"):  # releases of 2019 leave it out
                name += ".mp3"
            path = table.parent / "clips" / name
            clips.setdefault(speaker, []).append((_quote(f"{locale}/{name}"), path))
            if gender := COMMON_VOICE_GENDERS.get(row.get("gender")):
                genders[speaker] = gender
    for speaker, of_speaker in clips.items():
        if len(of_speaker) >= options.min_utterances:
            for name, path in of_speaker:
                yield Utterance(name, speaker, path, gender=genders.get(speaker))


def _scan_folder(parameters: DatasetParameters) -> Iterator[Utterance]:
    root = parameters.root
    _expect_folder(root, "the folder of dataset.root")
    genders = _folder_genders(root / "speakers.csv")
    folders = folders_in(root)
    named = [folder for folder in folders if folder.name in SPLITS]
    others = [folder.name for folder in folders if folder.name not in SPLITS]
    if named and others:
        raise CorpusError(
            f"{root}: expected no other folder beside {named[0].name}, "
            f"found {others[0]}"
        )
    holds_test = any(folder.name == "test" for folder in named)
    for home in named or [root]:
        split = home.name if named and (holds_test or home.name != "train") else None
        paths = [
            (_quote(folder.name), path)
            for folder in folders_in(home)
            for path in audio_files(folder)
        ]
        if not paths:
            raise CorpusError(
                f"{home}: expected <speaker>/** with {', '.join(EXTENSIONS)} files, "
                "found none"
            )
        for speaker, path in paths:
            name = _quote(path.relative_to(root).as_posix())
            yield Utterance(name, speaker, path, split, genders.get(speaker))


def _scan_manifests(parameters: DatasetParameters) -> Iterator[Utterance]:
    manifests = parameters.manifest
    home = manifests.train.parent  # from which ids lead to the audio
    for split, path in manifests:
        if path is None:
            continue
        if split == "train" and not manifests.test:
            split = None  # speakers will be held out of it
        lines = list(_manifest_lines(path))
        if not lines:
            raise CorpusError(f"{path}: expected a line for each utterance, found none")
        for speaker, segment in lines:
            name = _quote(os.path.relpath(segment.path, home))
            if segment.offset or segment.duration is not None:
                name += f"@{segment.offset}"
            if segment.duration is not None:
                name += f"+{segment.duration}"
            yield Utterance(name, speaker, segment, split)


def _manifest_lines(path: Path) -> Iterator[tuple[str, Segment]]:
    """Speaker and segment of each line; raise `CorpusError` naming file and line."""

    def is_name(value: Any) -> bool:
        # single bytes that are not UTF-8 may be escaped, other surrogates name nothing
        halves = "\ud800-\udc7f\udd00-\udfff"
        return isinstance(value, str) and bool(re.fullmatch(f"[^{halves}]+", value))

    def is_offset(value: Any) -> bool:
        return isinstance(value, float) and 0 <= value < math.inf

    def is_duration(value: Any) -> bool:
        return value is None or (is_offset(value) and value > 0)

    keys = (
        ("audio_filepath", "a path", is_name),
        ("label", "the name of a speaker", is_name),
        ("offset", "seconds of at least 0", is_offset),
        ("duration", "seconds above 0 or null", is_duration),
    )
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line, parse_int=float)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise CorpusError(
                    f"{path}:{number}: expected a JSON object, "
                    f"found {line.strip()[:80]!r}"
                )
            values = {"offset": 0.0, "duration": None} | values
            for key, expected, fits in keys:
                if not fits(values.get(key)):
                    actual = repr(values[key]) if key in values else "none"
                    raise CorpusError(
                        f"{path}:{number}: expected {key}, {expected}, found {actual}"
                    )
            audio = path.parent / values["audio_filepath"]
            segment = Segment(audio, values["offset"], values["duration"])
            yield _quote(values["label"]), segment


def _expect_folder(path: Path, what: str) -> None:
    if not path.is_dir():
        actual = "a file" if path.exists() else "nothing"
        raise CorpusError(f"{path}: expected {what}, found {actual}")


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _files(home: Path, layout: str) -> list[Path]:
    """What is laid out such as `<speaker>/*.flac`; raise `CorpusError` for nothing."""
    paths = home.glob(re.sub("<.*?>", "*", layout))
    visible = [path for path in paths if not path.name.startswith(".")]
    if not visible:
        raise CorpusError(f"{home}: expected {layout}, found none")
    return visible


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in _visible(folder) if path.is_dir())


def audio_files(folder: Path) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir():
            if not path.is_symlink():  # it may lead back here
                yield from audio_files(path)
        elif path.suffix.lower() in EXTENSIONS:
            yield path


def _quote(name: str) -> str:
    """Percent-encode what a trial list or UTF-8 cannot hold; every script stays."""
    return re.sub(
        r"[\s%\ud800-\udfff]",
        lambda match: quote(match[0], errors="surrogateescape"),
        name,
    )


def _table_genders(path: Path, separator: str | None, column: int) -> dict[str, str]:
    """Genders from a published table whose first column names the speaker."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split(separator) for line in lines]
    return _known_genders(
        (row[0].strip(), row[column]) for row in rows if len(row) > column
    )


def _folder_genders(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = _table_rows(path, ("speaker", "gender"))
    return _known_genders((_quote(row["speaker"]), row["gender"]) for row in rows)


def _table_rows(
    path: Path, wanted: Sequence[str], **options: Any
) -> Iterator[dict[str, str]]:
    """Rows of a table of separated values whose first row names its columns; raise
    `CorpusError` where it lacks a wanted one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", **options)
            columns = reader.fieldnames or ()
            if not set(wanted) <= set(columns):
                raise CorpusError(
                    f"{path}: expected columns {' and '.join(wanted)}, "
                    f"found {', '.join(columns) or 'none'}"
                )
            yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: expected CSV in UTF-8: {error}") from None


def _known_genders(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    lowered = {speaker: gender.strip().lower() for speaker, gender in rows}
    return {
        speaker: gender for speaker, gender in lowered.items() if gender in ("f", "m")
    }


def _download_librispeech(root: Path, subset: str) -> None:
    """Fetch a subset: afterwards its folder is whole or not there."""
    url = f"{LIBRISPEECH_URL}/{subset}.tar.gz"
    with unpacked(url, "sha256", LIBRISPEECH_SHA256[subset], root) as scratch:
        home, fresh = root / "LibriSpeech", scratch / "LibriSpeech"
        home.mkdir(exist_ok=True)
        if not (home / "SPEAKERS.TXT").exists():
            os.rename(fresh / "SPEAKERS.TXT", home / "SPEAKERS.TXT")
        os.rename(fresh / subset, home / subset)  # last and atomic


def noise_recordings(root: Path) -> list[Utterance]:
    """Recordings below a folder, to be added to speech; raise `CorpusError` for none.

    Of MUSAN (arXiv 1510.08484: music, noise and speech), speech is left out: a second
    talker is no noise.
    """
    _expect_folder(root, "the folder of augmentation.noise.root")
    folders = {folder.name for folder in folders_in(root)}
    left_out = {"speech"} if {"music", "noise", "speech"} <= folders else set()
    return _recordings_below(root, lambda path: path.parts[0] not in left_out)


def response_recordings(root: Path, download: bool) -> list[Utterance]:
    """Room impulse responses below a folder; raise `CorpusError` for none.

    Only the first channel is used: the direct sound reaches each microphone at another
    time, so averaging channels would act as a comb filter.

    OpenSLR 28, which can be downloaded, also has point-source and isotropic noises,
    which are left out. Only their names tell the latter from the responses beside them.
    """
    home = root / "RIRS_NOISES"
    if download and not home.exists():
        with unpacked(OPENSLR28_URL, "md5", OPENSLR28_MD5, root) as scratch:
            os.rename(scratch / "RIRS_NOISES", home)
    _expect_folder(root, "the folder of augmentation.reverberation.root")
    responses = _recordings_below(
        root,
        lambda path: (
            "pointsource_noises" not in path.parts and "noise" not in path.stem.lower()
        ),
    )
    return [replace(r, source=Segment(r.source, channel=0)) for r in responses]


def _recordings_below(root: Path, wanted: Callable[[Path], bool]) -> list[Utterance]:
    try:
        paths = [path.relative_to(root) for path in audio_files(root)]
    except OSError as error:
        where = error.filename or root
        raise CorpusError(f"{where}: cannot be used: {error.strerror}") from None
    names = sorted(path for path in paths if wanted(path))
    if not names:
        raise CorpusError(f"{root}: expected {', '.join(EXTENSIONS)} files, found none")
    return [Utterance(_quote(n.as_posix()), n.parts[0], root / n) for n in names]


CORPORA = {
    "synthetic": Corpus(
        _scan_synthetic,
        key=lambda p: [p.seed, p.synthetic.model_dump()],
        people=lambda p: [p.seed],
    ),
    "librispeech": Corpus(
        _scan_librispeech,
        key=lambda p: [*_resolved_root(p), p.librispeech.model_dump()],
    ),
    "vctk": Corpus(_scan_vctk, key=lambda p: [*_resolved_root(p), p.vctk.model_dump()]),
    "commonvoice": Corpus(
        _scan_commonvoice,
        key=lambda p: [*_resolved_root(p), p.commonvoice.model_dump()],
    ),
    "voxceleb1": Corpus(_scan_voxceleb1, trials=lambda p: p.root / "veri_test2.txt"),
    "folder": Corpus(_scan_folder, people=_resolved_root),
    "manifest": Corpus(
        _scan_manifests,
        place=lambda p: p.manifest.train,
        key=lambda p: [path and str(path.resolve()) for _, path in p.manifest],
        people=lambda p: [str(p.manifest.train.resolve())],
    ),
}
