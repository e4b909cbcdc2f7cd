"""Corpora: layouts, refusals, and downloads that survive anything."""

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile

from conftest import RATE, REPOSITORY, SHARED, noise, write
from engine.parameter_files import load_parameters
from parameters import CorpusName
from speech import corpora, published
from speech.audio import Segment, load_recording
from speech.corpora import official_trials, utterances
from speech.downloads import DownloadError
from speech.manifests import read_manifest
from speech.packs import pack
from speech.utterances import CorpusError
from verification.trials import make_trials, read_trials, write_trials

DATA = SHARED / "data"
DATASET = load_parameters(REPOSITORY / "parameters.yml").dataset


def dataset(name, root, **librispeech):
    subsets = {"train": (), "development": (), "test": ()} | librispeech
    download = subsets.pop("download", False)
    return DATASET.model_copy(
        update={
            "name": name,
            "root": root,
            "download": download,
            "librispeech": DATASET.librispeech.model_copy(update=subsets),
        }
    )


def tree(root, *names):
    for name in names:
        write(root / name)
    return root


def refusal(parameters):
    with pytest.raises((CorpusError, DownloadError)) as caught:
        utterances(parameters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestSynthetic:
    def test_wraps_every_utterance(self):
        found = utterances(dataset("synthetic", Path("nowhere")))
        sizes = DATASET.synthetic
        assert len(found) == sizes.num_speakers * sizes.utterances_per_speaker
        assert len({u.id for u in found}) == len(found)
        assert len({u.speaker for u in found}) == sizes.num_speakers
        assert {u.split for u in found} == {None}
        assert {u.gender for u in found} == {"f", "m"}

    def test_renders(self):
        source = utterances(dataset("synthetic", Path("nowhere")))[0].source
        recording = load_recording(source, RATE)
        assert recording.samples.dtype == np.int16
        assert recording.warning is None
        np.testing.assert_array_equal(recording.samples, source.render(RATE))


class TestLibriSpeech:
    TRAIN = ("103/1240/103-1240-0000.flac", "103/1240/103-1240-0001.flac")
    TEST = ("1688/142285/1688-142285-0000.flac",)

    @pytest.fixture
    def root(self, tmp_path):
        home = tmp_path / "LibriSpeech"
        tree(home / "train-clean-100", *self.TRAIN, "211/122425/211-122425-0000.flac")
        tree(home / "test-other", *self.TEST)
        (home / "SPEAKERS.TXT").write_text(
            "; ID | SEX\n103  | F | train-clean-100 | 25.1 | |CBW|Simon\n"
            "1688 | M | test-other | 8.0 | Name\n"
        )
        return tmp_path

    def test_layout(self, root):
        found = utterances(
            dataset(
                "librispeech", root, train=("train-clean-100",), test=("test-other",)
            )
        )
        assert [(u.id, u.speaker, u.split, u.gender, u.session) for u in found] == [
            ("103-1240-0000", "103", "train", "f", "1240"),
            ("103-1240-0001", "103", "train", "f", "1240"),
            ("1688-142285-0000", "1688", "test", "m", "142285"),
            ("211-122425-0000", "211", "train", None, "122425"),
        ]
        home = root / "LibriSpeech"
        assert found[0].source == home / "train-clean-100" / self.TRAIN[0]

    def test_without_a_test_subset_the_split_is_open(self, root):
        found = utterances(
            dataset(
                "librispeech",
                root,
                train=("train-clean-100",),
                development=("test-other",),
            )
        )
        assert Counter(u.split for u in found) == {None: 3, "development": 1}

    def test_without_the_speaker_table(self, root):
        (root / "LibriSpeech" / "SPEAKERS.TXT").unlink()
        found = utterances(dataset("librispeech", root, train=("train-clean-100",)))
        assert {u.gender for u in found} == {None}

    def test_hidden_files_are_no_utterances(self, root):
        folder = root / "LibriSpeech" / "train-clean-100" / "103" / "1240"
        (folder / "._103-1240-0000.flac").write_bytes(b"")
        found = utterances(dataset("librispeech", root, train=("train-clean-100",)))
        assert len(found) == 3

    @pytest.mark.parametrize(
        ("subsets", "message"),
        [
            (
                {"train": ("train-clean",)},
                "dataset.librispeech.train: expected subsets among dev-clean, "
                "dev-other, test-clean, test-other, train-clean-100, train-clean-360, "
                "train-other-500, got 'train-clean'",
            ),
            (
                {"train": ("test-other",), "test": ("test-other",)},
                "dataset.librispeech.train: expected test-other once, got it twice",
            ),
            (
                {"test": ("test-other", "test-other")},
                "dataset.librispeech.test: expected test-other once, got it twice",
            ),
            (
                {"train": ("train-clean-360",)},
                "{root}/LibriSpeech/train-clean-360: expected LibriSpeech's "
                "train-clean-360 (set dataset.download=true to fetch it), "
                "found nothing",
            ),
            (
                {"test": ("test-other",)},
                "{root}: expected at least two speakers, found 1688",
            ),
            ({}, "{root}: expected at least two speakers, found none"),
            (
                {"train": ("dev-clean",)},
                "{root}/LibriSpeech/dev-clean: expected <speaker>/<chapter>/*.flac, "
                "found none",
            ),
        ],
    )
    def test_refusals(self, root, subsets, message):
        (root / "LibriSpeech" / "dev-clean").mkdir()
        said = refusal(dataset("librispeech", root, **subsets))
        assert said == message.format(root=root)

    def test_a_speaker_in_two_splits(self, root):
        tree(root / "LibriSpeech" / "dev-clean", self.TRAIN[0])
        said = refusal(
            dataset(
                "librispeech",
                root,
                train=("train-clean-100",),
                development=("dev-clean",),
            )
        )
        assert "expected speaker 103 in one split, found " in said


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

    def parameters(self, root, microphone="mic2", download=False):
        chosen = DATASET.vctk.model_copy(update={"microphone": microphone})
        found = dataset("vctk", root, download=download)
        return found.model_copy(update={"vctk": chosen})

    @pytest.fixture
    def root(self, tmp_path):
        tree(
            tmp_path / self.AUDIO,
            "p225/p225_001_mic1.flac",
            "p225/p225_001_mic2.flac",
            "p225/p225_002_mic1.flac",
            "p280/p280_001_mic1.flac",
            "p315/p315_001_mic1.flac",
            "p315/p315_001_mic2.flac",
            "p315/._p315_002_mic2.flac",
            "s5/s5_001_mic2.flac",
        )
        (tmp_path / self.AUDIO / "log.txt").write_text("")
        (tmp_path / self.HOME / "speaker-info.txt").write_text(VCTK_TABLE)
        return tmp_path

    def test_layout(self, root):
        found = utterances(self.parameters(root))
        assert [(u.id, u.speaker, u.split, u.gender, u.session) for u in found] == [
            ("p225_001_mic2", "p225", None, "f", None),
            ("p315_001_mic2", "p315", None, "m", None),
            ("s5_001_mic2", "s5", None, None, None),
        ]
        assert found[0].source == root / self.AUDIO / "p225" / "p225_001_mic2.flac"

    def test_the_other_microphone(self, root):
        found = utterances(self.parameters(root, "mic1"))
        assert [u.id for u in found] == [
            "p225_001_mic1",
            "p225_002_mic1",
            "p280_001_mic1",
            "p315_001_mic1",
        ]

    def test_refusals(self, root, tmp_path):
        assert refusal(self.parameters(tmp_path / "none")) == (
            f"{tmp_path / 'none' / self.AUDIO}: expected VCTK 0.92 "
            "(set dataset.download=true to fetch it), found nothing"
        )
        for path in (root / self.AUDIO).glob("*/*_mic2.flac"):
            path.unlink()
        assert refusal(self.parameters(root)) == (
            f"{root / self.AUDIO}: expected <speaker>/*_mic2.flac, found none"
        )

    @pytest.fixture
    def server(self, monkeypatch, archive_server):
        def offer(*others):
            """The corpus in miniature, its members at the top as in the archive."""
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("speaker-info.txt", VCTK_TABLE)
                archive.writestr("txt/p225/p225_001.txt", "Please call Stella.")
                for speaker in ("p225", "p315"):
                    file = io.BytesIO()
                    soundfile.write(file, noise(), RATE, format="FLAC")
                    name = f"wav48_silence_trimmed/{speaker}/{speaker}_001_mic2.flac"
                    archive.writestr(name, file.getvalue())
                for name in others:
                    archive.writestr(str(name), b"x")
            archive_server.archive = packed.getvalue()
            digest = hashlib.sha256(archive_server.archive).hexdigest()
            monkeypatch.setattr(published, "VCTK_SHA256", digest)

        archive_server.offer = offer
        monkeypatch.setattr(published, "VCTK_URL", f"{archive_server.url}/VCTK.zip")
        return archive_server

    def test_download(self, server, tmp_path):
        server.offer()
        parameters = self.parameters(tmp_path, download=True)
        found = utterances(parameters)
        assert [(u.id, u.gender) for u in found] == [
            ("p225_001_mic2", "f"),
            ("p315_001_mic2", "m"),
        ]
        np.testing.assert_array_equal(
            load_recording(found[0].source, RATE).samples, noise()
        )
        assert os.listdir(tmp_path) == [str(self.HOME)]
        assert (tmp_path / self.HOME / "txt" / "p225" / "p225_001.txt").is_file()
        (tmp_path / "made").mkdir()
        modes = {(tmp_path / name).stat().st_mode for name in (self.HOME, "made")}
        assert len(modes) == 1  # readable by whoever may read other folders
        assert utterances(parameters) == found
        assert len(server.requests) == 1

    def test_a_cut_download_goes_on(self, server, tmp_path):
        server.offer()
        server.cut_after = 10_000
        parameters = self.parameters(tmp_path, download=True)
        assert refusal(parameters).endswith("; the same command resumes")
        assert os.listdir(tmp_path) == ["VCTK.zip.partial"]
        assert len(utterances(parameters)) == 2
        assert server.requests[-1][1] == "bytes=10000-"

    def test_another_archive(self, server, tmp_path):
        server.offer()
        server.archive = b"another"
        parameters = self.parameters(tmp_path, download=True)
        assert "expected the published SHA256" in refusal(parameters)
        assert os.listdir(tmp_path) == []

    def test_members_stay_inside(self, server, tmp_path):
        root = tmp_path / "root"
        server.offer(tmp_path / "outside", "../../outside")
        assert len(utterances(self.parameters(root, download=True))) == 2
        assert os.listdir(tmp_path) == ["root"]
        assert os.listdir(root) == [str(self.HOME)]


# Layout and lists are those of robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html: archives
# that unpack to wav/<speaker>/<video>/, trials of a target or none and two utterances,
# and utterances for training (1), validation (2) and test (3) of identification.
VOXCELEB_TRIALS = """1 id10270/5r0dWxy17C8/00001.wav id10270/8jEAjG6SegY/00008.wav
0 id10270/5r0dWxy17C8/00001.wav id10271/1gtz-CUIygI/00001.wav
"""
VOXCELEB_PARTS = """1 id10001/1zcIwhmdeo4/00001.wav
2 id10001/1zcIwhmdeo4/00002.wav
3 id10001/7gWzIy6yIIk/00001.wav
1 id10002/0_laIeN-Q44/00001.wav
3 id10002/QanuGhOhb9A/00001.wav
3 id10270/8jEAjG6SegY/00008.wav
1 id11251/5-6lI5JQtb8/00001.wav
"""


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
        (tmp_path / "iden_split.txt").write_text(VOXCELEB_PARTS)
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
        assert [u.speaker for u in found[3:5]] == ["id10002", "id10270"]
        assert [u.session for u in found[3:5]] == ["0_laIeN-Q44", "5r0dWxy17C8"]
        assert [u.gender for u in found[2:4]] == ["m", None]
        assert found[0].source == root / "wav" / self.DEV[0]

    def test_both_parts_side_by_side(self, root):
        merged = utterances(dataset("voxceleb1", root))
        for name, own in (("dev", self.DEV), ("test", self.TEST)):
            tree(root / name / "wav", *own)
        assert refusal(dataset("voxceleb1", root)) == (
            f"{root}: expected {self.DEV[0]} once, found it twice"
        )
        shutil.rmtree(root / "wav")
        found = utterances(dataset("voxceleb1", root))
        assert [u.id for u in found] == [u.id for u in merged]
        assert found[0].source == root / "dev" / "wav" / self.DEV[0]

    def test_the_part_for_testing_alone(self, root):
        for speaker in ("id10001", "id10002"):
            shutil.rmtree(root / "wav" / speaker)
        assert count(utterances(dataset("voxceleb1", root)), "test") == (2, 4)

    def test_official_trials_name_utterances(self, root):
        parameters = dataset("voxceleb1", root)
        ids = [u.id for u in utterances(parameters)]
        trials, _ = read_trials(official_trials(parameters), ids)
        assert trials.enrolment.tolist() == [4, 4]
        assert trials.test.tolist() == [5, 6]
        assert trials.targets.tolist() == [True, False]
        assert official_trials(dataset("folder", root)) is None

    @pytest.mark.parametrize("name", ["veri_test2.txt", "iden_split.txt"])
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, ": expected VoxCeleb1's list (set dataset.download=true to fetch "),
            ("", ": expected lines such as `1 id10"),
            ("{first}\n<html>", ":2: expected a line such as `1 id10"),
            ("{first}\n\n", ":2: expected a line such as `1 id10"),
            ("4{first}", ":1: expected a line such as `1 id10"),
            ("1 ../../etc/passwd", ":1: expected a line such as `1 id10"),
            ("1 id10001/00001.wav id10001/00001.wav", ":1: expected a line such as "),
        ],
    )
    def test_bad_lists(self, root, name, text, message):
        path = root / name
        first = path.read_text().splitlines()[0]
        path.unlink()
        if text is not None:
            path.write_text(text.format(first=first))
        assert refusal(dataset("voxceleb1", root)).startswith(f"{path}{message}")

    def test_refusals(self, root):
        shutil.rmtree(root / "wav" / "id10271")
        assert refusal(dataset("voxceleb1", root)) == (
            f"{root / 'veri_test2.txt'}:2: expected the audio of {self.TEST[2]}, "
            f"found none in {root / 'wav'}"
        )
        shutil.rmtree(root / "wav")
        assert refusal(dataset("voxceleb1", root)) == (
            f"{root}: expected VoxCeleb1's wav, or dev/wav and test/wav, found none; "
            "its audio is given out on request: "
            "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
        )
        (root / "wav").mkdir()
        assert refusal(dataset("voxceleb1", root)) == (
            f"{root / 'wav'}: expected <speaker>/<video>/*.wav, found none"
        )

    @pytest.mark.parametrize("name", ["veri_test2.txt", "iden_split.txt"])
    def test_lists_are_fetched(self, root, name, monkeypatch, archive_server):
        monkeypatch.setattr(published, "VOXCELEB_URL", archive_server.url)
        before = utterances(dataset("voxceleb1", root))
        parameters = dataset("voxceleb1", root, download=True)
        archive_server.archive = (root / name).read_bytes()
        assert utterances(parameters) == before
        assert archive_server.requests == []
        (root / name).unlink()
        archive_server.cut_after = 20
        assert refusal(parameters).endswith("; the same command resumes")
        assert utterances(parameters) == before
        assert archive_server.requests[-1] == (f"/resources/{name}", "bytes=20-")
        files = {path.name for path in root.iterdir()}
        assert files == {"wav", "veri_test2.txt", "iden_split.txt", "vox1_meta.csv"}

    def test_a_list_that_is_another_page_is_not_kept(
        self, root, monkeypatch, archive_server
    ):
        monkeypatch.setattr(published, "VOXCELEB_URL", archive_server.url)
        (root / "iden_split.txt").unlink()
        archive_server.archive = b"<html>"
        said = refusal(dataset("voxceleb1", root, download=True))
        assert said.startswith(f"{root / 'iden_split.txt.partial'}:1: expected a line")
        assert not list(root.glob("iden_split*"))


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
    def parameters(self, root, **chosen):
        chosen = DATASET.commonvoice.model_copy(update=chosen)
        found = dataset("commonvoice", root)
        return found.model_copy(update={"commonvoice": chosen})

    @pytest.fixture
    def root(self, tmp_path):
        """Two locales as they are unpacked beside each other."""
        for locale, table in (("fr", COMMON_VOICE_17), ("cy", COMMON_VOICE_3)):
            home = tmp_path / locale
            numbers = {"fr": range(1, 6), "cy": range(6, 9)}[locale]
            for number in numbers:
                write(
                    home / "clips" / f"common_voice_{locale}_{number}.mp3", rate=48_000
                )
            text = table.format(**CLIENTS)
            (home / "validated.tsv").write_text(text, encoding="utf-8")
            (home / "invalidated.tsv").write_text(text.splitlines()[0] + "\n")
        return tmp_path

    def test_layout(self, root):
        found = utterances(self.parameters(root))
        assert [(u.id, u.speaker, u.gender) for u in found] == [
            ("cy/common_voice_cy_6.mp3", CLIENTS["c"], "m"),
            ("cy/common_voice_cy_7.mp3", CLIENTS["d"], "f"),
            ("cy/common_voice_cy_8.mp3", CLIENTS["d"], "f"),
            ("fr/common_voice_fr_1.mp3", CLIENTS["a"], "f"),
            ("fr/common_voice_fr_2.mp3", CLIENTS["b"], "m"),
            ("fr/common_voice_fr_3.mp3", CLIENTS["a"], "f"),
            ("fr/common_voice_fr_4.mp3", CLIENTS["c"], "m"),
            ("fr/common_voice_fr_5.mp3", CLIENTS["b"], "m"),
        ]
        assert {u.split for u in found} == {None}
        assert found[0].source == root / "cy" / "clips" / "common_voice_cy_6.mp3"

    def test_clips_are_decoded(self, root, tmp_path):
        packed = pack(utterances(self.parameters(root)), tmp_path / "pack", RATE)
        assert len(packed.entries) == 8
        assert packed.warnings == []

    def test_locales_and_the_fewest_clips_are_chosen(self, root):
        found = utterances(self.parameters(root, locales=("fr",)))
        assert count(found, None) == (2, 4)  # c has one clip there
        found = utterances(self.parameters(root, locales=("fr",), min_utterances=1))
        assert count(found, None) == (3, 5)
        assert "found none" in refusal(self.parameters(root, min_utterances=3))

    def test_refusals(self, root):
        assert refusal(self.parameters(root, locales=("en",))) == (
            "dataset.commonvoice.locales: expected some of cy, fr, got 'en'"
        )
        assert "expected <locale>/validated.tsv" in refusal(
            self.parameters(root / "fr")
        )
        table = root / "cy" / "validated.tsv"
        table.write_text(table.read_text().replace("client_id", "client"))
        assert refusal(self.parameters(root)).startswith(
            f"{table}: expected columns client_id and path, found client, path"
        )
        table.write_text("client_id\tpath\n\tcommon_voice_cy_6.mp3\n")
        assert "expected client_id and path in every row" in refusal(
            self.parameters(root)
        )

    def test_a_clip_that_is_not_there_is_skipped_and_said(self, root, tmp_path):
        (root / "cy" / "clips" / "common_voice_cy_8.mp3").unlink()
        packed = pack(utterances(self.parameters(root)), tmp_path / "pack", RATE)
        assert len(packed.entries) == 7
        (warning,) = packed.warnings
        assert warning.startswith("skipped cy/common_voice_cy_8.mp3: ")


class TestFolder:
    def test_speakers_at_the_first_level(self, tmp_path):
        tree(tmp_path, "b/2.flac", "b/deep/er/1.WAV", "a/x.ogg", "a/y.mp3", ".c/z.wav")
        write(tmp_path / "a" / "v.opus", format="OGG", subtype="OPUS")
        for name in ("readme.txt", "a/notes.txt", "a/.hidden.wav", "loose.wav"):
            (tmp_path / name).write_text("no speech")
        found = utterances(dataset("folder", tmp_path))
        assert [(u.id, u.speaker, u.split) for u in found] == [
            ("a/v.opus", "a", None),
            ("a/x.ogg", "a", None),
            ("a/y.mp3", "a", None),
            ("b/2.flac", "b", None),
            ("b/deep/er/1.WAV", "b", None),
        ]
        for utterance in found:
            assert len(load_recording(utterance.source, RATE).samples) >= 1600

    def test_named_splits(self, tmp_path):
        tree(tmp_path, "train/a/1.wav", "development/b/1.wav", "test/c/1.wav")
        (tmp_path / "notes.txt").write_text("ignored")
        found = utterances(dataset("folder", tmp_path))
        assert [(u.id, u.speaker, u.split) for u in found] == [
            ("development/b/1.wav", "b", "development"),
            ("test/c/1.wav", "c", "test"),
            ("train/a/1.wav", "a", "train"),
        ]

    def test_without_a_test_folder_the_split_is_open(self, tmp_path):
        tree(tmp_path, "train/a/1.wav", "train/b/1.wav", "development/c/1.wav")
        found = utterances(dataset("folder", tmp_path))
        assert [u.split for u in found] == ["development", None, None]

    def test_ids_survive_a_trial_list(self, tmp_path):
        tree(tmp_path, "Ann Lee/5%\u3000a.wav", "Ann%20Lee/1.wav", "Žofie 王/1.wav")
        found = utterances(dataset("folder", tmp_path))
        assert [u.id for u in found] == [
            "Ann%20Lee/5%25%E3%80%80a.wav",
            "Ann%2520Lee/1.wav",
            "Žofie%20王/1.wav",
        ]
        assert [u.speaker for u in found] == ["Ann%20Lee", "Ann%2520Lee", "Žofie%20王"]
        assert all(u.source.is_file() for u in found)

    @pytest.mark.skipif(os.name == "nt", reason="Windows names are UTF-16")
    def test_names_that_are_not_utf8(self, tmp_path):
        tree(tmp_path, "a/1.wav")
        try:
            os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/\xff")
        except OSError:
            pytest.skip("the file system takes UTF-8 names only")
        tree(tmp_path, "b/1.wav")
        found = utterances(dataset("folder", tmp_path))
        assert [u.id for u in found] == ["%FF/1.wav", "b/1.wav"]
        assert load_recording(found[0].source, RATE).warning is None

    def test_links(self, tmp_path):
        elsewhere = tree(tmp_path / "elsewhere", "1.wav")
        root = tree(tmp_path / "root", "a/1.wav", "a/deep/2.wav")
        try:
            (root / "b").symlink_to(elsewhere, target_is_directory=True)
            (root / "a" / "deep" / "loop").symlink_to(root, target_is_directory=True)
        except OSError:
            pytest.skip("symbolic links are not permitted here")
        found = utterances(dataset("folder", root))
        assert [u.id for u in found] == ["a/1.wav", "a/deep/2.wav", "b/1.wav"]

    @pytest.mark.skipif(os.name == "nt", reason="Windows forbids such names")
    def test_names_of_every_kind(self, tmp_path):
        names = ("it's", 'a "b"', "new\nline", "tab\t", "\x1b[2J", "Жан", "山 本", "-x")
        tree(tmp_path, *(f"{name}/1.wav" for name in names))
        found = utterances(dataset("folder", tmp_path))
        assert len({u.speaker for u in found}) == len(names)
        assert all(u.id.split() == [u.id] for u in found)
        ids = [u.id for u in found]
        trials = make_trials([u.speaker for u in found[1:]] + ["-x"], 100, seed=1)
        write_trials(tmp_path / "trials.txt", trials, ids)
        assert read_trials(tmp_path / "trials.txt", ids)[0].targets.sum() == 1
        packed = pack(found, tmp_path / "pack", RATE)
        assert [entry.id for entry in packed.entries] == ids
        assert packed.warnings == []

    def test_a_root_with_a_newline_is_refused_in_one_line(self, tmp_path):
        root = tree(tmp_path / "new\nline", "a/1.wav")
        said = refusal(dataset("folder", root))
        assert said.endswith(r"/new\nline: expected at least two speakers, found a")

    def test_loops_of_links(self, tmp_path):
        root = tree(tmp_path / "root", "a/1.wav", "b/1.wav")
        for name in ("loop", "a/loop", "a/2.wav"):
            (root / name).symlink_to(root / name)
        found = utterances(dataset("folder", root))
        assert [u.id for u in found] == ["a/1.wav", "a/2.wav", "b/1.wav"]
        packed = pack(found, tmp_path / "pack", RATE)
        assert packed.warnings == ["skipped a/2.wav: expected a file, found none"]

    def test_genders(self, tmp_path):
        tree(tmp_path, "a/1.wav", "b c/1.wav", "d/1.wav", "e/1.wav", "f/1.wav")
        (tmp_path / "speakers.csv").write_text(
            "speaker,age,gender\na,6,F\nb c,7,m\nd,8,\ne\n", encoding="utf-8-sig"
        )
        found = utterances(dataset("folder", tmp_path))
        assert [u.gender for u in found] == ["f", "m", None, None, None]

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (
                b"name,sex\n",
                "expected columns speaker and gender, found name, sex",
            ),
            (b"", "expected columns speaker and gender, found none"),
            (b"speaker,gender\n\xff,f\n", "expected CSV in UTF-8: "),
        ],
    )
    def test_bad_speaker_tables(self, tmp_path, table, message):
        tree(tmp_path, "a/1.wav", "b/1.wav")
        (tmp_path / "speakers.csv").write_bytes(table)
        said = refusal(dataset("folder", tmp_path))
        assert said.startswith(f"{tmp_path / 'speakers.csv'}: {message}")

    @pytest.mark.parametrize(
        ("files", "root", "message"),
        [
            (
                [],
                "none",
                "{root}/none: expected the folder of dataset.root, found nothing",
            ),
            (
                ["a.wav"],
                "a.wav",
                "{root}/a.wav: expected the folder of dataset.root, found a file",
            ),
            (
                ["a.wav", "b.wav"],
                ".",
                "{root}: expected <speaker>/** with .wav, .flac, .ogg, .opus, .mp3 "
                "files, found none",
            ),
            (
                ["a/1.wav"],
                ".",
                "{root}: expected at least two speakers, found a",
            ),
            (
                ["train/a/1.wav", "test/b/1.wav", "valid/c/1.wav"],
                ".",
                "{root}: expected no other folder beside test, found valid",
            ),
            (
                ["train/a/1.wav", "train/b/1.wav", "test/b/1.wav"],
                ".",
                "{root}: expected speaker b in one split, found test and train",
            ),
            (
                ["train/a/1.wav", "train/b/1.wav", "test/1.wav"],
                ".",
                "{root}/test: expected <speaker>/** with .wav, .flac, .ogg, .opus, "
                ".mp3 files, found none",
            ),
        ],
    )
    def test_refusals(self, tmp_path, files, root, message):
        tree(tmp_path, *files)
        said = refusal(dataset("folder", tmp_path / root))
        assert said == message.format(root=tmp_path)


def row(audio, label="a", **others):
    return {"audio_filepath": str(audio), "label": label, **others}


class TestManifest:
    """NeMo's manifests: a JSON object a line, as its documentation has them."""

    @staticmethod
    def parameters(train, development=None, test=None):
        manifests = {"train": train, "development": development, "test": test}
        chosen = DATASET.manifest.model_copy(update=manifests)
        found = dataset("manifest", Path("nowhere"))
        return found.model_copy(update={"manifest": chosen})

    @staticmethod
    def manifest(path, *rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def test_lines(self, tmp_path):
        elsewhere = write(tmp_path / "elsewhere" / "long one.flac", noise())
        near = write(tmp_path / "lists" / "wavs" / "1.wav", noise())
        path = self.manifest(
            tmp_path / "lists" / "train.json",
            row("wavs/1.wav"),
            row("wavs/1.wav", offset=1, text="an unused key"),
            row("wavs/1.wav", offset=0, duration=1.5),
            row(elsewhere, "Ann Lee", offset=1.5, duration=0.25),
            row("../elsewhere/long one.flac", "Ann Lee", duration=None),
        )
        found = utterances(self.parameters(path))
        assert [(u.id, u.speaker, u.split, u.gender, u.session) for u in found] == [
            ("../elsewhere/long%20one.flac", "Ann%20Lee", None, None, None),
            ("../elsewhere/long%20one.flac@1.5+0.25", "Ann%20Lee", None, None, None),
            ("wavs/1.wav", "a", None, None, None),
            ("wavs/1.wav@0.0+1.5", "a", None, None, None),
            ("wavs/1.wav@1.0", "a", None, None, None),
        ]
        assert found[1].source == Segment(elsewhere, 1.5, 0.25)
        assert found[3].source == Segment(near, 0.0, 1.5)
        whole = noise()
        for utterance, expected in zip(
            found,
            (whole, whole[24_000:28_000], whole, whole[:24_000], whole[16_000:]),
            strict=True,
        ):
            recording = load_recording(utterance.source, RATE)
            assert recording.warning is None
            np.testing.assert_array_equal(recording.samples, expected)

    def test_splits(self, tmp_path):
        paths = [
            self.manifest(tmp_path / f"{name}.json", row("1.wav", name, offset=number))
            for number, name in enumerate("abc")
        ]
        found = utterances(self.parameters(*paths))
        assert [u.split for u in found] == ["train", "development", "test"]
        found = utterances(self.parameters(*paths[:2]))
        assert [u.split for u in found] == [None, "development"]

    def test_names_in_any_script(self, tmp_path):
        path = self.manifest(
            tmp_path / "train.json",
            "\ufeff" + json.dumps(row("Žofie\u2028.wav"), ensure_ascii=False),
            row("\udcff.wav", "王"),
        )
        found = utterances(self.parameters(path))
        assert [u.id for u in found] == ["%FF.wav", "Žofie%E2%80%A8.wav"]
        assert found[0].speaker == "王"

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "a JSON object, found '{'"),
            ("", "a JSON object, found ''"),
            ("\udcff\udcfe", r"a JSON object, found '\udcff\udcfe'"),
            ("[" * 9999, f"a JSON object, found {'[' * 80!r}"),
            ("[1]", "a JSON object, found '[1]'"),
            ("{}", "audio_filepath, a path, found none"),
            ({"audio_filepath": "a.wav"}, "label, the name of a speaker, found none"),
            ({"label": "a"}, "audio_filepath, a path, found none"),
            (row(""), "audio_filepath, a path, found ''"),
            ({"audio_filepath": ["a"]}, "audio_filepath, a path, found ['a']"),
            (row("\ud800"), r"audio_filepath, a path, found '\ud800'"),
            (row("a", 7), "label, the name of a speaker, found 7.0"),
            (row("a", None), "label, the name of a speaker, found None"),
            (row("a", offset=-1.5), "offset, seconds of at least 0, found -1.5"),
            (row("a", offset="1"), "offset, seconds of at least 0, found '1'"),
            (row("a", offset=True), "offset, seconds of at least 0, found True"),
            (row("a", offset=math.nan), "offset, seconds of at least 0, found nan"),
            (row("a", offset=10**999), "offset, seconds of at least 0, found inf"),
            (row("a", duration=0), "duration, seconds above 0 or null, found 0.0"),
            (row("a", duration=-2), "duration, seconds above 0 or null, found -2.0"),
            (row("a", duration="x"), "duration, seconds above 0 or null, found 'x'"),
        ],
    )
    def test_bad_lines(self, tmp_path, line, message):
        path = self.manifest(tmp_path / "train.json", row("b.wav"))
        line = line if isinstance(line, str) else json.dumps(line)
        with path.open("ab") as file:
            file.write(f"{line}\n".encode(errors="surrogateescape"))
        assert refusal(self.parameters(path)) == f"{path}:2: expected {message}"

    def test_refusals(self, tmp_path):
        path = self.manifest(tmp_path / "train.json", row("1.wav"))
        empty = self.manifest(tmp_path / "empty.json")
        missing = tmp_path / "none.json"
        for chosen, message in (
            ((path,), f"{path}: expected at least two speakers, found a"),
            ((missing,), f"{missing}: cannot be used: No such file or directory"),
            (
                (path, None, empty),
                f"{empty}: expected a line for each utterance, found none",
            ),
            (
                (path, None, path),
                f"{path}: expected speaker a in one split, found train and test",
            ),
        ):
            assert refusal(self.parameters(*chosen)) == message
        self.manifest(path, row("1.wav", offset=0), row("1.wav"))
        assert refusal(self.parameters(path)) == (
            f"{path}: expected 1.wav once, found it twice"
        )

    def test_two_speakers_with_one_utterance(self, tmp_path):
        path = self.manifest(tmp_path / "train.json", row("1.wav"), row("1.wav", "b"))
        said = f"{path}: expected 1.wav once, found it twice"
        assert refusal(self.parameters(path)) == said

    @pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a/" * 3000, "a\0.wav"])
    def test_names_that_the_disk_refuses_are_skipped(self, tmp_path, name):
        write(tmp_path / "1.wav")
        lines = row("1.wav"), row(name, "b")
        path = self.manifest(tmp_path / "train.json", *lines)
        packed = pack(utterances(self.parameters(path)), tmp_path / "pack", RATE)
        assert [entry.id for entry in packed.entries] == ["1.wav"]
        assert len(packed.warnings) == 1
        assert packed.warnings[0].startswith("skipped ")


def pack_archive():
    """dev-clean in miniature."""
    contents = {"LibriSpeech/SPEAKERS.TXT": b"1 | F | dev-clean | 8 | A\n2 | M | | |\n"}
    for speaker in "12":
        file = io.BytesIO()
        soundfile.write(file, noise(), RATE, format="FLAC")
        name = f"LibriSpeech/dev-clean/{speaker}/7/{speaker}-7-0000.flac"
        contents[name] = file.getvalue()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class TestDownload:
    @pytest.fixture
    def server(self, monkeypatch, archive_server):
        archive_server.archive = pack_archive()
        digest = hashlib.sha256(archive_server.archive).hexdigest()
        monkeypatch.setattr(published, "LIBRISPEECH_URL", archive_server.url)
        monkeypatch.setitem(published.LIBRISPEECH_SHA256, "dev-clean", digest)
        return archive_server

    @pytest.fixture
    def parameters(self, tmp_path):
        root = tmp_path / "deep" / "data"
        return dataset("librispeech", root, train=("dev-clean",), download=True)

    @staticmethod
    def names(parameters):
        root = parameters.root
        return sorted(p.relative_to(root).as_posix() for p in root.glob("*/*"))

    def test_fresh(self, server, parameters):
        found = utterances(parameters)
        assert [(u.id, u.gender) for u in found] == [
            ("1-7-0000", "f"),
            ("2-7-0000", "m"),
        ]
        np.testing.assert_array_equal(
            load_recording(found[0].source, RATE).samples, noise()
        )
        assert os.listdir(parameters.root) == ["LibriSpeech"]
        assert self.names(parameters) == [
            "LibriSpeech/SPEAKERS.TXT",
            "LibriSpeech/dev-clean",
        ]
        assert server.requests == [("/resources/dev-clean.tar.gz", None)]
        assert utterances(parameters) == found
        assert len(server.requests) == 1

    def test_what_is_not_what_was_published(self, server, parameters):
        server.archive = b"another"
        assert "expected the published SHA256" in refusal(parameters)
        assert self.names(parameters) == []

    def test_what_is_there_is_never_overwritten(self, server, parameters):
        home = parameters.root / "LibriSpeech"
        tree(home / "dev-clean", "5/7/5-7-0000.flac", "6/7/6-7-0000.flac")
        (home / "SPEAKERS.TXT").write_text("5 | F |")
        assert [u.id for u in utterances(parameters)] == ["5-7-0000", "6-7-0000"]
        assert server.requests == []

    def test_the_speaker_table_is_never_overwritten(self, server, parameters):
        table = parameters.root / "LibriSpeech" / "SPEAKERS.TXT"
        table.parent.mkdir(parents=True)
        table.write_text("1 | M |")
        assert [u.gender for u in utterances(parameters)] == ["m", None]

    def test_a_root_that_is_a_file(self, server, parameters):
        parameters.root.parent.mkdir()
        parameters.root.write_text("no folder")
        assert "cannot be used: " in refusal(parameters)


def count(found, split):
    chosen = [u for u in found if u.split == split]
    return len({u.speaker for u in chosen}), len(chosen)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
class TestRealSpeech:
    def test_librispeech(self):
        found = utterances(
            dataset(
                "librispeech",
                DATA,
                train=("train-clean-100",),
                test=("test-other",),
            )
        )
        assert count(found, "train") == (251, 796)
        assert count(found, "test") == (10, 100)
        assert {u.gender for u in found} == {"f", "m"}
        recording = load_recording(found[0].source, RATE)
        assert recording.warning is None
        read, _ = soundfile.read(found[0].source, dtype="int16")
        np.testing.assert_array_equal(recording.samples, read)

    def test_speechocean762(self):
        found = utterances(dataset("folder", DATA / "speechocean762"))
        assert count(found, "train") == (125, 2500)
        assert count(found, "test") == (62, 1240)
        assert {u.gender for u in found} == {"f", "m"}
        for utterance in found[::200]:
            recording = load_recording(utterance.source, RATE)
            assert recording.warning is None
            assert len(recording.samples) > RATE // 2


class TestMixture:
    def mixture(self, *corpora):
        return DATASET.model_validate(
            DATASET.model_dump(mode="json") | {"name": "mixture", "mixture": [*corpora]}
        )

    def test_published_corpora_beside_one_s_own(self, tmp_path):
        vox = tree(tmp_path / "vox", *(f"wav/{i}" for i in TestVoxCeleb1.DEV))
        tree(vox, *(f"wav/{i}" for i in TestVoxCeleb1.TEST))
        (vox / "veri_test2.txt").write_text(VOXCELEB_TRIALS)
        (vox / "iden_split.txt").write_text(VOXCELEB_PARTS)
        home = tmp_path / "LibriSpeech"
        tree(home / "train-clean-100", "103/1/103-1-0.flac", "211/1/211-1-0.flac")
        tree(tmp_path / "own", "id10001/a.wav", "id10002/a.wav")
        found = utterances(
            self.mixture(
                {"label": "vox", "weight": 1, "name": "voxceleb1", "root": str(vox)},
                {
                    **{"label": "libri", "weight": 1, "name": "librispeech"},
                    **{"root": str(tmp_path), "librispeech": {"test": []}},
                },
                {
                    **{"label": "mine", "weight": 3, "name": "folder"},
                    **{"root": str(tmp_path / "own")},
                },
            )
        )
        assert [u.corpus for u in found] == 8 * ["vox"] + 2 * ["libri"] + 2 * ["mine"]
        assert found[0].id == f"vox/{TestVoxCeleb1.DEV[0]}"
        assert found[0].speaker == "vox/id10001"
        assert (found[8].id, found[8].speaker) == ("libri/103-1-0", "libri/103")
        assert (found[10].id, found[10].speaker) == (
            "mine/id10001/a.wav",
            "mine/id10001",
        )
        assert [u.split for u in found[4:9]] == 4 * ["test"] + [None]

    def test_a_refusal_names_the_corpus(self, tmp_path):
        tree(tmp_path / "own", "a/a.wav", "b/a.wav")
        corpus = {"label": "a", "weight": 1, "name": "folder"}
        good = corpus | {"root": str(tmp_path / "own")}
        bad = corpus | {"label": "b", "root": str(tmp_path / "none")}
        assert refusal(self.mixture(good, bad)) == (
            f"dataset.mixture.1: {tmp_path / 'none'}: expected the folder of "
            "dataset.root, found nothing"
        )


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
        assert count(found, "train") == (251, 796)
        assert count(found, "test") == (10, 100)

    @pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
    def test_pieces_are_those_of_the_shared_corpus(self):
        home = DATA / "LibriSpeech"
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
            folder = (
                home
                / "train-clean-100"
                / path.parent.relative_to("../data/LibriSpeech/train-clean-100")
            )
            assert soundfile.info(folder / f"{row['piece']}.flac").frames == samples
        for line in self.lines("test"):
            path = home / Path(line["audio_filepath"]).relative_to(
                "../data/LibriSpeech"
            )
            assert soundfile.info(path).frames == round(line["duration"] * RATE)

    @pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
    def test_a_source_utterance_is_cut_into_the_shared_pieces(self, tmp_path):
        """The source put together again from its pieces, which have no gaps."""
        name, home = "103/1240", DATA / "LibriSpeech" / "train-clean-100"
        pieces = [
            soundfile.read(path, dtype="int16")[0]
            for path in sorted((home / name).glob("*.flac"))
        ]
        write(
            tmp_path / "data/LibriSpeech/train-clean-100" / name / "103-1240-0000.flac",
            np.concatenate(pieces),
        )
        manifest = tmp_path / "init" / "train.json"
        manifest.parent.mkdir()
        lines = [line for line in self.lines("train") if line["label"] == "103"]
        manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        segments = [segment for _, segment in read_manifest(manifest)]
        for piece, segment in zip(pieces, segments, strict=True):
            assert np.array_equal(load_recording(segment, RATE).samples, piece)


def test_every_corpus_of_the_schema_has_a_record():
    assert set(get_args(CorpusName)) == set(corpora.CORPORA)
