"""Simulated rooms and noise have the properties that they were asked for."""

import pytest
import torch

from conftest import RATE
from speech import acoustics
from speech.acoustics import SPEED_OF_SOUND, coloured_noise, simulate_rooms


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rooms_of(rt60: float, count: int, seed: int = 0) -> torch.Tensor:
    return simulate_rooms(torch.full((count,), rt60), RATE, RATE, generator(seed))


def reverberation_time(response: torch.Tensor) -> float:
    """T30 of Schroeder's backward integration (ISO 3382), in seconds."""
    energy = response.square().flip(0).cumsum(0).flip(0)
    level = 10 * torch.log10(energy / energy[0])
    first, last = ((level <= bound).int().argmax() for bound in (-5, -35))
    return 2 * (last - first).item() / RATE


@pytest.mark.parametrize("rt60", [0.2, 0.35, 0.5, 0.8])
def test_rooms_decay_as_they_were_asked_to(rt60):
    rooms = rooms_of(rt60, 25)
    for room in rooms:
        assert reverberation_time(room) == pytest.approx(rt60, rel=0.2)
    # The direct sound comes first, of amplitude 1; an early image may fall on it.
    assert (rooms[:, 0] > 0.9999).all()
    assert (rooms[:, 0] < 1.5).all()
    power = torch.fft.rfft(rooms).abs().square().mean(0)  # 1 Hz a bin
    assert power[:5].mean() < 0.01 * power[200:4000].mean()  # no rumble


def test_early_part_is_that_of_a_shoebox_by_hand(monkeypatch):
    """The six first reflections of a talker and a microphone, mirrored one by one."""
    monkeypatch.setattr(acoustics, "_without_rumble", lambda rooms, _: rooms)
    drawn = torch.rand(3, 1, 3, generator=generator(5))
    sizes = torch.tensor([3.0, 2.5, 2.3]) + drawn[0, 0] * torch.tensor([7.0, 5.5, 1.7])
    talker, microphone = 0.4 + drawn[1:, 0] * (sizes - 0.8)
    room = rooms_of(0.4, 1, seed=5)[0]
    surface = 2 * (sizes[0] * sizes[1] + sizes[1] * sizes[2] + sizes[0] * sizes[2])
    kept = torch.exp(-0.161 * sizes.prod() / (2 * surface * 0.4))
    direct = (talker - microphone).norm()
    for axis in range(3):
        for wall in (0.0, sizes[axis]):
            image = talker.clone()
            image[axis] = 2 * wall - talker[axis]
            distance = (image - microphone).norm()
            place = round(((distance - direct) / SPEED_OF_SOUND * RATE).item())
            assert room[place] >= kept * direct / distance - 1e-5


def test_rooms_are_those_of_their_seed():
    first, same, other = (rooms_of(0.3, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_its_colour_and_unit_power(exponent):
    noise = coloured_noise(torch.full((20,), exponent), RATE, 2**16, generator())
    assert torch.allclose(noise.square().mean(1), torch.ones(20), atol=1e-4)
    power = torch.fft.rfft(noise).abs().square().mean(0)
    # Octaves from 62.5 Hz, and all below 50 Hz: 4.096 bins are 1 Hz.
    octaves = torch.stack([power[2**k : 2 ** (k + 1)].mean() for k in range(8, 15)])
    slope = (octaves.log2().diff()).mean()
    assert slope.item() == pytest.approx(-exponent, abs=0.1)
    low, corner = power[:40].mean().item(), power[150:204].mean().item()
    assert low == pytest.approx(corner, rel=0.2)
