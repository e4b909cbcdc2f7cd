"""Figures of sounds and of a run's results; none is shown or saved.

waveforms [N] by name -> `draw_sounds` -> Figure
metrics of epochs by run -> `draw_curves` -> Figure
miss and false-alarm rates by system -> `draw_det` -> Figure
scores [K] by system, targets [K] -> `draw_scores` -> Figure
turns -> `draw_turns` -> Figure

K trials, N samples.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from reports.spectrogram import DYNAMIC_RANGE
from reports.style import (
    NON_TARGET,
    PALETTE,
    STYLE,
    TARGET,
    style_for,
    system_colours,
)


def draw_sounds(sounds: Mapping[str, NDArray[np.float32]], sample_rate: int) -> Figure:
    """Draw waveform and spectrogram of each sound, side by side on common scales.

    Sounds are [N] in [-1, 1], of any lengths.
    """
    window, hop = round(0.025 * sample_rate), round(0.01 * sample_rate)
    loudest = max(np.abs(sound).max() for sound in sounds.values()) or 1.0
    longest = max(map(len, sounds.values())) / sample_rate
    top_level = 20 * np.log10(loudest / 2)  # of the loudest possible sine, in dB
    with matplotlib.rc_context(STYLE), np.errstate(divide="ignore"):
        figure = Figure(figsize=(1 + 2.8 * len(sounds), 3.2))
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
            above.plot(seconds, sound, color="0.3", linewidth=0.4)
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
        figure.colorbar(image, ax=rows[1], label="level (dB)", pad=0.01)
    return figure


def draw_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw loss and accuracy over epochs, from the `metrics.jsonl` of runs by name.

    Solid lines are training, dashed lines validation. Runs with different numbers of
    epochs share an axis from 0 to 100 % of the training.
    """
    lengths = {len(epochs) for epochs in metrics.values()}
    in_shares = len(lengths) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4))
        panels = dict(zip(("loss", "accuracy"), figure.subplots(1, 2), strict=True))
        for (key, axes), (split, line), ((name, epochs), colour) in itertools.product(
            panels.items(),
            {"train": "-", "validation": "--"}.items(),
            zip(metrics.items(), system_colours(metrics).values(), strict=True),
        ):
            values = [epoch.get(f"{split}/{key}", np.nan) for epoch in epochs]
            if np.isnan(values).all():  # a run without validation utterances
                continue
            numbers = [epoch["epoch"] for epoch in epochs]
            if in_shares:
                numbers = [number / len(epochs) for number in numbers]
            marker = "." if len(epochs) < 30 else ""
            axes.plot(
                *(numbers, values, line),
                color=colour,
                marker=marker,
                label=f"{name}, {split}",
            )
            if in_shares:
                axes.xaxis.set_major_formatter(PercentFormatter(1))
            else:
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="share of training" if in_shares else "epoch", ylabel=key)
        panels["accuracy"].yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside right upper", frameon=False
        )
    return figure


DET_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # rates


def draw_det(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Figure:
    """Draw miss rates over false-alarm rates, (miss, false alarm) by system.

    Axes are normal deviates, so Gaussian scores give straight lines (Martin et al.,
    Eurospeech 1997). The rates are equal on the diagonal.
    """
    deviate = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.6))
        axes = figure.subplots()
        ends = deviate(np.array([DET_TICKS[0] / 2, DET_TICKS[-1]]))
        axes.plot(ends, ends, color="0.8", linewidth=0.8)
        for (name, (miss, false_alarm)), colour in zip(
            curves.items(), system_colours(curves).values(), strict=True
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


def draw_turns(turns: Sequence[tuple[float, float, str | None]]) -> Figure:
    """Draw who speaks when, with a row for each speaker.

    A turn is (begin, end, name), in seconds; the name is None for an unknown speaker.
    """
    names = sorted({name for *_, name in turns if name is not None})
    rows = [*names, *([None] if any(name is None for *_, name in turns) else [])]
    style, drawn = style_for(names)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 1 + 0.35 * len(rows)))
        axes = figure.subplots()
        for row, (name, colour) in enumerate(
            zip(rows, itertools.cycle(PALETTE), strict=False)
        ):
            spans = [(begin, end - begin) for begin, end, who in turns if who == name]
            axes.broken_barh(
                spans, (row - 0.4, 0.8), color="0.7" if name is None else colour
            )
        axes.set_yticks(range(len(rows)), [drawn.get(name, "unknown") for name in rows])
        axes.set(title="Who speaks when", xlabel="time (s)")
        axes.invert_yaxis()
    return figure


def draw_scores(
    scores: Mapping[str, NDArray[np.float64]],
    targets: NDArray[np.bool_],
    thresholds: Mapping[str, float],
) -> Figure:
    """Draw two histograms of area 1 for each system, of its target and its non-target
    scores [K], and its threshold if it has one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.8 + 4 * len(scores), 3.2))
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for (system, system_scores), axes in zip(scores.items(), panels, strict=True):
            edges = np.linspace(system_scores.min(), system_scores.max(), 101)
            for name, mask, colour in (
                ("non-target trials", ~targets, NON_TARGET),
                ("target trials", targets, TARGET),
            ):
                axes.hist(
                    system_scores[mask],
                    edges,
                    density=True,
                    color=colour,
                    alpha=0.6,
                    label=name,
                )
            if np.isfinite(threshold := thresholds.get(system, np.nan)):
                axes.axvline(threshold, color="0.2", linewidth=1, label="threshold")
            axes.set(title=system, xlabel="score")
        panels[0].set_ylabel("density")
        panels[0].legend(frameon=False, fontsize=8)
    return figure
