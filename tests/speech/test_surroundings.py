"""Rooms and noise: recorded, held out by name, downloaded, or simulated."""

import hashlib

import numpy as np
import pytest
import torch
from layouts import archive

from conftest import CPU, write
from speech import surroundings
from speech.packs import SoundBank
from speech.surroundings import load_noise, load_responses
from speech.utterances import CorpusError

LOADERS = {"noise": load_noise, "reverberation": load_responses}
of_both_kinds = pytest.mark.parametrize("kind", LOADERS)


def write_sounds(root, *names: str, seconds=0.5, rate=16_000, channels=1):
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        shape = (round(seconds * rate), channels)
        write(root / name, 0.1 * rng.standard_normal(shape), rate)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "sounds"


@pytest.fixture
def load(miniature, root):
    """Load what a folder holds for training, or what it holds out."""

    def run(kind: str, is_held_out: bool = False, **changes) -> SoundBank:
        changes = {"root": root} | changes
        keys = (f"augmentation.{kind}.{key}={value}" for key, value in changes.items())
        return LOADERS[kind](miniature(*keys), CPU, is_held_out)

    return run


@of_both_kinds
def test_some_are_held_out_by_name(root, load, kind):
    write_sounds(root, *(f"{number}.wav" for number in range(40)), seconds=0.05)
    trained_on, held_out = (load(kind, side, held_out=0.5) for side in (False, True))
    assert len(trained_on) + len(held_out) == 40
    assert not set(trained_on.offsets) & set(held_out.offsets)
    assert 10 < len(trained_on) < 30
    (root / "0.wav").unlink()
    assert 0 <= len(trained_on) - len(load(kind, held_out=0.5)) <= 1


@of_both_kinds
def test_unusable_folders(root, load, kind):
    for make, said in (
        (lambda: None, "nothing"),
        (lambda: root.write_text("x"), "found a file"),
        (lambda: (root.unlink(), root.mkdir()), "wav"),
        (lambda: (root / "a.wav").write_text("no audio"), "none of the 1 files of the"),
        (lambda: write_sounds(root, "a.wav"), f"^augmentation.{kind}.held_out: .* 1$"),
    ):
        make()
        with pytest.raises(CorpusError, match=said):
            load(kind, held_out=0.999999)


@of_both_kinds
def test_any_rate_and_channels_and_an_unreadable_file(root, load, kind, capsys):
    write_sounds(root, "a/1.wav", "2.flac", rate=44_100, channels=2)
    assert load(kind).lengths.tolist() == [8000, 8000]
    write(root / "a.wav").write_text("no audio")
    assert len(load(kind)) == 2
    assert "1 files skipped: skipped a.wav: " in capsys.readouterr().out


@of_both_kinds
def test_simulated_where_there_is_no_folder(miniature, kind):
    first, same, other, held_out = (
        LOADERS[kind](miniature(f"seed={seed}"), CPU, is_held_out).samples
        for seed, is_held_out in ((1, False), (1, False), (2, False), (1, True))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, held_out)


def test_musans_speech_is_no_noise(root, load):
    write_sounds(root, "music/fma/a.wav", "noise/free-sound/b.wav", "speech/lv/c.wav")
    assert len(load("noise")) == 2


def test_noises_of_openslr_28_are_no_responses(root, load):
    write_sounds(
        root / "RIRS_NOISES",
        "pointsource_noises/noise-free-sound-0000.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_angla.wav",
        "real_rirs_isotropic_noises/air_type1_air_binaural_booth_0_0_1.wav",
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
    )
    assert len(load("reverberation")) == 3


def test_one_microphone_hears_a_room(root, load):
    channels = np.zeros((2000, 2), np.int16)
    channels[[100, 105], [0, 1]] = 9000  # the direct sound, later at the second
    write(root / "a.wav", channels)
    response = load("reverberation").whole(np.array([0]), 2000)[0]
    assert response.nonzero().flatten().tolist() == [100]


def test_openslr_28_is_downloaded(tmp_path, load, monkeypatch, archive_server):
    names = ("simulated_rirs/r/a.wav", "noise.wav")
    write_sounds(tmp_path, *names)
    contents = {f"RIRS_NOISES/{n}": (tmp_path / n).read_bytes() for n in names}
    archive_server.archive = archive("rirs.zip", contents)
    digest = hashlib.md5(archive_server.archive).hexdigest()
    monkeypatch.setattr(surroundings, "OPENSLR28_URL", f"{archive_server.url}/rirs.zip")
    monkeypatch.setattr(surroundings, "OPENSLR28_MD5", digest)
    assert [len(load("reverberation", download="true")) for _ in range(2)] == [1, 1]
    assert len(archive_server.requests) == 1
