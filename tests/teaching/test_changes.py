"""Changes are those that their captions name."""

import math

import pytest
import torch

from conftest import tone
from reports.style import SKY
from teaching import changes, remarks

RATE = 16_000


@pytest.fixture
def sound():
    return torch.from_numpy(tone(1, hertz=1000, amplitude=0.3)).float()


def test_a_faster_voice_is_shorter_and_higher(sound):
    for factor in (0.8, 1.25):
        faster = changes.at_speed(sound, factor)
        assert len(faster) == RATE / factor
        spectrum = torch.fft.rfft(faster).abs()
        assert spectrum.argmax() * RATE / len(faster) == 1000 * factor
        assert faster.abs().max() == pytest.approx(0.3, rel=0.05)


def test_noise_has_its_ratio_and_a_room_its_power(sound):
    added = changes.with_noise(sound, 10.0, RATE) - sound
    ratio = sound.square().mean() / added.square().mean()
    assert 10 * math.log10(ratio) == pytest.approx(10, abs=0.2)
    wet = changes.in_room(sound, 0.5, RATE)
    assert wet.shape == sound.shape
    assert wet.square().mean().item() == pytest.approx(0.045, rel=1e-3)


def test_all_changes_are_drawn_on_one_scale(shipped, sound):
    sounds = changes.changed(sound, shipped())
    assert [*sounds][1:4] == ["1.05 times as fast", "a room, 0.5 s", "noise, 7.5 dB"]
    assert [*sounds][-1] == "exaggerated: noise, 0 dB"
    *panels, bar = changes.draw_spectrograms(sounds, RATE).axes
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert bar.get_ylabel() == "level (dB)"


def test_how_far_a_change_moves(sound):
    sounds = {"as recorded": sound, "louder": 2 * sound, "B": sound.flip(0)}
    ahead = torch.linspace(-1, 1, RATE)[:, None]
    flat = torch.ones(RATE, 1)
    cosines = changes.moved(
        lambda x: torch.cat([(x.square() @ flat), 1e4 * x @ ahead], 1),
        sounds,
        [0 * sound],
    )
    assert cosines["as recorded"] == pytest.approx(1)
    assert changes.num_beyond(cosines | {"louder": -1.0}, "B") == (1, 1)
    assert changes.num_beyond(cosines | {"louder": 1.0}, "B") == (0, 1)
    text = remarks.on_changes({"model": cosines | {"louder": -1.0}}, "B")
    assert text.startswith("model, 1 of 1 changes")
    (axes,) = changes.draw_moved({"model": cosines}, "B").axes
    assert axes.get_lines()[0].get_color() == SKY
    assert [label.get_text() for label in axes.get_yticklabels()] == ["louder"]
