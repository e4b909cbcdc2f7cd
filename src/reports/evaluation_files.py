"""The files that an evaluation leaves in its directory.

`Evaluation` -> `write_evaluation` -> trials.txt scores.txt errors.tsv det.png
scores.png embeddings.png map.html report.json
"""

import json
from pathlib import Path

import numpy as np

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
UNHEARD = "Utterances of speakers never heard in training"  # a figure's title
MAPPED_UTTERANCES = 400  # in a map, not counting those of its errors
MAPPED_SECONDS = 3  # of each mapped utterance; a map then has about 10 MB


def write_evaluation(directory: Path, evaluation: Evaluation, splits: Splits) -> None:
    """Write all files of an evaluation into an existing directory.

    `report.json` comes last: if it is there, all others are.
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
    recomputed, and its hardest trials, `errors.tsv`."""
    ids = [splits.pack.entries[i].id for i in test.indices]
    write_trials(directory / "trials.txt", test.trials, ids)
    write_scores(directory / "scores.txt", test.trials, test.scores["trained"], ids)
    write_table(directory / "errors.tsv", as_errors(test, splits))


def draw_verification(
    test: Verification, splits: Splits, evaluation: Evaluation
) -> dict[str, Figure]:
    """Figures of a test by name: DET curves, scores, and the embeddings."""
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
            UNHEARD,
            evaluation.seed,
        )
    return figures


def write_map(
    directory: Path, test: Verification, splits: Splits, seed: int, name: str
) -> None:
    """`map.html`: the UMAP of a test's embeddings to explore and, cut short, to hear.

    It holds people's voices, so it is only written here and never uploaded. Its title
    begins with `name`.
    """
    if len(test.indices) < MIN_DRAWN:
        return
    entries = [splits.pack.entries[i] for i in test.indices]
    speakers = np.array(splits.speakers_of(test.indices))
    _, *errors = as_errors(test, splits)
    rows_of_ids = {entry.id: row for row, entry in enumerate(entries)}
    rows = {rows_of_ids[name] for error in errors for name in error[:2]}
    people = np.unique(speakers)
    of_each = max(1, MAPPED_UTTERANCES // len(people))
    for speaker in people[:MAPPED_UTTERANCES]:
        of_speaker = np.flatnonzero(speakers == speaker)
        step = -(-len(of_speaker) // of_each)  # rounded up
        rows |= set(of_speaker[::step].tolist())
    mapped = sorted(rows)
    rate, sounds = splits.pack.sample_rate, {}
    for entry in (entries[row] for row in mapped):
        end = entry.offset + min(entry.samples, MAPPED_SECONDS * rate)
        samples = splits.pack.samples[entry.offset : end].numpy()
        sounds[entry.id] = encode_ogg(samples, rate)
    shown = len(set(speakers[mapped]))
    title = (
        f"{name}: UMAP, EER {test.reports['trained'].eer:.2%}\n"
        f"{len(mapped):,} of {len(speakers):,} utterances "
        f"of {shown:,} of {len(people):,} speakers never heard in training"
    )
    page = map_embeddings(
        project_umap(test.embeddings[mapped], seed),
        speakers[mapped].tolist(),
        [entries[row].id for row in mapped],
        title,
        sounds,
        [
            (one, other, f"{what}, {score:.2f}")
            for one, other, _, _, score, what in errors
        ],
        offline=True,
    )
    with atomic_write(directory / "map.html") as file:
        file.write(page.encode())
