"""Pictures of what a run found: data in, a matplotlib `Figure` out, nothing shown.

embeddings [U, E], speakers [U] -> `draw_embeddings` -> Figure
plane [U, 2], speakers [U], sounds -> `map_embeddings` -> HTML
waveforms [N] by name -> `draw_sounds` -> Figure
scores [K], targets [K] -> `draw_scores` -> Figure
miss and false-alarm rates by system -> `draw_det` -> Figure

U utterances, K trials, E embedding size, N samples. One style and one palette serve the
whole project; a colour belongs to one speaker or system throughout a figure. UMAP is
arXiv 1802.03426.
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

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs, get_plotlyjs_version

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


def speaker_looks(speakers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(marker, colour) of each speaker that is drawn: the first 24 in order."""
    names = sorted(set(speakers))[:MAX_SPEAKERS]
    return dict(zip(names, itertools.product(MARKERS, PALETTE), strict=False))


def draw_embeddings(
    embeddings: NDArray[np.float32], speakers: Sequence[str], title: str, seed: int
) -> Figure:
    """Utterances in the plane by SVD and by UMAP, a colour and shape for each speaker.

    embeddings [U, E]; at most 24 speakers are drawn, those first in order.
    """
    num_speakers = len(set(speakers))
    looks = speaker_looks(speakers)
    drawn = np.isin(speakers, list(looks))
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
            for name, (marker, colour) in looks.items():
                own = plane[speakers == name]
                axes.scatter(
                    *own.T,
                    s=18,
                    color=colour,
                    marker=marker,
                    linewidths=0,
                    alpha=0.8,
                    label=name,
                )
            axes.set(title=method, xlabel="component 1", ylabel="component 2")
        count = f"{len(looks)} of {num_speakers} speakers"
        figure.suptitle(f"{title}: {count}", x=0.01, ha="left")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=7,
            frameon=False,
        )
    return figure


MAP = Template("""\
<figure id="$key" style="margin: 1rem; max-width: 64rem; font-family: sans-serif">
<div style="height: 40rem"></div>
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
      if (!sounds[customdata]) return;
      player.src = "data:audio/ogg;base64," + sounds[customdata];
      playing.innerHTML = data.name + " · " + text;
    });
  };
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
    onerror: () => { map.textContent = "The map needs plotly.js from the web."; },
  }));""")
PAGE = Template("""\
<!DOCTYPE html>
<meta charset="utf-8">
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


def map_embeddings(
    plane: NDArray[np.float32],
    speakers: Sequence[str],
    ids: Sequence[str],
    title: str,
    sounds: Mapping[str, bytes] | None = None,
    offline: bool = False,
) -> str:
    """Utterances in the plane [U, 2] to zoom into, as HTML; a tooltip names speaker and
    utterance, a click plays the Ogg file that `sounds` has under its id, if any.

    Speakers look as in `draw_embeddings`, and at most 24 are drawn. With `offline` it
    is a page that needs nothing else; without, a part of one, such as a notebook's
    output, and takes plotly.js (5 MB) from the web.
    """
    sounds, figure = sounds or {}, go.Figure()
    # plotly reads tags and entities in text
    names = np.array([html.escape(name, quote=False) for name in ids])
    for speaker, (marker, colour) in speaker_looks(speakers).items():
        own = np.flatnonzero(np.array(speakers) == speaker)
        figure.add_scatter(
            x=plane[own, 0],
            y=plane[own, 1],
            mode="markers",
            marker={"symbol": MARKERS[marker], "color": colour, "size": 9},
            opacity=0.8,
            name=html.escape(speaker, quote=False),
            text=names[own],
            customdata=own,
            hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
        )
    figure.update_layout(
        template="simple_white",
        title=html.escape(title, quote=False),
        legend_title="speaker",
        margin={"l": 60, "r": 10, "t": 60, "b": 60},
        xaxis_title="component 1",
        yaxis={"title": "component 2", "scaleanchor": "x"},
    )
    caption = "Drag to zoom in, double-click to see everything."
    if sounds:
        caption += f" Click a point to hear its utterance.{PLAYER}"
    script, start = get_plotlyjs(), "draw();"
    if not offline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        start = FROM_WEB.substitute(version=get_plotlyjs_version(), digest=digest)
    encoded = [base64.b64encode(sounds.get(name, b"")).decode() for name in ids]
    drawn = MAP.substitute(
        key=f"map-{uuid.uuid4().hex}",
        caption=caption,
        sounds=json.dumps(encoded),
        config=json.dumps(MAP_CONFIG),
        figure=figure.to_json(engine="json"),  # leaves no < in a name
        start=start,
    )
    if not offline:
        return drawn
    return PAGE.substitute(title=html.escape(title), script=script, map=drawn)


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
