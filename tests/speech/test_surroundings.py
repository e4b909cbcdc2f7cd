"""Rooms and noise: recorded, held out by name, downloaded, or simulated."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch

from conftest import write
from parameters import Parameters
from speech import surroundings
from speech.surroundings import load_noise, load_responses
from speech.utterances import CorpusError

CPU = torch.device("cpu")


def write_sounds(root, *names: str, seconds=0.5, rate=16_000, channels=1):
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        shape = (round(seconds * rate), channels)
        write(root / name, 0.1 * rng.standard_normal(shape), rate)


@pytest.mark.parametrize(
    ("kind", "load"), [("noise", load_noise), ("reverberation", load_responses)]
)
class TestRecordings:
    @pytest.fixture
    def root(self, tmp_path):
        return tmp_path / "sounds"

    @pytest.fixture
    def parameters(self, miniature, root, kind):
        def build(**changes: float) -> Parameters:
            changes = {"root": root} | changes
            return miniature(
                *(f"augmentation.{kind}.{name}={changes[name]}" for name in changes)
            )

        return build

    def test_any_rate_and_channels(self, root, parameters, load):
        write_sounds(root, "a/1.wav", "2.flac", rate=44_100, channels=2)
        assert load(parameters(), CPU).lengths.tolist() == [8000, 8000]

    def test_some_are_held_out_by_name(self, root, parameters, load):
        write_sounds(root, *(f"{number}.wav" for number in range(40)), seconds=0.05)
        p = parameters(held_out=0.5)
        trained_on, held_out = load(p, CPU), load(p, CPU, held_out=True)
        assert len(trained_on) + len(held_out) == 40
        assert not set(trained_on.offsets) & set(held_out.offsets)
        assert 10 < len(trained_on) < 30
        (root / "0.wav").unlink()
        assert len(trained_on) - 1 <= len(load(p, CPU)) <= len(trained_on)

    @pytest.mark.parametrize(
        ("make_folder", "said"),
        [
            (lambda root: None, "nothing"),
            (lambda root: root.mkdir(), "wav"),
            (lambda root: root.write_text("x"), "found a file"),
            (
                lambda root: (root.mkdir(), (root / "a.wav").write_text("no audio")),
                "none of the 1 files of the corpus",
            ),
        ],
    )
    def test_unusable_folders(self, root, parameters, load, make_folder, said):
        make_folder(root)
        with pytest.raises(CorpusError, match=said):
            load(parameters(), CPU)

    def test_nothing_left_to_train_with(self, root, parameters, kind, load):
        write_sounds(root, "a.wav")
        with pytest.raises(CorpusError, match=f"^augmentation.{kind}.held_out: .* 1$"):
            load(parameters(held_out=0.999999), CPU)

    def test_an_unreadable_file_among_others(self, root, parameters, load, capsys):
        write_sounds(root, "a.wav", "b.wav")
        (root / "a.wav").write_text("no audio")
        assert len(load(parameters(), CPU)) == 1
        assert "1 files skipped: skipped a.wav: " in capsys.readouterr().out

    def test_simulated_where_there_is_no_folder(self, miniature, kind, load):
        first, same = load(miniature(), CPU), load(miniature(), CPU)
        assert torch.equal(first.samples, same.samples)
        for p, held_out in ((miniature("seed=2"), False), (miniature(), True)):
            assert not torch.equal(first.samples, load(p, CPU, held_out).samples)


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
    write(tmp_path / "rooms" / "a.wav", channels)
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
