"""Compare models and losses: train, test, draw.

    python experiments/study.py

Run it in the folder that has the corpora below `data`, as init/study.yml and
docs/results.md name them. Finished runs are reused, stopped ones resumed. Writes
`assets/results.json`, which `make docs` tabulates, and figures and lists of utterances
in `assets`.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from dataset import Splits, TrainingBatches, UtteranceBatches, prepare
from engine.devices import choose_device
from engine.parameter_files import load_parameters
from errors import run_command
from eval import evaluate_checkpoint
from parameters import Parameters
from release import TEST_OTHER
from reports.figures import draw_curves, draw_sounds
from reports.projections import draw_embeddings
from reports.tables import as_report
from runs.checkpoints import load_model
from runs.run_directory import read_metrics
from runs.speaker_model import SpeakerModel, embed
from speech.corpora import without_label
from speech.surroundings import load_surroundings
from teaching.studies import train_once
from transforms import Augmentation

HOME = Path(__file__).parents[1]
ASSETS = HOME / "assets"
MODELS = {  # files and overrides on top of parameters.yml
    "d-vector, CE": (
        ["init/dvector.yml", "init/study.yml"],
        # It learns little in TitaNet's 15 epochs.
        ["loss.name=cross_entropy", "training.epochs=30"],
    ),
    "TitaNet, CE": (
        ["init/study.yml"],
        # Cross-entropy learns more slowly at Muon's default rate.
        ["loss.name=cross_entropy", "training.optimizer.muon_lr=0.003"],
    ),
    "TitaNet, ArcFace": (["init/study.yml"], ["loss.name=arcface"]),
}
NUM_SEEDS = {"d-vector, CE": 2, "TitaNet, CE": 3, "TitaNet, ArcFace": 3}


def settings(model: str, seed: int) -> tuple[list[str], list[str]]:
    """Return the parameter files and overrides of one run."""
    files, overrides = MODELS[model]
    return ["parameters.yml", *files], [*overrides, f"seed={seed}"]


def run_parameters(model: str, seed: int) -> Parameters:
    """Return the parameters of one run, which is named after its model and seed."""
    files, overrides = settings(model, seed)
    name = f"run.name={model.replace(', ', '-')}-{seed}"
    return load_parameters(
        *(HOME / file for file in files),
        overrides=[*overrides, name, "run.directory=runs/study", "wandb.mode=disabled"],
    )


def summarise(model: str, seed: int, run: Path) -> dict[str, Any]:
    """Return a run's results, and the command that trains the same."""
    trained = load_model(run, torch.device("cpu"))
    report = json.loads((run / "report.json").read_text())
    unseen = as_report(evaluate_checkpoint(run, TEST_OTHER))["verification"]
    files, overrides = settings(model, seed)
    arguments = [*(f"-p {file}" for file in files), *overrides]
    last = read_metrics(run)[-1]
    return {
        "model": model,
        "seed": seed,
        "weights": sum(w.numel() for w in trained.encoder.parameters()),
        "epochs": trained.config.training.epochs,
        "steps": last["step"],
        "hours": last["spent/audio_seconds"] / 3600,  # of crops
        "command": " ".join(["python src/train.py", *arguments]),
        "identification": report["identification"],
        "tests": {
            test: of_test["systems"]
            for test, of_test in {**report["verification"], **unseen}.items()
        },
    }


def embed_test(model: SpeakerModel, splits: Splits, indices: Sequence[int]) -> Any:
    """Return the embeddings [U, E] of some utterances."""
    device = model.device
    seconds = model.config.evaluation.batch_seconds
    batches = UtteranceBatches(splits.pack, indices, seconds, device)
    return embed(model, batches).numpy()


def draw(models: Mapping[str, SpeakerModel], mixture: Splits, unseen: Splits) -> None:
    """Draw the comparisons that the original study shows."""
    baseline, cross_entropy, arcface = models
    seen = mixture, mixture.by_corpus("test")["test/speechocean762"]
    for file, (splits, indices), names, methods in (
        ("baseline", seen, (baseline, arcface), ("SVD", "UMAP")),
        ("losses", seen, (cross_entropy, arcface), ("SVD", "UMAP")),
        ("unseen", (unseen, unseen.test), (baseline, arcface), ("SVD", "UMAP")),
        ("projections", seen, (arcface,), ("SVD", "UMAP", "t-SNE")),
    ):
        embeddings = {n: embed_test(models[n], splits, indices) for n in names}
        speakers = splits.speakers_of(indices)
        title = "Speakers never heard in training"
        figure = draw_embeddings(embeddings, speakers, title, 1, methods)
        figure.savefig(ASSETS / f"{file}.png")


def draw_augmentation() -> None:
    """Draw a synthetic voice before and after each change."""
    changes = ("speed", "reverberation", "noise")
    always = [f"augmentation.{change}.probability=1" for change in changes]
    parameters = load_parameters(HOME / "parameters.yml", overrides=always)
    config, cpu = parameters.augmentation, torch.device("cpu")
    sample_rate = parameters.front_end.sample_rate
    surroundings = load_surroundings(parameters, cpu)
    augmentation = Augmentation(config, sample_rate, surroundings)
    splits = prepare(parameters.dataset, parameters.front_end)
    batch = next(TrainingBatches(splits, parameters, cpu).epoch(0))
    torch.manual_seed(batch.seed)
    before = batch.waveforms[:, : batch.crop]
    sounds = {
        "as recorded": before,
        "faster or slower": augmentation.speed(batch.waveforms, batch.crop),
        "in a room": augmentation.changes["reverberation"](before),
        "with noise": augmentation.changes["noise"](before),
    }
    samples = {name: x[0].numpy() for name, x in sounds.items()}
    figure = draw_sounds(samples, sample_rate)
    figure.savefig(ASSETS / "augmentation.png", dpi=80)  # spectrograms compress badly


def write_utterances(splits: Splits) -> None:
    """Write a file for each corpus with the split and id of each utterance."""
    lines = defaultdict(list)
    for split in ("train", "validation", "test"):
        for index in getattr(splits, split):
            entry = splits.pack.entries[index]
            name = without_label(entry.id, entry.corpus)
            lines[entry.corpus or "librispeech"].append(f"{split} {name}\n")
    for corpus, of_corpus in lines.items():
        path = ASSETS / f"{corpus}-excerpt.txt"
        path.write_text("".join(of_corpus), encoding="utf-8")


def main() -> None:
    """Train what is missing, then test, draw and list."""
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    parameters = {
        (model, seed): run_parameters(model, seed)
        for model in MODELS
        for seed in range(1, 1 + NUM_SEEDS[model])
    }
    runs = {key: train_once(config) for key, config in parameters.items()}
    config = parameters["TitaNet, ArcFace", 1]
    seen = prepare(config.dataset, config.front_end)
    device = choose_device(config.training, config.model)
    config = load_parameters(HOME / "parameters.yml", overrides=TEST_OTHER)
    unseen = prepare(config.dataset, config.front_end)
    summaries = [summarise(*key, run) for key, run in runs.items()]
    first = {model: runs[model, 1] for model in MODELS}
    curves = draw_curves({name: read_metrics(run) for name, run in first.items()})
    curves.savefig(ASSETS / "curves.png")
    models = {name: load_model(run, device).eval() for name, run in first.items()}
    draw(models, seen, unseen)
    draw_augmentation()
    arcface = first["TitaNet, ArcFace"]
    lists = {
        label: arcface / f"test/{label}/trials.txt"
        for label in ("speechocean762", "commonvoice")
    }
    (lists["librispeech"],) = arcface.glob("evaluations/*/trials.txt")
    results = {
        "trials_sha256": {
            label: hashlib.sha256(path.read_bytes()).hexdigest()
            for label, path in lists.items()
        },
        "runs": summaries,
    }
    (ASSETS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_utterances(seen)
    write_utterances(unseen)


if __name__ == "__main__":
    sys.exit(run_command(main))
