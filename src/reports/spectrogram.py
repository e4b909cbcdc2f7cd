"""The spectrogram of a sound as a picture, without axes.

waveform [N] -> `colour_spectrogram` -> colours [F, T, 3]

N samples, F frequencies, T frames.
"""

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

DYNAMIC_RANGE = 80  # dB


def colour_spectrogram(
    samples: NDArray[np.int16], sample_rate: int
) -> NDArray[np.uint8]:
    """Return the spectrogram of a sound as a picture, [N] -> [F, T, 3].

    It has 129 rows from half the sample rate down to 0 Hz, and a column for every 10
    ms, about 600 at most. Colours span 80 dB below the loudest point.
    """
    hop = max(sample_rate // 100, -(-len(samples) // 600))
    spectrum = torch.stft(
        torch.from_numpy(samples).float(),
        n_fft=256,
        hop_length=hop,
        window=torch.hann_window(256),
        pad_mode="constant",
        return_complex=True,
    )
    level = 20 * (spectrum.abs() + 1).log10()  # dB above an amplitude of 1
    top = level.max().clamp(min=DYNAMIC_RANGE)  # so that silence is dark
    height = (level - top) / DYNAMIC_RANGE + 1
    colours = matplotlib.colormaps["magma"](height.flip(0).numpy(), bytes=True)
    return colours[..., :3]
