"""Published corpora: layouts, options, refusals and downloads."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from layouts import dataset, details, refuse, splits, tree

from conftest import RATE, REPOSITORY, SHARED, noise, write
from engine.parameter_files import load_parameters
from speech import published
from speech.audio import load_recording
from speech.corpora import official_trials, utterances
from speech.packs import pack
from verification.trials import read_trials

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


class TestLibriSpeech:
    TRAIN = ("103/1240/103-1240-0000.flac", "103/1240/103-1240-0001.flac")

    @pytest.fixture
    def root(self, tmp_path):
        home = tmp_path / "LibriSpeech"
        tree(home / "train-clean-100", *self.TRAIN, "211/122425/211-122425-0000.flac")
        tree(home / "test-other", "1688/142285/1688-142285-0000.flac")
        (home / "train-clean-100" / "103/1240/._103-1240-0000.flac").write_bytes(b"")
        (home / "SPEAKERS.TXT").write_text(
            "; ID | SEX\n103  | F | train-clean-100 | 25.1 | |CBW|Simon\n"
            "1688 | M | test-other | 8.0 | Name\n"
        )
        return tmp_path

    def test_layout(self, root):
        chosen = {"train": ("train-clean-100",), "test": ("test-other",)}
        found = utterances(dataset("librispeech", root, **chosen))
        assert details(found) == [
            ("103-1240-0000", "103", "train", "f", "1240"),
            ("103-1240-0001", "103", "train", "f", "1240"),
            ("1688-142285-0000", "1688", "test", "m", "142285"),
            ("211-122425-0000", "211", "train", None, "122425"),
        ]
        assert found[0].source == root / "LibriSpeech/train-clean-100" / self.TRAIN[0]
        (root / "LibriSpeech" / "SPEAKERS.TXT").unlink()
        found = utterances(dataset("librispeech", root, **chosen))
        assert {u.gender for u in found} == {None}
        # Without a test subset the split of training is open.
        chosen["development"] = chosen.pop("test")
        found = utterances(dataset("librispeech", root, **chosen))
        assert splits(found) == {None: 3, "development": 1}

    @pytest.mark.parametrize(
        ("subsets", "said"),
        [
            ({"train": ("clean",)}, ["dataset.librispeech.train", "'clean'"]),
            (
                {"train": ("test-other",), "test": ("test-other",)},
                ["dataset.librispeech.train", "test-other", "twice"],
            ),
            (
                {"test": ("test-other", "test-other")},
                ["dataset.librispeech.test", "test-other", "twice"],
            ),
            (
                {"train": ("train-clean-360",)},
                ["{root}/LibriSpeech/train-clean-360", "dataset.download=true"],
            ),
            ({"test": ("test-other",)}, ["{root}", "two speakers", "1688"]),
            ({}, ["{root}", "two speakers", "none"]),
            (
                {"train": ("dev-other",)},
                ["{root}/LibriSpeech/dev-other", "<speaker>/<chapter>/*.flac"],
            ),
            (
                {"train": ("train-clean-100",), "development": ("dev-clean",)},
                ["{root}", "speaker 103"],
            ),
        ],
    )
    def test_refusals(self, root, subsets, said):
        (root / "LibriSpeech" / "dev-other").mkdir()
        tree(root / "LibriSpeech" / "dev-clean", self.TRAIN[0])
        where, *words = said
        parameters = dataset("librispeech", root, **subsets)
        refuse(parameters, where.format(root=root), *words)


# The layout is that of VCTK 0.92's own README and speaker-info.txt: of two microphones
# a file each, but for p280, of whom there are no files of the second.
VCTK_TABLE = """ID  AGE  GENDER  ACCENTS  REGION COMMENTS
p225  23  F    English    Southern  England
p280  25  F    Unknown    France (mic2 files unavailable)
p315  18  M    American   New  England
"""


class TestVCTK:
    HOME = Path("VCTK-Corpus-0.92")
    AUDIO = HOME / "wav48_silence_trimmed"

    @pytest.fixture
    def root(self, tmp_path):
        tree(
            tmp_path / self.AUDIO,
            *(f"p225/p225_001_mic{number}.flac" for number in "12"),
            "p225/p225_002_mic1.flac",
            "p280/p280_001_mic1.flac",
            *(f"p315/p315_001_mic{number}.flac" for number in "12"),
            "p315/._p315_002_mic2.flac",
            "s5/s5_001_mic2.flac",
        )
        (tmp_path / self.AUDIO / "log.txt").write_text("")
        (tmp_path / self.HOME / "speaker-info.txt").write_text(VCTK_TABLE)
        return tmp_path

    def test_layout_and_microphone(self, root):
        found = utterances(dataset("vctk", root))
        assert details(found) == [
            ("p225_001_mic2", "p225", None, "f", None),
            ("p315_001_mic2", "p315", None, "m", None),
            ("s5_001_mic2", "s5", None, None, None),
        ]
        assert found[0].source == root / self.AUDIO / "p225" / "p225_001_mic2.flac"
        found = utterances(dataset("vctk", root, microphone="mic1"))
        names = ["p225_001", "p225_002", "p280_001", "p315_001"]
        assert [u.id for u in found] == [f"{name}_mic1" for name in names]

    def test_refusals(self, root):
        parameters = dataset("vctk", root / "none")
        refuse(parameters, root / "none" / self.AUDIO, "dataset.download=true")
        for path in (root / self.AUDIO).glob("*/*_mic2.flac"):
            path.unlink()
        refuse(dataset("vctk", root), root / self.AUDIO, "<speaker>/*_mic2.flac")


# Layout and lists are those of robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html: archives
# that unpack to wav/<speaker>/<video>/, trials of a target or none and two utterances,
# and utterances for training (1), validation (2) and test (3) of identification.
VOXCELEB_TRIALS = """1 id10270/5r0dWxy17C8/00001.wav id10270/8jEAjG6SegY/00008.wav
0 id10270/5r0dWxy17C8/00001.wav id10271/1gtz-CUIygI/00001.wav
"""
VOXCELEB_PURPOSES = """1 id10001/1zcIwhmdeo4/00001.wav
2 id10001/1zcIwhmdeo4/00002.wav
3 id10001/7gWzIy6yIIk/00001.wav
1 id10002/0_laIeN-Q44/00001.wav
3 id10002/QanuGhOhb9A/00001.wav
3 id10270/8jEAjG6SegY/00008.wav
1 id11251/5-6lI5JQtb8/00001.wav
"""
LISTS = ("veri_test2.txt", "iden_split.txt")


class TestVoxCeleb1:
    DEV = (
        "id10001/1zcIwhmdeo4/00001.wav",
        "id10001/1zcIwhmdeo4/00002.wav",
        "id10001/7gWzIy6yIIk/00001.wav",
        "id10002/0_laIeN-Q44/00001.wav",
    )
    TEST = (
        "id10270/5r0dWxy17C8/00001.wav",
        "id10270/8jEAjG6SegY/00008.wav",
        "id10271/1gtz-CUIygI/00001.wav",
        "id10271/1gtz-CUIygI/00002.wav",
    )

    @pytest.fixture
    def root(self, tmp_path):
        tree(tmp_path / "wav", *self.DEV, *self.TEST)
        (tmp_path / "wav" / "id10001" / "1zcIwhmdeo4" / "._00001.wav").touch()
        (tmp_path / "veri_test2.txt").write_text(VOXCELEB_TRIALS)
        (tmp_path / "iden_split.txt").write_text(VOXCELEB_PURPOSES)
        (tmp_path / "vox1_meta.csv").write_text(
            "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
            "id10001\tA.J._Buckley\tm\tIreland\tdev\n"
        )
        return tmp_path

    def test_layout(self, root):
        found = utterances(dataset("voxceleb1", root))
        assert tuple(u.id for u in found) == self.DEV + self.TEST
        assert [u.split for u in found] == (
            ["train", "train", "validation", "train"] + 4 * ["test"]
        )
        middle = [(u.speaker, u.session, u.gender) for u in found[2:5]]
        assert middle == [
            ("id10001", "7gWzIy6yIIk", "m"),
            ("id10002", "0_laIeN-Q44", None),
            ("id10270", "5r0dWxy17C8", None),
        ]
        assert found[0].source == root / "wav" / self.DEV[0]

    def test_both_archives_side_by_side(self, root):
        merged = utterances(dataset("voxceleb1", root))
        for name, members in (("dev", self.DEV), ("test", self.TEST)):
            tree(root / name / "wav", *members)
        refuse(dataset("voxceleb1", root), root, self.DEV[0])
        shutil.rmtree(root / "wav")
        found = utterances(dataset("voxceleb1", root))
        assert [u.id for u in found] == [u.id for u in merged]
        assert found[0].source == root / "dev" / "wav" / self.DEV[0]
        shutil.rmtree(root / "dev")
        assert splits(utterances(dataset("voxceleb1", root))) == {"test": 4}

    def test_official_trials_name_utterances(self, root):
        parameters = dataset("voxceleb1", root)
        ids = [u.id for u in utterances(parameters)]
        trials, _ = read_trials(official_trials(parameters), ids)
        assert trials.enrolment.tolist() == [4, 4]
        assert trials.test.tolist() == [5, 6]
        assert trials.targets.tolist() == [True, False]
        assert official_trials(dataset("folder", root)) is None

    @pytest.mark.parametrize("name", LISTS)
    def test_bad_lists(self, root, name):
        path = root / name
        first = path.read_text().splitlines()[0]
        path.unlink()
        refuse(dataset("voxceleb1", root), path, "dataset.download=true")
        for text, where in (
            ("", ""),
            (f"{first}\n<html>", ":2"),
            (f"{first}\n\n", ":2"),
            (f"4{first}", ":1"),
            ("1 ../../etc/passwd", ":1"),
            ("1 id10001/00001.wav id10001/00001.wav", ":1"),
        ):
            path.write_text(text)
            refuse(dataset("voxceleb1", root), f"{path}{where}: ")

    def test_refusals(self, root):
        shutil.rmtree(root / "wav" / "id10271")
        parameters = dataset("voxceleb1", root)
        refuse(parameters, f"{root / 'veri_test2.txt'}:2: ", self.TEST[2])
        shutil.rmtree(root / "wav")
        refuse(parameters, root, published.VOXCELEB_PAGE)
        (root / "wav").mkdir()
        refuse(parameters, root / "wav", "<speaker>/<video>/*.wav")

    @pytest.mark.parametrize("name", LISTS)
    def test_lists_are_fetched(self, root, name, monkeypatch, archive_server):
        monkeypatch.setattr(published, "VOXCELEB_URL", archive_server.url)
        before = utterances(dataset("voxceleb1", root))
        parameters = dataset("voxceleb1", root, download=True)
        text = (root / name).read_bytes()
        assert utterances(parameters) == before
        assert archive_server.requests == []
        (root / name).unlink()
        archive_server.archive = b"<html>"  # another page is not kept
        refuse(parameters, f"{root / name}.partial:1: ")
        assert not list(root.glob(f"{name}*"))
        archive_server.archive = text
        assert utterances(parameters) == before
        assert archive_server.requests[-1] == (f"/resources/{name}", None)
        assert sorted(os.listdir(root)) == sorted(["wav", *LISTS, "vox1_meta.csv"])


# The first rows of validated.tsv in release 17.0 and in 3.0, sentences changed.
COMMON_VOICE_17 = """\
client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment
{a}\tcommon_voice_fr_1.mp3\tab12\t"Oui\t\t2\t0\t\tfemale_feminine\t\t\tfr\t
{b}\tcommon_voice_fr_2.mp3\tab13\tNon.\t\t2\t1\t\tmale_masculine\t\t\tfr\t
{a}\tcommon_voice_fr_3.mp3\tab14\tÀ bientôt.\t\t3\t0\t\t\t\t\tfr\t
{c}\tcommon_voice_fr_4.mp3\tab15\tSeule.\t\t2\t0\t\tdo_not_wish_to_say\t\t\tfr\t
{b}\tcommon_voice_fr_5.mp3\tab16\t« Ça ! »\t\t2\t0\t\tmale_masculine\t\t\tfr\t
"""
COMMON_VOICE_3 = """\
client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent
{c}\tcommon_voice_cy_6\tBore da\t2\t0\tfifties\tmale\t
{d}\tcommon_voice_cy_7\tNos da\t2\t0\tfifties\tfemale\t
{d}\tcommon_voice_cy_8\tDiolch\t2\t0\tfifties\tother\t
"""
CLIENTS = {name: 32 * f"{number:04x}" for number, name in enumerate("abcd")}


class TestCommonVoice:
    @pytest.fixture
    def root(self, tmp_path):
        """Two locales as they are unpacked beside each other."""
        for locale, table, numbers in (
            ("fr", COMMON_VOICE_17, range(1, 6)),
            ("cy", COMMON_VOICE_3, range(6, 9)),
        ):
            home = tmp_path / locale
            for number in numbers:
                name = f"common_voice_{locale}_{number}.mp3"
                write(home / "clips" / name, rate=48_000)
            text = table.format(**CLIENTS)
            (home / "validated.tsv").write_text(text, encoding="utf-8")
            (home / "invalidated.tsv").write_text(text.splitlines()[0] + "\n")
        return tmp_path

    def test_layout(self, root):
        found = utterances(dataset("commonvoice", root))
        clips = ["cy_6", "cy_7", "cy_8", "fr_1", "fr_2", "fr_3", "fr_4", "fr_5"]
        ids = [f"{clip[:2]}/common_voice_{clip}.mp3" for clip in clips]
        assert [u.id for u in found] == ids
        assert [u.speaker for u in found] == [CLIENTS[name] for name in "cddabacb"]
        assert "".join(u.gender for u in found) == "mfffmfmm"
        assert splits(found) == {None: 8}
        assert found[0].source == root / "cy" / "clips" / "common_voice_cy_6.mp3"

    def test_clips_are_decoded_or_skipped(self, root, tmp_path):
        (root / "cy" / "clips" / "common_voice_cy_8.mp3").unlink()
        found = utterances(dataset("commonvoice", root))
        packed = pack(found, tmp_path / "pack", RATE)
        assert len(packed.entries) == 7
        (warning,) = packed.warnings
        assert warning.startswith("skipped cy/common_voice_cy_8.mp3: ")

    def test_locales_and_the_fewest_clips_are_chosen(self, root):
        french = {"locales": ("fr",)}
        found = utterances(dataset("commonvoice", root, **french))
        assert len(found) == 4  # c has one clip there
        found = utterances(dataset("commonvoice", root, **french, min_utterances=1))
        assert len(found) == 5
        refuse(dataset("commonvoice", root, min_utterances=3), root, "none")

    def test_refusals(self, root):
        parameters = dataset("commonvoice", root, locales=("en",))
        refuse(parameters, "dataset.commonvoice.locales: ", "'en'")
        parameters = dataset("commonvoice", root / "fr")
        refuse(parameters, root / "fr", "<locale>/validated.tsv")
        table = root / "cy" / "validated.tsv"
        for text in (
            table.read_text().replace("client_id", "client"),
            "client_id\tpath\n\tcommon_voice_cy_6.mp3\n",
        ):
            table.write_text(text)
            refuse(dataset("commonvoice", root), table, "client_id and path")


def flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(), RATE, format="FLAC")
    return file.getvalue()


def librispeech_archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in (
            ("SPEAKERS.TXT", b"1 | F | dev-clean | 8 | A\n2 | M | | |\n"),
            *((f"dev-clean/{s}/7/{s}-7-0000.flac", flac()) for s in "12"),
        ):
            member = tarfile.TarInfo(f"LibriSpeech/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def vctk_archive() -> bytes:
    """Its members are at the top."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("speaker-info.txt", VCTK_TABLE)
        archive.writestr("txt/p225/p225_001.txt", "Please call Stella.")
        for s in ("p225", "p315"):
            archive.writestr(f"wav48_silence_trimmed/{s}/{s}_001_mic2.flac", flac())
    return packed.getvalue()


class TestDownload:
    @pytest.fixture
    def server(self, monkeypatch, archive_server):
        """A server that publishes sums of two archives and offers another."""
        server, vctk, libri = archive_server, vctk_archive(), librispeech_archive()
        server.archives = {"vctk": vctk, "librispeech": libri}
        checksum = hashlib.sha256(libri).hexdigest()
        monkeypatch.setitem(published.LIBRISPEECH_SHA256, "dev-clean", checksum)
        monkeypatch.setattr(published, "LIBRISPEECH_URL", server.url)
        monkeypatch.setattr(published, "VCTK_SHA256", hashlib.sha256(vctk).hexdigest())
        monkeypatch.setattr(published, "VCTK_URL", f"{server.url}/VCTK.zip")
        server.archive = b"another"
        return server

    @pytest.mark.parametrize(
        ("name", "options", "num_files"),
        [("librispeech", {"train": ("dev-clean",)}, 3), ("vctk", {}, 4)],
    )
    def test_fresh(self, server, tmp_path, name, options, num_files):
        root = tmp_path / "deep" / "data"
        parameters = dataset(name, root, download=True, **options)
        refuse(parameters, server.url, "SHA256")
        assert not list(root.glob("*/*"))
        server.archive, server.requests = server.archives[name], []
        found = utterances(parameters)
        assert [u.gender for u in found] == ["f", "m"]
        decoded = load_recording(found[0].source, RATE).samples
        np.testing.assert_array_equal(decoded, noise())
        (home,) = root.iterdir()
        assert sum(path.is_file() for path in home.rglob("*")) == num_files
        (root / "made").mkdir()
        modes = {path.stat().st_mode for path in root.iterdir()}
        assert len(modes) == 1  # readable by whoever may read other folders
        assert utterances(parameters) == found
        assert len(server.requests) == 1

    def test_what_is_there_is_never_overwritten(self, server, tmp_path):
        server.archive, home = server.archives["librispeech"], tmp_path / "LibriSpeech"
        parameters = dataset("librispeech", tmp_path, True, train=("dev-clean",))
        home.mkdir()
        (home / "SPEAKERS.TXT").write_text("1 | M |")
        assert [u.gender for u in utterances(parameters)] == ["m", None]
        shutil.rmtree(home / "dev-clean")
        tree(home / "dev-clean", "5/7/5-7-0000.flac", "6/7/6-7-0000.flac")
        assert [u.id for u in utterances(parameters)] == ["5-7-0000", "6-7-0000"]
        assert len(server.requests) == 1

    def test_a_root_that_is_a_file(self, server, tmp_path):
        root = write(tmp_path / "file.wav")
        refuse(dataset("vctk", root, download=True), root)


@needs_data
def test_real_librispeech():
    chosen = {"train": ("train-clean-100",), "test": ("test-other",)}
    found = utterances(dataset("librispeech", DATA, **chosen))
    assert splits(found) == {"train": 796, "test": 100}
    assert len({u.speaker for u in found}) == 251 + 10
    assert {u.gender for u in found} == {"f", "m"}
    recording = load_recording(found[0].source, RATE)
    assert recording.warning is None
    read, _ = soundfile.read(found[0].source, dtype="int16")
    np.testing.assert_array_equal(recording.samples, read)


class TestLibriSpeechPieces:
    """`init/librispeech-pieces-*.json`, which cut a small corpus out of LibriSpeech."""

    INIT = REPOSITORY / "init"

    def lines(self, split):
        path = self.INIT / f"librispeech-pieces-{split}.json"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_manifests_name_utterances_as_librispeech_lays_them_out(self):
        for split, subset in (("train", "train-clean-100"), ("test", "test-other")):
            for line in self.lines(split):
                *_, speaker, chapter, name = Path(line["audio_filepath"]).parts
                assert line["label"] == speaker
                assert re.fullmatch(rf"{speaker}-{chapter}-\d{{4}}.flac", name)
                home = (self.INIT / line["audio_filepath"]).parents[2].resolve()
                assert home == REPOSITORY / "data" / "LibriSpeech" / subset

    def test_parameters_read_them(self, monkeypatch):
        monkeypatch.chdir(REPOSITORY)
        files = REPOSITORY / "parameters.yml", self.INIT / "librispeech-pieces.yml"
        found = utterances(load_parameters(*files).dataset)
        assert splits(found) == {"train": 796, "test": 100}
        assert len({u.speaker for u in found}) == 251 + 10

    @needs_data
    def test_pieces_are_those_of_the_shared_corpus(self):
        home, prefix = DATA / "LibriSpeech", "../data/LibriSpeech"
        with (home / "pieces.csv").open() as file:
            rows = list(csv.DictReader(file))
        lines = self.lines("train")
        assert len(lines) == len(rows) == len(list(home.glob("train-*/*/*/*.flac")))
        for row, line in zip(rows, lines, strict=True):
            path = Path(line["audio_filepath"])
            assert path.stem == row["source_utterance"]
            assert round(line["offset"] * RATE) == int(row["begin_sample"])
            samples = int(row["end_sample"]) - int(row["begin_sample"])
            assert round(line["duration"] * RATE) == samples
            piece = home / path.relative_to(prefix).with_name(f"{row['piece']}.flac")
            assert soundfile.info(piece).frames == samples
        for line in self.lines("test"):
            path = home / Path(line["audio_filepath"]).relative_to(prefix)
            assert soundfile.info(path).frames == round(line["duration"] * RATE)
