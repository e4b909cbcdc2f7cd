"""Simulated rooms and noise, used where no recordings are given.

reverberation times [rooms] -> `simulate_rooms` -> responses [rooms, N]
exponents [sounds] -> `coloured_noise` -> noise [sounds, N]

N samples. Rooms are shoeboxes: early reflections by the image method (Allen and
Berkley, JASA 1979), late ones as noise that decays with the same reverberation time.
"""

import math

import torch
from torch import Tensor

SPEED_OF_SOUND = 343.0  # m/s
SMALLEST_ROOM, LARGEST_ROOM = (3.0, 2.5, 2.3), (10.0, 8.0, 4.0)  # m
MIN_WALL_DISTANCE = 0.4  # m, from talker or microphone to a wall
EARLY_SECONDS = 0.05  # of reflections from images; the ear hears later ones as a tail
MATCHED_SECONDS = 0.02  # the end of the early part, which sets the tail's level
LOWEST_HERTZ = 50.0  # rooms pass less below; coloured noise is flat below
MAX_MIRRORED_ROOMS = 4  # on either side; images beyond arrive after the early part


def simulate_rooms(
    rt60: Tensor, sample_rate: int, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Simulate impulse responses of rooms with these reverberation times in seconds:
    [rooms] -> [rooms, num_samples].

    The direct sound is at sample 0 with amplitude 1. Room sizes, and the positions of
    talker and microphone, are drawn.
    """
    smallest, largest = torch.tensor(SMALLEST_ROOM), torch.tensor(LARGEST_ROOM)
    uniform = torch.rand(3, len(rt60), 3, generator=generator)
    sizes = smallest + uniform[0] * (largest - smallest)  # [rooms, 3]
    free = sizes - 2 * MIN_WALL_DISTANCE
    talker, microphone = MIN_WALL_DISTANCE + uniform[1:] * free

    # Along an axis of length L, a talker at s has images at 2 n L + s after |2 n|
    # reflections, and at 2 n L - s after |2 n - 1|.
    n = torch.arange(-MAX_MIRRORED_ROOMS, MAX_MIRRORED_ROOMS + 1)
    axis = torch.cartesian_prod(n, torch.arange(2))  # n, and whether s is mirrored
    chosen = torch.cartesian_prod(*3 * [torch.arange(len(axis))])  # [images, 3]
    cells, mirrored = axis[chosen].unbind(2)  # [images, 3]
    images = 2 * cells * sizes[:, None] + (1 - 2 * mirrored) * talker[:, None]
    distances = (images - microphone[:, None]).norm(dim=2)  # [rooms, images]
    reflections = (2 * cells - mirrored).abs().sum(1)  # [images]

    volume = sizes.prod(1)
    surface = 2 * (volume[:, None] / sizes).sum(1)
    # Eyring: RT60 = 0.161 V / (-S ln(1 - absorption)); a reflection keeps the square
    # root of 1 - absorption.
    log_kept = -0.161 * volume / (2 * surface * rt60)  # [rooms]
    amplitudes = torch.exp(log_kept[:, None] * reflections) / distances
    direct = (talker - microphone).norm(dim=1, keepdim=True)  # [rooms, 1]
    delays = (distances - direct) / SPEED_OF_SOUND * sample_rate
    early = min(round(EARLY_SECONDS * sample_rate), num_samples)
    arrivals = delays.round().long()
    within = arrivals < early
    responses = torch.zeros(len(rt60), num_samples)
    arrivals = arrivals.clamp(max=early - 1)
    responses.scatter_add_(1, arrivals, amplitudes * direct * within)

    seconds = torch.arange(num_samples) / sample_rate
    decay = 10 ** (-3 * seconds / rt60[:, None])  # [rooms, N], 60 dB in RT60
    matched = slice(early - round(MATCHED_SECONDS * sample_rate), early)
    level = (
        responses[:, matched].square().sum(1) / decay[:, matched].square().sum(1)
    ).sqrt()
    tail = torch.randn(responses.shape, generator=generator) * decay * level[:, None]
    responses[:, early:] = tail[:, early:]
    return _without_rumble(responses, sample_rate)


def _without_rumble(responses: Tensor, sample_rate: int) -> Tensor:
    """Filter by two first-order high-passes, [rooms, N] -> [rooms, N]; the first sample
    of a room does not change.

    All image sources have the same sign, so their sum has far more power near 0 Hz than
    a real room (Allen and Berkley filter it, too).
    """
    size = 2 * responses.shape[1]  # samples, so that nothing wraps around
    turns = torch.arange(size // 2 + 1) / size
    delay = torch.exp(-2j * torch.pi * turns)
    pole = math.exp(-2 * math.pi * LOWEST_HERTZ / sample_rate)
    passed = ((1 - delay) / (1 - pole * delay)) ** 2
    spectra = torch.fft.rfft(responses, size) * passed
    return torch.fft.irfft(spectra, size)[:, : responses.shape[1]]


def coloured_noise(
    exponents: Tensor, sample_rate: int, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Draw noise of unit power whose spectrum falls as 1 / f^exponent: [sounds] ->
    [sounds, num_samples].

    0 is white, 1 pink, 2 brown noise. The spectrum is flat below 50 Hz; otherwise
    nearly all of the power would be inaudible.
    """
    white = torch.randn(len(exponents), num_samples, generator=generator)
    spectrum = torch.fft.rfft(white)
    hertz = torch.arange(spectrum.shape[1]) * sample_rate / num_samples
    shaped = spectrum * hertz.clamp(min=LOWEST_HERTZ) ** (-exponents[:, None] / 2)
    noise = torch.fft.irfft(shaped, num_samples)
    return noise / noise.square().mean(1, keepdim=True).sqrt()
