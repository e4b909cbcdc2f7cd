"""The files that an evaluation leaves in its directory.

`Evaluation` -> `write_evaluation` -> trials.txt scores.txt errors.tsv det.png
scores.png embeddings.png map.html report.json
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dataset import Splits
from engine.files import atomic_write, make_directory
from reports.figures import draw_det, draw_scores
from reports.maps import map_embeddings
from reports.projections import draw_embeddings, project_umap
from reports.tables import as_errors, as_report
from speech.audio import encode_ogg
from verification.metrics import det_points
from verification.records import Evaluation, Verification
from verification.trials import write_scores, write_table, write_trials

MIN_DRAWN = 10  # utterances; with fewer, UMAP has nothing to show
EMBEDDINGS_TITLE = "Utterances of speakers never heard in training"
MAPPED_UTTERANCES = 400  # in a map, not counting those of its errors
MAPPED_SECONDS = 3  # of each utterance in a map, which then has about 10 MB


def write_evaluation(directory: Path, evaluation: Evaluation, splits: Splits) -> None:
    """Write all files of an evaluation into an existing directory.

    `report.json` comes last: if it is there, so are all others.
    """
    for folder, test in evaluation.tests.items():
        home = directory / folder
        if folder:
            make_directory(home)
        write_trials_and_scores(home, test, splits)
        for name, figure in draw_verification(test, splits, evaluation).items():
            with atomic_write(home / f"{name}.png") as file:
                figure.savefig(file)
        name = "/".join(filter(None, (directory.name, folder)))
        write_map(home, test, splits, evaluation.seed, name)
    with atomic_write(directory / "report.json") as file:
        file.write(json.dumps(as_report(evaluation), indent=2).encode())


def write_trials_and_scores(
    directory: Path, test: Verification, splits: Splits
) -> None:
    """Write a test's `trials.txt` and `scores.txt`, from which its metrics can be
    computed again, and `errors.tsv`, its hardest trials."""
    ids = [splits.pack.entries[i].id for i in test.indices]
    write_trials(directory / "trials.txt", test.trials, ids)
    write_scores(directory / "scores.txt", test.trials, test.scores["trained"], ids)
    write_table(directory / "errors.tsv", as_errors(test, splits))


def draw_verification(
    test: Verification, splits: Splits, evaluation: Evaluation
) -> dict[str, Figure]:
    """Draw a test's DET curves, scores and embeddings; return the figures by name."""
    targets = test.trials.targets
    curves = {name: det_points(scores, targets) for name, scores in test.scores.items()}
    figures = {
        "det": draw_det(curves),
        "scores": draw_scores(test.scores, targets, evaluation.thresholds),
    }
    if len(test.indices) >= MIN_DRAWN:
        figures["embeddings"] = draw_embeddings(
            {evaluation.model: test.embeddings},
            splits.speakers_of(test.indices),
            EMBEDDINGS_TITLE,
            evaluation.seed,
        )
    return figures


def write_map(
    directory: Path, test: Verification, splits: Splits, seed: int, name: str
) -> None:
    """Write `map.html`: the UMAP of a test's embeddings, to explore and to hear.

    It holds people's voices, so it is never uploaded. Its title begins with `name`.
    """
    if len(test.indices) < MIN_DRAWN:
        return
    entries = [splits.pack.entries[i] for i in test.indices]
    speakers = np.array(splits.speakers_of(test.indices))
    _, *errors = as_errors(test, splits)
    rows = _mapped_rows(speakers, [entry.id for entry in entries], errors)
    rate, sounds = splits.pack.sample_rate, {}
    for entry in (entries[row] for row in rows):
        end = entry.offset + min(entry.samples, MAPPED_SECONDS * rate)
        samples = splits.pack.samples[entry.offset : end].numpy()
        sounds[entry.id] = encode_ogg(samples, rate)
    num_shown, num_speakers = len(set(speakers[rows])), len(set(speakers))
    title = (
        f"{name}: UMAP, EER {test.reports['trained'].eer:.2%}\n"
        f"{len(rows):,} of {len(speakers):,} utterances "
        f"of {num_shown:,} of {num_speakers:,} speakers never heard in training"
    )
    page = map_embeddings(
        project_umap(test.embeddings[rows], seed),
        speakers[rows].tolist(),
        [entries[row].id for row in rows],
        title,
        sounds,
        [
            (one, other, f"{what}, {score:.2f}")
            for one, other, _, _, score, what in errors
        ],
    )
    with atomic_write(directory / "map.html") as file:
        file.write(page.encode())


def _mapped_rows(
    speakers: NDArray[np.str_], ids: list[str], errors: list[list]
) -> list[int]:
    """Return the rows of the utterances in a map: those of the errors, and about
    `MAPPED_UTTERANCES` spread over the speakers."""
    row_of = {name: row for row, name in enumerate(ids)}
    rows = {row_of[name] for error in errors for name in error[:2]}
    names = np.unique(speakers)
    of_each = max(1, MAPPED_UTTERANCES // len(names))
    for name in names[:MAPPED_UTTERANCES]:
        of_speaker = np.flatnonzero(speakers == name)
        step = -(-len(of_speaker) // of_each)  # rounded up
        rows |= set(of_speaker[::step].tolist())
    return sorted(rows)
