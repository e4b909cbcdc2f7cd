"""The recipe race: many ways to train TitaNet-S for the same seconds of audio.

    python experiments/race.py run --train FOLDER --test FOLDER [--phase test]
        [--configurations A,B+C] [--device cuda --workers 12 --graph] RESULTS.jsonl
    python experiments/race.py table assets/race.jsonl [docs/results.md]
    python experiments/race.py list

Every run sees `--steps` x 32 x 2 s of the training speakers. In the phase `develop` it
trains on 100 of them and measures the EER over all pairs of the other 25; in `test` it
trains on all 125 and looks at the test speakers. A+B is both ideas at once. Each
finished run is a line of RESULTS.jsonl at once; a run that is there already is not
repeated. Ideas that lost are no longer here; their lines hold their recipes.

B utterances, N samples, M mel bands, T frames, E embedding size, S classes. All samples
are on the device, and all that is drawn in a step is drawn there, in static shapes.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from blocks import as_table, write_block

from engine.devices import keep_freed_memory
from engine.parameter_files import SHIPPED, load_parameters
from losses import ArcFaceLoss
from models import build_encoder
from transforms import FrontEnd, SpecAugment
from verification.metrics import equal_error_rate

RATE = 16_000  # Hz
AUDIO = (".opus", ".ogg", ".flac", ".wav", ".mp3")
STEP_SECONDS = 64.0  # of audio, whatever the shape of the batch
HELD_OUT, HELD_OUT_SEED = 25, 0  # development speakers
EVALUATION_SAMPLES = 240 * RATE  # embedded at once, padding included
EAGER_STEPS = 3  # before a step is captured in a CUDA graph
SCALE, RAMP = 30.0, 0.5  # of ArcFace
WARMUP, CLIP_NORM = 0.1, 5.0


@dataclass(frozen=True)
class Recipe:
    """A configuration of the race; the defaults are the baseline."""

    optimizer: str = "adamw"  # adamw | muon, for matrices; AdamW for the rest
    lr: float = 1.5e-3  # of AdamW
    muon_lr: float = 0.005
    weight_decay: float = 2e-4
    margin: float = 0.2
    masks: tuple[int, int, int, float] = (3, 4, 5, 0.03)  # as SpecAugment ships
    crop_seconds: float = 2.0


IDEAS: dict[str, dict] = {
    "baseline": {},
    "muon-0.005": {"optimizer": "muon"},
    "muon-0.01": {"optimizer": "muon", "muon_lr": 0.01},
    "muon-0.02": {"optimizer": "muon", "muon_lr": 0.02},
    "lr-2e-3": {"lr": 2e-3},
    "decay-0.3": {"weight_decay": 0.3},
    "decay-1": {"weight_decay": 1.0},
    "margin-0.3": {"margin": 0.3},
    "margin-0.5": {"margin": 0.5},
    "mask-none": {"masks": (0, 0, 0, 0.0)},
    "batch-64x1": {"crop_seconds": 1.0},
    "batch-96x0.7": {"crop_seconds": 2 / 3},
    "batch-128x0.5": {"crop_seconds": 0.5},
}


def recipe_of(name: str) -> Recipe:
    """The recipe of one idea, or of several joined by +; later ones win."""
    overrides: dict = {}
    for idea in name.split("+"):
        if idea not in IDEAS:
            raise SystemExit(f"--configurations: expected known ideas, got {idea}")
        overrides |= IDEAS[idea]
    return Recipe(**overrides)


@cache
def shipped(*overrides: str):
    """The shipped parameters with these overrides."""
    return load_parameters(SHIPPED, overrides=overrides)


# Audio


@dataclass(frozen=True)
class Corpus:
    """All recordings of a folder end to end, one speaker to a folder."""

    samples: np.ndarray  # int16, memory-mapped
    offsets: np.ndarray  # [utterances]
    lengths: np.ndarray
    speakers: np.ndarray  # int, places among the sorted names


def _decode(path: Path) -> np.ndarray:
    import soundfile

    samples, rate = soundfile.read(path, dtype="int16")
    if rate != RATE or samples.ndim != 1:
        raise SystemExit(f"{path}: expected mono at {RATE} Hz, got {rate} Hz")
    return samples


def load_corpus(folder: Path, cache_folder: Path) -> Corpus:
    """Decode a folder into the cache once."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    stem = cache_folder / f"{folder.name.replace('.', '-')}-{digest[:12]}"
    if not stem.with_suffix(".json").exists():
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO)
        if not paths:
            raise SystemExit(f"{folder}: expected audio files, found none")
        with ThreadPoolExecutor(16) as pool:
            decoded = list(pool.map(_decode, paths))
        cache_folder.mkdir(parents=True, exist_ok=True)
        np.save(stem.with_suffix(".npy"), np.concatenate(decoded))
        index = {
            "lengths": [len(samples) for samples in decoded],
            "speakers": [path.parent.name for path in paths],
        }
        stem.with_suffix(".json").write_text(json.dumps(index))
    index = json.loads(stem.with_suffix(".json").read_text())
    lengths = np.array(index["lengths"])
    _, speakers = np.unique(index["speakers"], return_inverse=True)
    samples = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    return Corpus(samples, np.cumsum(lengths) - lengths, lengths, speakers)


# Learning


class Muon:
    """torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`, for matrices of one shape
    at once and with a learning rate that is a tensor, as a CUDA graph needs it."""

    def __init__(self, weights: list[Tensor], lr: Tensor, weight_decay: float) -> None:
        by_shape = defaultdict(list)
        for weight in weights:
            by_shape[weight.shape].append(weight)
        self.groups = list(by_shape.values())
        self.buffers = [torch.zeros_like(torch.stack(g)) for g in self.groups]
        self.lr, self.weight_decay = lr, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        for weights, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([w.grad for w in weights])  # [K, rows, columns]
            buffer.lerp_(gradients, 1 - 0.95)
            x = gradients.lerp(buffer, 0.95).bfloat16()  # Nesterov's momentum
            tall = x.shape[1] > x.shape[2]
            x = x.mT if tall else x
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):  # Newton and Schulz
                gram = x @ x.mT
                update = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
                x = torch.baddbmm(x, update, x, beta=3.4445)
            x = x.mT if tall else x
            lr = self.lr * (0.2 * math.sqrt(max(x.shape[1:])))
            torch._foreach_mul_(weights, 1 - self.lr * self.weight_decay)
            torch._foreach_sub_(weights, (lr * x.float()).unbind())


def schedule(steps: int, warmup: float) -> np.ndarray:
    """Linear warm-up, then half a cosine to 0, as shares of the rate, [steps]."""
    progress = np.arange(1, steps + 1) / steps
    falling = (1 + np.cos(np.pi * (progress - warmup) / max(1 - warmup, 1e-9))) / 2
    return np.where(progress < warmup, progress / max(warmup, 1e-9), falling)


@dataclass(frozen=True)
class Job:
    """One run: a configuration by its name, and where it is measured."""

    phase: str  # develop | test
    name: str
    seed: int


class Bench:
    """What all runs of a process share: the audio on its device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.train = load_corpus(options.train, options.cache)
        self.test = options.test and load_corpus(options.test, options.cache)
        self.train_samples = self._on_device(self.train)
        num_speakers = self.train.speakers.max() + 1
        order = np.random.default_rng(HELD_OUT_SEED).permutation(num_speakers)
        self.held_out = order[: min(HELD_OUT, num_speakers // 4)]
        self.evaluations: dict = {}  # by phase, the same for all runs

    def _on_device(self, corpus: Corpus) -> Tensor:
        return torch.from_numpy(np.array(corpus.samples)).to(self.device)

    def front_end(self) -> FrontEnd:
        parameters = shipped("front_end.normalization=mean")
        return FrontEnd(parameters.front_end).to(self.device)

    @torch.inference_mode()
    def evaluation(self, phase: str) -> tuple[list[tuple[Tensor, Tensor]], np.ndarray]:
        """Batches of (features, frames) of what is evaluated, and the speakers."""
        corpus, samples = self.train, self.train_samples
        chosen = np.flatnonzero(np.isin(corpus.speakers, self.held_out))
        if phase == "test":
            corpus, samples = self.test, self._on_device(self.test)
            chosen = np.arange(len(corpus.lengths))
        chosen = chosen[np.argsort(-corpus.lengths[chosen], kind="stable")]
        utterances = list(
            zip(
                corpus.offsets[chosen].tolist(),
                corpus.lengths[chosen].tolist(),
                strict=True,
            )
        )
        front_end, batches = self.front_end().eval(), []
        while utterances:
            count = max(1, EVALUATION_SAMPLES // utterances[0][1])
            part, utterances = utterances[:count], utterances[count:]
            rows = [samples[begin : begin + n].float() / 32768 for begin, n in part]
            waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([n for _, n in part], device=self.device)
            batches.append(front_end(waveforms, lengths))
        return batches, corpus.speakers[chosen]

    @torch.inference_mode()
    def eer(self, encoder: nn.Module, phase: str) -> float:
        """In percent, over all pairs."""
        encoder.eval()
        if phase not in self.evaluations:
            self.evaluations[phase] = self.evaluation(phase)
        batches, speakers = self.evaluations[phase]
        embeddings = F.normalize(torch.cat([encoder(*batch) for batch in batches]))
        scores = (embeddings @ embeddings.T).cpu().numpy()
        first, second = np.triu_indices(len(speakers), 1)
        targets = speakers[first] == speakers[second]
        return 100 * equal_error_rate(scores[first, second], targets)


class Training:
    """One run on the device."""

    def __init__(self, bench: Bench, job: Job) -> None:
        self.bench, self.device = bench, bench.device
        self.recipe = p = recipe_of(job.name)
        torch.manual_seed(job.seed)
        rng = np.random.default_rng(job.seed)
        num_utterances = self._choose_utterances(job.phase)
        mels = shipped().front_end.num_mels
        encoder = build_encoder(shipped("model.titanet.size=s").model, mels)
        criterion = ArcFaceLoss(
            encoder.embedding_size, self.num_classes, SCALE, p.margin
        )
        self.encoder = encoder.to(self.device).train()
        self.criterion = criterion.to(self.device)
        self.front_end = bench.front_end().train()
        names = ("frequency_masks", "frequency_width", "time_masks", "time_fraction")
        self.spec_augment = SpecAugment(
            shipped(
                *(
                    f"augmentation.spec_augment.{name}={value}"
                    for name, value in zip(names, p.masks, strict=True)
                )
            ).augmentation.spec_augment
        )
        self.size = round(p.crop_seconds * RATE)
        batch_size = round(STEP_SECONDS / p.crop_seconds)
        self.steps = bench.options.steps
        rounds = range(-(-self.steps * batch_size // num_utterances))
        order = np.concatenate([rng.permutation(num_utterances) for _ in rounds])
        plan = order[: self.steps * batch_size].reshape(self.steps, batch_size)
        progress = np.arange(1, self.steps + 1) / self.steps
        self.plan, self.positions, self.rates, self.margins = (
            torch.from_numpy(values).to(self.device)
            for values in (
                plan,
                rng.random(plan.shape),
                schedule(self.steps, WARMUP).astype(np.float32),
                np.minimum(1, progress / RAMP).astype(np.float32),
            )
        )
        self._build_optimizers()
        self.losses = torch.zeros(self.steps, device=self.device)
        self.hits = torch.zeros(self.steps, device=self.device)
        self.now = torch.zeros(1, dtype=torch.int64, device=self.device)  # step

    def _choose_utterances(self, phase: str) -> int:
        """Offset, length and class of all utterances to train on; their number."""
        corpus = self.bench.train
        chosen = np.arange(len(corpus.lengths))
        if phase == "develop":
            chosen = np.flatnonzero(~np.isin(corpus.speakers, self.bench.held_out))
        _, classes = np.unique(corpus.speakers[chosen], return_inverse=True)
        self.num_classes = int(classes.max()) + 1
        self.offsets, self.lengths, self.classes = (
            torch.from_numpy(values).to(self.device)
            for values in (corpus.offsets[chosen], corpus.lengths[chosen], classes)
        )
        return len(chosen)

    def _build_optimizers(self) -> None:
        p = self.recipe
        self.weights = [*self.encoder.parameters(), *self.criterion.parameters()]
        muon = [w for w in self.weights if w.ndim == 2] if p.optimizer == "muon" else []
        kept = {id(w) for w in muon}
        rest = [w for w in self.weights if id(w) not in kept]
        lr = torch.tensor(p.lr, device=self.device)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [w for w in rest if w.ndim > 1]},
                {"params": [w for w in rest if w.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=lr,
            weight_decay=p.weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.lrs = [(lr, p.lr)]
        self.muon = None
        if muon:
            lr = torch.tensor(p.muon_lr, device=self.device)
            self.lrs.append((lr, p.muon_lr))
            self.muon = Muon(muon, lr, p.weight_decay)

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, Tensor]:
        """Features [B, M, T], without masks, and classes [B] of step `now`."""
        items = self.plan.index_select(0, self.now)[0]
        positions = self.positions.index_select(0, self.now)[0]
        lengths = self.lengths[items]
        room = (lengths - self.size).clamp(min=0) + 1
        begins = self.offsets[items] + (positions * room).long()
        steps = torch.arange(self.size, device=self.device)
        fitting = lengths.clamp(max=self.size)[:, None]  # the shorter are repeated
        indices = begins[:, None] + steps % fitting
        x = self.bench.train_samples[indices].float() / 32768  # [B, N]
        return self.front_end(x)[0], self.classes[items]

    def step(self) -> None:
        """One step, without a wait for the device."""
        now = self.now
        rate = self.rates.index_select(0, now)[0]
        for lr, base in self.lrs:
            lr.copy_(base * rate)
        self.criterion.scheduled_share.copy_(self.margins.index_select(0, now)[0])
        features, classes = self.batch()
        features = self.spec_augment(features)
        for weight in self.weights:
            weight.grad = None
        bfloat16 = (
            self.device.type == "cuda"
            or torch.cpu._is_amx_tile_supported()
            or torch.cpu._is_avx512_bf16_supported()
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = self.encoder(features)
        loss, predictions = self.criterion(embeddings.float(), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP_NORM, foreach=True)
        self.adamw.step()
        if self.muon is not None:
            self.muon.step()
        self.losses.index_copy_(0, now, loss.detach()[None])
        accuracy = (predictions == classes).float().mean()
        self.hits.index_copy_(0, now, accuracy[None])
        now += 1

    def run(self) -> None:
        """All steps; with `--graph` captured once and replayed."""
        eager = min(EAGER_STEPS, self.steps) if self.bench.options.graph else self.steps
        if eager == self.steps:
            for _ in range(self.steps):
                self.step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(eager):
                self.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()  # recorded, not run
        with torch.cuda.stream(stream):
            for _ in range(self.steps - eager):
                graph.replay()
        torch.cuda.current_stream().wait_stream(stream)


def train(bench: Bench, job: Job) -> dict:
    """Train and measure; the record of it."""
    began = time.perf_counter()
    training = Training(bench, job)
    torch.backends.cudnn.benchmark = True  # batches of training have one shape
    training.run()
    torch.backends.cudnn.benchmark = False
    device = bench.options.device
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        device = torch.cuda.get_device_name()
    seconds = time.perf_counter() - began
    losses, hits = training.losses.tolist(), training.hits.tolist()
    tenth = max(1, len(losses) // 10)
    return {
        **asdict(job),
        "eer": {"last": bench.eer(training.encoder, job.phase)},
        "loss": mean(losses[-tenth:]),
        "accuracy": mean(hits[-tenth:]),
        "curve": [
            round(mean(losses[i : i + tenth]), 3) for i in range(0, len(losses), tenth)
        ],
        "steps": training.steps,
        "classes": training.num_classes,
        "seconds": round(seconds, 2),
        "device": device,
        "recipe": asdict(training.recipe),
    }


def attempt(bench: Bench, job: Job) -> dict | str:
    """Return the record or the error; after a failure with CUDA graphs, retry and
    continue without them."""
    try:
        return train(bench, job)
    except Exception:
        report = f"{job.name}\n{traceback.format_exc()}"
    if not bench.options.graph:
        return report
    print(f"from here on without graphs: {report}", flush=True)
    bench.options.graph = False
    return attempt(bench, job)


def work(connection: Connection, options: argparse.Namespace) -> None:
    """A worker: jobs in, records out; None ends it."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    torch.zeros(1, device=options.device)  # which takes seconds on a GPU
    connection.recv()  # when all is decoded
    bench = Bench(options)
    connection.send(None)
    while (job := connection.recv()) is not None:
        connection.send(attempt(bench, job))


# The race


def by_name(records: Sequence[dict], phase: str) -> dict[str, list[dict]]:
    """Records of a phase by configuration, best mean EER first."""
    by_configuration = defaultdict(list)
    for record in records:
        if record["phase"] == phase:
            by_configuration[record["name"]].append(record)
    return dict(sorted(by_configuration.items(), key=lambda pair: mean_eer(pair[1])))


def mean_eer(records: Sequence[dict]) -> float:
    return mean(record["eer"]["last"] for record in records)


def jobs_of(records: Sequence[dict], options: argparse.Namespace) -> list[Job]:
    """What is still to run, all of one seed before the next."""
    done = {(r["phase"], r["name"], r["seed"]) for r in records}
    jobs = [
        Job(options.phase, name, seed)
        for seed in range(1, options.seeds + 1)
        for name in options.configurations or IDEAS
    ]
    return [j for j in jobs if (j.phase, j.name, j.seed) not in done]


def race(options: argparse.Namespace) -> None:
    """Run the jobs, with records appended as they come."""
    began = time.perf_counter()
    records = read_records(options.results)
    pending = jobs_of(records, options)
    print(f"{options.phase}: {len(pending)} runs", flush=True)
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(min(options.workers, len(pending))):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, options), daemon=True)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    for folder in filter(None, (options.train, options.test)):
        load_corpus(folder, options.cache)
    for connection in connections:
        connection.send("decoded")
    busy = set(connections)  # until they say that they are ready
    while busy:
        for connection in wait(list(busy)):
            busy.remove(connection)
            try:
                answer = connection.recv()
            except EOFError:
                print("a worker died", flush=True)
                continue
            elapsed = time.perf_counter() - began
            if isinstance(answer, dict):
                records.append(answer)
                with options.results.open("a") as file:
                    file.write(json.dumps(answer) + "\n")
                print(line_of(answer, elapsed), flush=True)
            elif answer is not None:
                print(answer, flush=True)
            if pending and elapsed < options.limit:
                connection.send(pending.pop(0))
                busy.add(connection)
            else:
                connection.send(None)
    for process in processes:
        process.join()
    print(table(records))


def line_of(record: dict, elapsed: float) -> str:
    return (
        f"{elapsed:5.0f} s  {record['phase']} {record['name']} seed {record['seed']}: "
        f"EER {record['eer']['last']:.2f}  loss {record['loss']:.2f}  "
        f"accuracy {record['accuracy']:.0%}  {record['seconds']:.0f} s"
    )


def read_records(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values) / math.sqrt(len(values)):.2f}"


def table(records: Sequence[dict]) -> str:
    """Markdown, a table for development and one for the test, best first; means and
    standard errors over the seeds."""
    text = ""
    for phase, title in (
        ("develop", "Development speakers:"),
        ("test", "Test speakers:"),
    ):
        rows = [["recipe", "seeds", "EER %", "training accuracy"]]
        for name, runs in by_name(records, phase).items():
            eers = spread([run["eer"]["last"] for run in runs])
            accuracy = f"{100 * mean(run['accuracy'] for run in runs):.0f} %"
            rows.append([name, str(len(runs)), eers, accuracy])
        if rows[1:]:
            text += f"{title}\n\n{as_table(rows)}\n"
    return text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--train", type=Path, required=True)
    run.add_argument("--test", type=Path)
    run.add_argument("--cache", type=Path, default=Path("data/race"))
    run.add_argument("--device", default="cpu")
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--threads", type=int, default=1, help="of a worker on a CPU")
    run.add_argument("--graph", action="store_true", help="steps as CUDA graphs")
    run.add_argument("--steps", type=int, default=468)
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument("--phase", choices=["develop", "test"], default="develop")
    run.add_argument(
        "--configurations",
        type=lambda text: text.split(","),
        metavar="NAME,NAME+NAME",
        help="default: all ideas",
    )
    run.add_argument(
        "--limit", type=float, default=math.inf, help="seconds after which none starts"
    )
    run.add_argument("results", type=Path)
    for name in ("table", "list"):
        command = commands.add_parser(name)
        if name == "table":
            command.add_argument("results", type=Path)
            command.add_argument("document", type=Path, nargs="?")
    options = parser.parse_args()
    if options.command == "run":
        race(options)
    elif options.command == "list":
        print("\n".join(f"{name}: {IDEAS[name]}" for name in IDEAS))
    else:
        tables = table(read_records(options.results))
        print(tables)
        if options.document is not None:
            write_block(options.document, "race.py", tables)


if __name__ == "__main__":
    main()
