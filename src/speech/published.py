"""Published corpora to utterances: LibriSpeech, VCTK, VoxCeleb1 and Common Voice.

LibriSpeech is openslr.org/12 (Panayotov et al., ICASSP 2015); VCTK is version 0.92,
doi.org/10.7488/ds/2645; VoxCeleb1 is arXiv 1706.08612; Common Voice is Ardila et al.,
LREC 2020.
"""

import csv
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from parameters import DatasetParameters
from speech.downloads import download_once, fetched, unpacked
from speech.folders import expect_folder, known_genders, quoted, table_rows
from speech.utterances import SPEAKER_SPLITS, CorpusError, Utterance

LIBRISPEECH_URL = "https://www.openslr.org/resources/12"
LIBRISPEECH_SHA256 = {  # subset: its archive's checksum, as torchaudio publishes it
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


def scan_librispeech(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield the utterances of the chosen subsets, downloaded where they are missing."""
    home = parameters.root / "LibriSpeech"
    chosen = [
        (subset, split)
        for split in SPEAKER_SPLITS
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
        if parameters.download:
            fetch = partial(_download_librispeech, parameters.root, subset)
            download_once(home / subset, parameters.root, fetch)
        expect_folder(
            home / subset,
            f"LibriSpeech's {subset} (set dataset.download=true to fetch it)",
        )
    genders = _table_genders(home / "SPEAKERS.TXT", "|", 1)
    for subset, split in chosen:
        if split == "train" and not parameters.librispeech.test:
            split = None  # the test speakers will be drawn from it
        for path in _files(home / subset, "<speaker>/<chapter>/*.flac"):
            speaker, chapter = path.parts[-3:-1]
            gender = genders.get(speaker)
            yield Utterance(path.stem, speaker, path, split, gender, chapter)


def _download_librispeech(root: Path, subset: str) -> None:
    """Fetch a subset; its folder appears complete or not at all."""
    url = f"{LIBRISPEECH_URL}/{subset}.tar.gz"
    with unpacked(url, "sha256", LIBRISPEECH_SHA256[subset], root) as scratch:
        home, fresh = root / "LibriSpeech", scratch / "LibriSpeech"
        home.mkdir(exist_ok=True)
        if not (home / "SPEAKERS.TXT").exists():
            os.rename(fresh / "SPEAKERS.TXT", home / "SPEAKERS.TXT")
        os.rename(fresh / subset, home / subset)  # last and atomic


VCTK_URL = (
    "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip"
)
# The archive's checksum, as torchaudio publishes it.
VCTK_SHA256 = "f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c"


def scan_vctk(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield the utterances of one of the two microphones."""
    root = parameters.root
    home = root / "VCTK-Corpus-0.92"

    def download() -> None:
        with unpacked(VCTK_URL, "sha256", VCTK_SHA256, root) as scratch:
            os.rename(scratch, home)

    if parameters.download:
        download_once(home, root, download)
    audio = home / "wav48_silence_trimmed"
    expect_folder(audio, "VCTK 0.92 (set dataset.download=true to fetch it)")
    genders = _table_genders(home / "speaker-info.txt", None, 2)
    for path in _files(audio, f"<speaker>/*_{parameters.vctk.microphone}.flac"):
        speaker = path.parent.name
        yield Utterance(path.stem, speaker, path, gender=genders.get(speaker))


VOXCELEB_PAGE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
VOXCELEB_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
VOXCELEB_ID = r"(id\d{5}/[^/\s]+/\d{5}\.wav)"  # speaker, video, utterance
VOXCELEB_LISTS = {  # name: the pattern of its lines, and an example
    "veri_test2.txt": (
        f"[01] {VOXCELEB_ID} {VOXCELEB_ID}",
        "`1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav`",
    ),
    "iden_split.txt": (f"([123]) {VOXCELEB_ID}", "`1 id10003/na8-QEFmj44/00003.wav`"),
}


def scan_voxceleb1(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield all utterances: the speakers of the VoxCeleb1-O trials are for testing, the
    others for training.

    VoxCeleb1's split for closed-set identification marks some utterances of training
    speakers as test (3): these are for validation. Those marked validation (2) are
    trained on.
    """
    root = parameters.root
    layouts = root / "wav", root / "dev" / "wav", root / "test" / "wav"
    homes = [folder for folder in layouts if folder.is_dir()]
    if not homes:
        raise CorpusError(
            f"{root}: expected VoxCeleb1's wav, or dev/wav and test/wav, found none; "
            f"its audio is given out on request: {VOXCELEB_PAGE}"
        )
    trials = _voxceleb_list(parameters, "veri_test2.txt")
    missing = {name: number for number, pair in enumerate(trials, 1) for name in pair}
    test_speakers = {name.split("/")[0] for name in missing}
    identification = _voxceleb_list(parameters, "iden_split.txt")
    validation = {name for purpose, name in identification if purpose == "3"}
    genders = _table_genders(root / "vox1_meta.csv", None, 2)
    for home in homes:
        for path in _files(home, "<speaker>/<video>/*.wav"):
            name = path.relative_to(home).as_posix()
            speaker, video, _ = name.split("/")
            split = "validation" if name in validation else "train"
            if speaker in test_speakers:
                split = "test"
            yield Utterance(name, speaker, path, split, genders.get(speaker), video)
            missing.pop(name, None)
    if missing:
        name, number = next(iter(missing.items()))
        raise CorpusError(
            f"{root / 'veri_test2.txt'}:{number}: expected the audio of {name}, "
            f"found none in {', '.join(map(str, homes))}"
        )


def _voxceleb_list(parameters: DatasetParameters, name: str) -> list[tuple[str, ...]]:
    """Read one of `VOXCELEB_LISTS`; download it first if it is missing and
    `dataset.download` is true."""
    path = parameters.root / name

    def download() -> None:
        with fetched(f"{VOXCELEB_URL}/{name}", parameters.root) as file:
            _matching_lines(file, *VOXCELEB_LISTS[name])

    if parameters.download:
        download_once(path, parameters.root, download)
    if not path.is_file():
        raise CorpusError(
            f"{path}: expected VoxCeleb1's list (set dataset.download=true to fetch "
            "it), found nothing"
        )
    return _matching_lines(path, *VOXCELEB_LISTS[name])


def _matching_lines(path: Path, pattern: str, example: str) -> list[tuple[str, ...]]:
    """Return the groups of each line's match; raise `CorpusError` where one does not
    match."""
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


COMMON_VOICE_PAGE = "https://commonvoice.mozilla.org/datasets"
COMMON_VOICE_GENDERS = {  # the names in releases; newer ones use the longer names
    "female": "f",
    "female_feminine": "f",
    "male": "m",
    "male_masculine": "m",
}


def scan_commonvoice(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield the clips that listeners validated, of speakers with enough of them.

    `validated.tsv` holds the clips of train, dev and test, where no sentence occurs
    twice, and further clips of the same speakers.
    """
    clips: dict[str, list[tuple[str, Path]]] = {}  # of each speaker
    genders: dict[str, str] = {}
    for table in _commonvoice_tables(parameters):
        for row in table_rows(
            table, ("client_id", "path"), delimiter="\t", quoting=csv.QUOTE_NONE
        ):
            speaker, name = quoted(row["client_id"]), row["path"]
            if not (speaker and name):
                raise CorpusError(
                    f"{table}: expected client_id and path in every row, found only "
                    f"{row['path'] or row['client_id']!r}"
                )
            if not name.endswith(".mp3"):  # releases of 2019 leave it out
                name += ".mp3"
            path = table.parent / "clips" / name
            clip = quoted(f"{table.parent.name}/{name}"), path
            clips.setdefault(speaker, []).append(clip)
            if gender := COMMON_VOICE_GENDERS.get(row.get("gender")):
                genders[speaker] = gender
    for speaker, speaker_clips in clips.items():
        if len(speaker_clips) >= parameters.commonvoice.min_utterances:
            for name, path in speaker_clips:
                yield Utterance(name, speaker, path, gender=genders.get(speaker))


def _commonvoice_tables(parameters: DatasetParameters) -> list[Path]:
    """Return the tables of the chosen locales, or of all if none is chosen."""
    root, chosen = parameters.root, parameters.commonvoice.locales
    expect_folder(root, "the folder of dataset.root")
    tables = {path.parent.name: path for path in sorted(root.glob("*/validated.tsv"))}
    if not tables:
        raise CorpusError(
            f"{root}: expected <locale>/validated.tsv and <locale>/clips of a Common "
            f"Voice release, found none; it is given out at {COMMON_VOICE_PAGE}"
        )
    for locale in chosen:
        if locale not in tables:
            raise CorpusError(
                f"dataset.commonvoice.locales: expected some of {', '.join(tables)}, "
                f"got {locale!r}"
            )
    return [table for locale, table in tables.items() if not chosen or locale in chosen]


def _files(home: Path, layout: str) -> list[Path]:
    """Return the visible files that match a layout such as `<speaker>/*.flac`; raise
    `CorpusError` if there are none."""
    paths = home.glob(re.sub("<.*?>", "*", layout))
    visible = [path for path in paths if not path.name.startswith(".")]
    if not visible:
        raise CorpusError(f"{home}: expected {layout}, found none")
    return visible


def _table_genders(path: Path, separator: str | None, column: int) -> dict[str, str]:
    """Return genders from a published table whose first column names the speaker."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split(separator) for line in lines]
    return known_genders(
        (row[0].strip(), row[column]) for row in rows if len(row) > column
    )
