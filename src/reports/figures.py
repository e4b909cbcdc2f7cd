"""Figures of a corpus, a model and a run's results. Nothing is shown or saved here.

seconds [U], speakers [U], genders [U] -> `draw_corpus` -> Figure
waveforms [N] by name -> `draw_sounds` -> Figure
waveform [N] -> `colour_spectrogram` -> colours [F, T, 3]
features [F, T] by name -> `draw_features` -> Figure
metrics of epochs by run -> `draw_curves` -> Figure
miss and false-alarm rates by system -> `draw_det` -> Figure
scores [K] by system, targets [K] -> `draw_scores` -> Figure
turns -> `draw_turns` -> Figure
embeddings [U, E] by system, speakers [U] -> `draw_embeddings` -> Figure
plane [U, 2], speakers [U], sounds -> `map_embeddings` -> HTML
points [S, 2], [U, 2] by name, [2] -> `map_voices` -> plotly's Figure

U utterances, K trials, E embedding size, N samples, F bands, T frames. All figures
share one style and one palette. A colour has one meaning throughout: the systems that
are compared again and again have their own, and so have target and non-target trials;
other systems take theirs in order, and so do speakers. UMAP is arXiv 1802.03426, t-SNE
JMLR 9 (2008).
"""

import base64
import hashlib
import html
import itertools
import json
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from string import Template
from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from sklearn.manifold import TSNE

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
BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, BLACK = PALETTE
SYSTEM_COLOURS = {
    "d-vector, CE": ORANGE,
    "TitaNet, CE": BLUE,
    "TitaNet, ArcFace": GREEN,
    "released encoder": BLACK,
}
TARGET, NON_TARGET = RED, "0.55"  # trials of one speaker, of two
MARKERS = {  # matplotlib's names: plotly's
    "o": "circle",
    "^": "triangle-up",
    "s": "square",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
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
    unit = _unit(embeddings)
    centred = unit - unit.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * singular[:2]


def project_umap(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """UMAP of the cosine distances between embeddings, [U, E] -> [U, 2]."""
    import umap  # takes seconds to load: only where it is drawn

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        # A seed makes UMAP use one thread, and it warns that it does.
        warnings.simplefilter("ignore")
        projected = umap.UMAP(
            metric="cosine",
            n_neighbors=min(15, len(embeddings) - 1),
            random_state=seed,
        ).fit_transform(embeddings)
    torch.set_num_threads(threads)  # numba has set the process's, which changes sums
    return projected


def project_tsne(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """t-SNE of unit embeddings, whose distances grow with the angle, [U, E] -> [U,
    2]."""
    perplexity = min(30, (len(embeddings) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=seed).fit_transform(
        _unit(embeddings)
    )


def _unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)


def _project(
    method: str, embeddings: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    if method == "SVD":
        return project_svd(embeddings)
    return {"UMAP": project_umap, "t-SNE": project_tsne}[method](embeddings, seed)


def speaker_looks(speakers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(marker, colour) of each speaker that is drawn, the first 24 in order."""
    names = sorted(set(speakers))[:MAX_SPEAKERS]
    return dict(zip(names, itertools.product(MARKERS, PALETTE), strict=False))


def draw_embeddings(
    embeddings: Mapping[str, NDArray[np.float32]],
    speakers: Sequence[str],
    title: str,
    seed: int,
    methods: Sequence[str] = ("SVD", "UMAP"),
) -> Figure:
    """Utterances in the plane, with a colour and a shape for each speaker.

    A row for each system's embeddings [U, E], a column for each method: `SVD`, `UMAP`,
    `t-SNE`. Draws the first 24 speakers in order.
    """
    looks, labels = speaker_looks(speakers), np.array(speakers)
    shown = np.isin(speakers, list(looks))
    with matplotlib.rc_context(STYLE):
        size = (1.4 + 4.2 * len(methods), 0.5 + 3.8 * len(embeddings))
        figure = Figure(figsize=size)
        rows = figure.subplots(len(embeddings), len(methods), squeeze=False)
        for (system, system_embeddings), row in zip(
            embeddings.items(), rows, strict=True
        ):
            for method, axes in zip(methods, row, strict=True):
                plane = _project(method, system_embeddings[shown], seed)
                for name, (marker, colour) in looks.items():
                    axes.scatter(
                        *plane[labels[shown] == name].T,
                        s=18,
                        color=colour,
                        marker=marker,
                        linewidths=0,
                        alpha=0.8,
                        label=name,
                    )
                axes.set(
                    title=f"{system}, {method}",
                    xlabel="component 1",
                    ylabel="component 2",
                )
        count = f"{len(looks)} of {len(set(speakers))} speakers"
        figure.suptitle(f"{title}: {count}", x=0.01, ha="left")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=7,
            frameon=False,
        )
    return figure


def system_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour of its own for each system; those without one take the palette's in
    order."""
    others = itertools.cycle(PALETTE)
    return {name: SYSTEM_COLOURS.get(name) or next(others) for name in names}


def draw_corpus(
    seconds: Sequence[float], speakers: Sequence[str], genders: Sequence[str | None]
) -> Figure:
    """How long utterances are, and how much each speaker says and how often.

    One entry of each for every utterance; a gender is `f`, `m` or unknown, None.
    """
    names, owner = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    seconds = np.asarray(seconds)
    minutes = np.bincount(owner, seconds) / 60  # of each speaker
    gender = dict(zip(speakers, genders, strict=True))
    kinds = {"f": "women", "m": "men", None: "gender unknown"}
    colours = dict(zip(kinds, ("0.25", "0.65", "0.85"), strict=True))
    order = np.argsort(-minutes, kind="stable")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3))
        durations, amounts, counts = figure.subplots(1, 3)
        durations.hist(seconds, 30, color="0.45")
        durations.set(
            title="Utterances", xlabel="duration (s)", ylabel="number of utterances"
        )
        of_gender = [gender[names[speaker]] for speaker in order]
        amounts.bar(
            range(len(names)),
            minutes[order],
            width=1,
            color=[colours[kind] for kind in of_gender],
        )
        amounts.set(
            title="Speech of each speaker",
            xlabel="speakers, most speech first",
            ylabel="speech (min)",
        )
        amounts.legend(
            handles=[
                Patch(color=colours[kind], label=f"{of_gender.count(kind)} {name}")
                for kind, name in kinds.items()
                if kind in of_gender
            ],
            frameon=False,
        )
        spoken = np.bincount(owner)
        edges = np.arange(spoken.min(), spoken.max() + 2) - 0.5
        counts.hist(spoken, edges, color="0.45")
        counts.xaxis.get_major_locator().set_params(integer=True)
        counts.set(
            title="Utterances of each speaker",
            xlabel="utterances",
            ylabel="number of speakers",
        )
        hours = seconds.sum() / 3600
        figure.suptitle(
            f"{hours:.1f} h, {len(seconds)} utterances of {len(names)} speakers",
            x=0.01,
            ha="left",
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
        figure.colorbar(image, ax=rows[1], label="level (dB)")
    return figure


def colour_spectrogram(
    samples: NDArray[np.int16], sample_rate: int
) -> NDArray[np.uint8]:
    """The spectrogram of a sound as a picture, [N] -> [F, T, 3]: 129 rows from half the
    sample rate down to 0 Hz, a column for 10 ms, at most 600 of them.

    Colours span 80 dB below the loudest point, as in `draw_sounds`.
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
    level = 20 * (spectrum.abs() + 1).log10()  # dB over a step of the samples
    top = level.max().clamp(min=DYNAMIC_RANGE)  # silence is dark
    height = (level - top) / DYNAMIC_RANGE + 1
    colours = matplotlib.colormaps["magma"](height.flip(0).numpy(), bytes=True)
    return colours[..., :3]


def draw_features(
    steps: Mapping[str, NDArray[np.float32]], hop_seconds: float
) -> Figure:
    """Each step of a front end as an image of bands over time, [F, T] by name.

    A second line of the name labels the colour bar.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 1.6 * len(steps)))
        rows = figure.subplots(len(steps), sharex=True, squeeze=False)[:, 0]
        for (name, bands), axes in zip(steps.items(), rows, strict=True):
            title, _, unit = name.partition("\n")
            low, high = np.percentile(bands, (1, 99.5))
            image = axes.imshow(
                bands,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                interpolation="nearest",
                extent=(0, bands.shape[1] * hop_seconds, 0, len(bands)),
            )
            axes.set(title=title, ylabel="band")
            figure.colorbar(image, ax=axes, label=unit)
        rows[-1].set_xlabel("time (s)")
    return figure


def draw_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss and accuracy over epochs, from the `metrics.jsonl` of runs by name; over the
    share of the training where runs have different numbers of epochs.

    Solid lines are training, dashed lines validation.
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
            if np.isnan(values).all():  # nothing was kept for validation
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
    """Miss against false-alarm rates, (miss, false alarm) by system.

    Axes are normal deviates, so Gaussian scores give straight lines (Martin et al.,
    Eurospeech 1997). Both rates are equal on the diagonal.
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
    """Who speaks when, a row for each: turns are begin and end in seconds and a name,
    None for somebody unknown."""
    names = sorted({name for *_, name in turns if name is not None})
    rows = [*names, *([None] if any(name is None for *_, name in turns) else [])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1 + 0.35 * len(rows)))
        axes = figure.subplots()
        for row, (name, colour) in enumerate(
            zip(rows, itertools.cycle(PALETTE), strict=False)
        ):
            spans = [(begin, end - begin) for begin, end, n in turns if n == name]
            axes.broken_barh(
                spans, (row - 0.4, 0.8), color="0.7" if name is None else colour
            )
        axes.set_yticks(range(len(rows)), [name or "unknown" for name in rows])
        axes.set(title="Who speaks when", xlabel="time (s)")
        axes.invert_yaxis()
    return figure


def draw_scores(
    scores: Mapping[str, NDArray[np.float64]],
    targets: NDArray[np.bool_],
    thresholds: Mapping[str, float],
) -> Figure:
    """Histograms, of area 1, of each system's target and non-target scores [K], with
    its threshold if it has one."""
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


MAP = Template("""\
<figure id="$key" style="margin: 0.5rem; max-width: 64rem; font-family: sans-serif">
<div style="height: min(40rem, 85vh)"></div>
<figcaption>$caption</figcaption>
</figure>
<script>
(() => {
  const [map, player, playing] = ["div", "audio", "output"].map(
    (tag) => document.querySelector("#$key " + tag));
  const sounds = $sounds;
  const draw = async () => {
    await Plotly.newPlot(map, {config: $config, ...$figure});
    map.on("plotly_click", ({points: [{customdata, data, text}]}) => {
      if (sounds[customdata]) play(customdata, data.name + " · " + text);
    });
  };
  const play = (utterance, name) => {
    player.src = "data:audio/ogg;base64," + sounds[utterance];
    playing.innerHTML = name;
  };
  for (const button of document.querySelectorAll("#$key li button"))
    button.onclick = () => play(button.value, button.innerHTML);
  $start
})();
</script>
""")
# A notebook runs the scripts of its outputs without waiting for one from the web.
FROM_WEB = Template("""\
if (window.Plotly) return draw();
  document.head.append(Object.assign(document.createElement("script"), {
    src: "https://cdn.plot.ly/plotly-$version.min.js",
    integrity: "sha256-$digest",
    crossOrigin: "anonymous",
    onload: draw,
    onerror: () => map.replaceWith("The map needs plotly.js from the web."),
  }));""")
PAGE = Template("""\
<!DOCTYPE html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<script>$script</script>
$map""")
MAP_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "typesetMath": False,  # a name may hold two dollar signs
    # Named one by one, since plotly's own set has one that uploads the figure.
    "modeBarButtons": [
        ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]
    ],
}
PLAYER = "<p><audio controls autoplay></audio><br><output></output></p>"
ERRORS = Template("""\
<details><summary>The lines: the hardest errors</summary>
<ol>
$items
</ol>
</details>""")


def map_embeddings(
    plane: NDArray[np.float32],
    speakers: Sequence[str],
    ids: Sequence[str],
    title: str,
    sounds: Mapping[str, bytes] | None = None,
    errors: Sequence[tuple[str, str, str]] = (),
    offline: bool = False,
) -> str:
    """An interactive map of utterances in the plane [U, 2], as HTML.

    A tooltip names speaker and utterance; a click plays the Ogg file in `sounds` with
    the utterance's id, if any. The first 24 speakers look as in `draw_embeddings`,
    others share their looks. `errors` are trials as (id, id, what went wrong): each is
    a line, and an item of a list below. With `offline` it is a complete page; without,
    it is a fragment for a notebook, which loads plotly.js (5 MB) from the web.
    `title` may have several lines.
    """
    sounds, figure = sounds or {}, go.Figure()
    # plotly reads tags and entities in text
    names = np.array([html.escape(name, quote=False) for name in ids])
    rows = {name: row for row, name in enumerate(ids)}
    if errors:
        figure.add_scatter(**_lines(plane, [(rows[i], rows[j]) for i, j, _ in errors]))
    looks = list(speaker_looks(speakers).values())
    for speaker, (marker, colour) in zip(
        sorted(set(speakers)), itertools.cycle(looks), strict=False
    ):
        points = np.flatnonzero(np.array(speakers) == speaker)
        figure.add_scatter(
            x=plane[points, 0],
            y=plane[points, 1],
            mode="markers",
            marker={"symbol": MARKERS[marker], "color": colour, "size": 9},
            opacity=0.8,
            name=html.escape(speaker, quote=False),
            text=names[points],
            customdata=points,
            hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
        )
    heading = html.escape(title, quote=False).replace("\n", "<br>")
    hidden = {"visible": False}  # distances on the page mean little
    figure.update_layout(
        template="simple_white",
        # On the plot's edge, so that a narrow page has the buttons above it.
        title={
            "text": heading,
            "font": {"size": 14},
            "yref": "paper",
            "y": 1,
            "yanchor": "bottom",
            "pad": {"b": 10},
        },
        showlegend=len(set(speakers)) <= MAX_SPEAKERS,
        legend={"orientation": "h", "y": 0, "yanchor": "top"},
        margin={"l": 10, "r": 10, "t": 80, "b": 10},
        xaxis=hidden,
        yaxis=hidden,
        hovermode="closest",
    )
    caption = "Hover over a point for its speaker, drag to zoom in, double-click to see"
    caption += " everything."
    if sounds:
        caption += f" Click a point to hear its utterance.{PLAYER}"
    if errors:
        caption += _listed(errors, rows, speakers, sounds)
    script, start = get_plotlyjs(), "draw();"
    if not offline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        start = FROM_WEB.substitute(version=get_plotlyjs_version(), digest=digest)
    encoded = [base64.b64encode(sounds.get(name, b"")).decode() for name in ids]
    plot = MAP.substitute(
        key=f"map-{uuid.uuid4().hex}",
        caption=caption,
        sounds=json.dumps(encoded),
        config=json.dumps(MAP_CONFIG),
        figure=figure.to_json(engine="json"),  # leaves no < in a name
        start=start,
    )
    if not offline:
        return plot
    return PAGE.substitute(title=html.escape(title), script=script, map=plot)


def _lines(
    plane: NDArray[np.float32], pairs: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """plotly's trace of a line for each pair of rows of [U, 2]."""
    gap = np.full((len(pairs), 1), np.nan)  # ends a line
    x, y = (np.hstack([plane[pairs, axis], gap]).ravel() for axis in (0, 1))
    look = {"mode": "lines", "line": {"color": "lightgrey", "width": 1}}
    return {"x": x, "y": y, **look, "name": "hardest errors", "hoverinfo": "skip"}


def _listed(
    errors: Sequence[tuple[str, str, str]],
    rows: Mapping[str, int],
    speakers: Sequence[str],
    sounds: Mapping[str, bytes],
) -> str:
    """The errors as an HTML list; where there are sounds, utterances are buttons."""

    def utterance(name: str) -> str:
        text = html.escape(f"{speakers[rows[name]]} · {name}")
        if name not in sounds:
            return text
        return f'<button value="{rows[name]}">{text}</button>'

    items = [
        f"<li>{html.escape(what)}: {utterance(one)} and {utterance(other)}</li>"
        for one, other, what in errors
    ]
    return ERRORS.substitute(items="\n".join(items))


def map_voices(
    others: NDArray[np.float64],
    people: Mapping[str, NDArray[np.float64]],
    voice: NDArray[np.float64],
) -> go.Figure:
    """A voice [2], a star, among people [U, 2] by name and others [S, 2], in grey."""
    figure = go.Figure()

    def add(name: str, points: NDArray[np.float64], **marker: Any) -> None:
        x, y = points.T
        name = html.escape(name, quote=False)
        figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker)

    add("training speakers", others, color="lightgrey", size=5)
    looks = itertools.cycle(itertools.product(MARKERS.values(), PALETTE))
    for (name, points), (symbol, colour) in zip(people.items(), looks, strict=False):
        add(name, points, symbol=symbol, color=colour, size=10)
    add("this voice", voice[None], symbol="star", color="black", size=18)
    figure.update_layout(
        template="simple_white",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.02},
        xaxis={"visible": False},
        yaxis={"visible": False, "scaleanchor": "x"},
        hovermode="closest",
    )
    figure.update_traces(hovertemplate="%{fullData.name}<extra></extra>")
    return figure
