"""The front end against NeMo's numbers, augmentation by measurement, and their laws."""

import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio

from conftest import REPOSITORY
from dataset import TrainingBatches, prepare
from engine.parameter_files import load_parameters
from speech.packs import SoundBank
from speech.surroundings import load_surroundings
from transforms import (
    Augmentation,
    FrontEnd,
    Noise,
    Reverberation,
    SpecAugment,
    Speed,
    Telephone,
    reverberate,
    slaney_filterbank,
    through_mu_law,
)

CPU = torch.device("cpu")


@pytest.fixture
def front_end(shipped) -> FrontEnd:
    return FrontEnd(shipped().front_end).eval()


def test_filterbank_is_torchaudios():
    expected = torchaudio.functional.melscale_fbanks(
        257, 0.0, 8000.0, 80, 16000, norm="slaney", mel_scale="slaney"
    )
    # torchaudio computes it in float32.
    assert torch.allclose(slaney_filterbank(16000, 512, 80), expected.T, atol=3e-5)


def test_features_are_nemos(shared, front_end):
    reference = np.load(shared / "reference" / "nemo" / "titanet-tiny.npz")
    features, frames = front_end(
        torch.from_numpy(reference["waveforms"]), torch.from_numpy(reference["lengths"])
    )
    assert frames.tolist() == (reference["lengths"] // 160).tolist()
    expected = torch.from_numpy(reference["features"])[:, :, : features.shape[2]]
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


def test_no_lengths_means_no_padding(front_end):
    waveforms = torch.randn(3, 16000)
    features, frames = front_end(waveforms)
    assert frames is None
    expected, _ = front_end(waveforms, torch.full((3,), 16000))
    assert (features - expected).abs().max() < 1e-5


def test_bands_have_mean_0_and_deviation_1(front_end):
    features, _ = front_end(torch.randn(2, 32000))
    assert features.mean(2).abs().max() < 1e-4
    assert (features.std(2) - 1).abs().max() < 1e-4


def test_mean_normalization_keeps_the_deviation(shipped, front_end):
    centred = FrontEnd(shipped("front_end.normalization=mean").front_end).eval()
    waveforms = torch.randn(2, 32000)
    log_mel = front_end.log_mel(waveforms)
    features, _ = centred(waveforms)
    assert (features - (log_mel - log_mel.mean(2, keepdim=True))).abs().max() < 1e-4


def test_level_never_changes_features(front_end):
    waveforms = torch.randn(1, 32000)
    louder, _ = front_end(4 * waveforms)
    assert (louder - front_end(waveforms)[0]).abs().max() < 1e-2


def test_tone_is_loudest_in_its_band(front_end):
    seconds = torch.arange(16000) / 16000
    log_mel = front_end.log_mel(torch.sin(2 * torch.pi * 2000 * seconds)[None])
    loudest = log_mel[0, :, 50].argmax()
    centre = slaney_filterbank(16000, 512, 80)[loudest].argmax() * 16000 / 512
    assert abs(centre - 2000) < 32


def test_silence_is_finite(front_end):
    features, _ = front_end(torch.zeros(1, 16000), torch.tensor([16000]))
    assert features.isfinite().all()


def test_dither_in_training_only(front_end):
    waveforms = torch.zeros(1, 16000)
    assert torch.equal(front_end(waveforms)[0], front_end(waveforms)[0])
    front_end.train()
    assert not torch.equal(front_end(waveforms)[0], front_end(waveforms)[0])


def runs_of_true(row: torch.Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    edges = torch.diff(torch.nn.functional.pad(row.int(), (1, 1)))
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return (ends - starts).flatten().tolist()


@pytest.fixture
def masked(shipped):
    """Where SpecAugment puts zeros into ones."""

    def run(*shape: int, **changes: float) -> torch.Tensor:
        key = "augmentation.spec_augment"
        p = shipped(*(f"{key}.{name}={value}" for name, value in changes.items()))
        augment = SpecAugment(p.augmentation.spec_augment)
        assert not list(augment.parameters())
        return augment(torch.ones(*shape)) == 0

    return run


def test_spec_augment_keeps_its_bounds(masked):
    zeros = masked(200, 80, 300)
    bands, stretches = zeros.all(2), zeros.all(1)
    for rows, count, widest in ((bands, 3, 4), (stretches, 5, 9)):
        assert max(len(runs_of_true(row)) for row in rows) <= count
        assert rows.sum(1).max() <= count * widest
    assert bands.sum(1).max() > 4  # masks are drawn for each utterance
    assert (bands[0] != bands[1]).any()
    assert torch.equal(zeros, bands[:, :, None] | stretches[:, None])


def test_spec_augment_reaches_every_band_and_frame(masked):
    zeros = masked(3000, 80, 40, time_fraction=0.3)
    assert zeros.all(2).any(0).all()
    assert zeros.all(1).any(0).all()


def test_spec_augment_of_no_masks_changes_nothing(masked):
    assert not masked(4, 80, 100, frequency_masks=0, time_masks=0).any()


# Augmentation


def tone(hertz: float, size: int) -> torch.Tensor:
    times = torch.arange(size, dtype=torch.float64) / 16_000
    return torch.sin(2 * torch.pi * hertz * times).float()


def spectrum(x: torch.Tensor) -> torch.Tensor:
    """Levels in dB at every 1 Hz, a full-scale sine at 0, of more than a second."""
    window = torch.signal.windows.kaiser(len(x), beta=20, dtype=torch.float64)
    bins = torch.fft.rfft(x.double() * window, n=16_000 * -(-len(x) // 16_000))
    levels = 20 * torch.log10(bins.abs() / window.sum() * 2 + 1e-12)
    return levels[:: -(-len(x) // 16_000)]


@pytest.fixture
def speed_of(shipped, monkeypatch):
    speed = Speed(shipped("augmentation.speed.probability=1").augmentation.speed)

    def change(waveforms: torch.Tensor, percent: int) -> torch.Tensor:
        chosen = speed.percents.tolist().index(percent)
        monkeypatch.setattr(
            torch, "randint", lambda high, size: torch.full(size, chosen)
        )
        return speed(waveforms, waveforms.shape[1] * 100 // 105)

    return change


@pytest.mark.parametrize("percent", range(95, 106))
@pytest.mark.parametrize("hertz", [200, 1000, 6000])
def test_speed_moves_a_tone_without_aliases(speed_of, percent, hertz):
    levels = spectrum(speed_of(tone(hertz, 67_200)[None], percent)[0][200:-200])
    moved = hertz * percent // 100
    assert levels.argmax() == moved
    assert abs(levels[moved]) < 0.3
    away = (torch.arange(len(levels)) - moved).abs() > 20
    assert levels[away].max() < -60


@pytest.mark.parametrize("hertz", [7620, 7800, 7990])
def test_speed_removes_what_would_alias(speed_of, hertz):
    """At 1.05 a tone above 7619 Hz lands beyond half the sample rate."""
    assert spectrum(speed_of(tone(hertz, 67_200)[None], 105)[0][200:-200]).max() < -60


def test_speed_of_one_changes_no_bit(speed_of):
    x = torch.randn(3, 33_600)
    assert torch.equal(speed_of(x, 100), x[:, :32_000])


def test_speed_agrees_with_resampling(speed_of):
    x = torchaudio.functional.lowpass_biquad(torch.randn(2, 33_600), 16_000, 3000)
    x = torchaudio.functional.lowpass_biquad(x, 16_000, 3000)
    for percent in (96, 103):
        expected = torchaudio.functional.resample(
            x, percent, 100, lowpass_filter_width=64
        )
        found = speed_of(x, percent)
        middle = slice(200, 31_000)
        error = (found - expected[:, : found.shape[1]])[:, middle]
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
    found = reverberate(x, responses)
    for row, response, wet in zip(x, responses, found, strict=True):
        full = scipy.signal.fftconvolve(row.double(), response.double())[30:5030]
        assert np.abs(wet.numpy() - full).max() < 1e-5 * np.abs(full).max()


@pytest.mark.parametrize("place", [0, 5, 999])
def test_a_unit_impulse_leaves_speech_as_it_is(place):
    response = torch.zeros(1000)
    response[place] = 0.5
    x = torch.randn(2, 8000)
    found = Reverberation(1.0, bank(response), 1000)(x)
    assert (found - x).abs().max() < 1e-5


def test_rooms_keep_the_power_and_the_place_of_speech():
    x = torch.zeros(2, 8000)
    x[:, 3000] = 1.0
    response = 0.9 * 0.99 ** torch.arange(2000.0)
    found = Reverberation(1.0, bank(response), 2000)(x)
    assert torch.allclose(found.square().mean(1), x.square().mean(1), rtol=1e-4)
    assert found.abs().argmax(1).tolist() == [3000, 3000]
    assert found[:, :3000].abs().max() < 1e-6


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("length", [900, 16_000, 50_000])
def test_noise_has_the_ratio_that_was_drawn(snr, length):
    speech = torch.randn(5, 16_000) * torch.tensor([1, 0.1, 0.01, 3, 1e-4])[:, None]
    noise = Noise(1.0, bank(0.1 * torch.randn(length)), (snr, snr))
    assert (snr_of(speech, noise(speech)) - snr).abs().max() < 0.1


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


def test_mu_law_is_torchaudios():
    x = torch.linspace(-1, 1, 10_001)
    codes = torchaudio.functional.mu_law_encoding(x, 256)
    expected = torchaudio.functional.mu_law_decoding(codes, 256)
    found = through_mu_law(x)
    # rounding decides at the edge of two levels
    assert ((found - expected).abs() < 1e-6).float().mean() > 0.995
    assert (found - x).abs().max() < 0.022  # half of the widest step
    assert through_mu_law(torch.tensor([7.0, -7.0])).tolist() == [1.0, -1.0]


def test_ratios_fill_their_range():
    speech = torch.randn(400, 2000)
    noise = Noise(1.0, bank(0.1 * torch.randn(9000)), (0.0, 15.0))
    ratios = snr_of(speech, noise(speech))
    assert ratios.min() + 0.01 >= 0
    assert ratios.max() <= 15.01
    assert ratios.mean() == pytest.approx(7.5, abs=1)


def test_silence_divides_nothing():
    speech = torch.randn(2, 4000)
    speech[1] = 0
    for sound in (torch.zeros(500), torch.rand(500)):
        for change in (
            Noise(1.0, bank(sound), (0.0, 0.0)),
            Reverberation(1.0, bank(sound), 500),
        ):
            found = change(speech)
            assert found.isfinite().all()
            assert not found[1].any()
            assert torch.equal(found, speech) == (not sound.any())


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_utterance_is_changed_with_its_own_probability(shipped, probability):
    x = torch.randn(300, 2100)
    speed = shipped(f"augmentation.speed.probability={max(probability, 0.01)}")
    noise, room = bank(0.5 * torch.randn(3000)), bank(0.9 * torch.rand(100))
    for changed in (
        Noise(probability, noise, (0.0, 5.0))(x) != x,
        Reverberation(probability, room, 100)(x) != x,
        Telephone(probability, 16_000)(x) != x,
    ):
        share = changed.any(1).float().mean()
        assert share == pytest.approx(probability, abs=0.08)
    moved = Speed(speed.augmentation.speed)(x, 2000) != x[:, :2000]
    # One speed in eleven is that of the utterance.
    share = moved.any(1).float().mean()
    assert share == pytest.approx(probability * 10 / 11, abs=0.08)


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


def test_all_is_switched_off(augmented, shipped):
    kinds = [name for name, k in shipped().augmentation if hasattr(k, "probability")]
    cut, unchanged = augmented(*(f"augmentation.{k}.probability=0" for k in kinds))
    assert torch.equal(cut, unchanged)


def test_unaugmented_switches_all_off():
    files = REPOSITORY / "parameters.yml", REPOSITORY / "init" / "unaugmented.yml"
    kinds = [kind for _, kind in load_parameters(*files).augmentation]
    assert not any(getattr(kind, "probability", 0) for kind in kinds)


@torch.inference_mode()
def test_real_rooms_and_noise(shared, miniature):
    p = miniature(
        f"augmentation.noise.root={shared / 'data' / 'noise'}",
        f"augmentation.reverberation.root={shared / 'data' / 'rirs'}",
    )
    surroundings = load_surroundings(p, CPU)
    augmentation = Augmentation(p.augmentation, p.front_end.sample_rate, surroundings)
    assert len(augmentation.noise.recordings) == 400
    assert len(augmentation.reverberation.responses) == 60
    for seed in range(20):
        torch.manual_seed(seed)
        found = augmentation(0.1 * torch.randn(16, 16_800), 16_000)
        assert found.shape == (16, 16_000)
        assert found.isfinite().all()
