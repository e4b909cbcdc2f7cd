"""Waveforms to features: the log-mel front end of TitaNet, and SpecAugment.

waveforms [B, N], lengths [B] samples -> `FrontEnd` -> features [B, M, T], frames [B]

B utterances, N samples, M mel bands, T frames, F frequency bins, K masks. The front end
is that of NeMo's published TitaNet (arXiv 2110.04410, section 3.1); SpecAugment is
arXiv 1904.08779. Chance comes from torch's default generator, which training seeds anew
for every batch.
"""

import numpy as np
import torch
from torch import Tensor, nn

from parameters import FrontEndParameters, SpecAugmentParameters

LOG_FLOOR = 2.0**-24
DEVIATION_FLOOR = 1e-5


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    logarithmic = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, logarithmic)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def slaney_filterbank(sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Triangular mel bands of unit area from 0 Hz to half the sample rate, [M, F]
    float32.

    Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
    Computed in float64, because float32 differs by 2e-5.
    """
    nyquist = sample_rate / 2
    bins = np.linspace(0, nyquist, n_fft // 2 + 1)  # [F]
    top = _hertz_to_mel(np.array(nyquist))
    edges = _mel_to_hertz(np.linspace(0, top, num_mels + 2))[:, None]  # [M + 2, 1]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))  # [M, F]
    return torch.from_numpy(triangles * 2 / (edges[2:] - edges[:-2])).float()


def valid_positions(lengths: Tensor, size: int) -> Tensor:
    """True where a position of a padded axis lies within its length: [B] -> [B,
    size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class FrontEnd(nn.Module):
    """Normalised log-mel features.

    Window and filterbank are buffers, so that a checkpoint brings its own.
    """

    def __init__(self, parameters: FrontEndParameters) -> None:
        super().__init__()
        self.parameters = parameters
        rate = parameters.sample_rate
        self.hop = round(parameters.hop_seconds * rate)  # samples
        window_size = round(parameters.window_seconds * rate)  # samples
        self.register_buffer("window", torch.hann_window(window_size, periodic=False))
        filterbank = slaney_filterbank(rate, parameters.n_fft, parameters.num_mels)
        self.register_buffer("filterbank", filterbank)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N] in [-1, 1], [B] samples -> [B, M, T], [B] frames (samples // hop).

        Features are zero beyond their frames. Lengths None means that nothing is
        padded, and frames are None then. Dither is added in training mode only.
        """
        x = self.log_mel(waveforms, lengths)  # [B, M, T]
        if lengths is None:
            frames, count = None, x.shape[2]
            x = x - x.mean(2, keepdim=True)
        else:
            frames = lengths // self.hop
            count = frames[:, None, None]
            valid = valid_positions(frames, x.shape[2])[:, None]  # [B, 1, T]
            x = (x - (x * valid).sum(2, keepdim=True) / count) * valid
        if self.parameters.normalization == "per_feature":
            variance = x.square().sum(2, keepdim=True) / (count - 1)
            x = x / (variance.sqrt() + DEVIATION_FLOOR)
        return x, frames

    def log_mel(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log power in mel bands, not normalised: [B, N], [B] samples -> [B, M, T]."""
        x = waveforms
        if self.training and self.parameters.dither > 0:
            x = x + self.parameters.dither * torch.randn_like(x)
        x = torch.cat([x[:, :1], x[:, 1:] - self.parameters.preemphasis * x[:, :-1]], 1)
        if lengths is not None:
            x = x * valid_positions(lengths, x.shape[1])
        spectrum = torch.stft(
            x,
            self.parameters.n_fft,
            hop_length=self.hop,
            win_length=self.window.numel(),
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # [B, F, N // hop + 1]
        power = torch.view_as_real(spectrum[..., : x.shape[1] // self.hop])
        power = power.square().sum(-1)  # [B, F, T]
        return torch.log(self.filterbank @ power + LOG_FLOOR)


class SpecAugment(nn.Module):
    """Zero random bands and stretches of frames of every utterance of a training
    batch."""

    def __init__(self, parameters: SpecAugmentParameters) -> None:
        super().__init__()
        self.parameters = parameters

    def forward(self, features: Tensor) -> Tensor:
        """[B, M, T], not padded -> [B, M, T]."""
        p = self.parameters
        batch_size, num_mels, num_frames = features.shape
        frequency = (p.frequency_masks, batch_size, num_mels, p.frequency_width)
        time = (p.time_masks, batch_size, num_frames, int(p.time_fraction * num_frames))
        in_band = _masks(*frequency, features.device)[:, :, None]
        in_stretch = _masks(*time, features.device)[:, None]
        return features.masked_fill(in_band | in_stretch, 0)


def _masks(
    num_masks: int, batch_size: int, size: int, widest: int, device: torch.device
) -> Tensor:
    """Union of K masks, each 0 to `widest` wide and within the axis: bool [B, size]."""
    uniform = torch.rand(2, num_masks, batch_size, 1, device=device)
    widths = (uniform[0] * (min(widest, size) + 1)).long()  # [K, B, 1]
    starts = (uniform[1] * (size - widths + 1)).long()
    positions = torch.arange(size, device=device)
    return ((starts <= positions) & (positions < starts + widths)).any(0)
