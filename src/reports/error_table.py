"""The hardest errors of a test, to see and to hear.

`Verification` -> `as_errors` -> `error_table` -> HTML
"""

import base64
from functools import cache
from io import BytesIO

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from dataset import Splits
from reports.spectrogram import colour_spectrogram
from reports.tables import Markup, as_errors, html_table
from speech.audio import encode_ogg
from verification.records import Verification


def error_table(test: Verification, splits: Splits, with_players: bool) -> str:
    """Return the table of `as_errors` as HTML with the spectrogram of each utterance,
    and players of both if `with_players`. It needs no other file."""
    columns, *rows = as_errors(test, splits)
    entries = {entry.id: entry for entry in splits.pack.entries}
    rate = splits.pack.sample_rate

    @cache  # hard utterances are in several errors
    def show(name: str) -> Markup:
        entry = entries[name]
        end = entry.offset + entry.samples
        samples = splits.pack.samples[entry.offset : end].numpy()
        return Markup(_picture(samples, rate) + with_players * _player(samples, rate))

    header = [*columns, "enrolment's sound", "test's sound"]
    body = [
        [*names, f"{score:.3f}", error, *map(show, names[:2])]
        for *names, score, error in rows
    ]
    return html_table([header, *body])


def _picture(samples: NDArray[np.int16], rate: int) -> str:
    file = BytesIO()
    imsave(file, colour_spectrogram(samples, rate), format="jpeg")
    return f'<img src="{_data_address("image/jpeg", file.getvalue())}">'


def _player(samples: NDArray[np.int16], rate: int) -> str:
    address = _data_address("audio/ogg", encode_ogg(samples, rate))
    return f'<br><audio controls src="{address}"></audio>'


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
