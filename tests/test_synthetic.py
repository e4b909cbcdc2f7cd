"""The embedded corpus: what it promises, and that a voice can be measured in its sound."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.metrics import roc_curve

from parameters import ParameterError, SyntheticParameters
from synthetic import (
    VOWEL_ROWS,
    SyntheticUtterance,
    draw_voice,
    synthetic_utterances,
)

RATE = 16000
SEED = 1
FREQUENCIES = np.fft.rfftfreq(512, 1 / RATE)


def parameters(**changes) -> SyntheticParameters:
    values = {
        "num_speakers": 24,
        "utterances_per_speaker": 6,
        "min_seconds": 2.0,
        "max_seconds": 3.0,
    }
    return SyntheticParameters(**(values | changes))


@pytest.fixture(scope="module")
def corpus() -> list[tuple[SyntheticUtterance, np.ndarray]]:
    utterances = synthetic_utterances(parameters(), SEED)
    return [(utterance, utterance.render(RATE)) for utterance in utterances]


def by_speaker(corpus) -> dict[int, list[np.ndarray]]:
    waveforms = {}
    for utterance, waveform in corpus:
        waveforms.setdefault(utterance.speaker, []).append(waveform / 32768)
    return waveforms


def voiced_frames(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strongly periodic windows of 40 ms, and the pitch of each in Hz."""
    windows = sliding_window_view(waveform, 640)[::160] * np.hanning(640)
    power = np.abs(np.fft.rfft(windows, 2048)) ** 2
    correlation = np.fft.irfft(power) / np.fft.irfft(
        np.abs(np.fft.rfft(np.hanning(640), 2048)) ** 2
    )
    correlation /= correlation[:, :1]
    shortest, longest = RATE // 400, RATE // 60
    candidates = correlation[:, shortest:longest]
    lags = shortest + candidates.argmax(1)
    voiced = (candidates.max(1) > 0.8) & (windows.std(1) > 0.3 * windows.std())
    return windows[voiced], RATE / lags[voiced]


def formants_of(window: np.ndarray) -> np.ndarray:
    """Resonances in Hz, rising, by linear prediction from one window."""
    order = 14
    emphasised = np.append(window[0], window[1:] - 0.97 * window[:-1])
    lags = np.correlate(emphasised, emphasised, "full")[len(window) - 1 :][: order + 1]
    toeplitz = lags[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    weights = np.linalg.solve(toeplitz + 1e-9 * lags[0] * np.eye(order), lags[1:])
    roots = np.roots(np.append(1, -weights))
    roots = roots[(roots.imag > 0) & (np.abs(roots) > 0.85)]
    return np.sort(np.angle(roots)) * RATE / (2 * np.pi)
