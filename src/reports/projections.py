"""Embeddings in the plane.

embeddings [U, E] -> `project_svd`, `project_umap`, `project_tsne` -> plane [U, 2]
vectors [S, E] -> `PrincipalPlane`: vectors [U, E] -> plane [U, 2]
embeddings [U, E] by system, speakers [U] -> `draw_embeddings` -> Figure

U utterances, S vectors that a plane is fitted to, E embedding size. UMAP is arXiv
1802.03426, t-SNE JMLR 9 (2008).
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports.style import MAX_SPEAKERS, speaker_looks, style_for
from verification.scoring import unit


@dataclass(frozen=True)
class PrincipalPlane:
    """The two directions in which vectors differ most.

    It depends on the fitted vectors alone, so no point moves when others are projected
    beside it.
    """

    mean: NDArray[np.float64]  # [E]
    directions: NDArray[np.float64]  # [2, E]
    share: float  # of the variance, 0 to 1

    @classmethod
    def fit(cls, vectors: NDArray[np.float32]) -> "PrincipalPlane":
        """Return the plane of greatest variance of vectors [S, E]."""
        mean = vectors.mean(0, dtype=np.float64)
        _, singular, directions = np.linalg.svd(vectors - mean, full_matrices=False)
        variances = singular**2
        return cls(mean, directions[:2], variances[:2].sum() / variances.sum())

    def project(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the vectors' coordinates in the plane, [U, E] -> [U, 2]."""
        return (vectors - self.mean) @ self.directions.T


def project_svd(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project unit embeddings on their directions of greatest variance, [U, E] ->
    [U, 2]."""
    vectors = unit(embeddings)
    return PrincipalPlane.fit(vectors).project(vectors)


def project_umap(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return UMAP of the cosine distances between embeddings, [U, E] -> [U, 2]."""
    import umap  # takes seconds

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        # UMAP warns that with a seed it uses one thread.
        warnings.simplefilter("ignore")
        projected = umap.UMAP(
            metric="cosine",
            n_neighbors=min(15, len(embeddings) - 1),
            min_dist=0.5,  # with the default, 0.1, a speaker shrinks to a dot
            random_state=seed,
        ).fit_transform(embeddings)
    # numba changes the number of threads of the whole process, which changes sums.
    torch.set_num_threads(threads)
    return projected


def project_tsne(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return t-SNE of embeddings at length 1, whose distances grow with their angles:
    [U, E] -> [U, 2]."""
    from sklearn.manifold import TSNE  # takes seconds

    perplexity = min(30, (len(embeddings) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=seed).fit_transform(
        unit(embeddings)
    )


def _project(method: str, embeddings: NDArray[np.float32], seed: int) -> NDArray:
    if method == "SVD":
        return project_svd(embeddings)
    return {"UMAP": project_umap, "t-SNE": project_tsne}[method](embeddings, seed)


def draw_embeddings(
    embeddings: Mapping[str, NDArray[np.float32]],
    speakers: Sequence[str],
    title: str,
    seed: int,
    methods: Sequence[str] = ("SVD", "UMAP"),
    max_speakers: int = MAX_SPEAKERS,
) -> Figure:
    """Draw utterances in the plane, with a colour and a shape for each speaker.

    There is a row for each system's embeddings [U, E] and a column for each method:
    `SVD`, `UMAP`, `t-SNE`. Only the first speakers in order are drawn, at most 24.
    """
    looks = dict(itertools.islice(speaker_looks(speakers).items(), max_speakers))
    labels = np.array(speakers)
    shown = np.isin(speakers, list(looks))
    style, drawn = style_for([*looks, *embeddings, title])
    with matplotlib.rc_context(style):
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
                        s=24,
                        color=colour,
                        marker=marker,
                        linewidths=0,
                        alpha=0.8,
                        label=drawn[name],
                    )
                axes.set(
                    title=f"{drawn[system]}, {method}",
                    xlabel="component 1",
                    ylabel="component 2",
                )
        count = f"{len(looks)} of {len(set(speakers))} speakers"
        figure.suptitle(f"{drawn[title]}: {count}", x=0.01, ha="left")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=9,
            frameon=False,
        )
    return figure
