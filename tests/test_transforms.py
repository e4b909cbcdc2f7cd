"""The front end against NeMo's numbers and its own laws; SpecAugment's bounds."""

import numpy as np
import pytest
import torch
import torchaudio

from transforms import FrontEnd, SpecAugment, slaney_filterbank


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


def test_spec_augment_keeps_its_bounds(shipped):
    p = shipped().augmentation.spec_augment
    masked = SpecAugment(p)(torch.ones(200, 80, 300)) == 0
    bands, stretches = masked.all(2), masked.all(1)
    for row in bands:
        assert len(runs_of_true(row)) <= 3
        assert row.sum() <= 3 * 4
    for row in stretches:
        assert len(runs_of_true(row)) <= 5
        assert row.sum() <= 5 * 9
    assert bands.sum(1).max() > 4  # masks are drawn for each utterance
    assert (bands[0] != bands[1]).any()
    assert torch.equal(masked, bands[:, :, None] | stretches[:, None])


def test_spec_augment_reaches_every_band_and_frame(shipped):
    p = shipped("augmentation.spec_augment.time_fraction=0.3").augmentation.spec_augment
    masked = SpecAugment(p)(torch.ones(3000, 80, 40)) == 0
    assert masked.all(2).any(0).all()
    assert masked.all(1).any(0).all()


def test_spec_augment_of_no_masks_changes_nothing(shipped):
    p = shipped(
        "augmentation.spec_augment.frequency_masks=0",
        "augmentation.spec_augment.time_masks=0",
    ).augmentation.spec_augment
    features = torch.randn(4, 80, 100)
    assert torch.equal(SpecAugment(p)(features), features)
