"""Figures: what is drawn, not how it looks."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD

from figures import (
    MAX_SPEAKERS,
    draw_det,
    draw_embeddings,
    draw_scores,
    draw_sounds,
    project_svd,
    project_umap,
)
from metrics import det_points


@pytest.fixture
def clusters():
    """Thirty speakers of six utterances, each near its own direction."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 16))
    embeddings = np.repeat(centres, 6, 0) + rng.normal(size=(180, 16)) / 10
    speakers = [f"s{n:02}" for n in range(30) for _ in range(6)]
    return embeddings.astype(np.float32), speakers


def test_svd_is_scikit_learns(clusters):
    embeddings, _ = clusters
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    svd = TruncatedSVD(2, algorithm="arpack", random_state=0)
    expected = svd.fit_transform(unit - unit.mean(0))
    assert np.allclose(np.abs(project_svd(embeddings)), np.abs(expected), atol=1e-4)


def test_umap_is_seeded_and_keeps_speakers_together(clusters):
    embeddings, speakers = clusters
    plane = project_umap(embeddings, 1)
    assert np.array_equal(plane, project_umap(embeddings, 1))
    nearest = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.fill_diagonal(nearest, np.inf)
    neighbours = np.array(speakers)[nearest.argmin(1)]
    assert (neighbours == speakers).mean() > 0.95


def test_every_utterance_of_24_speakers_is_drawn(clusters):
    figure = draw_embeddings(*clusters, "A title", seed=1)
    assert "A title" in figure.get_suptitle()
    for axes in figure.axes:
        drawn = [c.get_offsets() for c in axes.collections]
        assert len(drawn) == MAX_SPEAKERS
        assert all(len(points) == 6 for points in drawn)
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
        for c in figure.axes[0].collections
    }
    assert len(looks) == MAX_SPEAKERS


def test_sounds_are_drawn_on_common_scales():
    times = np.arange(16_000) / 16_000
    loud = np.sin(2 * np.pi * 2000 * times).astype(np.float32)
    quiet = np.concatenate([np.zeros(4000, np.float32), 0.1 * loud])
    figure = draw_sounds({"before": loud, "after": quiet}, 16_000)
    waves, spectrograms = figure.axes[:2], figure.axes[2:4]
    assert [axes.get_title(loc="left") for axes in waves] == ["before", "after"]
    assert waves[0].get_ylim() == waves[1].get_ylim()
    assert waves[0].get_xlim() == spectrograms[1].get_xlim() == (0, 1.25)
    levels = [axes.images[0].get_array() for axes in spectrograms]
    for image, loudest in zip(levels, (0, -20), strict=True):
        rows = np.ma.filled(image, -np.inf).max(1)[::-1]  # drawn from the top
        assert rows.argmax() == pytest.approx(2000 / 8000 * (len(rows) - 1), abs=1)
        assert rows.max() == pytest.approx(20 * np.log10(0.5) + loudest, abs=0.5)
    assert spectrograms[0].images[0].get_clim() == spectrograms[1].images[0].get_clim()
    assert spectrograms[0].get_xlabel() == "time (s)"


def test_gaussian_scores_give_straight_det_curves():
    generator = np.random.default_rng(0)
    targets = np.arange(200_000) % 2 == 0
    scores = generator.normal(3.0 * targets)
    curves = {name: det_points(scores, targets) for name in ("one", "other")}
    axes = draw_det(curves).axes[0]
    diagonal, line, other = axes.get_lines()
    x, y = line.get_data()
    inner = (np.abs(x) < 2.3) & (np.abs(y) < 2.3)  # further out trials are few
    assert np.abs(x + y + 3.0)[inner].max() < 0.1
    assert line.get_label() == "one"
    assert line.get_color() != other.get_color()
    assert np.array_equal(*diagonal.get_data())
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:3] == ["0.1", "0.5", "2"]


def test_scores_are_drawn_as_densities():
    generator = np.random.default_rng(0)
    targets = np.arange(9000) % 9 == 0
    figure = draw_scores(generator.normal(4.0 * targets), targets, threshold=2.0)
    axes = figure.axes[0]
    for container in axes.containers:
        area = sum(bar.get_height() * bar.get_width() for bar in container)
        assert area == pytest.approx(1)
    assert axes.get_lines()[0].get_xdata() == [2.0, 2.0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(names) == {"non-target trials", "target trials", "threshold"}
