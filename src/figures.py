"""Pictures of what a run found: data in, a matplotlib `Figure` out, nothing shown.

embeddings [U, E], speakers [U] -> `draw_embeddings` -> Figure
waveforms [N] by name -> `draw_sounds` -> Figure
scores [K], targets [K] -> `draw_scores` -> Figure
miss and false-alarm rates by system -> `draw_det` -> Figure

U utterances, K trials, E embedding size, N samples. One style and one palette serve the
whole project; a colour belongs to one speaker or system throughout a figure. UMAP is
arXiv 1802.03426.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
}
MAX_SPEAKERS = 24  # drawn; more could not be told apart
DYNAMIC_RANGE = 80  # dB, of a spectrogram


def project_svd(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two directions of greatest variance of unit embeddings, [U, E] -> [U, 2]."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    centred = unit - unit.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * singular[:2]


def project_umap(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """UMAP of the cosine distances between embeddings, [U, E] -> [U, 2]."""
    import umap  # takes seconds to load: only where it is drawn

    with warnings.catch_warnings():
        # A seed makes UMAP use one thread, and it warns that it does.
        warnings.simplefilter("ignore")
        return umap.UMAP(
            metric="cosine",
            n_neighbors=min(15, len(embeddings) - 1),
            random_state=seed,
        ).fit_transform(embeddings)


def draw_embeddings(
    embeddings: NDArray[np.float32], speakers: Sequence[str], title: str, seed: int
) -> Figure:
    """Utterances in the plane by SVD and by UMAP, a colour and shape for each speaker.

    embeddings [U, E]; at most 24 speakers are drawn, those first in order.
    """
    num_speakers = len(set(speakers))
    names = sorted(set(speakers))[:MAX_SPEAKERS]
    drawn = np.isin(speakers, names)
    embeddings, speakers = embeddings[drawn], np.array(speakers)[drawn]
    planes = {
        "SVD": project_svd(embeddings),
        "UMAP, cosine": project_umap(embeddings, seed),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6))
        for axes, (method, plane) in zip(
            figure.subplots(1, 2), planes.items(), strict=True
        ):
            for number, name in enumerate(names):
                own = plane[speakers == name]
                axes.scatter(
                    *own.T,
                    s=18,
                    color=PALETTE[number % len(PALETTE)],
                    marker=MARKERS[number // len(PALETTE) % len(MARKERS)],
                    linewidths=0,
                    alpha=0.8,
                    label=name,
                )
            axes.set(title=method, xlabel="component 1", ylabel="component 2")
        count = f"{len(names)} of {num_speakers} speakers"
        figure.suptitle(f"{title}: {count}", x=0.01, ha="left")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=7,
            frameon=False,
        )
    return figure


def draw_sounds(sounds: Mapping[str, NDArray[np.float32]], sample_rate: int) -> Figure:
    """Waveform and spectrogram of each sound, side by side on common scales.

    Sounds are [N] in [-1, 1] and of any lengths, such as speech before and after an
    augmentation.
    """
    window, hop = round(0.025 * sample_rate), round(0.01 * sample_rate)
    loudest = max(np.abs(sound).max() for sound in sounds.values()) or 1.0
    longest = max(map(len, sounds.values())) / sample_rate
    top_level = 20 * np.log10(loudest / 2)  # of the loudest possible sine, in dB
    with matplotlib.rc_context(STYLE), np.errstate(divide="ignore"):
        figure = Figure(figsize=(4 * len(sounds), 3.6))
        rows = figure.subplots(
            2,
            len(sounds),
            sharex=True,
            sharey="row",
            squeeze=False,
            height_ratios=(1, 2),
        )
        for (name, sound), (above, below) in zip(sounds.items(), rows.T, strict=True):
            seconds = np.arange(len(sound)) / sample_rate
            above.plot(seconds, sound, color=PALETTE[0], linewidth=0.4)
            above.set(title=name, ylim=(-loudest, loudest))
            *_, image = below.specgram(
                sound,
                NFFT=window,
                noverlap=window - hop,
                Fs=sample_rate,
                mode="magnitude",
                vmin=top_level - DYNAMIC_RANGE,
                vmax=top_level,
                cmap="magma",
            )
            below.yaxis.set_major_formatter(lambda hertz, _: f"{hertz / 1000:g}")
            below.set(xlabel="time (s)", xlim=(0, longest), facecolor=image.cmap(0.0))
        rows[0, 0].set_ylabel("amplitude")
        rows[1, 0].set_ylabel("frequency (kHz)")
        figure.colorbar(image, ax=rows[1], label="level (dB)")
    return figure


DET_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # rates


def draw_det(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Figure:
    """Miss against false-alarm rates, (miss, false alarm) by system.

    On axes of normal deviates, on which Gaussian scores give straight lines (Martin et
    al., Eurospeech 1997); the diagonal is where both rates are equal.
    """
    deviate = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.6))
        axes = figure.subplots()
        ends = deviate(np.array([DET_TICKS[0] / 2, DET_TICKS[-1]]))
        axes.plot(ends, ends, color="0.8", linewidth=0.8)
        for (name, (miss, false_alarm)), colour in zip(
            curves.items(), itertools.cycle(PALETTE), strict=False
        ):
            inner = (miss < 1) & (false_alarm < 1)
            axes.plot(
                deviate(false_alarm[inner]),
                deviate(miss[inner]),
                color=colour,
                label=name,
            )
        labels = [f"{100 * tick:g}" for tick in DET_TICKS]
        axes.set_xticks(deviate(np.array(DET_TICKS)), labels)
        axes.set_yticks(deviate(np.array(DET_TICKS)), labels)
        axes.set(
            title="Detection error trade-off",
            xlabel="false alarms (% of non-target trials)",
            ylabel="misses (% of target trials)",
            xlim=ends,
            ylim=ends,
            aspect="equal",
        )
        axes.legend(frameon=False)
    return figure


def draw_scores(
    scores: NDArray[np.float64],
    targets: NDArray[np.bool_],
    threshold: float | None = None,
) -> Figure:
    """How scores [K] of target and non-target trials are distributed, each of area 1,
    and a threshold between them."""
    edges = np.linspace(scores.min(), scores.max(), 101)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2))
        axes = figure.subplots()
        for name, own, colour in (
            ("non-target trials", ~targets, PALETTE[0]),
            ("target trials", targets, PALETTE[1]),
        ):
            axes.hist(
                scores[own], edges, density=True, color=colour, alpha=0.6, label=name
            )
        if threshold is not None:
            axes.axvline(threshold, color="0.2", linewidth=1, label="threshold")
        axes.set(title="Scores of the test trials", xlabel="score", ylabel="density")
        axes.legend(frameon=False)
    return figure
