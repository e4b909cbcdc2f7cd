"""What augmentation does to a sound, and how far it moves the embedding.

waveform [N] -> `changed` -> waveforms [N'] by name, mild and strong
waveforms -> `draw_spectrograms` -> Figure
waveforms, models -> `moved` -> cosines by model -> `draw_moved` -> Figure

N samples. A mild change is one that training makes, a strong one is exaggerated.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from parameters import Parameters
from reports.style import BLACK, PINK, SKY, STYLE
from runs.speaker_model import SpeakerModel
from speech.acoustics import coloured_noise, simulate_rooms
from transforms import Telephone, reverberate

CLEAN = "as recorded"
LONG_ROOM = 2.0  # seconds of reverberation
STRONG_SPEEDS = (0.8, 1.2)
STRONG_RATIO = 0.0  # dB
SHOWN_DECIBELS = 60  # of a spectrogram


def at_speed(waveform: Tensor, factor: float) -> Tensor:
    """Resample by the spectrum, so that speech is `factor` times as fast and as high:
    [N] -> [N / factor]."""
    size = round(len(waveform) / factor)
    spectrum = torch.fft.rfft(waveform)[: size // 2 + 1]
    return torch.fft.irfft(spectrum, size) * (size / len(waveform))


def in_room(waveform: Tensor, seconds: float, sample_rate: int) -> Tensor:
    """Put speech [N] into a simulated room with this reverberation time, at its own
    power."""
    generator = torch.Generator().manual_seed(1)
    size = round(seconds * sample_rate)
    times = torch.tensor([seconds])
    response = simulate_rooms(times, sample_rate, size, generator)
    wet = reverberate(waveform[None], response)[0]
    return wet * (waveform.square().mean() / wet.square().mean()).sqrt()


def with_noise(waveform: Tensor, ratio: float, sample_rate: int) -> Tensor:
    """Add pink noise to speech [N] at a ratio in dB."""
    generator = torch.Generator().manual_seed(1)
    noise = coloured_noise(torch.ones(1), sample_rate, len(waveform), generator)[0]
    return waveform + noise * waveform.square().mean().sqrt() * 10 ** (-ratio / 20)


def changed(waveform: Tensor, parameters: Parameters) -> dict[str, Tensor]:
    """Return speech [N] as recorded, then changed in each way: first within the ranges
    of `parameters`, then further than that."""
    rate, ranges = parameters.front_end.sample_rate, parameters.augmentation
    faster = 1 + ranges.speed.max_change
    room = sum(ranges.reverberation.rt60_seconds) / 2
    ratio = sum(ranges.noise.snr_db) / 2
    slow, fast = STRONG_SPEEDS
    torch.manual_seed(1)
    mild = {
        CLEAN: waveform,
        f"{faster:.2f} times as fast": at_speed(waveform, faster),
        f"a room, {room:.1f} s": in_room(waveform, room, rate),
        f"noise, {ratio:g} dB": with_noise(waveform, ratio, rate),
        "a telephone": Telephone(1.0, rate)(waveform[None])[0],
    }
    strong = {
        f"{slow} times as fast": at_speed(waveform, slow),
        f"{fast} times as fast": at_speed(waveform, fast),
        f"a long room, {LONG_ROOM:g} s": in_room(waveform, LONG_ROOM, rate),
        f"noise, {STRONG_RATIO:g} dB": with_noise(waveform, STRONG_RATIO, rate),
    }
    return mild | {f"exaggerated: {name}": sound for name, sound in strong.items()}


def draw_spectrograms(sounds: Mapping[str, Tensor], sample_rate: int) -> Figure:
    """Draw the spectrogram of each sound [N], three in a row, on common scales."""
    window, hop = round(0.025 * sample_rate), round(0.01 * sample_rate)
    longest = max(map(len, sounds.values())) / sample_rate
    num_rows = -(-len(sounds) // 3)
    with matplotlib.rc_context(STYLE), np.errstate(divide="ignore"):
        figure = Figure(figsize=(9, 0.4 + 1.7 * num_rows))
        grid = figure.subplots(num_rows, 3, sharex=True, sharey=True, squeeze=False)
        loudest = max(float(x.abs().max()) for x in sounds.values())
        top = 20 * np.log10(loudest / 8)  # dB
        for (name, sound), axes in zip(sounds.items(), grid.flat, strict=False):
            *_, image = axes.specgram(
                sound.numpy(),
                NFFT=window,
                noverlap=window - hop,
                Fs=sample_rate,
                mode="magnitude",
                vmin=top - SHOWN_DECIBELS,
                vmax=top,
                cmap="magma",
            )
            axes.set_title(name, fontsize=10)
            axes.set(xlim=(0, longest), facecolor=image.cmap(0.0))
            axes.yaxis.set_major_formatter(lambda hertz, _: f"{hertz:,.0f}")
        for axes in grid[:, 0]:
            axes.set_ylabel("Hz")
        for axes in grid[-1]:
            axes.set_xlabel("time (s)")
        figure.colorbar(image, ax=grid, label="level (dB)", pad=0.01)
    return figure


@torch.no_grad()
def moved(
    model: SpeakerModel, sounds: Mapping[str, Tensor], others: Sequence[Tensor]
) -> dict[str, float]:
    """Return the cosine of each sound's embedding to the first one's, both less the
    mean embedding of the `others`."""
    mean = torch.cat([model(other[None]) for other in others]).mean(0)
    vectors = torch.cat([model(sound[None]) for sound in sounds.values()])
    vectors = F.normalize(vectors - mean)
    return dict(zip(sounds, (vectors @ vectors[0]).tolist(), strict=True))


def num_beyond(cosines: Mapping[str, float], other: str) -> tuple[int, int]:
    """Return how many of the changes have a lower cosine than the sound `other`, and
    how many there are; the first sound is the one without a change."""
    changes = [cosine for name, cosine in [*cosines.items()][1:] if name != other]
    return sum(cosine < cosines[other] for cosine in changes), len(changes)


def draw_moved(cosines: Mapping[str, Mapping[str, float]], other: str) -> Figure:
    """Draw the cosines to the clean sound by model, a panel each. The line is that of
    `other`, which another person said: a point to its left has moved too far."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8))
        panels = figure.subplots(
            1, len(cosines), sharex=True, sharey=True, squeeze=False
        )[0]
        for (model, by_sound), axes in zip(cosines.items(), panels, strict=True):
            names = [name for name in by_sound if name not in (CLEAN, other)]
            values = [by_sound[name] for name in names]
            axes.axvline(by_sound[other], color=SKY, label=other)
            for row, value in enumerate(values):
                axes.plot((value, 1), (row, row), color="0.85", linewidth=2, zorder=0)
                axes.annotate(
                    f"{value:.2f}",
                    (value, row),
                    (0, 6),
                    textcoords="offset points",
                    fontsize=8,
                    ha="center",
                )
            axes.plot(values, range(len(names)), "o", color=PINK, label="A, changed")
            axes.axvline(1, color=BLACK, linewidth=0.8)
            axes.set_yticks(range(len(names)), names)
            axes.set(title=model, xlabel="cosine to A as recorded")
        panels[0].invert_yaxis()
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    return figure
