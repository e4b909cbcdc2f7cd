"""Waveforms to features: augmentation of training batches, and the log-mel front end.

waveforms [B, N] -> `Augmentation` -> waveforms [B, N]
waveforms [B, N], lengths [B] samples -> `FrontEnd` -> features [B, M, T], frames [B]
features [B, M, T] -> `SpecAugment` -> features [B, M, T]

B utterances, N samples, M mel bands, T frames. The front end is that of NeMo's
published TitaNet (arXiv 2110.04410, section 3.1); SpecAugment is arXiv 1904.08779.
Random numbers come from torch's default generator, which training seeds for every
batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import to_device
from engine.layers import valid_positions
from parameters import (
    AugmentationParameters,
    FrontEndParameters,
    SpecAugmentParameters,
    SpeedParameters,
)
from speech.packs import FULL_SCALE, SoundBank
from speech.surroundings import Surroundings

LOG_FLOOR = 2.0**-24  # added to powers
DEVIATION_FLOOR = 1e-5  # added to standard deviations
ZERO_CROSSINGS = 32  # of a filter that changes the speed, on either side
ATTENUATION = 70.0  # dB, of frequencies that would alias when the speed changes
NUM_TALKERS = 4  # of babble
NUM_GAINS, MAX_GAIN = 8, 12.0  # of an equalizer; dB
LOWEST_HERTZ = 50.0  # of an equalizer's curve, which is flat below
CLIPPED = (0.1, 0.7)  # of the peak
BITS = (3.0, 8.0)  # that a quiet recording leaves
TELEPHONE_RATE = 8000  # Hz
# Hz; the two ends of a telephone's band are drawn between these bounds
LOW_END, HIGH_END = (0.0, 300.0), (3400.0, 3900.0)
# Of mu-law, in steps of 16 bits
MU_LAW_BIAS, MU_LAW_PEAK = 132.0, 32635.0


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    logarithmic = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, logarithmic)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def slaney_filterbank(sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Return triangular mel bands of unit area from 0 Hz to half the sample rate,
    float32 [M, bins].

    The scale is Slaney's (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic
    above. The bands are computed in float64, since float32 is off by 2e-5.
    """
    nyquist = sample_rate / 2
    bins = np.linspace(0, nyquist, n_fft // 2 + 1)  # Hz
    top = _hertz_to_mel(np.array(nyquist))
    edges = _mel_to_hertz(np.linspace(0, top, num_mels + 2))[:, None]  # [M + 2, 1]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))  # [M, bins]
    return torch.from_numpy(triangles * 2 / (edges[2:] - edges[:-2])).float()


class FrontEnd(nn.Module):
    """Normalised log-mel features. Window and filterbank are buffers, so a checkpoint
    holds its own."""

    def __init__(self, config: FrontEndParameters) -> None:
        super().__init__()
        self.config = config
        rate = config.sample_rate
        self.hop = config.hop_size  # samples
        # On the CPU even if the default device is meta, where torch would load sympy.
        size, cpu = config.window_size, torch.device("cpu")
        window = torch.hann_window(size, periodic=False, device=cpu)
        self.register_buffer("window", window)
        filterbank = slaney_filterbank(rate, config.n_fft, config.num_mels)
        self.register_buffer("filterbank", filterbank)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute features: [B, N] in [-1, 1], [B] samples -> [B, M, T], [B] frames,
        samples // hop.

        Features are zero beyond their frames. Without lengths nothing is padded, and
        frames are None too. Dither is added in training mode only.
        """
        frames = None if lengths is None else lengths // self.hop
        return self.normalise(self.log_mel(waveforms, lengths), frames), frames

    def normalise(self, x: Tensor, frames: Tensor | None) -> Tensor:
        """Centre the bands of each utterance; with `per_feature` also scale them to a
        standard deviation of 1: [B, M, T], [B] -> [B, M, T], zero beyond the frames."""
        if frames is None:
            count = x.shape[2]
            x = x - x.mean(2, keepdim=True)
        else:
            count = frames[:, None, None]
            valid = valid_positions(frames, x.shape[2])[:, None]  # [B, 1, T]
            x = (x - (x * valid).sum(2, keepdim=True) / count) * valid
        if self.config.normalization == "per_feature":
            variance = x.square().sum(2, keepdim=True) / (count - 1)
            x = x / (variance.sqrt() + DEVIATION_FLOOR)
        return x

    def log_mel(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the log power of mel bands, not normalised: [B, N], [B] samples ->
        [B, M, T]."""
        x = waveforms
        if self.training and self.config.dither > 0:
            # One noise for the whole batch is cheaper, and too faint for a model to
            # learn it.
            x = x + self.config.dither * torch.randn_like(x[:1])
        x = torch.cat([x[:, :1], x[:, 1:] - self.config.preemphasis * x[:, :-1]], 1)
        if lengths is not None:
            x = x * valid_positions(lengths, x.shape[1])
        spectrum = torch.stft(
            x,
            self.config.n_fft,
            hop_length=self.hop,
            win_length=self.window.numel(),
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # [B, bins, N // hop + 1]
        spectrum = spectrum[..., : x.shape[1] // self.hop]
        power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, T]
        return torch.log(self.filterbank @ power + LOG_FLOOR)


def _draw_rows(probability: float, batch_size: int) -> Tensor:
    """Draw which rows of a batch to change, each with this probability; return their
    indices [rows].

    They are drawn on the CPU: all devices then draw the same, and nothing waits for a
    GPU.
    """
    return (torch.rand(batch_size) < probability).nonzero().flatten()


def _mean_power(waveforms: Tensor) -> Tensor:
    """[B, N] -> [B, 1]"""
    return waveforms.square().mean(1, keepdim=True)


class Speed(nn.Module):
    """Make speech faster or slower by whole percents; its pitch moves with it.

    At a speed of p percent, output sample 100 m + r lies at input time p m + r p / 100.
    The fraction depends on r alone, so 100 filters serve all outputs, and block m of
    100 outputs is one matrix product (Crochiere and Rabiner, 1983, chapter 4).
    """

    def __init__(self, parameters: SpeedParameters) -> None:
        super().__init__()
        self.probability = parameters.probability
        slowest, fastest = 100 - parameters.steps, 100 + parameters.steps
        percents = torch.arange(slowest, fastest + 1)  # [speeds]
        self.register_buffer("percents", percents, persistent=False)
        filters = speed_filters(percents)  # [speeds, taps, 100]
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Tensor, size: int) -> Tensor:
        """[B, N'] -> [B, size]; N' must be `size` times the greatest speed."""
        x = waveforms[:, :size]
        rows = _draw_rows(self.probability, len(waveforms))
        speeds = torch.randint(len(self.percents), (len(rows),))
        if len(rows) == 0:
            return x
        rows, speeds = to_device(torch.stack([rows, speeds]), x.device)
        num_blocks, num_taps = -(-size // 100), self.filters.shape[1]
        numbers = torch.arange(num_blocks, device=x.device)
        begins = self.percents[speeds, None] * numbers  # [rows, blocks]
        indices = begins[..., None] + torch.arange(num_taps, device=x.device)
        padded = F.pad(waveforms[rows], (ZERO_CROSSINGS, num_taps))
        blocks = padded.gather(1, indices.flatten(1)).view(indices.shape)
        changed = blocks @ self.filters[speeds]  # [rows, blocks, 100]
        return x.index_copy(0, rows, changed.flatten(1)[:, :size])


def speed_filters(percents: Tensor) -> Tensor:
    """Return windowed-sinc filters [speeds, taps, 100] for speeds in percent: filter r
    makes output sample r of a block.

    The cutoff is half the lower of both sample rates, less half the filters' transition
    band. Window and transition band are Kaiser's (1974).
    """
    beta = 0.1102 * (ATTENUATION - 8.7)  # of the window
    half_band = (ATTENUATION - 8) / (2.285 * 2 * ZERO_CROSSINGS) / torch.pi / 2
    percents = percents[:, None, None].double()
    times = torch.arange(100) * percents / 100  # of outputs, in input samples
    taps = torch.arange(int(times.max()) + 2 * ZERO_CROSSINGS + 2)[:, None]
    distance = taps - ZERO_CROSSINGS - times  # [speeds, taps, 100]
    cutoff = torch.clamp(100 / percents, max=1) - half_band
    cutoff[percents == 100] = 1  # then the filters are unit impulses
    within = distance.abs() <= ZERO_CROSSINGS
    shape = (1 - (distance / ZERO_CROSSINGS).square()).clamp(min=0).sqrt()
    filters = torch.sinc(cutoff * distance) * torch.i0(beta * shape) * within
    return (filters / filters.sum(1, keepdim=True)).float()


class Reverberation(nn.Module):
    """Convolve speech with the impulse response of a room. The direct sound stays in
    its place, and the power is kept."""

    def __init__(self, probability: float, responses: SoundBank, size: int) -> None:
        super().__init__()
        self.probability, self.responses = probability, responses
        self.size = size  # samples of a response

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        chosen = torch.randint(len(self.responses), (len(rows),))
        if len(rows) == 0:
            return waveforms
        responses = self.responses.whole(chosen.numpy(), self.size)
        rows = to_device(rows, waveforms.device)
        dry = waveforms[rows]
        wet = reverberate(dry, responses)
        power = _mean_power(wet)
        # A silent response leaves the speech as it is.
        scaled = torch.where(power > 0, wet * (_mean_power(dry) / power).sqrt(), dry)
        return waveforms.index_copy(0, rows, scaled)


def reverberate(waveforms: Tensor, responses: Tensor) -> Tensor:
    """Convolve so that the direct sound stays in its place: [B, N], responses [B, size]
    -> [B, N].

    The direct sound is a response's first sample of at least half its peak.
    """
    num_samples, size = waveforms.shape[1], responses.shape[1]
    levels = responses.abs()
    direct = (levels >= levels.amax(1, keepdim=True) / 2).int().argmax(1)  # [B]
    # Samples before the direct sound are at negative times: they wrap to the end.
    times = torch.arange(num_samples + size, device=waveforms.device) + direct[:, None]
    padded = F.pad(responses, (0, num_samples))
    aligned = padded.gather(1, times % (num_samples + size))
    spectra = torch.fft.rfft(waveforms, num_samples + size) * torch.fft.rfft(aligned)
    return torch.fft.irfft(spectra, num_samples + size)[:, :num_samples]


class Noise(nn.Module):
    """Add noise to speech at a drawn signal-to-noise ratio."""

    def __init__(
        self, probability: float, recordings: SoundBank, snr_db: tuple[float, float]
    ) -> None:
        super().__init__()
        self.probability, self.recordings, self.snr_db = probability, recordings, snr_db

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        chosen = torch.randint(len(self.recordings), (len(rows),))
        positions = torch.rand(len(rows), dtype=torch.float64)
        uniform = torch.rand(len(rows), dtype=torch.float64)
        if len(rows) == 0:
            return waveforms
        size = waveforms.shape[1]
        noise = self.recordings.cut(chosen.numpy(), positions.numpy(), size)
        return _with_noise(waveforms, rows, noise, self.snr_db, uniform)


def _with_noise(
    waveforms: Tensor,
    rows: Tensor,
    noise: Tensor,
    snr_db: tuple[float, float],
    uniform: Tensor,
) -> Tensor:
    """Add noise [rows, N] to these rows of [B, N], at ratios between the two bounds
    that `uniform` [rows] in [0, 1) chooses."""
    low, high = snr_db
    snr = to_device((low + uniform * (high - low)).float(), noise.device)[:, None]
    rows = to_device(rows, waveforms.device)
    speech = waveforms[rows]
    power = _mean_power(noise)
    # No gain brings silence to the ratio, so its gain is 0: dividing by its power
    # would make the gain infinite and the sum NaN.
    ratio = torch.where(power > 0, _mean_power(speech) / power, 0)
    gain = (ratio * 10 ** (-snr / 10)).sqrt()  # [rows, 1]
    return waveforms.index_copy(0, rows, speech + gain * noise)


class Babble(nn.Module):
    """Add four other voices of the batch, talking at once, as noise."""

    def __init__(self, probability: float, snr_db: tuple[float, float]) -> None:
        super().__init__()
        self.probability, self.snr_db = probability, snr_db

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        uniform = torch.rand(len(rows), dtype=torch.float64)
        steps = 1 + torch.randperm(len(waveforms) - 1)[:NUM_TALKERS]
        if len(rows) == 0:
            return waveforms
        others = (rows + steps[:, None]) % len(waveforms)  # [talkers, rows]
        babble = waveforms[to_device(others, waveforms.device)].sum(0)
        return _with_noise(waveforms, rows, babble, self.snr_db, uniform)


class Equalizer(nn.Module):
    """Colour speech as microphones do: gains drawn at points spaced evenly in octaves
    from 50 Hz on, and between them straight lines in dB."""

    def __init__(self, probability: float, sample_rate: int) -> None:
        super().__init__()
        self.probability, self.sample_rate = probability, sample_rate

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        gains = MAX_GAIN * (2 * torch.rand(len(rows), 1, NUM_GAINS) - 1)  # dB
        if len(rows) == 0:
            return waveforms
        rows, gains = to_device(rows, waveforms.device), gains.to(waveforms.device)
        spectrum = torch.fft.rfft(waveforms[rows])  # [rows, bins]
        hertz = torch.linspace(0, self.sample_rate / 2, spectrum.shape[1])
        octaves = torch.log2(hertz.clamp(min=LOWEST_HERTZ) / LOWEST_HERTZ)
        places = (2 * octaves / octaves[-1] - 1).expand(len(rows), 1, -1)  # in [-1, 1]
        grid = torch.stack([places, torch.zeros_like(places)], 3).to(gains.device)
        curve = F.grid_sample(gains[:, None], grid, align_corners=True)[:, 0, 0]
        coloured = torch.fft.irfft(spectrum * 10 ** (curve / 20), waveforms.shape[1])
        return waveforms.index_copy(0, rows, coloured)


class Level(nn.Module):
    """Record speech badly: half of it too loud, so that it clips at a tenth to 0.7 of
    its peak; half too quietly, so that 3 to 8 bits are left of its samples."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        uniform = torch.rand(2, len(rows), 1)
        if len(rows) == 0:
            return waveforms
        rows, uniform = to_device(rows, waveforms.device), uniform.to(waveforms.device)
        x = waveforms[rows]
        peak = x.abs().amax(1, keepdim=True)  # [rows, 1]
        ceiling = peak * (CLIPPED[0] + (CLIPPED[1] - CLIPPED[0]) * uniform[1])
        bits = BITS[0] + (BITS[1] - BITS[0]) * uniform[1]
        step = (peak * 2 ** (1 - bits)).clamp(min=torch.finfo(x.dtype).tiny)
        clipped = torch.clamp(x, -ceiling, ceiling)
        x = torch.where(uniform[0] < 0.5, clipped, (x / step).round() * step)
        return waveforms.index_copy(0, rows, x)


class Telephone(nn.Module):
    """Pass speech through a telephone or an 8 kHz recorder.

    Both ends of the band are drawn; the narrowest is ITU-T G.712's, 300 to 3,400 Hz.
    Half of the utterances are also coded in the 8 bits of mu-law (ITU-T G.711).
    """

    def __init__(self, probability: float, sample_rate: int) -> None:
        super().__init__()
        self.probability, self.sample_rate = probability, sample_rate

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, N] in [-1, 1] -> [B, N]"""
        rows = _draw_rows(self.probability, len(waveforms))
        uniform = torch.rand(3, len(rows), 1)
        if len(rows) == 0:
            return waveforms
        rows, uniform = to_device(rows, waveforms.device), uniform.to(waveforms.device)
        low = LOW_END[0] + (LOW_END[1] - LOW_END[0]) * uniform[0]  # Hz
        high = HIGH_END[0] + (HIGH_END[1] - HIGH_END[0]) * uniform[1]
        is_coded = uniform[2] < 0.5
        x = waveforms[rows]
        size = x.shape[1]
        narrow_size = size * TELEPHONE_RATE // self.sample_rate
        hertz = torch.arange(narrow_size // 2 + 1, device=x.device)
        hertz = hertz * (self.sample_rate / size)
        # Cutting or padding a spectrum resamples. The inverse transform divides by the
        # new length instead of the old one, which the factor corrects.
        spectrum = torch.fft.rfft(x)[:, : len(hertz)]
        spectrum = spectrum * ((hertz >= low) & (hertz <= high))
        x = torch.fft.irfft(spectrum, narrow_size) * (narrow_size / size)
        x = torch.where(is_coded, through_mu_law(x), x)
        x = torch.fft.irfft(torch.fft.rfft(x), size) * (size / narrow_size)
        return waveforms.index_copy(0, rows, x)


def through_mu_law(waveforms: Tensor) -> Tensor:
    """Round samples in [-1, 1] to the levels of mu-law (ITU-T G.711); 0 stays 0.

    A code is the sign, the exponent and four bits of the mantissa of a biased sample:
    what float32 holds too. It stands for the middle of the numbers that begin so.
    """
    magnitudes = (waveforms.abs() * FULL_SCALE).clamp(max=MU_LAW_PEAK) + MU_LAW_BIAS
    codes = magnitudes.view(torch.int32) >> 19  # of 23 bits of the mantissa, 4 stay
    middles = ((codes << 19) | (1 << 18)).view(torch.float32) - MU_LAW_BIAS
    return waveforms.sign() * middles / FULL_SCALE


class Augmentation(nn.Module):
    """Augment a training batch: speed, then the `changes` of waveforms in the order in
    which they happen in nature; then `spec_augment` on features.

    A kind whose probability is 0 is left out and needs no surroundings.
    """

    def __init__(
        self,
        parameters: AugmentationParameters,
        sample_rate: int,
        surroundings: Surroundings,
    ) -> None:
        super().__init__()
        rooms, noise = parameters.reverberation, parameters.noise
        self.speed = Speed(parameters.speed) if parameters.speed.steps else None
        self.changes = nn.ModuleDict()
        size = round(rooms.max_seconds * sample_rate)
        if probability := rooms.probability:
            room = Reverberation(probability, surroundings.responses, size)
            self.changes["reverberation"] = room
        if probability := rooms.simulated:
            room = Reverberation(probability, surroundings.simulated, size)
            self.changes["simulated_reverberation"] = room
        if probability := noise.probability:
            added = Noise(probability, surroundings.noise, noise.snr_db)
            self.changes["noise"] = added
        if probability := noise.coloured:
            added = Noise(probability, surroundings.coloured, noise.snr_db)
            self.changes["coloured_noise"] = added
        if probability := noise.babble:
            self.changes["babble"] = Babble(probability, noise.snr_db)
        if probability := parameters.equalizer.probability:
            self.changes["equalizer"] = Equalizer(probability, sample_rate)
        if probability := parameters.level.probability:
            self.changes["level"] = Level(probability)
        if probability := parameters.telephone.probability:
            self.changes["telephone"] = Telephone(probability, sample_rate)
        self.spec_augment = SpecAugment(parameters.spec_augment)

    def forward(self, waveforms: Tensor, size: int) -> Tensor:
        """[B, N'] as `TrainingBatches` cuts them -> [B, size]"""
        x = waveforms
        if self.speed is not None:
            x = self.speed(x, size)
        for change in self.changes.values():
            x = change(x)
        return x


class SpecAugment(nn.Module):
    """Zero random bands and stretches of frames of every utterance of a training
    batch."""

    def __init__(self, parameters: SpecAugmentParameters) -> None:
        super().__init__()
        self.config = parameters

    def forward(self, features: Tensor) -> Tensor:
        """[B, M, T], not padded -> [B, M, T]."""
        config, (batch_size, num_mels, num_frames) = self.config, features.shape
        bands = config.frequency_masks, batch_size, num_mels, config.frequency_width
        widest = int(config.time_fraction * num_frames)
        stretches = config.time_masks, batch_size, num_frames, widest
        in_band = _masks(*bands, features.device)[:, :, None]
        in_stretch = _masks(*stretches, features.device)[:, None]
        return features.masked_fill(in_band | in_stretch, 0)


def _masks(
    num_masks: int, batch_size: int, size: int, widest: int, device: torch.device
) -> Tensor:
    """Draw masks along an axis, each 0 to `widest` wide, and return their union: bool
    [B, size]."""
    uniform = torch.rand(2, num_masks, batch_size, 1, device=device)
    widths = (uniform[0] * (min(widest, size) + 1)).long()  # [masks, B, 1]
    starts = (uniform[1] * (size - widths + 1)).long()
    positions = torch.arange(size, device=device)
    return ((starts <= positions) & (positions < starts + widths)).any(0)
