"""Two utterances of one voice and one of another, followed through the model.

splits -> `choose_trio` -> `Trio` -> `follow` -> `Journey`
waveforms [N] -> `front_end_stages` -> images [F, T]
`Journey` -> `draw_journey`, `draw_circle` -> Figure
inner values of the three -> `draw_front_end`, `draw_gates`, `draw_attention`,
`draw_pooling` -> Figure

N samples, M mel bands, T frames, C channels, P channels that are pooled, U utterances.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dataset import Splits
from reports.style import PINK, SKY, STYLE
from runs.speaker_model import SpeakerModel
from speech.packs import FULL_SCALE
from teaching.anatomy import Inside, describe
from transforms import FrontEnd, SpecAugment

SECONDS = 3.0  # of each utterance
NUM_OTHERS = 40  # people beside the two, at most
FEW_OTHERS = 10  # with fewer test speakers left, training speakers join them
LOOKS = {"A": (PINK, "-"), "A again": (PINK, "--"), "B": (SKY, "-")}
AGAIN, OTHER = "A and A again", "A and B"
BAND = {"alpha": 0.25, "linewidth": 0}


@dataclass(frozen=True, eq=False)
class Trio:
    """A, A again and B by name, and an utterance of each other test speaker."""

    waveforms: dict[str, Tensor]  # [N] in [-1, 1], all of one length
    others: list[Tensor]  # [N] each

    @property
    def blind(self) -> dict[str, str]:
        """The names of the three under names that do not tell who is who."""
        return {"first": "A", "second": "B", "third": "A again"}


@dataclass(frozen=True, eq=False)
class Journey:
    """Similarities of A with A again, B and the others [U], by stage of the model.

    At every stage but the last an utterance is what `describe` returns, less the
    others' mean and divided by their deviation. The last stage is the embedding.
    """

    again: dict[str, float]
    other: dict[str, float]
    strangers: dict[str, NDArray[np.float32]]

    def at(self, stage: str) -> str:
        """Return both similarities at a stage, for a figure's title."""
        return (
            f"similarity at {stage}: {AGAIN} {self.again[stage]:+.2f}, "
            f"{OTHER} {self.other[stage]:+.2f}"
        )


def choose_trio(splits: Splits, tested: Sequence[int]) -> Trio:
    """Return the middle seconds of three test utterances, and of others.

    Speakers are ordered by their second longest utterance. The first one is A, with the
    two longest; B is the next one of A's gender, if any has it. Where few test speakers
    are left, the others are training speakers.
    """
    entries = splits.pack.entries
    tested_people = _longest_first(splits, tested)
    (a, again, *_), *rest = sorted(
        tested_people, key=lambda of: -entries[of[1]].samples if len(of) > 1 else 0
    )
    alike = [of for of in rest if entries[of[0]].gender == entries[a].gender]
    b = (alike or rest)[0][0]
    others = [of[0] for of in rest if of[0] != b]
    if len(others) < FEW_OTHERS:
        others += [of[0] for of in _longest_first(splits, splits.train)]
    size = min(
        round(SECONDS * splits.pack.sample_rate),
        *(entries[i].samples for i in (a, again, b)),
    )
    return Trio(
        {
            name: _middle(splits, index, size)
            for name, index in zip(LOOKS, (a, again, b), strict=True)
        },
        [_middle(splits, index, size) for index in others[:NUM_OTHERS]],
    )


def _longest_first(splits: Splits, indices: Sequence[int]) -> list[list[int]]:
    """Return the utterances of each speaker, the longest first."""
    entries = splits.pack.entries
    of_speaker: dict[str, list[int]] = {}
    for index in sorted(indices, key=lambda i: (-entries[i].samples, i)):
        of_speaker.setdefault(entries[index].speaker, []).append(index)
    return [*of_speaker.values()]


def _middle(splits: Splits, index: int, size: int) -> Tensor:
    entry = splits.pack.entries[index]
    begin = entry.offset + max(0, entry.samples - size) // 2
    return splits.pack.samples[begin : begin + min(size, entry.samples)] / FULL_SCALE


def follow(model: SpeakerModel, trio: Trio) -> Journey:
    """Return how alike the three are at each stage of TitaNet."""
    described = [describe(model, x) for x in (*trio.waveforms.values(), *trio.others)]
    again, other, strangers = {}, {}, {}
    for stage in described[0]:
        vectors = torch.stack([of[stage] for of in described])  # [3 + U, ...]
        if stage != "the embedding":
            mean, deviation = vectors[3:].mean(0), vectors[3:].std(0)
            vectors = (vectors - mean) / deviation.clamp(min=1e-6)
        vectors = torch.nn.functional.normalize(vectors)
        cosines = (vectors[1:] @ vectors[0]).numpy()
        again[stage], other[stage] = float(cosines[0]), float(cosines[1])
        strangers[stage] = cosines[2:]
    return Journey(again, other, strangers)


def draw_journey(journey: Journey) -> Figure:
    """Draw both similarities from stage to stage, and where nine of ten of the others
    lie."""
    stages = [*journey.again]
    x = range(len(stages))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8))
        axes = figure.subplots()
        low, high = np.quantile([*journey.strangers.values()], (0.05, 0.95), axis=1)
        label = f"A and {len(journey.strangers[stages[0]])} others, nine of ten"
        axes.fill_between(x, low, high, color="0.88", linewidth=0, label=label)
        for values, colour, label in (
            (journey.again, PINK, AGAIN),
            (journey.other, SKY, OTHER),
        ):
            y = [*values.values()]
            axes.plot(x, y, "o-", color=colour, label=label)
            for place, value in zip(x, y, strict=True):
                axes.annotate(
                    f"{value:.2f}",
                    (place, value),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(
            x, [s.removeprefix("the ").replace(" ", "\n", 1) for s in stages]
        )
        axes.set(title="How alike two utterances are, stage by stage", ylabel="cosine")
        axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def draw_circle(journey: Journey, threshold: float) -> Figure:
    """Draw the embeddings of A again, B and the others at their angles to A's; a dashed
    line is the cosine `threshold`."""
    stage = "the embedding"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
        axes.set(xlim=(-1.25, 1.45), ylim=(-0.12, 1.25), aspect="equal")
        axes.axis("off")
        turn = np.linspace(0, np.pi, 200)
        axes.plot(np.cos(turn), np.sin(turn), color="0.8", linewidth=1)
        angles = np.arccos(journey.strangers[stage].clip(-1, 1))
        axes.plot(np.cos(angles), np.sin(angles), "o", ms=4, color="0.6", alpha=0.6)
        limit = np.arccos(np.clip(threshold, -1, 1))
        axes.plot(
            *((0, 1.12 * np.cos(limit)), (0, 1.12 * np.sin(limit))), "--", color="0.4"
        )
        axes.text(
            *(1.15 * np.cos(limit), 1.15 * np.sin(limit), f"threshold {threshold:.2f}"),
            fontsize=8,
            color="0.3",
        )
        for name, cosine in (
            ("A", 1.0),
            ("A again", journey.again[stage]),
            ("B", journey.other[stage]),
        ):
            angle, (colour, line) = np.arccos(np.clip(cosine, -1, 1)), LOOKS[name]
            end = np.array([np.cos(angle), np.sin(angle)])
            axes.plot(*zip((0, 0), end, strict=True), line, color=colour, linewidth=2)
            axes.plot(*end, "o", color=colour, ms=8)
            text = (
                "A"
                if name == "A"
                else f"{name}: {np.degrees(angle):.0f}°, {cosine:.2f}"
            )
            side = "left" if end[0] >= 0 else "right"
            axes.text(*(1.05 * end), text, color=colour, ha=side, va="center")
        axes.set_title("Angles to A's embedding, and their cosines; grey: other people")
    return figure


def _image(axes: Axes, values: NDArray, seconds: float, top: float, **kwargs) -> object:
    """Draw [rows, T] over time, rows from the bottom up to `top`."""
    return axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0, seconds, 0, top),
        **kwargs,
    )


def _name_columns(axes: Sequence[Axes]) -> None:
    """Title three panels A, A again and B, in their colours."""
    for (name, (colour, _)), panel in zip(LOOKS.items(), axes, strict=True):
        panel.set_title(name, color=colour, fontweight="bold")


@torch.no_grad()
def front_end_stages(
    front_end: FrontEnd, waveforms: Iterable[Tensor], spec_augment: SpecAugment
) -> dict[str, list[NDArray[np.float32]]]:
    """Return the images [F, T] of each stage of the front end, one for each waveform
    [N], by the stage's title and, in a second line, its unit."""
    config = front_end.config
    unit = "natural log" if config.normalization == "mean" else "deviations"
    names = ("power spectrum\ndB", "log-mel\nnatural log")
    names += (f"normalised\n{unit}", f"masked\n{unit}")
    stages: dict[str, list] = {name: [] for name in names}
    for x in waveforms:
        emphasised = torch.cat([x[:1], x[1:] - config.preemphasis * x[:-1]])
        spectrum = torch.stft(
            emphasised,
            config.n_fft,
            front_end.hop,
            len(front_end.window),
            front_end.window,
            return_complex=True,
        )
        log_mel = front_end.log_mel(x[None])
        normalised = front_end.normalise(log_mel, None)
        masked = spec_augment(normalised)
        decibels = 20 * (spectrum.abs() + 1e-4).log10()
        images = (decibels, log_mel[0], normalised[0], masked[0])
        for stage, image in zip(stages.values(), images, strict=True):
            stage.append(image.numpy())
    return stages


def draw_front_end(
    stages: Mapping[str, Sequence[NDArray[np.float32]]],
    seconds: float,
    kilohertz: float,
) -> Figure:
    """Draw the stages of the front end, a row each, for the three: images [F, T].

    Lines of a stage's name are its title and its unit. The first stage has frequencies
    up to `kilohertz`, the others mel bands.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.4 + 1.7 * len(stages)))
        rows = figure.subplots(len(stages), 3, sharex=True, sharey="row")
        for number, ((name, images), row) in enumerate(
            zip(stages.items(), rows, strict=True)
        ):
            title, _, unit = name.partition("\n")
            low, high = np.percentile(np.concatenate(images, 1), (1, 99.5))
            for axes, values in zip(row, images, strict=True):
                top = len(values) if number else kilohertz
                image = _image(axes, values, seconds, top, vmin=low, vmax=high)
            row[0].set_ylabel(f"{title}\n{'mel band' if number else 'kHz'}")
            figure.colorbar(image, ax=row, label=unit, pad=0.01)
        _name_columns(rows[0])
        for axes in rows[-1]:
            axes.set_xlabel("time (s)")
    return figure


def gate_distances(insides: Mapping[str, Inside], block: int) -> tuple[float, float]:
    """Return the mean absolute difference of a block's gates between A and A again, and
    between A and B."""
    a, again, b = (inside.gates[block] for inside in insides.values())
    return float(np.abs(a - again).mean()), float(np.abs(a - b).mean())


def draw_gates(insides: Mapping[str, Inside], names: Sequence[str]) -> Figure:
    """Draw the gates of each block, A's against those of A again, and against B's."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6))
        rows = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
        a = insides["A"].gates
        for row, other in zip(rows, ("A again", "B"), strict=True):
            colour = PINK if other == "A again" else SKY
            for block, axes in enumerate(row):
                distance = gate_distances(insides, block)[other == "B"]
                axes.plot((0, 1), (0, 1), color="0.8", linewidth=0.8)
                gates = insides[other].gates[block]
                axes.scatter(
                    a[block], gates, s=5, color=colour, alpha=0.5, linewidths=0
                )
                axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1))
                axes.set_title(
                    f"{names[block]}\n|difference| {distance:.3f}", fontsize=8
                )
            row[0].set_ylabel(f"gate of {other}", color=colour)
        for axes in rows[-1]:
            axes.set_xlabel("gate of A")
    return figure


def draw_attention(
    features: Mapping[str, NDArray[np.float32]],
    insides: Mapping[str, Inside],
    seconds: float,
    title: str,
) -> Figure:
    """Draw attention below the features [M, T] that it belongs to, for the three.

    A weight of 1 is an even share. The line is the mean of all channels, and the band
    holds the middle half of them.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4))
        above, below = figure.subplots(2, 3, sharex=True, sharey="row")
        together = np.concatenate([*features.values()], 1)
        low, high = np.percentile(together, (1, 99.5))
        for (name, inside), top, bottom in zip(
            insides.items(), above, below, strict=True
        ):
            values = features[name]
            image = _image(top, values, seconds, len(values), vmin=low, vmax=high)
            shares = inside.attention * len(inside.attention)  # [T, P]
            times = (np.arange(len(shares)) + 0.5) * seconds / len(shares)
            colour = LOOKS[name][0]
            bottom.fill_between(
                times, *np.quantile(shares, (0.25, 0.75), axis=1), color=colour, **BAND
            )
            bottom.plot(times, shares.mean(1), color=colour)
            bottom.axhline(1, color="0.6", linewidth=0.8)
            bottom.set(xlabel="time (s)", ylim=(0, None))
        above[0].set_ylabel("mel band")
        below[0].set_ylabel("even shares")
        figure.colorbar(image, ax=above, label="log-mel", pad=0.01)
        _name_columns(above)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def telling_channels(pooled: NDArray[np.float32], count: int) -> list[int]:
    """Return the channels whose means differ most between utterances: [U, 2P] as
    pooling gives it."""
    means, _ = np.split(pooled, 2, axis=1)
    return np.argsort(-means.std(0), kind="stable")[:count].tolist()


def draw_pooling(
    insides: Mapping[str, Inside], channels: Sequence[int], seconds: float
) -> Figure:
    """Draw some channels over time for the three, and what pooling keeps of them: the
    mean (line) and the deviation (band)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.8 + 1.4 * len(channels)))
        rows = figure.subplots(len(channels), 3, sharey="row", squeeze=False)
        for channel, row in zip(channels, rows, strict=True):
            for (name, inside), axes in zip(insides.items(), row, strict=True):
                mean = inside.pooled[channel]
                deviation = inside.pooled[inside.frames.shape[1] + channel]
                colour = LOOKS[name][0]
                times = (np.arange(len(inside.frames)) + 0.5) * seconds
                times = times / len(inside.frames)
                axes.axhspan(mean - deviation, mean + deviation, color=colour, **BAND)
                axes.axhline(mean, color=colour)
                frames = inside.frames[:, channel]
                axes.plot(times, frames, color="0.3", linewidth=0.8)
                axes.text(
                    *(0.99, 0.97, f"{mean:.2f} ± {deviation:.2f}"),
                    transform=axes.transAxes,
                    ha="right",
                    va="top",
                    fontsize=8,
                    bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
                )
            row[0].set_ylabel(f"channel {channel}")
        _name_columns(rows[0])
        for axes in rows[-1]:
            axes.set_xlabel("time (s)")
    return figure
