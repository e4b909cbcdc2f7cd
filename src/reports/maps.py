"""Interactive maps of embeddings, for a page.

plane [U, 2], speakers [U], sounds -> `map_embeddings` -> HTML
points [S, 2], [U, 2] by name, [2] -> `map_voices` -> plotly's Figure

U utterances, S training speakers.
"""

import base64
import html
import itertools
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from reports.style import MARKERS, MAX_SPEAKERS, PALETTE, speaker_looks

MAP = Template("""\
<figure id="map" style="margin: 0.5rem; max-width: 64rem; font-family: sans-serif">
<div style="height: min(40rem, 85vh)"></div>
<figcaption>$caption</figcaption>
</figure>
<script>
(() => {
  const [map, player, playing] = ["div", "audio", "output"].map(
    (tag) => document.querySelector("#map " + tag));
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
  for (const button of document.querySelectorAll("#map li button"))
    button.onclick = () => play(button.value, button.innerHTML);
  draw();
})();
</script>
""")
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
    # Listed, because one of plotly's default buttons uploads the figure.
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
) -> str:
    """Return an interactive map of utterances in the plane [U, 2], as an HTML page
    that needs nothing from the web.

    A tooltip names speaker and utterance; a click plays the Ogg file that `sounds` has
    for the utterance's id, if any. The first 24 speakers look as in `draw_embeddings`,
    others share their looks. `errors` are trials as (id, id, what went wrong). Each is
    a line on the map, and an item of the list below it. `title` may have several lines.
    """
    sounds, row_of = sounds or {}, {name: row for row, name in enumerate(ids)}
    pairs = [(row_of[one], row_of[other]) for one, other, _ in errors]
    figure = _map_figure(plane, speakers, ids, title, pairs)
    caption = "Hover over a point for its speaker, drag to zoom in, double-click to see"
    caption += " everything."
    if sounds:
        caption += f" Click a point to hear its utterance.{PLAYER}"
    if errors:
        caption += _error_list(errors, row_of, speakers, sounds)
    encoded = [base64.b64encode(sounds.get(name, b"")).decode() for name in ids]
    fragment = MAP.substitute(
        caption=caption,
        sounds=json.dumps(encoded),
        config=json.dumps(MAP_CONFIG),
        figure=figure.to_json(engine="json"),  # which escapes the < of a name
    )
    return PAGE.substitute(
        title=html.escape(title), script=get_plotlyjs(), map=fragment
    )


def _map_figure(
    plane: NDArray[np.float32],
    speakers: Sequence[str],
    ids: Sequence[str],
    title: str,
    errors: Sequence[tuple[int, int]],
) -> go.Figure:
    """Draw the points of each speaker, and a line for each pair of rows in `errors`."""
    figure = go.Figure()
    if errors:
        gap = np.full((len(errors), 1), np.nan)  # ends a line
        x, y = (np.hstack([plane[errors, axis], gap]).ravel() for axis in (0, 1))
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": "lightgrey", "width": 1},
            name="hardest errors",
            hoverinfo="skip",
        )
    # plotly reads tags and entities in text
    names = np.array([html.escape(name, quote=False) for name in ids])
    looks = itertools.cycle(speaker_looks(speakers).values())
    for speaker, (marker, colour) in zip(sorted(set(speakers)), looks, strict=False):
        rows = np.flatnonzero(np.array(speakers) == speaker)
        figure.add_scatter(
            x=plane[rows, 0],
            y=plane[rows, 1],
            mode="markers",
            marker={"symbol": MARKERS[marker], "color": colour, "size": 9},
            opacity=0.8,
            name=html.escape(speaker, quote=False),
            text=names[rows],
            customdata=rows,
            hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
        )
    hidden = {"visible": False}  # distances on the page mean little
    figure.update_layout(
        template="simple_white",
        # At the plot's edge, so that a narrow page has the buttons above it.
        title={
            "text": html.escape(title, quote=False).replace("\n", "<br>"),
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
    return figure


def _error_list(
    errors: Sequence[tuple[str, str, str]],
    row_of: Mapping[str, int],
    speakers: Sequence[str],
    sounds: Mapping[str, bytes],
) -> str:
    """Return the errors as an HTML list; utterances that have a sound are buttons."""

    def utterance(name: str) -> str:
        text = html.escape(f"{speakers[row_of[name]]} · {name}")
        if name not in sounds:
            return text
        return f'<button value="{row_of[name]}">{text}</button>'

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
    """Draw a voice [2] as a star among people [U, 2] by name, and `others` [S, 2] in
    grey."""
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
