"""The runs behind docs/results.md: train, evaluate, tabulate, draw.

    python experiments/study.py DATA

DATA holds the excerpts of LibriSpeech and speechocean762 that docs/results.md
describes. Finished runs are reused, stopped ones resumed. Writes `assets/results.json`,
figures and lists of utterances in `assets`, and the tables in `docs/results.md`.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from blocks import DOCS, as_table, write_block

from checkpoints import SpeakerModel, choose_device, load_model
from dataset import Splits, TrainingBatches, UtteranceBatches, prepare
from eval import embed, evaluate
from figures import draw_curves, draw_embeddings, draw_sounds
from parameters import Parameters, UserError, load_parameters
from report import as_report
from runs import read_metrics
from train import train_once
from transforms import Augmentation

HOME = Path(__file__).parents[1]
ASSETS = HOME / "assets"
MODELS = {  # model.name, files and overrides on top of parameters.yml
    "d-vector, CE": ("dvector", ["init/dvector.yml"], ["loss.name=cross_entropy"]),
    "TitaNet, CE": ("titanet", [], ["loss.name=cross_entropy"]),
    "TitaNet, ArcFace": ("titanet", [], ["loss.name=arcface"]),
}
CORPORA = {  # the folder of its runs, epochs by model.name, and overrides
    "LibriSpeech excerpt": (
        "runs/excerpt",
        {"dvector": 40, "titanet": 10},
        ["dataset.name=librispeech", "dataset.root=$DATA"],
    ),
    "speechocean762": (
        "runs/speechocean762",
        {"titanet": 6},
        [
            "dataset.name=folder",
            "dataset.root=$DATA/speechocean762",
            "front_end.normalization=mean",
        ],
    ),
    "synthetic": ("runs/embedded", {"titanet": 5}, []),
}
OWN, UNSEEN = "LibriSpeech excerpt", "speechocean762"
RUNS = [
    *((OWN, model) for model in MODELS),
    (UNSEEN, "TitaNet, ArcFace"),
    ("synthetic", "TitaNet, ArcFace"),
]
REFERENCES = {"untrained": "TitaNet, untrained", "mean log-mel": "mean log-mel"}


def settings(corpus: str, model: str) -> tuple[list[str], list[str]]:
    """Files and overrides of one run."""
    (name, files, own), (_, epochs, options) = MODELS[model], CORPORA[corpus]
    overrides = [*options, *own, f"training.epochs={epochs[name]}"]
    return ["parameters.yml", *files], overrides


def run_parameters(data: Path, corpus: str, model: str) -> Parameters:
    """Of one run, named after its model in the folder of its corpus."""
    files, overrides = settings(corpus, model)
    overrides = [override.replace("$DATA", str(data)) for override in overrides]
    overrides += [f"run.directory={CORPORA[corpus][0]}", "wandb.mode=disabled"]
    overrides += [f"run.name={model.replace(', ', '-')}"]
    return load_parameters(*(HOME / file for file in files), overrides=overrides)


def summarise(corpus: str, name: str, run: Path, splits: Splits) -> dict[str, Any]:
    """What is reported of a run, and the command that trains the same."""
    model = load_model(run, torch.device("cpu"))
    report = json.loads((run / "report.json").read_text())
    files, overrides = settings(corpus, name)
    given = [*(f"-p {file}" for file in files), *overrides]
    num_samples = sum(splits.pack.entries[i].samples for i in splits.train)
    return {
        "corpus": corpus,
        "model": name,
        "weights": sum(w.numel() for w in model.encoder.parameters()),
        "epochs": model.config.training.epochs,
        "steps": read_metrics(run)[-1]["step"],
        "seed": model.config.seed,
        "hours": num_samples / splits.pack.sample_rate / 3600,
        "speakers": len(splits.speakers),
        "command": " ".join(["python src/train.py", *given]),
        "trials_sha256": hashlib.sha256((run / "trials.txt").read_bytes()).hexdigest(),
        "identification": report["identification"],
        **report["verification"]["test"],
    }


def embed_test(model: SpeakerModel, splits: Splits) -> Any:
    """[U, E] of the test utterances."""
    device = model.device
    seconds = model.config.evaluation.batch_seconds
    batches = UtteranceBatches(splits.pack, splits.test, seconds, device)
    return embed(model, batches).numpy()


def draw(models: Mapping[str, SpeakerModel], own: Splits, unseen: Splits) -> None:
    """The comparisons of the original study, of models trained on one corpus."""
    baseline, cross_entropy, arcface = models
    for file, splits, names, methods in (
        ("baseline", own, (baseline, arcface), ("SVD", "UMAP")),
        ("losses", own, (cross_entropy, arcface), ("SVD", "UMAP")),
        ("unseen", unseen, (baseline, arcface), ("SVD", "UMAP")),
        ("projections", own, (arcface,), ("SVD", "UMAP", "t-SNE")),
    ):
        embeddings = {name: embed_test(models[name], splits) for name in names}
        speakers = splits.speakers_of(splits.test)
        title = "Speakers never heard in training"
        figure = draw_embeddings(embeddings, speakers, title, 1, methods)
        figure.savefig(ASSETS / f"{file}.png")


def draw_augmentation() -> None:
    """A synthetic voice before and after each change."""
    changes = ("speed", "reverberation", "noise")
    always = [f"augmentation.{change}.probability=1" for change in changes]
    p = load_parameters(HOME / "parameters.yml", overrides=always)
    augmentation, cpu = Augmentation(p, torch.device("cpu")), torch.device("cpu")
    batch = next(TrainingBatches(prepare(p), p, cpu).epoch(0))
    torch.manual_seed(batch.seed)
    before = batch.waveforms[:, : batch.crop]
    sounds = {
        "as recorded": before,
        "faster or slower": augmentation.speed(batch.waveforms, batch.crop),
        "in a room": augmentation.reverberation(before),
        "with noise": augmentation.noise(before),
    }
    drawn = {name: x[0].numpy() for name, x in sounds.items()}
    figure = draw_sounds(drawn, p.front_end.sample_rate)
    figure.savefig(ASSETS / "augmentation.png", dpi=80)  # spectrograms compress badly


def cells(report: Mapping[str, Any]) -> list[str]:
    """EER and minDCF with their intervals."""
    eer, dcf = report["eer_interval"], report["min_dcf_interval"]
    return [
        f"{report['eer']:.1%} [{100 * eer['low']:.1f}, {100 * eer['high']:.1f}]",
        f"{report['min_dcf']:.3f} [{dcf['low']:.3f}, {dcf['high']:.3f}]",
    ]


def as_markdown(results: Mapping[str, Any]) -> str:
    """The tables and commands in docs/results.md."""
    columns = ["trained and tested on", "model", "weights", "epochs", "accuracy"]
    rows = [[*columns, "EER", "minDCF"]]
    for corpus in CORPORA:
        runs = [run for run in results["runs"] if run["corpus"] == corpus]
        heading = f"{corpus}, {runs[0]['hours']:.1f} h, {runs[0]['speakers']} speakers"
        for run in runs:
            accuracy = f"{run['identification']['accuracy']:.1%}"
            about = [f"{run['weights'] / 1e6:.2f} M", str(run["epochs"]), accuracy]
            trained = cells(run["systems"]["trained"])
            rows.append([heading, run["model"], *about, *trained])
            heading = ""
        for name, shown in REFERENCES.items():
            rows.append(["", shown, *3 * [""], *cells(runs[-1]["systems"][name])])
    unseen = [[f"trained on the {OWN}", "EER", "minDCF"]]
    for name, systems in results["unseen"].items():
        unseen.append([name, *cells(systems["trained"])])
    unseen.append(["mean log-mel", *cells(systems["mean log-mel"])])
    commands = "".join(run["command"] + "\n" for run in results["runs"])
    return (
        f"{as_table(rows)}\nTested on {UNSEEN}, which none of these has met:\n\n"
        f"{as_table(unseen)}\nOne seed each, on {results['hardware']}:\n\n"
        f"```bash\n{commands}```\n"
    )


def write_utterances(path: Path, splits: Splits) -> None:
    """A line with split and id for each utterance."""
    with open(path, "w", encoding="utf-8") as file:
        for split in ("train", "validation", "test"):
            for index in getattr(splits, split):
                file.write(f"{split} {splits.pack.entries[index].id}\n")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    data = parser.parse_args().data
    try:
        parameters = {key: run_parameters(data, *key) for key in RUNS}
        runs = {key: train_once(p) for key, p in parameters.items()}
        corpora = {corpus: prepare(p) for (corpus, _), p in parameters.items()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = choose_device(parameters[RUNS[0]])
    own = {model: run for (corpus, model), run in runs.items() if corpus == OWN}
    curves = draw_curves({name: read_metrics(run) for name, run in own.items()})
    curves.savefig(ASSETS / "curves.png")
    models = {name: load_model(run, device).eval() for name, run in own.items()}
    draw(models, corpora[OWN], corpora[UNSEEN])
    draw_augmentation()
    unseen = {
        name: as_report(evaluate(model, corpora[UNSEEN]))["verification"]["test"]
        for name, model in models.items()
    }
    cores = f"{os.cpu_count()} CPU cores"
    results = {
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else cores,
        "runs": [summarise(*key, run, corpora[key[0]]) for key, run in runs.items()],
        "unseen": {name: found["systems"] for name, found in unseen.items()},
    }
    (ASSETS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_block(DOCS / "results.md", "study.py", as_markdown(results))
    write_utterances(ASSETS / "librispeech-excerpt.txt", corpora[OWN])
    write_utterances(ASSETS / "speechocean762-excerpt.txt", corpora[UNSEEN])
    return 0


if __name__ == "__main__":
    sys.exit(main())
