"""Embeddings in the plane."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from reports.projections import (
    PrincipalPlane,
    draw_embeddings,
    project_svd,
    project_tsne,
    project_umap,
)
from reports.style import MAX_SPEAKERS


@pytest.fixture
def clusters() -> tuple[np.ndarray, np.ndarray]:
    """Thirty speakers of six utterances, each near its own direction."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(180, 16)) / 10
    embeddings = np.repeat(random.normal(size=(30, 16)), 6, 0) + noise
    return embeddings.astype(np.float32), np.repeat([f"s{n:02}" for n in range(30)], 6)


def test_principal_plane_is_scikit_learns():
    random = np.random.default_rng(0)
    fitted, others = random.normal(size=(50, 6)), random.normal(size=(4, 6))
    fitted *= [1, 5, 1, 3, 1, 1]
    plane, pca = PrincipalPlane.fit(fitted), PCA(2).fit(fitted)
    assert plane.share == pytest.approx(pca.explained_variance_ratio_.sum())
    signs = np.sign((plane.directions * pca.components_).sum(1))
    assert plane.project(others) * signs == pytest.approx(pca.transform(others))
    directions = fitted / np.linalg.norm(fitted, axis=1, keepdims=True)
    expected = PCA(2).fit_transform(directions)
    assert np.abs(project_svd(fitted)) == pytest.approx(np.abs(expected))


@pytest.mark.parametrize("project", [project_umap, project_tsne])
def test_maps_are_seeded_and_keep_speakers_together(clusters, project):
    embeddings, speakers = clusters
    plane = project(embeddings, 1)
    assert np.array_equal(plane, project(embeddings, 1))
    distances = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (speakers[distances.argmin(1)] == speakers).mean() > 0.95


def test_umap_leaves_torchs_threads_alone(clusters):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    project_umap(clusters[0][:30], seed=1)
    left = torch.get_num_threads()
    torch.set_num_threads(before)
    assert left == 1


def test_every_utterance_of_24_speakers_is_drawn(clusters):
    embeddings, speakers = clusters
    systems = {"one": embeddings, "other": embeddings[::-1]}
    figure = draw_embeddings(systems, speakers, "A title", 1, ("SVD", "t-SNE"))
    assert "A title" in figure.get_suptitle()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["one, SVD", "one, t-SNE", "other, SVD", "other, t-SNE"]
    for axes in figure.axes:
        assert [len(x.get_offsets()) for x in axes.collections] == MAX_SPEAKERS * [6]
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes())
        for c in figure.axes[0].collections
    }
    assert len(looks) == MAX_SPEAKERS
