"""What long recordings and large corpora take of memory.

    python tests/large.py hours|recording|utterances FOLDER

Prints the largest anonymous memory seen in bytes, how many samples, rows or entries
there were, and the seconds it took. A sparse file holds the samples: reading them is
real, the disk that they would take is not.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # as a command

from conftest import MINIATURE, RATE
from dataset import Batch, TrainingBatches, UtteranceBatches, split
from engine.devices import keep_freed_memory
from engine.optimizers import build_optimizer
from engine.parameter_files import SHIPPED, load_parameters
from parameters import Parameters
from runs.resuming import State
from runs.speaker_model import build_model, embed
from speech.packs import Pack, open_pack
from speech.surroundings import load_surroundings
from train import training_step
from transforms import Augmentation

CPU = torch.device("cpu")


def anonymous_bytes(process: int | str = "self") -> int:
    """Memory of a process that no file stands behind."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def largest_while(work: Callable[[], int]) -> tuple[int, int]:
    """The most that this process had during the work, and what that returns."""
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        returned = work()
    finally:
        done.set()
        watcher.join()
    return max(seen), returned


def write_pack(folder: Path, speakers: int, each: int, seconds: int) -> None:
    """A pack of silence, of so many utterances of each speaker."""
    samples = seconds * RATE
    entries = [
        [f"{n}", f"{n // each}", None, None, None, n * samples, samples]
        for n in range(speakers * each)
    ]
    index = {"fingerprint": "", "sample_rate": RATE, "warnings": [], "digest": ""}
    (folder / "index.json").write_text(json.dumps(index | {"entries": entries}))
    with open(folder / "samples.int16", "wb") as file:
        file.truncate(2 * samples * len(entries))


def opened(folder: Path, p: Parameters) -> tuple[Pack, TrainingBatches]:
    packed = open_pack(folder)
    return packed, TrainingBatches(split(packed, p.dataset), p, CPU)


def hours(folder: Path) -> int:
    """Some steps of TitaNet-S in twenty hours."""
    p = load_parameters(SHIPPED)
    write_pack(folder, speakers=100, each=72, seconds=10)
    packed, batches = opened(folder, p)
    model = build_model(p, batches.splits.speakers, {}, CPU).train()
    state = State(model, build_optimizer(model.parameters(), p.training.optimizer))
    augmentation = Augmentation(
        p.augmentation, p.front_end.sample_rate, load_surroundings(p, CPU)
    ).to(CPU)
    for _, batch in zip(range(6), batches.epoch(0), strict=False):
        training_step(state, model.encoder, augmentation, batch, 100)
    return len(packed.samples)


def recording(folder: Path) -> int:
    """One embedding of three hours, by a small model of which only the length is
    large."""
    p = load_parameters(SHIPPED, overrides=MINIATURE)
    write_pack(folder, speakers=1, each=1, seconds=3 * 3600)
    packed = open_pack(folder)
    model = build_model(p, ["a", "b"], {}, CPU).train(False)
    batches = UtteranceBatches(packed, [0], p.evaluation.batch_seconds, CPU)
    return len(embed(model, batches))


def utterances(folder: Path) -> int:
    """The first batch of 200,000 utterances."""
    write_pack(folder, speakers=1000, each=200, seconds=12)
    packed, batches = opened(folder, load_parameters(SHIPPED))
    first: Batch = next(batches.epoch(0))
    assert first.waveforms.isfinite().all()
    return len(packed.entries)


if __name__ == "__main__":
    keep_freed_memory()
    work = {f.__name__: f for f in (hours, recording, utterances)}[sys.argv[1]]
    began = time.perf_counter()
    print(*largest_while(lambda: work(Path(sys.argv[2]))), time.perf_counter() - began)
