"""Rooms and noise: recorded, held out by name, downloaded, or simulated."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from speech import surroundings
from speech.surroundings import load_noise, load_responses
from speech.utterances import CorpusError

CPU = torch.device("cpu")


def write_sounds(root, *names: str, seconds: float = 0.5, rate: int = 16_000, **kind):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        shape = (round(seconds * rate), kind.get("channels", 1))
        soundfile.write(path, 0.1 * rng.standard_normal(shape), rate)


@pytest.mark.parametrize(
    ("kind", "load"), [("noise", load_noise), ("reverberation", load_responses)]
)
class TestRecordings:
    def test_any_rate_and_channels(self, tmp_path, miniature, kind, load):
        write_sounds(tmp_path / "x", "a/1.wav", "2.flac", rate=44_100, channels=2)
        loaded = load(miniature(f"augmentation.{kind}.root={tmp_path / 'x'}"), CPU)
        assert loaded.lengths.tolist() == [8000, 8000]

    def test_some_are_held_out_by_name(self, tmp_path, miniature, kind, load):
        names = [f"{number}.wav" for number in range(40)]
        write_sounds(tmp_path / "x", *names, seconds=0.05)
        p = miniature(
            f"augmentation.{kind}.root={tmp_path / 'x'}",
            f"augmentation.{kind}.held_out=0.5",
        )
        mine, held_out = load(p, CPU), load(p, CPU, held_out=True)
        assert len(mine) + len(held_out) == 40
        assert not set(mine.offsets) & set(held_out.offsets)
        assert 10 < len(mine) < 30
        (tmp_path / "x" / "0.wav").unlink()
        assert len(mine) - 1 <= len(load(p, CPU)) <= len(mine)

    @pytest.mark.parametrize(
        ("prepare_folder", "message"),
        [
            (lambda root: None, "expected the folder of augmentation"),
            (lambda root: root.mkdir(), "expected .wav, .flac"),
            (lambda root: root.write_text("x"), "found a file"),
            (
                lambda root: (root.mkdir(), (root / "a.wav").write_text("no audio")),
                "none of the 1 files of the corpus can be used",
            ),
        ],
    )
    def test_unusable_folders(
        self, tmp_path, miniature, kind, load, prepare_folder, message
    ):
        prepare_folder(tmp_path / "x")
        with pytest.raises(CorpusError, match=message):
            load(miniature(f"augmentation.{kind}.root={tmp_path / 'x'}"), CPU)

    def test_nothing_left_to_train_with(self, tmp_path, miniature, kind, load):
        write_sounds(tmp_path / "x", "a.wav")
        p = miniature(
            f"augmentation.{kind}.root={tmp_path / 'x'}",
            f"augmentation.{kind}.held_out=0.999999",
        )
        with pytest.raises(CorpusError, match=f"augmentation.{kind}.held_out: expec"):
            load(p, CPU)

    def test_an_unreadable_file_among_others(
        self, tmp_path, miniature, kind, load, capsys
    ):
        write_sounds(tmp_path / "x", "a.wav", "b.wav")
        (tmp_path / "x" / "a.wav").write_text("no audio")
        loaded = load(miniature(f"augmentation.{kind}.root={tmp_path / 'x'}"), CPU)
        assert len(loaded) == 1
        assert "1 files skipped: skipped a.wav: not readable" in capsys.readouterr().out

    def test_simulated_where_there_is_no_folder(self, miniature, kind, load):
        first, same = load(miniature(), CPU), load(miniature(), CPU)
        assert torch.equal(first.samples, same.samples)
        for other in (
            load(miniature("seed=2"), CPU),
            load(miniature(), CPU, held_out=True),
        ):
            assert not torch.equal(first.samples, other.samples)


def test_musans_speech_is_no_noise(tmp_path, miniature):
    names = ("music/fma/a.wav", "noise/free-sound/b.wav", "speech/librivox/c.wav")
    write_sounds(tmp_path / "musan", *names)
    p = miniature(f"augmentation.noise.root={tmp_path / 'musan'}")
    assert len(load_noise(p, CPU)) == 2


def test_noises_of_openslr_28_are_no_responses(tmp_path, miniature):
    root = tmp_path / "data"
    write_sounds(
        root / "RIRS_NOISES",
        "pointsource_noises/noise-free-sound-0000.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_angla.wav",
        "real_rirs_isotropic_noises/air_type1_air_binaural_booth_0_0_1.wav",
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
    )
    p = miniature(f"augmentation.reverberation.root={root}")
    assert len(load_responses(p, CPU)) == 3


def test_one_microphone_hears_a_room(tmp_path, miniature):
    channels = np.zeros((2000, 2), np.int16)
    channels[[100, 105], [0, 1]] = 9000  # the direct sound, later at the second
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "a.wav", channels, 16_000)
    p = miniature(f"augmentation.reverberation.root={tmp_path / 'rooms'}")
    response = load_responses(p, CPU).whole(np.array([0]), 2000)[0]
    assert response.nonzero().flatten().tolist() == [100]


def test_openslr_28_is_downloaded(tmp_path, miniature, monkeypatch, archive_server):
    write_sounds(tmp_path / "RIRS_NOISES", "simulated_rirs/r/a.wav", "noise.wav")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (tmp_path / "RIRS_NOISES").rglob("*.wav"):
            archive.write(path, path.relative_to(tmp_path))
    archive_server.archive = packed.getvalue()
    digest = hashlib.md5(packed.getvalue()).hexdigest()
    monkeypatch.setattr(surroundings, "OPENSLR28_URL", f"{archive_server.url}/rirs.zip")
    monkeypatch.setattr(surroundings, "OPENSLR28_MD5", digest)
    p = miniature(
        f"augmentation.reverberation.root={tmp_path / 'data'}",
        "augmentation.reverberation.download=true",
    )
    assert len(load_responses(p, CPU)) == len(load_responses(p, CPU)) == 1
    assert len(archive_server.requests) == 1
