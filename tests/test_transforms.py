"""The front end against NeMo's numbers, augmentation by measurement, and their laws."""

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from torchaudio import functional

import transforms
from conftest import CPU, REPOSITORY, tone
from dataset import TrainingBatches, prepare
from engine.parameter_files import load_parameters
from speech.packs import SoundBank
from speech.surroundings import load_surroundings
from transforms import (
    Augmentation,
    Babble,
    Equalizer,
    FrontEnd,
    Level,
    Noise,
    Reverberation,
    Speed,
    Telephone,
)


@pytest.fixture
def front_end(shipped) -> FrontEnd:
    return FrontEnd(shipped().front_end).eval()


def test_filterbank_is_torchaudios():
    slaney = {"norm": "slaney", "mel_scale": "slaney"}
    expected = functional.melscale_fbanks(257, 0.0, 8000.0, 80, 16000, **slaney)
    # torchaudio computes it in float32.
    found = transforms.slaney_filterbank(16000, 512, 80)
    assert torch.allclose(found, expected.T, atol=3e-5)


def test_features_are_nemos(shared, front_end):
    reference = np.load(shared / "reference" / "nemo" / "titanet-tiny.npz")
    reference = {name: torch.from_numpy(reference[name]) for name in reference}
    features, frames = front_end(reference["waveforms"], reference["lengths"])
    assert torch.equal(frames, reference["lengths"] // 160)
    expected = reference["features"][:, :, : features.shape[2]]
    assert (features - expected).abs().max() < 1e-4


def test_padding_never_changes_features(front_end):
    waveform = torch.randn(1, 9999)
    alone, frames = front_end(waveform, torch.tensor([9999]))
    padded = torch.cat([waveform, torch.randn(1, 7000)], 1)
    among = torch.cat([padded, torch.randn(1, 16999)])
    features, both = front_end(among, torch.tensor([9999, 16999]))
    assert both.tolist() == [frames.item(), 106]
    assert (features[:1, :, :62] - alone).abs().max() < 1e-5
    assert features[0, :, 62:].abs().max() == 0
    unpadded, no_frames = front_end(among)  # without lengths nothing is padding
    assert no_frames is None
    assert (unpadded[1] - features[1]).abs().max() < 1e-5


def test_bands_have_mean_0_and_deviation_1_at_any_level(shipped, front_end):
    waveforms = torch.randn(2, 32000)
    log_mel = front_end.log_mel(waveforms)
    centred = log_mel - log_mel.mean(2, keepdim=True)
    expected = centred / log_mel.std(2, keepdim=True)
    assert (front_end(waveforms)[0] - expected).abs().max() < 1e-4
    assert (front_end(4 * waveforms)[0] - expected).abs().max() < 1e-2
    mean_only = FrontEnd(shipped("front_end.normalization=mean").front_end).eval()
    assert (mean_only(waveforms)[0] - centred).abs().max() < 1e-4


def test_tone_is_loudest_in_its_band(front_end):
    log_mel = front_end.log_mel(torch.from_numpy(tone(1, hertz=2000)).float()[None])
    band = transforms.slaney_filterbank(16000, 512, 80)[log_mel[0, :, 50].argmax()]
    assert abs(band.argmax() * 16000 / 512 - 2000) < 32


def test_silence_is_finite_and_dithered_in_training_only(front_end):
    silence = torch.zeros(1, 16000)
    features, _ = front_end(silence, torch.tensor([16000]))
    assert features.isfinite().all()
    assert torch.equal(front_end(silence)[0], front_end(silence)[0])
    front_end.train()
    assert not torch.equal(front_end(silence)[0], front_end(silence)[0])


@pytest.fixture
def masked(shipped):
    """Where SpecAugment puts zeros into ones."""

    def run(*shape: int, **changes: float) -> torch.Tensor:
        key = "augmentation.spec_augment"
        p = shipped(*(f"{key}.{name}={value}" for name, value in changes.items()))
        augment = transforms.SpecAugment(p.augmentation.spec_augment)
        assert not list(augment.parameters())
        return augment(torch.ones(*shape)) == 0

    return run


def test_spec_augment_keeps_its_bounds_and_reaches_all_within(masked):
    zeros = masked(200, 80, 300)
    bands, stretches = zeros.all(2), zeros.all(1)
    for rows, count, widest in ((bands, 3, 4), (stretches, 5, 9)):
        starts = rows.int().diff(prepend=torch.zeros(200, 1), dim=1) == 1
        assert starts.sum(1).max() <= count
        assert rows.sum(1).max() <= count * widest
    assert bands.sum(1).max() > 4  # masks are drawn for each utterance
    assert (bands[0] != bands[1]).any()
    assert torch.equal(zeros, bands[:, :, None] | stretches[:, None])
    zeros = masked(3000, 80, 40, time_fraction=0.3)
    assert zeros.all(2).any(0).all()
    assert zeros.all(1).any(0).all()
    assert not masked(4, 80, 100, frequency_masks=0, time_masks=0).any()


@pytest.fixture
def speed_of(shipped, monkeypatch):
    speed = Speed(shipped("augmentation.speed.probability=1").augmentation.speed)

    def change(waveforms: torch.Tensor, percent: int) -> torch.Tensor:
        chosen = torch.tensor([speed.percents.tolist().index(percent)])
        monkeypatch.setattr(torch, "randint", lambda _, size: chosen.expand(size))
        return speed(waveforms, waveforms.shape[1] * 100 // 105)

    return change


@pytest.fixture
def levels_of(speed_of):
    """Levels of a full-scale tone at another speed in dB, [8001] of 1 Hz."""

    def levels(hertz: int, percent: int) -> torch.Tensor:
        x = torch.from_numpy(tone(4.2, hertz=hertz, amplitude=1)).float()[None]
        x = speed_of(x, percent)[0][200:-200].double()
        window = torch.signal.windows.kaiser(len(x), beta=20, dtype=torch.float64)
        bins = torch.fft.rfft(x * window, n=5 * 16_000)[::5]
        return 20 * torch.log10(bins.abs() / window.sum() * 2 + 1e-12)

    return levels


@pytest.mark.parametrize("percent", range(95, 106))
@pytest.mark.parametrize("hertz", [200, 1000, 6000])
def test_speed_moves_a_tone_without_aliases(levels_of, percent, hertz):
    levels, moved = levels_of(hertz, percent), hertz * percent // 100
    assert levels.argmax() == moved
    assert abs(levels[moved]) < 0.3
    assert levels[(torch.arange(8001) - moved).abs() > 20].max() < -60


@pytest.mark.parametrize("hertz", [7620, 7800, 7990])
def test_speed_removes_what_would_alias(levels_of, hertz):
    """At 1.05 a tone above 7619 Hz lands beyond half the sample rate."""
    assert levels_of(hertz, 105).max() < -60


def test_speed_of_one_changes_no_bit(speed_of):
    x = torch.randn(3, 33_600)
    assert torch.equal(speed_of(x, 100), x[:, :32_000])


@pytest.mark.parametrize("percent", [96, 103])
def test_speed_agrees_with_resampling(speed_of, percent):
    x = torch.randn(2, 33_600)
    for _ in range(2):
        x = functional.lowpass_biquad(x, 16_000, 3000)
    expected = functional.resample(x, percent, 100, lowpass_filter_width=64)
    error = (speed_of(x, percent)[:, :31_000] - expected[:, :31_000])[:, 200:]
    assert error.square().mean() < 1e-5 * x.square().mean()


def bank(waveform: torch.Tensor) -> SoundBank:
    """A single sound."""
    samples = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16)
    return SoundBank(samples, [0], [len(samples)], CPU)


def snr_of(speech: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratios in dB, [B]."""
    added = noisy - speech
    return 10 * torch.log10(speech.square().mean(1) / added.square().mean(1))


def test_convolution_is_scipys():
    x, responses = torch.randn(4, 5000), torch.randn(4, 900) * 0.95 ** torch.arange(900)
    responses[:, 30] = 20  # the direct sound
    found = transforms.reverberate(x, responses)
    for row, response, wet in zip(x, responses, found, strict=True):
        full = scipy.signal.fftconvolve(row.double(), response.double())[30:5030]
        assert np.abs(wet.numpy() - full).max() < 1e-5 * np.abs(full).max()


@pytest.mark.parametrize("place", [0, 5, 999])
def test_rooms_keep_the_power_and_the_place_of_speech(place):
    response = torch.zeros(3000)
    response[place] = 0.5
    x = torch.randn(2, 8000)
    found = Reverberation(1.0, bank(response), 3000)(x)
    assert (found - x).abs().max() < 1e-5
    response[place : place + 2000] = 0.9 * 0.99 ** torch.arange(2000.0)
    click = torch.zeros(2, 8000).index_fill(1, torch.tensor(3000), 1)
    found = Reverberation(1.0, bank(response), 3000)(click)
    assert torch.allclose(found.square().mean(1), click.square().mean(1), rtol=1e-4)
    assert found.abs().argmax(1).tolist() == [3000, 3000]
    assert found[:, :3000].abs().max() < 1e-6


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("length", [900, 16_000, 50_000])
def test_noise_has_the_ratio_that_was_drawn(snr, length):
    speech = torch.randn(5, 16_000) * torch.tensor([1, 0.1, 0.01, 3, 1e-4])[:, None]
    noise = Noise(1.0, bank(0.1 * torch.randn(length)), (snr, snr))
    assert (snr_of(speech, noise(speech)) - snr).abs().max() < 0.1


def test_ratios_fill_their_range():
    speech = torch.randn(400, 2000)
    noise = Noise(1.0, bank(0.1 * torch.randn(9000)), (0.0, 15.0))
    ratios = snr_of(speech, noise(speech))
    assert (ratios - 7.5).abs().max() <= 7.51
    assert ratios.mean() == pytest.approx(7.5, abs=1)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_telephone_passes_its_band_alone(rate):
    torch.manual_seed(0)
    x = 0.1 * torch.randn(40, 2 * rate)
    power = torch.fft.rfft(Telephone(1.0, rate)(x)).abs().square()  # [B, bins]
    before = torch.fft.rfft(x).abs().square()
    hertz = torch.arange(power.shape[1]) / 2
    for low, high in ((400, 1000), (1000, 3300)):
        band = (hertz > low) & (hertz < high)
        expected = before[:, band].mean().item()
        assert power[:, band].mean() == pytest.approx(expected, rel=0.05)
    assert power[:, hertz > 4000].sum() < 1e-6 * power.sum()
    low = power[:, (hertz > 50) & (hertz < 100)] > 1e-3 * before.mean()
    passes_low = low.float().mean(1) > 0.5
    assert 0.1 < passes_low.float().mean() < 0.9  # the band's lower end is drawn


def test_mu_law_is_libsndfiles(tmp_path):
    path, x = tmp_path / "x.wav", np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(path, x, 8000, subtype="ULAW")
    coded, _ = soundfile.read(path, dtype="int16")
    found = transforms.through_mu_law(torch.from_numpy(x / np.float32(32768)))
    assert np.array_equal(found.numpy() * 32768, coded)
    loud = transforms.through_mu_law(torch.tensor([7.0, -7.0, 0.0]))
    assert (loud * 32768).tolist() == [32124, -32124, 0]


def test_babble_is_four_other_voices_at_the_ratio():
    voices = torch.eye(6).repeat_interleave(100, 1)  # each alone in its stretch
    added = Babble(1.0, (3.0, 3.0))(voices) - voices
    heard = added.view(6, 6, 100).abs().amax(2) > 0
    assert (heard.sum(1) == 4).all()
    assert not heard.diagonal().any()
    ratio = voices.square().mean(1) / added.square().mean(1)
    assert (10 * ratio.log10()).numpy() == pytest.approx(3, abs=1e-4)
    alone = Babble(1.0, (3.0, 3.0))(voices[:1])
    assert torch.equal(alone, voices[:1])


def test_an_equalizer_draws_straight_lines_in_decibels_over_octaves():
    impulses = torch.zeros(3, 4000)
    impulses[:, 0] = 1
    torch.manual_seed(5)
    spectra = torch.fft.rfft(Equalizer(1.0, 16_000)(impulses)).abs()  # a bin is 4 Hz
    gains = 20 * spectra[:, 1:].log10().numpy()
    assert 3 < np.abs(gains).max() <= 12.0001
    hertz = np.arange(4, 8001, 4)
    points = 50 * 2 ** np.linspace(0, np.log2(8000 / 50), 8)
    for row in gains:
        at_points = np.interp(np.log2(points), np.log2(hertz), row)
        lines = np.interp(np.log2(hertz), np.log2(points), at_points)
        assert row == pytest.approx(lines, abs=0.4)


def test_levels_clip_or_leave_few_bits():
    x = torch.randn(400, 2000)
    ratio = Level(1.0)(x).abs().amax(1) / x.abs().amax(1)
    values = torch.tensor([len(row.unique()) for row in Level(1.0)(x)])
    clipped = ratio < 0.72
    assert clipped.float().mean() == pytest.approx(0.5, abs=0.08)
    assert ratio.min() >= 0.1 - 1e-6
    few = values <= 2**8 + 1
    assert few.float().mean() == pytest.approx(0.5, abs=0.08)
    assert values.min() >= 2**3


@pytest.mark.parametrize("sound", [torch.zeros(500), torch.ones(500)])
def test_silence_divides_nothing(sound):
    speech = torch.randn(2, 4000)
    speech[1] = 0
    noise, rooms = Noise(1.0, bank(sound), (0, 0)), Reverberation(1.0, bank(sound), 500)
    for found in (noise(speech), rooms(speech)):
        assert found.isfinite().all()
        assert not found[1].any()
        assert torch.equal(found, speech) == (not sound.any())


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_utterance_is_changed_with_its_own_probability(shipped, probability):
    x = torch.randn(300, 2100)
    p = shipped(f"augmentation.speed.probability={max(probability, 0.01)}")
    noise, room = bank(0.5 * torch.randn(3000)), bank(0.9 * torch.rand(100))
    for changed, expected in (
        (Noise(probability, noise, (0.0, 5.0))(x), probability),
        (Reverberation(probability, room, 100)(x), probability),
        (Telephone(probability, 16_000)(x), probability),
        (Babble(probability, (0.0, 5.0))(x), probability),
        (Equalizer(probability, 16_000)(x), probability),
        (Level(probability)(x), probability),
        # One speed in eleven is that of the utterance.
        (Speed(p.augmentation.speed)(x, 2000), probability * 10 / 11),
    ):
        share = (changed != x[:, : changed.shape[1]]).any(1).float().mean()
        assert share == pytest.approx(expected, abs=0.08)


@pytest.fixture
def augmented(miniature):
    """The first batch of an epoch, and its waveforms augmented."""

    def run(*overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
        p = miniature(*overrides)
        batch = next(TrainingBatches(prepare(p.dataset, p.front_end), p, CPU).epoch(1))
        surroundings = load_surroundings(p, CPU)
        augment = Augmentation(p.augmentation, p.front_end.sample_rate, surroundings)
        torch.manual_seed(batch.seed)
        return batch.waveforms, augment(batch.waveforms, batch.crop)

    return run


def test_augmentation_is_a_function_of_seed_epoch_and_batch(augmented):
    _, first = augmented()
    torch.rand(9)
    assert torch.equal(augmented()[1], first)
    _, other = augmented("seed=2")
    assert other.shape != first.shape or not torch.equal(other, first)


def test_all_is_switched_off(augmented):
    files = REPOSITORY / "parameters.yml", REPOSITORY / "init" / "unaugmented.yml"
    kinds = dict(load_parameters(*files).augmentation)
    probabilities = {k: getattr(kinds[k], "probability", None) for k in kinds}
    assert set(probabilities.values()) == {0, None}
    keys = [key for key, probability in probabilities.items() if probability == 0]
    cut, unchanged = augmented(*(f"augmentation.{key}.probability=0" for key in keys))
    assert torch.equal(cut, unchanged)


@torch.inference_mode()
def test_real_rooms_and_noise(shared, miniature):
    noise = f"augmentation.noise.root={shared / 'data' / 'noise'}"
    rooms = f"augmentation.reverberation.root={shared / 'data' / 'rirs'}"
    p = miniature(noise, rooms)
    surroundings = load_surroundings(p, CPU)
    augmentation = Augmentation(p.augmentation, p.front_end.sample_rate, surroundings)
    assert len(augmentation.changes["noise"].recordings) == 400
    assert len(augmentation.changes["reverberation"].responses) == 60
    for seed in range(20):
        torch.manual_seed(seed)
        found = augmentation(0.1 * torch.randn(16, 16_800), 16_000)
        assert found.shape == (16, 16_000)
        assert found.isfinite().all()
