"""The memory that long recordings and large corpora take.

    python experiments/large.py hours|recording|utterances FOLDER
    python experiments/large.py who|compare FOLDER [SECONDS]

Prints the peak of anonymous memory in bytes, the number of samples, rows, entries or
lines, and the run time in seconds. A sparse file holds the samples of silence: they are
really read, but take no room on the disk.
"""

import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # as a command
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from commands.parser import main
from conftest import CPU, MINIATURE, RATE, Steps
from dataset import TrainingBatches, UtteranceBatches, split
from engine.devices import keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from runs.speaker_model import build_model, embed
from speech.audio import resampled
from speech.packs import Pack, open_pack
from speech.synthetic import SyntheticUtterance


def anonymous_bytes(process: int | str = "self") -> int:
    """Memory of a process that no file stands behind."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def largest_while(work: Callable[[], int]) -> tuple[int, int]:
    """Return the most memory that this process had during the work, and its result."""
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


def silence(folder: Path, speakers: int, each: int, seconds: int) -> Pack:
    """A pack of silence with so many utterances of each speaker, in whose middle stands
    their number: two speakers cannot have the same recording."""
    samples = seconds * RATE
    entries = [
        [f"{n}", f"{n // each}", None, None, None, n * samples, samples]
        for n in range(speakers * each)
    ]
    index = {"fingerprint": "", "sample_rate": RATE, "warnings": [], "digest": ""}
    (folder / "index.json").write_text(json.dumps(index | {"entries": entries}))
    with open(folder / "samples.int16", "wb") as file:
        for n in range(len(entries)):
            file.seek(2 * (n * samples + samples // 2))
            file.write(n.to_bytes(4, "little"))
        file.truncate(2 * samples * len(entries))
    return open_pack(folder)


def hours(folder: Path) -> int:
    """Some steps of TitaNet-S in twenty hours."""
    p = load_parameters(SHIPPED)
    packed = silence(folder, speakers=100, each=72, seconds=10)
    steps = Steps.of(p, splits=split(packed, p.dataset))
    for _, batch in zip(range(6), steps.batches.epoch(0), strict=False):
        steps.take(batch, num_steps=100)
    return len(packed.samples)


def recording(folder: Path) -> int:
    """One embedding of three hours, by a small model of which only the length is
    large."""
    p = load_parameters(SHIPPED, overrides=MINIATURE)
    packed = silence(folder, speakers=1, each=1, seconds=3 * 3600)
    model = build_model(p, ["a", "b"], {}, CPU).train(False)
    batches = UtteranceBatches(packed, [0], p.evaluation.batch_seconds, CPU)
    return len(embed(model, batches))


def utterances(folder: Path) -> int:
    """The first batch of 200,000 utterances."""
    p = load_parameters(SHIPPED)
    packed = silence(folder, speakers=1000, each=200, seconds=12)
    batches = TrainingBatches(split(packed, p.dataset), p, CPU)
    first = next(batches.epoch(0))
    assert first.waveforms.isfinite().all()
    return len(packed.entries)


def conversation(path: Path, seconds: int) -> Path:
    """Write minutes of two voices in turns, with pauses, at 44.1 kHz in stereo."""
    rate = 44_100
    voices = [
        torch.from_numpy(SyntheticUtterance(speaker, 0, 25.0, 0).render(RATE))
        for speaker in range(2)
    ]
    pause = torch.zeros(5 * RATE, dtype=torch.int16)
    sounds = [resampled(torch.cat([v, pause]) / 2**15, RATE, rate) for v in voices]
    with soundfile.SoundFile(path, "w", rate, 2) as file:
        for turn in range(seconds // 30):
            file.write(np.outer(sounds[turn % 2], [1, 0.8]))
    return path


def command(line: str, *more: str) -> int:
    """Run a command of voices.py, and return how many lines it printed."""
    with redirect_stdout(io.StringIO()) as printed:
        assert main([*line.split(), *more]) == 0
    return printed.getvalue().count("\n")


def who(folder: Path, seconds: int = 3 * 3600) -> int:
    """Who speaks when in three hours; the turns."""
    short, store = conversation(folder / "short.flac", 30), folder / "people.npz"
    command("enrol --store", str(store), f"ann={short}")
    long = conversation(folder / "long.flac", seconds)
    return command("who --store", str(store), str(long))


def compare(folder: Path, seconds: int = 3 * 3600) -> int:
    """Three hours beside half a minute; one verdict."""
    files = (("short.flac", 30), ("long.flac", seconds))
    sounds = [conversation(folder / name, length) for name, length in files]
    return command("compare", *map(str, sounds))


if __name__ == "__main__":
    kinds = hours, recording, utterances, who, compare
    work = {f.__name__: f for f in kinds}[sys.argv[1]]
    if work not in (who, compare):  # voices.py returns its memory
        keep_freed_memory()
    folder, *seconds = Path(sys.argv[2]), *map(int, sys.argv[3:])
    began = time.perf_counter()
    print(*largest_while(lambda: work(folder, *seconds)), time.perf_counter() - began)
