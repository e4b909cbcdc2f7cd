"""Published corpora: layouts, options, refusals and downloads."""

import csv
import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile
from layouts import archive, dataset, details, refuse, scanned, splits, tree

from conftest import RATE, REPOSITORY, write
from engine.parameter_files import load_parameters
from speech import published
from speech.corpora import official_trials, utterances
from speech.manifests import read_manifest
from speech.packs import pack
from verification.trials import read_trials

PIECES = REPOSITORY / "init"  # manifests that cut a small corpus out of LibriSpeech


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
        train, test = ("train-clean-100",), ("test-other",)
        found = scanned("librispeech", root, train=train, test=test)
        assert details(found) == [
            ("103-1240-0000", "103", "train", "f", "1240"),
            ("103-1240-0001", "103", "train", "f", "1240"),
            ("1688-142285-0000", "1688", "test", "m", "142285"),
            ("211-122425-0000", "211", "train", None, "122425"),
        ]
        assert found[0].source == root / "LibriSpeech/train-clean-100" / self.TRAIN[0]
        (root / "LibriSpeech" / "SPEAKERS.TXT").unlink()
        # Without a test subset the split of training is open.
        found = scanned("librispeech", root, train=train, development=test)
        assert {u.gender for u in found} == {None}
        assert splits(found) == {None: 3, "development": 1}

    @pytest.mark.parametrize(
        ("train", "test", "where", "words"),
        [
            ("clean", "", "dataset.librispeech.train", ["'clean'"]),
            ("test-other", "test-other", "dataset.librispeech.train", ["twice"]),
            ("", "test-other test-other", "dataset.librispeech.test", ["twice"]),
            ("train-clean-360", "", "{}/train-clean-360", ["dataset.download=true"]),
            ("dev-other", "", "{}/dev-other", ["<speaker>/<chapter>/*.flac"]),
            ("", "test-other", "{.parent}", ["two speakers", "1688"]),
            ("", "", "{.parent}", ["two speakers", "none"]),
            ("train-clean-100", "dev-clean", "{.parent}", ["speaker 103"]),
        ],
    )
    def test_refusals(self, root, train, test, where, words):
        home = root / "LibriSpeech"
        (home / "dev-other").mkdir()
        tree(home / "dev-clean", self.TRAIN[0])
        chosen = {"train": tuple(train.split()), "test": tuple(test.split())}
        refuse(dataset("librispeech", root, **chosen), where.format(home), *words)


# The layout is that of VCTK 0.92's own README and speaker-info.txt: of two microphones
# a file each, but for p280, of whom there are no files of the second.
VCTK_TABLE = """ID  AGE  GENDER  ACCENTS  REGION COMMENTS
p225  23  F    English    Southern  England
p280  25  F    Unknown    France (mic2 files unavailable)
p315  18  M    American   New  England
"""


class TestVCTK:
    AUDIO = Path("VCTK-Corpus-0.92", "wav48_silence_trimmed")

    @pytest.fixture
    def root(self, tmp_path):
        audio = tmp_path / self.AUDIO
        tree(audio / "p225", "p225_001_mic1.flac", "p225_001_mic2.flac")
        tree(audio / "p280", "p280_001_mic1.flac")
        tree(audio / "p315", "p315_001_mic1.flac", "p315_001_mic2.flac")
        tree(audio / "s5", "s5_001_mic2.flac", "._s5_002_mic2.flac")
        (audio / "log.txt").write_text("")
        (audio.parent / "speaker-info.txt").write_text(VCTK_TABLE)
        return tmp_path

    def test_layout_microphone_and_refusals(self, root):
        found = scanned("vctk", root)
        assert details(found) == [
            ("p225_001_mic2", "p225", None, "f", None),
            ("p315_001_mic2", "p315", None, "m", None),
            ("s5_001_mic2", "s5", None, None, None),
        ]
        assert found[0].source == root / self.AUDIO / "p225" / "p225_001_mic2.flac"
        found = scanned("vctk", root, microphone="mic1")
        assert {u.id[:8] for u in found} == {"p225_001", "p280_001", "p315_001"}
        none = root / "none"
        refuse(dataset("vctk", none), none / self.AUDIO, "dataset.download=true")
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
LISTS = {"veri_test2.txt": VOXCELEB_TRIALS, "iden_split.txt": VOXCELEB_PURPOSES}
DEV = [line.split()[1] for line in VOXCELEB_PURPOSES.splitlines()[:4]]
UNTRIED = "id10271/1gtz-CUIygI/00002.wav"
TEST = [*sorted({*VOXCELEB_TRIALS.split()} - {"0", "1"}), UNTRIED]


class TestVoxCeleb1:
    @pytest.fixture
    def root(self, tmp_path):
        tree(tmp_path / "wav", *DEV, *TEST, "id10001/1zcIwhmdeo4/._00001.wav")
        for name, text in LISTS.items():
            (tmp_path / name).write_text(text)
        (tmp_path / "vox1_meta.csv").write_text(
            "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
            "id10001\tA.J._Buckley\tm\tIreland\tdev\n"
        )
        return tmp_path

    def test_layout_and_official_trials(self, root):
        found = scanned("voxceleb1", root)
        assert details(found[1:5]) == [
            (DEV[1], "id10001", "train", "m", "1zcIwhmdeo4"),
            (DEV[2], "id10001", "validation", "m", "7gWzIy6yIIk"),
            (DEV[3], "id10002", "train", None, "0_laIeN-Q44"),
            (TEST[0], "id10270", "test", None, "5r0dWxy17C8"),
        ]
        ids = [u.id for u in found]
        assert ids == DEV + TEST
        assert splits(found) == {"train": 3, "validation": 1, "test": 4}
        assert found[0].source == root / "wav" / DEV[0]
        trials, _ = read_trials(official_trials(dataset("voxceleb1", root)), ids)
        assert trials.enrolment.tolist() == [4, 4]
        assert trials.test.tolist() == [5, 6]
        assert trials.targets.tolist() == [True, False]
        assert official_trials(dataset("folder", root)) is None

    def test_both_archives_side_by_side(self, root):
        merged = scanned("voxceleb1", root)
        tree(root / "dev" / "wav", *DEV)
        tree(root / "test" / "wav", *TEST)
        refuse(dataset("voxceleb1", root), root, DEV[0])
        shutil.rmtree(root / "wav")
        found = scanned("voxceleb1", root)
        assert [u.id for u in found] == [u.id for u in merged]
        assert found[0].source == root / "dev" / "wav" / DEV[0]
        shutil.rmtree(root / "dev")
        assert splits(scanned("voxceleb1", root)) == {"test": 4}

    @pytest.mark.parametrize("name", LISTS)
    def test_lists_are_fetched(self, root, name, monkeypatch, archive_server):
        monkeypatch.setattr(published, "VOXCELEB_URL", archive_server.url)
        before, files = scanned("voxceleb1", root), sorted(os.listdir(root))
        assert scanned("voxceleb1", root, download=True) == before
        assert archive_server.requests == []
        (root / name).unlink()
        refuse(dataset("voxceleb1", root), root / name, "dataset.download=true")
        archive_server.archive = b"<html>"  # another page is not kept
        parameters = dataset("voxceleb1", root, download=True)
        refuse(parameters, f"{root / name}.partial:1: ")
        assert not list(root.glob(f"{name}*"))
        archive_server.archive = LISTS[name].encode()
        assert utterances(parameters) == before
        assert archive_server.requests[-1] == (f"/resources/{name}", None)
        assert sorted(os.listdir(root)) == files

    @pytest.mark.parametrize("name", LISTS)
    def test_bad_lists(self, root, name):
        path, first = root / name, LISTS[name].splitlines()[0]
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
        refuse(parameters, f"{root / 'veri_test2.txt'}:2: ", TEST[2])
        shutil.rmtree(root / "wav")
        refuse(parameters, root, published.VOXCELEB_PAGE)
        (root / "wav").mkdir()
        refuse(parameters, root / "wav", "<speaker>/<video>/*.wav")


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
    CLIPS = ("cy_6", "cy_7", "cy_8", "fr_1", "fr_2", "fr_3", "fr_4", "fr_5")

    @pytest.fixture
    def root(self, tmp_path):
        """Two locales as they are unpacked beside each other."""
        for clip in self.CLIPS:
            path = tmp_path / clip[:2] / "clips" / f"common_voice_{clip}.mp3"
            write(path, rate=48_000)
        for locale, table in (("fr", COMMON_VOICE_17), ("cy", COMMON_VOICE_3)):
            home, text = tmp_path / locale, table.format(**CLIENTS)
            (home / "validated.tsv").write_text(text, encoding="utf-8")
            (home / "invalidated.tsv").write_text(text.splitlines()[0] + "\n")
        return tmp_path

    def test_layout_and_decoding(self, root, tmp_path):
        found = scanned("commonvoice", root)
        ids = [f"{clip[:2]}/common_voice_{clip}.mp3" for clip in self.CLIPS]
        assert [u.id for u in found] == ids
        assert [u.speaker for u in found] == [CLIENTS[name] for name in "cddabacb"]
        assert "".join(u.gender for u in found) == "mfffmfmm"
        assert splits(found) == {None: 8}
        assert found[2].source == root / "cy" / "clips" / "common_voice_cy_8.mp3"
        found[2].source.unlink()
        packed = pack(found, tmp_path / "pack", RATE)
        assert len(packed.entries) == 7
        (warning,) = packed.warnings
        assert warning.startswith("skipped cy/common_voice_cy_8.mp3: ")

    def test_choices_and_refusals(self, root):
        french = {"locales": ("fr",)}
        assert len(scanned("commonvoice", root, **french)) == 4  # c has one clip there
        assert len(scanned("commonvoice", root, **french, min_utterances=1)) == 5
        for home, choice, *refusal in (
            (root, {"min_utterances": 3}, root, "none"),
            (root, {"locales": ("en",)}, "dataset.commonvoice.locales: ", "'en'"),
            (root / "fr", {}, root / "fr", "<locale>/validated.tsv"),
        ):
            refuse(dataset("commonvoice", home, **choice), *refusal)
        table = root / "cy" / "validated.tsv"
        misnamed = table.read_text().replace("client_id", "client")
        for text in (misnamed, "client_id\tpath\n\tcommon_voice_cy_6.mp3\n"):
            table.write_text(text)
            refuse(dataset("commonvoice", root), table, "client_id and path")


LIBRI = {
    "LibriSpeech/SPEAKERS.TXT": b"1 | F | dev-clean | 8 | A\n2 | M | | |\n",
    "LibriSpeech/dev-clean/1/7/1-7-0000.flac": b"speech",
    "LibriSpeech/dev-clean/2/7/2-7-0000.flac": b"speech",
}
VCTK = {  # its members are at the top
    "speaker-info.txt": VCTK_TABLE,
    "txt/p225/p225_001.txt": "Please call Stella.",
    "wav48_silence_trimmed/p225/p225_001_mic2.flac": b"speech",
    "wav48_silence_trimmed/p315/p315_001_mic2.flac": b"speech",
}
ARCHIVES = {"librispeech": archive("x.tar.gz", LIBRI), "vctk": archive("x.zip", VCTK)}


class TestDownload:
    @pytest.fixture
    def server(self, monkeypatch, archive_server):
        """A server that publishes sums of two archives and offers another."""
        sums = {k: hashlib.sha256(a).hexdigest() for k, a in ARCHIVES.items()}
        url, libri = archive_server.url, sums["librispeech"]
        monkeypatch.setitem(published.LIBRISPEECH_SHA256, "dev-clean", libri)
        monkeypatch.setattr(published, "LIBRISPEECH_URL", url)
        monkeypatch.setattr(published, "VCTK_SHA256", sums["vctk"])
        monkeypatch.setattr(published, "VCTK_URL", f"{url}/VCTK.zip")
        archive_server.archive = b"another"
        return archive_server

    @pytest.mark.parametrize(("name", "num_files"), [("librispeech", 3), ("vctk", 4)])
    def test_fresh(self, server, tmp_path, name, num_files):
        root = tmp_path / "deep" / "data"
        options = {"train": ("dev-clean",)} if name == "librispeech" else {}
        parameters = dataset(name, root, download=True, **options)
        refuse(parameters, server.url, "SHA256")
        assert not list(root.glob("*/*"))
        server.archive, server.requests = ARCHIVES[name], []
        found = utterances(parameters)
        assert [u.gender for u in found] == ["f", "m"]
        assert found[0].source.read_bytes() == b"speech"
        (home,) = root.iterdir()
        assert sum(path.is_file() for path in home.rglob("*")) == num_files
        (root / "made").mkdir()
        # Readable by whoever may read other folders.
        assert len({path.stat().st_mode for path in root.iterdir()}) == 1
        assert utterances(parameters) == found
        assert len(server.requests) == 1

    def test_what_is_there_is_never_overwritten(self, server, tmp_path):
        server.archive, home = ARCHIVES["librispeech"], tmp_path / "LibriSpeech"
        parameters = dataset("librispeech", tmp_path, True, train=("dev-clean",))
        home.mkdir()
        (home / "SPEAKERS.TXT").write_text("1 | M |")
        assert [u.gender for u in utterances(parameters)] == ["m", None]
        shutil.rmtree(home / "dev-clean")
        tree(home / "dev-clean", "5/7/5-7-0000.flac", "6/7/6-7-0000.flac")
        assert [u.id for u in utterances(parameters)] == ["5-7-0000", "6-7-0000"]
        assert len(server.requests) == 1
        root = home / "SPEAKERS.TXT"  # a file
        refuse(dataset("vctk", root, download=True), root)


def test_pieces_lie_where_librispeech_lays_them_out(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    files = REPOSITORY / "parameters.yml", PIECES / "librispeech-pieces.yml"
    found = utterances(load_parameters(*files).dataset)
    assert splits(found) == {"train": 796, "test": 100}
    assert len({u.speaker for u in found}) == 251 + 10
    subsets = {"train": "train-clean-100", "test": "test-other"}
    for u in found:
        *home, speaker, chapter, name = u.source.path.resolve().parts
        assert u.speaker == speaker
        assert re.fullmatch(rf"{speaker}-{chapter}-\d{{4}}.flac", name)
        assert Path(*home) == REPOSITORY / "data" / "LibriSpeech" / subsets[u.split]


def test_pieces_are_those_of_the_shared_corpus(shared):
    home = shared / "data" / "LibriSpeech"
    rows = csv.DictReader((home / "pieces.csv").read_text().splitlines())
    train = list(read_manifest(PIECES / "librispeech-pieces-train.json"))
    assert len(train) == len(list(home.glob("train-*/*/*/*.flac")))
    for row, (_, segment) in zip(rows, train, strict=True):
        assert segment.path.stem == row["source_utterance"]
        assert round(segment.offset * RATE) == int(row["begin_sample"])
        samples = int(row["end_sample"]) - int(row["begin_sample"])
        assert round(segment.duration * RATE) == samples
        path = home.joinpath(*segment.path.parts[-4:-1], f"{row['piece']}.flac")
        assert soundfile.info(path).frames == samples
    for _, segment in read_manifest(PIECES / "librispeech-pieces-test.json"):
        path = home.joinpath(*segment.path.parts[-4:])
        assert soundfile.info(path).frames == round(segment.duration * RATE)
