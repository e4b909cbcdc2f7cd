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
from numpy.testing import assert_array_equal
from torchaudio.functional import resample

from conftest import RATE, REPOSITORY, noise, tone, write
from speech import audio
from speech.audio import AudioError, Recording, Segment, encode_ogg, load_recording

OPUS = {"format": "OGG", "subtype": "OPUS"}
FORMATS = {"a.wav": {}, "a.flac": {}, "a.mp3": {}, "a.ogg": {}, "a.opus": OPUS}


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
    assert_array_equal(recording.samples, samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_channels_are_averaged_or_chosen(tmp_path, name):
    path = tmp_path / name
    channels = np.stack([noise(), noise()[::-1], noise() // 2], axis=1)
    write(path, channels)
    for channel in range(3):
        samples = load_recording(Segment(path, channel=channel), RATE).samples
        assert_array_equal(samples, channels[:, channel])
    few = np.array([[100, 300, 200], [-100, 100, 90]], np.int16)
    samples = load(path, np.repeat(few, 400, axis=0)).samples
    assert_array_equal(samples, np.repeat([200, 30], 400))


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [8_000, 11_025, 48_000, 192_000, 44_101, 383_993])
def test_any_rate_and_number_of_channels(path, channels, rate):
    """Rates for which no filter is small are rounded, by less than a thousandth."""
    is_odd = rate in (44_101, 383_993)
    speech = np.zeros((rate, channels))
    speech[:, -1] = tone(1.0, rate, hertz=1000.0)
    samples = load(path, speech, rate, subtype="PCM_24").samples
    assert len(samples) == pytest.approx(RATE, abs=16 if is_odd else 0)
    spectrum = np.abs(np.fft.rfft(samples[:RATE] * np.hanning(len(samples[:RATE]))))
    assert abs(spectrum.argmax() - 1000) <= is_odd  # bins of 1 Hz
    expected = 0.5 / math.sqrt(2) * 32768  # the channels without sound are left out
    assert samples.std() == pytest.approx(expected, rel=0.01)


def test_resampling_does_not_alias(path):
    samples = load(path, tone(1.0, 48_000, hertz=12_000.0), 48_000).samples[100:-100]
    assert samples.std() < 0.003 * 0.35 * 32768  # 50 dB below the tone


def test_peaks_beyond_full_scale_are_clipped(path):
    peaks = np.repeat([1.5, 1.0, -1.0, -2.0], 400)
    samples = load(path, peaks, subtype="FLOAT").samples
    assert samples[[0, 400, 800, 1200]].tolist() == [32767, 32767, -32768, -32768]


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (noise()[:0], RATE, "holds no samples"),
        (noise()[:1], RATE, "expected at least 0.025 s, found 0.0001 s"),
        (noise()[:399], RATE, "expected at least 0.025 s, found 0.0249 s"),
        (noise(), 1, "1 Hz"),
        (noise(), 3_000_000, "3000000 Hz"),
        (np.insert(tone(), 700, np.nan), RATE, "finite"),
        (np.insert(tone(), 700, np.inf), RATE, "finite"),
        (np.insert(tone(), 700, np.nan), 48_000, "finite"),
        (np.insert(tone(), 700, -np.inf), 48_000, "finite"),
    ],
)
def test_unusable_samples(path, samples, rate, said):
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    assert said in audio_refusal(write(path, samples, rate, subtype=subtype))


def test_no_audio(path):
    assert audio_refusal(path) == "expected a file, found none"
    for content in (b"", b"This is a letter.\n" * 99, bytes(10_000)):
        path.write_bytes(content)
        assert audio_refusal(path).startswith("not readable as audio: ")


# Channels, format, bytes a frame and bits a sample that cannot be.
@pytest.mark.parametrize(
    ("place", "value"),
    [(22, 0), (22, 0xFFFF), (20, 0xFFFF), (32, 0), (34, 0), (34, 7)],
)
def test_wrong_headers(path, place, value):
    whole = bytearray(write(path, noise()).read_bytes())
    struct.pack_into("<H", whole, place, value)
    path.write_bytes(whole)
    with contextlib.suppress(AudioError):
        assert load_recording(path, RATE).samples.ndim == 1


def test_the_content_counts_not_the_name(path):
    lying = write(path, noise()).rename(path.with_suffix(".flac"))
    assert_array_equal(load_recording(lying, RATE).samples, noise())


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
    for size in (*range(120), *range(120, len(whole), 499), len(whole) - 1):
        path.write_bytes(whole[:size])
        with contextlib.suppress(AudioError):
            recording = load_recording(path, RATE)
            assert name != "a.flac", size
            assert recording.warning.startswith("cut short: "), size
            if name == "a.wav":
                assert_array_equal(recording.samples, noise(0.5)[: (size - 44) // 2])
    if name == "a.flac":
        assert audio_refusal(path).startswith("cut short")


def test_a_wav_is_cut_where_a_header_that_knows_its_size_says_so(path):
    whole = write(path, noise()).read_bytes()
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"  # a chunk before the data
    streamed = (struct.pack("<I", size) for size in (0x7FFFF000, 0xFFFFFFFF))
    for content, num_missing in (
        (whole[:36] + odd + whole[36:], 0),
        (whole[:36] + odd + whole[36:-2], 1),
        *((whole[:40] + size + whole[44:], 0) for size in streamed),
    ):
        path.write_bytes(content)
        recording = load_recording(path, RATE)
        assert bool(recording.warning) == num_missing
        assert_array_equal(recording.samples, noise()[: len(noise()) - num_missing])


@pytest.mark.parametrize("name", FORMATS)
def test_segment_is_that_part_of_the_whole(tmp_path, name):
    sound = tone(4.0, hertz=10.3) * noise(4.0) / 9000
    path = write(tmp_path / name, sound, **FORMATS[name])
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
            assert_array_equal(segment.samples, expected)


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
    assert_array_equal(recording.samples, noise()[RATE:])
    assert load_recording(Segment(path, 0.0, 1e308), RATE).warning
    for segment, said in (
        (Segment(path, 3.0, 1.0), "the offset of 3.0 s"),
        (Segment(path, 1e308, 1.0), "the offset of 1e+308 s"),
        (Segment(path, 1.0, 1e-9), "holds no samples"),
        (Segment(path, 2.98), "expected at least 0.025 s"),
    ):
        assert said in audio_refusal(segment)


def test_segments_of_a_cut_file(tmp_path, path):
    path.write_bytes(write(path, noise()).read_bytes()[: 44 + 2 * 2 * RATE])
    assert load_recording(Segment(path, 0.5, 1.5), RATE).warning is None
    for segment in (Segment(path, 0.5, 2.0), Segment(path, 0.5)):
        assert load_recording(segment, RATE).warning == "cut short: 1.50 s are left"
    path = write(tmp_path / "a.flac", noise())
    path.write_bytes(path.read_bytes()[:50_000])
    assert len(load_recording(Segment(path, 0.0, 0.5), RATE).samples) == 8000
    assert audio_refusal(Segment(path, 0.5)).startswith("cut short")


@pytest.mark.parametrize("ratio", [(3, 1), (441, 160), (1, 2), (24, 1), (11, 16)])
@pytest.mark.parametrize("num_samples", [1, 700, 5000, 12_345, 20_001])
def test_stretches_are_resampled_as_the_whole(monkeypatch, ratio, num_samples):
    monkeypatch.setattr(audio, "SAMPLES_PER_RESAMPLING", 5000)
    waveform = torch.randn(num_samples)
    found = audio.resampled(waveform, *ratio)
    torch.testing.assert_close(found, resample(waveform, *ratio), rtol=0, atol=1e-5)


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
    command, home = [sys.executable, "-c", GROWTH, short, long], REPOSITORY / "src"
    printed = subprocess.check_output(command, text=True, cwd=home)
    decoded, warning, growth = printed.split()
    assert (int(decoded), warning) == (num_samples * RATE // rate, "None")
    assert int(growth) < bytes_per_sample * num_samples + 2**27


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_encoded_speech_sounds_as_before(rate, kind):
    chirp = 0.5 * np.sin(2 * np.pi * np.cumsum(np.linspace(200, 2000, 2 * rate)) / rate)
    full_scale = 32768 if kind == np.int16 else 1
    encoded = encode_ogg((chirp * full_scale).astype(kind), rate)
    decoded, decoded_rate = soundfile.read(io.BytesIO(encoded))
    assert (decoded_rate, decoded.shape) == (rate, chirp.shape)
    assert np.corrcoef(decoded, chirp)[0, 1] > 0.99
    assert len(encoded) < len(chirp)  # half of int16's bytes
