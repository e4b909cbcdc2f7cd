"""Decoding: bit for bit where it can be, refused where it must, cut files warned of."""

import contextlib
import io
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from conftest import RATE, REPOSITORY, noise, tone, write
from speech import audio
from speech.audio import AudioError, Recording, Segment, encode_ogg, load_recording


@pytest.fixture
def path(tmp_path):
    """Where a test writes its file."""
    return tmp_path / "a.wav"


def load(path, samples=None, rate=RATE, **options) -> Recording:
    """Write samples and read them back."""
    return load_recording(write(path, samples, rate, **options), RATE)


def audio_refusal(source) -> str:
    with pytest.raises(AudioError) as caught:
        load_recording(source, RATE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize(
    "samples",
    [
        np.append(np.array([-32768, 32767], np.int16), noise()),
        noise()[:400],  # the shortest
        np.zeros(800, np.int16),
        np.full(800, 1234, np.int16),
        np.repeat([32767, -32768], 400).astype(np.int16),
    ],
)
def test_16_bit_files_come_back_bit_for_bit(tmp_path, name, samples):
    recording = load(tmp_path / name, samples)
    assert recording.samples.dtype == np.int16
    assert recording.warning is None
    np.testing.assert_array_equal(recording.samples, samples)


def test_channels_are_averaged_or_chosen(path):
    channels = np.stack([noise(), noise()[::-1], noise() // 2], axis=1)
    for channel in range(3):
        write(path, channels)
        samples = load_recording(Segment(path, channel=channel), RATE).samples
        np.testing.assert_array_equal(samples, channels[:, channel])
    few = np.array([[100, 300, 200], [-100, 100, 90]], np.int16)
    samples = load(path, np.repeat(few, 400, axis=0)).samples
    np.testing.assert_array_equal(samples, np.repeat([200, 30], 400))


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 44_101, 48_000])
def test_resampling_keeps_the_tone(path, rate):
    samples = load(path, tone(1.0, rate, hertz=1000.0), rate).samples
    assert len(samples) == pytest.approx(RATE, abs=1)
    spectrum = np.abs(np.fft.rfft(samples[:RATE] * np.hanning(len(samples[:RATE]))))
    assert np.argmax(spectrum) == 1000  # bins of 1 Hz
    assert samples.std() == pytest.approx(0.5 / math.sqrt(2) * 32768, rel=0.01)


def test_resampling_does_not_alias(path):
    samples = load(path, tone(1.0, 48_000, hertz=12_000.0), 48_000).samples[100:-100]
    assert samples.std() < 0.003 * 0.35 * 32768  # 50 dB below the tone


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [8_000, 96_000, 192_000])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_any_number_of_channels_at_any_rate(tmp_path, name, rate, channels):
    speech = np.zeros((rate // 2, channels))
    speech[:, -1] = tone(0.5, rate)
    samples = load(tmp_path / name, speech, rate, subtype="PCM_24").samples
    assert len(samples) == RATE // 2
    expected = 0.5 / channels / math.sqrt(2) * 32768
    assert samples.std() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rate", [44_101, 79_999, 191_999, 383_993])
def test_odd_rates_are_rounded_by_less_than_a_thousandth(path, rate):
    write(path, tone(1.0, rate), rate)
    assert len(load_recording(path, 8000).samples) == pytest.approx(8000, rel=1e-3)


def test_peaks_beyond_full_scale_are_clipped(path):
    peaks = np.repeat([1.5, 1.0, -1.0, -2.0], 400)
    samples = load(path, peaks, subtype="FLOAT").samples
    assert samples[[0, 400, 800, 1200]].tolist() == [32767, 32767, -32768, -32768]


def test_too_short(path):
    for num_samples, seconds in ((399, "0.0249"), (1, "0.0001")):
        write(path, noise()[:num_samples])
        assert audio_refusal(path) == f"expected at least 0.025 s, found {seconds} s"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_not_finite(path, value, rate):
    samples = tone(0.2)
    samples[700] = value
    write(path, samples, rate, subtype="FLOAT")
    assert "finite" in audio_refusal(path)


def test_no_audio(path):
    assert audio_refusal(path) == "expected a file, found none"
    for content in (b"", b"This is a letter.\n" * 99, bytes(10_000)):
        path.write_bytes(content)
        assert audio_refusal(path).startswith("not readable as audio: ")
    write(path, np.zeros(0, np.int16))
    assert audio_refusal(path) == "holds no samples"


@pytest.mark.parametrize("rate", [1, 3_000_000])
def test_a_damaged_sample_rate(path, rate):
    assert f"{rate} Hz" in audio_refusal(write(path, rate=rate))


@pytest.mark.parametrize(
    ("place", "value"),
    [(22, 0), (22, 0xFFFF), (20, 0xFFFF), (32, 0), (34, 0), (34, 7)],
)
def test_wrong_headers(path, place, value):
    """Channels, format, bytes a frame and bits a sample that cannot be."""
    whole = bytearray(write(path, noise()).read_bytes())
    struct.pack_into("<H", whole, place, value)
    path.write_bytes(whole)
    with contextlib.suppress(AudioError):
        assert load_recording(path, RATE).samples.ndim == 1


def test_the_content_counts_not_the_name(path):
    lying = write(path, noise()).rename(path.with_suffix(".flac"))
    np.testing.assert_array_equal(load_recording(lying, RATE).samples, noise())


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.mp3", None), ("a.ogg", "VORBIS"), ("a.ogg", "OPUS")]
)
def test_a_cut_mp3_or_ogg_gives_what_is_left(tmp_path, name, subtype):
    path = write(tmp_path / name, noise(8.0), subtype=subtype)
    assert load_recording(path, RATE).warning is None
    whole = path.read_bytes()
    last_page = whole.rfind(b"OggS")
    sizes = (last_page, last_page + 20, len(whole) - 1)
    for size in sizes if subtype else (len(whole) // 2,):
        path.write_bytes(whole[:size])
        recording = load_recording(path, RATE)
        assert recording.warning.startswith("cut short")
        assert 400 < len(recording.samples) < 8 * RATE


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_no_cut_goes_unnoticed(tmp_path, name):
    path = write(tmp_path / name, noise(0.5))
    whole = path.read_bytes()
    sizes = {*range(0, 120), *range(120, len(whole), 499), len(whole) - 1}
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        with contextlib.suppress(AudioError):
            recording = load_recording(path, RATE)
            assert name != "a.flac", size
            assert recording.warning.startswith("cut short: "), size
            if name == "a.wav":
                left = noise(0.5)[: (size - 44) // 2]
                np.testing.assert_array_equal(recording.samples, left)
    if name == "a.flac":
        assert audio_refusal(path).startswith("cut short")


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_streamed_wav_is_not_cut(path, size):
    whole = write(path, noise()).read_bytes()
    path.write_bytes(whole[:40] + struct.pack("<I", size) + whole[44:])
    recording = load_recording(path, RATE)
    assert recording.warning is None
    np.testing.assert_array_equal(recording.samples, noise())


def test_chunks_before_the_data_are_walked(path):
    whole = write(path, noise()).read_bytes()
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    for data, cut in ((whole[36:], False), (whole[36:-2], True)):
        path.write_bytes(whole[:36] + odd + data)
        assert bool(load_recording(path, RATE).warning) == cut


FORMATS = [
    ("a.wav", {}),
    ("a.flac", {}),
    ("a.mp3", {}),
    ("a.ogg", {}),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
]


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_segment_is_that_part_of_the_whole(tmp_path, name, options):
    path = write(tmp_path / name, tone(4.0, hertz=10.3) * noise(4.0) / 9000, **options)
    whole = load_recording(path, RATE).samples.astype(float)
    for offset, duration in ((0.0, 1.0), (1.2345, 2.0), (3.0, None), (0.0, None)):
        segment = load_recording(Segment(path, offset, duration), RATE)
        assert segment.warning is None
        begin = round(offset * RATE)
        expected = whole[begin:][: None if duration is None else round(duration * RATE)]
        assert len(segment.samples) == len(expected)
        error = segment.samples[800:] - expected[800:]  # an Opus decoder has to settle
        assert error.std() <= 0.02 * whole.std()
        if name in ("a.wav", "a.flac"):
            np.testing.assert_array_equal(segment.samples, expected)


def test_nothing_but_the_segment_is_decoded(path, monkeypatch):
    write(path, tone(3.0, 44_100), 44_100)
    decoded, read = [], soundfile.SoundFile.read

    def counted(*arguments, **options):
        decoded.append(len(block := read(*arguments, **options)))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    recording = load_recording(Segment(path, 1.0, 0.5), RATE)
    assert sum(decoded) == 44_100 / 2
    assert len(recording.samples) == RATE / 2


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_segment_that_the_file_ends_in(tmp_path, name):
    path = write(tmp_path / name, noise())
    assert load_recording(Segment(path, 1.0, 2.02), RATE).warning is None  # rounding
    recording = load_recording(Segment(path, 1.0, 2.03), RATE)
    assert recording.warning == "cut short: 2.00 s are left"
    np.testing.assert_array_equal(recording.samples, noise()[RATE:])
    assert load_recording(Segment(path, 0.0, 1e308), RATE).warning
    for offset, said in ((3.0, "3.0"), (1e308, "1e+308")):
        assert f"the offset of {said} s" in audio_refusal(Segment(path, offset, 1.0))
    assert audio_refusal(Segment(path, 1.0, 1e-9)) == "holds no samples"
    assert audio_refusal(Segment(path, 2.98)).startswith("expected at least 0.025 s")


def test_segments_of_a_cut_file(tmp_path, path):
    path.write_bytes(write(path, noise()).read_bytes()[: 44 + 2 * 2 * RATE])
    assert load_recording(Segment(path, 0.5, 1.5), RATE).warning is None
    for segment in (Segment(path, 0.5, 2.0), Segment(path, 0.5)):
        assert load_recording(segment, RATE).warning == "cut short: 1.50 s are left"
    path = write(tmp_path / "a.flac", noise())
    path.write_bytes(path.read_bytes()[:50_000])
    assert len(load_recording(Segment(path, 0.0, 0.5), RATE).samples) == 8000
    assert audio_refusal(Segment(path, 0.5)).startswith("cut short")


@pytest.mark.parametrize(
    ("old", "new"), [(3, 1), (441, 160), (1, 2), (24, 1), (11, 16)]
)
@pytest.mark.parametrize("num_samples", [1, 700, 5000, 12_345, 20_001])
def test_stretches_are_resampled_as_the_whole(monkeypatch, old, new, num_samples):
    monkeypatch.setattr(audio, "SAMPLES_PER_RESAMPLING", 5000)
    waveform = torch.randn(num_samples)
    found = audio.resampled(waveform, old, new)
    torch.testing.assert_close(found, resample(waveform, old, new), rtol=0, atol=1e-5)


GROWTH = """
import resource, sys
from pathlib import Path
from speech.audio import load_recording

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

load_recording(Path(sys.argv[1]), 16_000)
before = peak()
recording = load_recording(Path(sys.argv[2]), 16_000)
print(len(recording.samples), recording.warning, peak() - before)
"""


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("hours", "rate", "channels", "bytes_per_sample"),
    [(3, RATE, 1, 14), (0.25, RATE, 8, 14), (0.5, 3 * RATE, 1, 8)],
)
def test_hours_are_decoded_in_bounded_memory(
    tmp_path, hours, rate, channels, bytes_per_sample
):
    short = write(tmp_path / "short.wav", np.ones((2400, channels), np.int16), rate)
    whole = short.read_bytes()
    num_samples = int(hours * 3600 * rate)
    size = 2 * channels * num_samples
    long = tmp_path / "long.wav"  # sparse: zeros that take no disk
    long.write_bytes(whole[:40] + struct.pack("<I", size) + whole[44:])
    os.truncate(long, 44 + size)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, short, long],
        capture_output=True,
        text=True,
        cwd=REPOSITORY / "src",
        check=True,
    )
    decoded, warning, growth = done.stdout.split()
    assert int(decoded) == num_samples * RATE // rate
    assert warning == "None"
    assert int(growth) < bytes_per_sample * num_samples + 2**27


@pytest.mark.reliability
@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_no_damage_raises_anything_else(tmp_path, name, options):
    path = write(tmp_path / name, noise(0.5), **options)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(60):
        path.write_bytes(whole[: random.integers(len(whole))])
        with contextlib.suppress(AudioError):
            assert len(load_recording(path, RATE).samples) >= 400
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(random.choice([100, len(whole)]), size=5)
        damaged[places] = random.integers(256, size=5)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(AudioError):
            assert len(load_recording(path, RATE).samples) >= 400


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_encoded_speech_sounds_as_before(rate, kind):
    chirp = 0.5 * np.sin(2 * np.pi * np.cumsum(np.linspace(200, 2000, 2 * rate)) / rate)
    full_scale = 32768 if kind == np.int16 else 1
    encoded = encode_ogg((chirp * full_scale).astype(kind), rate)
    decoded, decoded_rate = soundfile.read(io.BytesIO(encoded))
    assert decoded_rate == rate
    assert decoded.shape == chirp.shape
    assert np.corrcoef(decoded, chirp)[0, 1] > 0.99
    assert len(encoded) < len(chirp)  # half of int16's bytes
