"""The recipe race: many ways to train TitaNet-S for the same seconds of audio.

    python experiments/race.py run --train FOLDER --test FOLDER [--second FOLDER]
        [--noise FOLDER --rooms FOLDER] [--device cuda --workers 12] RESULTS.jsonl
    python experiments/race.py table assets/race.jsonl [docs/results.md]
    python experiments/race.py list

Every run sees `--steps` x 32 x 2 s of the training speakers. The phases of `run`:
`develop` trains on 100 of them and measures the EER over all pairs of the other 25;
`combine` adds the winners up, best first; `test` trains the best configuration and the
baseline on all 125 and looks at the test speakers. `--phases develop=120,combine=60`
gives a phase as many seconds, after which it starts no new run. Each finished run is a
line of RESULTS.jsonl at once; a run that is there already is not repeated.

B utterances, N samples, M mel bands, T frames, F frequency bins, E embedding size, S
classes: a speaker's perturbed copies are classes of their own. All samples are on the
device, and all that is drawn in a step is drawn there, in static shapes.
"""

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
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

from losses import AngularMarginLoss, CrossEntropyLoss, angles_between, monotone_cosine
from metrics import equal_error_rate
from models import build_encoder
from parameters import SHIPPED, load_parameters
from train import keep_freed_memory
from transforms import FrontEnd, SpecAugment, reverberate, slaney_filterbank

RATE = 16_000  # Hz
AUDIO = (".opus", ".ogg", ".flac", ".wav", ".mp3")
BATCH_SIZE, SECONDS = 32, 2.0  # of a step; a budget is so many steps of that
HELD_OUT, HELD_OUT_SEED = 25, 0  # development speakers
EMA_DECAY = 0.98
MEAN_BATCHES = 20  # of training crops, whose mean embedding is subtracted
EVALUATION_SAMPLES = 240 * RATE  # embedded at once, padding included
EAGER_STEPS = 3  # before a stage's step is captured in a CUDA graph


@dataclass(frozen=True)
class Recipe:
    """A configuration of the race; the defaults are the baseline."""

    optimizer: str = "adamw"  # adamw | muon, for matrices; AdamW for the rest
    lr: float = 1.5e-3  # of AdamW
    muon_lr: float = 0.005
    muon_classifier: bool = True
    beta2: float = 0.999
    weight_decay: float = 2e-4
    warmup: float = 0.1  # share of the steps
    clip: float = 5.0
    loss: str = "arcface"  # arcface | cosface | cross_entropy
    scale: float = 30.0
    margin: float = 0.2
    ramp: float = 0.5  # share of the steps over which the margin grows
    last_margin: float | None = None  # in the last fifth of the steps
    sub_centres: int = 1
    top_k: int = 0  # nearest wrong classes that are brought nearer by a margin
    top_k_margin: float = 0.06  # radians
    smoothing: float = 0.0
    dropout: float = 0.1
    normalization: str = "mean"
    masks: tuple[int, int, int, float] = (3, 4, 5, 0.03)  # as SpecAugment ships
    speeds: tuple[int, ...] = ()  # %, of copies that are new speakers
    warps: tuple[float, ...] = ()  # of vocal tracts, of copies that are new speakers
    gain_db: float = 0.0  # loudness drawn up to this far up or down
    noise: float = 0.0  # probability, reached at the end of training
    rooms: float = 0.0
    second: float = 0.0  # share of a batch from the second corpus
    hard: int = 0  # speakers in a group of neighbours that are drawn together
    # share of the audio, utterances, seconds
    stages: tuple[tuple[float, int, float], ...] = ((1.0, BATCH_SIZE, SECONDS),)


# In the order in which they run.
IDEAS: dict[str, dict] = {
    "baseline": {},
    "speed-10": {"speeds": (90, 110)},
    "muon-0.005": {"optimizer": "muon"},
    "second-50": {"second": 0.5},
    "vtl-10": {"warps": (0.9, 1.1)},
    "second-25": {"second": 0.25},
    "mask-none": {"masks": (0, 0, 0, 0.0)},
    "rooms-0.3": {"rooms": 0.3},
    "noise-0.3": {"noise": 0.3},
    "margin-0.3": {"margin": 0.3},
    "speed-15": {"speeds": (85, 115)},
    "speed-5": {"speeds": (95, 105)},
    "speed-10-20": {"speeds": (80, 90, 110, 120)},
    "muon-0.01": {"optimizer": "muon", "muon_lr": 0.01},
    "muon-0.002": {"optimizer": "muon", "muon_lr": 0.002},
    "muon-0.02": {"optimizer": "muon", "muon_lr": 0.02},
    "muon-hidden": {"optimizer": "muon", "muon_classifier": False},
    "lr-3e-3": {"lr": 3e-3},
    "lr-1e-3": {"lr": 1e-3},
    "lr-2e-3": {"lr": 2e-3},
    "lr-4e-3": {"lr": 4e-3},
    "cross-entropy": {"loss": "cross_entropy"},
    "cosface": {"loss": "cosface"},
    "margin-0.1": {"margin": 0.1},
    "margin-0.5": {"margin": 0.5},
    "scale-20": {"scale": 20.0},
    "scale-40": {"scale": 40.0},
    "sub-centres-2": {"sub_centres": 2},
    "sub-centres-3": {"sub_centres": 3},
    "top-k": {"top_k": 5},
    "batch-64x1": {"stages": ((1.0, 64, 1.0),)},
    "batch-16x4": {"stages": ((1.0, 16, 4.0),)},
    "batch-64x2": {"stages": ((1.0, 64, 2.0),)},
    "batch-32x3": {"stages": ((1.0, 32, 3.0),)},
    "short-to-long": {"stages": ((0.3, 64, 1.0), (0.4, 32, 2.0), (0.3, 16, 4.0))},
    "last-margin": {"last_margin": 0.45},
    "last-margin-long": {
        "last_margin": 0.45,
        "stages": ((0.8, 32, 2.0), (0.2, 16, 4.0)),
    },
    "hard-4": {"hard": 4},
    "hard-2": {"hard": 2},
    "dropout-0": {"dropout": 0.0},
    "dropout-0.2": {"dropout": 0.2},
    "mask-half": {"masks": (2, 3, 3, 0.02)},
    "mask-more": {"masks": (4, 8, 8, 0.04)},
    "mask-most": {"masks": (4, 12, 10, 0.05)},
    "decay-0.01": {"weight_decay": 0.01},
    "decay-0.05": {"weight_decay": 0.05},
    "decay-0.5": {"weight_decay": 0.5},
    "smoothing-0.1": {"smoothing": 0.1},
    "noise-0.1": {"noise": 0.1},
    "rooms-0.1": {"rooms": 0.1},
    "per-feature": {"normalization": "per_feature"},
    "vtl-5": {"warps": (0.95, 1.05)},
    "margin-0.4": {"margin": 0.4},
    "no-ramp": {"ramp": 0.0},
    "beta2-0.98": {"beta2": 0.98},
    "warmup-0.03": {"warmup": 0.03},
    "clip-1": {"clip": 1.0},
    "gain-10": {"gain_db": 10.0},
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


def change_speed(samples: Tensor, percent: int) -> Tensor:
    """Speech at another speed, the pitch with it: int16 [n] -> [about 100 n / percent].

    By the spectrum of all samples at once, which is exact; sample i of the result is
    input time i * percent / 100.
    """
    unit = percent * 1024
    size = -(-len(samples) // unit)
    while size > 1 and any(size % p == 0 for p in _large_primes(size)):
        size += 1  # to a length whose transform is fast
    spectrum = torch.fft.rfft(samples.float(), size * unit)
    out_size = size * 100 * 1024
    # irfft crops or pads the spectrum; its scale is that of the new length
    changed = torch.fft.irfft(spectrum, out_size) * (100 / percent)
    return changed.round().clamp(-32768, 32767).to(torch.int16)


def _large_primes(number: int) -> list[int]:
    """Its prime factors above 7."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            number //= factor
            found += [factor]
        factor += 1
    return [p for p in found if p > 7]


def warped_filterbank(alpha: float, num_mels: int, n_fft: int) -> Tensor:
    """Mel bands that read frequency f where the talker's is alpha f, [M, F]; linear
    from 80 % of the band to its end, so that no band is left empty (Lee and Rose,
    1998)."""
    bins = np.linspace(0, 1, n_fft // 2 + 1)
    knee = 0.8 / max(1.0, alpha)
    read = np.interp(bins, [0, knee, 1], [0, alpha * knee, 1])  # where each bin counts
    filters = slaney_filterbank(RATE, n_fft, num_mels).numpy()
    return torch.from_numpy(
        np.stack([np.interp(read, bins, row) for row in filters])
    ).float()


class Pool:
    """Samples on the device that grow by a corpus or a copy of it at another speed."""

    def __init__(self, device: torch.device) -> None:
        self.samples = torch.empty(0, dtype=torch.int16, device=device)
        self.starts: dict[tuple[str, int], int] = {}

    def start_of(self, name: str, corpus: Corpus, percent: int = 100) -> int:
        """Where a corpus at a speed begins."""
        if (name, percent) not in self.starts:
            added = torch.from_numpy(np.array(corpus.samples)).to(self.samples.device)
            if percent != 100:
                added = change_speed(added, percent)
            self.starts[name, percent] = len(self.samples)
            self.samples = torch.cat([self.samples, added])
            if added.is_cuda:
                torch.cuda.empty_cache()
        return self.starts[name, percent]


class Clips:
    """Noise or room responses on the device, drawn in static shapes."""

    def __init__(self, corpus: Corpus, device: torch.device) -> None:
        self.samples = torch.from_numpy(np.array(corpus.samples)).to(device)
        self.offsets, self.lengths = (
            torch.from_numpy(a).to(device) for a in (corpus.offsets, corpus.lengths)
        )

    def draw(self, batch_size: int, size: int, whole: bool) -> Tensor:
        """[B, size] float32: from the beginning with zeros after the end, or from any
        place with repetitions."""
        device = self.samples.device
        chosen = torch.randint(len(self.lengths), (batch_size, 1), device=device)
        begins, lengths = self.offsets[chosen], self.lengths[chosen]
        if not whole:
            room = (lengths - size).clamp(min=0) + 1
            begins = begins + (torch.rand(room.shape, device=device) * room).long()
        positions = torch.arange(size, device=device)
        fitting = lengths.clamp(max=size)
        rows = self.samples[begins + positions % fitting].float() / 32768
        return rows * (positions < fitting) if whole else rows


def _power(x: Tensor) -> Tensor:
    return x.square().mean(1, keepdim=True)


def add_room(waveforms: Tensor, probability: Tensor, rooms: Clips) -> Tensor:
    """[B, N], [1] -> [B, N]"""
    chosen = torch.rand(len(waveforms), 1, device=waveforms.device) < probability
    wet = reverberate(waveforms, rooms.draw(len(waveforms), RATE, whole=True))
    wet = wet * (_power(waveforms) / _power(wet).clamp(min=1e-12)).sqrt()
    return torch.where(chosen, wet, waveforms)


def add_noise(waveforms: Tensor, probability: Tensor, noise: Clips) -> Tensor:
    """At 0 to 15 dB: [B, N], [1] -> [B, N]"""
    batch_size, size = waveforms.shape
    chosen = torch.rand(batch_size, 1, device=waveforms.device) < probability
    added = noise.draw(batch_size, size, whole=False)
    snr_db = 15 * torch.rand(batch_size, 1, device=waveforms.device)
    ratio = _power(waveforms) / _power(added).clamp(min=1e-12) * 10 ** (-snr_db / 10)
    return torch.where(
        chosen, waveforms + ratio.clamp(max=1e6).sqrt() * added, waveforms
    )


# Learning


class MarginLoss(AngularMarginLoss):
    """ArcFace or CosFace with sub-centres (Deng et al., ECCV 2020), inter-top-k penalty
    (arXiv 2110.05042) and label smoothing."""

    def __init__(self, recipe: Recipe, embedding_size: int, num_classes: int) -> None:
        super().__init__(
            embedding_size,
            num_classes * recipe.sub_centres,
            recipe.scale,
            recipe.margin,
        )
        self.recipe = recipe

    def target_cosine(self, angles: Tensor) -> Tensor:
        margin = self.margin * self.margin_share
        if self.recipe.loss == "cosface":
            return torch.cos(angles) - margin
        return monotone_cosine(angles + margin)

    def forward(self, embeddings: Tensor, speakers: Tensor) -> tuple[Tensor, Tensor]:
        """[B, E], [B] -> loss [], predictions [B]"""
        p = self.recipe
        weight = self.classifier.weight
        cosines = F.normalize(embeddings) @ F.normalize(weight).T  # [B, S * K]
        cosines, centres = cosines.unflatten(1, (-1, p.sub_centres)).max(2)  # [B, S]
        predictions = cosines.argmax(1)
        own = speakers[:, None]  # [B, 1]
        nearest = weight[speakers * p.sub_centres + centres.gather(1, own)[:, 0]]
        if p.top_k:
            others = cosines.detach().scatter(1, own, -2.0).topk(p.top_k).indices
            cosine = cosines.gather(1, others).clamp(-0.999, 0.999)
            margin = p.top_k_margin * self.margin_share
            nearer = cosine * margin.cos() + (1 - cosine**2).sqrt() * margin.sin()
            cosines = cosines.scatter(1, others, nearer)
        target = self.target_cosine(angles_between(embeddings, nearest))[:, None]
        logits = self.scale * cosines.scatter(1, own, target)
        loss = F.cross_entropy(logits, speakers, label_smoothing=p.smoothing)
        return loss, predictions


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


class Average:
    """Exponential moving average of an encoder's weights and statistics."""

    def __init__(self, encoder: nn.Module) -> None:
        self.sources = [
            t for t in encoder.state_dict().values() if t.is_floating_point()
        ]
        self.sums = [torch.zeros_like(t) for t in self.sources]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.sums, self.sources, 1 - EMA_DECAY)

    @torch.no_grad()
    def copy_to(self, encoder: nn.Module, steps: int) -> nn.Module:
        """Write the average after so many steps into an encoder."""
        state = encoder.state_dict().values()
        targets = [t for t in state if t.is_floating_point()]
        for target, total in zip(targets, self.sums, strict=True):
            target.copy_(total / (1 - EMA_DECAY**steps))
        return encoder


def schedule(steps: int, warmup: float) -> np.ndarray:
    """Linear warm-up, then half a cosine to 0, as shares of the rate, [steps]."""
    progress = np.arange(1, steps + 1) / steps
    falling = (1 + np.cos(np.pi * (progress - warmup) / max(1 - warmup, 1e-9))) / 2
    return np.where(progress < warmup, progress / max(warmup, 1e-9), falling)


@dataclass(frozen=True)
class Job:
    """One run: a configuration by its name, and where it is measured."""

    phase: str  # develop | combine | test
    name: str
    seed: int


class Bench:
    """What all runs of a process share: the audio on its device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        load = {
            name: load_corpus(folder, options.cache)
            for name in ("train", "test", "second", "noise", "rooms")
            if (folder := getattr(options, name)) is not None
        }
        self.train, self.test = load["train"], load.get("test")
        self.second = load.get("second")
        self.noise, self.rooms = (
            Clips(load[name], self.device) if name in load else None
            for name in ("noise", "rooms")
        )
        self.pool = Pool(self.device)
        num_speakers = self.train.speakers.max() + 1
        order = np.random.default_rng(HELD_OUT_SEED).permutation(num_speakers)
        self.held_out = order[: min(HELD_OUT, num_speakers // 4)]
        self.features: dict = {}  # of evaluations, the same for all runs

    def utterances(self, phase: str) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(begin in the pool, samples) of what is evaluated, longest first, and the
        speakers."""
        name = "test" if phase == "test" else "train"
        corpus = getattr(self, name)
        chosen = np.arange(len(corpus.lengths))
        if phase != "test":
            chosen = np.flatnonzero(np.isin(corpus.speakers, self.held_out))
        chosen = chosen[np.argsort(-corpus.lengths[chosen], kind="stable")]
        begins = self.pool.start_of(name, corpus) + corpus.offsets[chosen]
        sizes = corpus.lengths[chosen].tolist()
        return list(zip(begins.tolist(), sizes, strict=True)), corpus.speakers[chosen]

    @torch.inference_mode()
    def evaluation(self, phase: str, normalization: str) -> tuple[list, np.ndarray]:
        """Batches of (features, frames), and the speakers."""
        key = (phase == "test", normalization)
        if key not in self.features:
            front_end = self.front_end(normalization).eval()
            utterances, speakers = self.utterances(phase)
            batches = []
            while utterances:
                count = max(1, EVALUATION_SAMPLES // utterances[0][1])
                part, utterances = utterances[:count], utterances[count:]
                rows = [self.pool.samples[b : b + n].float() / 32768 for b, n in part]
                waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True)
                lengths = torch.tensor([n for _, n in part], device=self.device)
                batches.append(front_end(waveforms, lengths))
            self.features[key] = batches, speakers
        return self.features[key]

    def front_end(self, normalization: str) -> FrontEnd:
        p = shipped(f"front_end.normalization={normalization}")
        return FrontEnd(p.front_end).to(self.device)

    @torch.inference_mode()
    def embed(
        self, encoder: nn.Module, phase: str, normalization: str
    ) -> tuple[Tensor, np.ndarray]:
        """Unit embeddings of utterances [utterances, E], and their speakers."""
        encoder.eval()
        batches, speakers = self.evaluation(phase, normalization)
        return F.normalize(torch.cat([encoder(*batch) for batch in batches])), speakers


def eer(embeddings: Tensor, speakers: np.ndarray) -> float:
    """In percent, over all pairs."""
    scores = (embeddings @ embeddings.T).cpu().numpy()
    first, second = np.triu_indices(len(speakers), 1)
    targets = speakers[first] == speakers[second]
    return 100 * equal_error_rate(scores[first, second], targets)


class Stage:
    """A part of a run with one shape of batch: what is drawn in its steps."""

    def __init__(
        self,
        rng: np.random.Generator,
        steps: int,
        first: int,
        counts: tuple[int, int],
        sources: tuple[int, int],
        seconds: float,
        device: torch.device,
    ) -> None:
        self.steps, self.first, self.size = steps, first, round(seconds * RATE)
        columns, begin = [], 0
        for count, items in zip(counts, sources, strict=True):  # both corpora
            if count:
                rounds = range(-(-steps * count // items))
                order = np.concatenate([rng.permutation(items) for _ in rounds])
                columns.append(begin + order[: steps * count].reshape(steps, count))
            begin += items
        plan = np.concatenate(columns, 1)  # [steps, B]
        self.plan = torch.from_numpy(plan).to(device)
        self.places = torch.from_numpy(rng.random(plan.shape)).to(device)


class Training:
    """One run on the device; `turns` yields after each step, so that several can take
    turns, each on its own stream."""

    def __init__(self, bench: Bench, job: Job) -> None:
        self.bench, self.job, self.device = bench, job, bench.device
        self.recipe = p = recipe_of(job.name)
        torch.manual_seed(job.seed)
        rng = np.random.default_rng(job.seed)
        self._deal_classes()
        overrides = (f"model.titanet.dropout={p.dropout}", "model.titanet.size=s")
        mels = shipped().front_end.num_mels
        encoder = build_encoder(shipped(*overrides).model, mels)
        if p.loss == "cross_entropy":
            criterion = CrossEntropyLoss(encoder.embedding_size, self.num_classes)
        else:
            criterion = MarginLoss(p, encoder.embedding_size, self.num_classes)
        self.encoder = encoder.to(self.device).train()
        self.fast_encoder = self.encoder
        usual = p.stages == Recipe.stages and p.dropout == Recipe.dropout
        if bench.options.compile and usual:  # others would each be compiled anew
            self.fast_encoder = torch.compile(self.encoder, dynamic=False)
        self.criterion = criterion.to(self.device)
        self.average = Average(self.encoder)
        self.front_end = bench.front_end(p.normalization).train()
        n_fft = self.front_end.config.n_fft
        self.filterbanks = torch.stack(
            [warped_filterbank(a, mels, n_fft) for a in (1.0, *p.warps)]
        ).to(self.device)
        names = ("frequency_masks", "frequency_width", "time_masks", "time_fraction")
        self.spec_augment = SpecAugment(
            shipped(
                *(
                    f"augmentation.spec_augment.{name}={value}"
                    for name, value in zip(names, p.masks, strict=True)
                )
            ).augmentation.spec_augment
        )
        self._plan(rng)
        self._build_optimizers()
        self.losses = torch.zeros(self.steps, device=self.device)
        self.hits = torch.zeros(self.steps, device=self.device)
        self.now = torch.zeros(1, dtype=torch.int64, device=self.device)  # step

    def _deal_classes(self) -> None:
        """Tables of all that can be drawn: offset, length, class and vocal tract of
        every utterance in every copy, then those of the second corpus."""
        bench, p = self.bench, self.recipe
        own = bench.train
        chosen = np.arange(len(own.lengths))
        if self.job.phase != "test":
            chosen = np.flatnonzero(~np.isin(own.speakers, bench.held_out))
        _, speakers = np.unique(own.speakers[chosen], return_inverse=True)
        copies = [(100, 0), *((s, 0) for s in p.speeds)]
        copies += [(100, 1 + number) for number in range(len(p.warps))]
        rows = []
        for number, (percent, warp) in enumerate(copies):
            start = bench.pool.start_of("train", own, percent)
            offsets = start + own.offsets[chosen] * 100 // percent
            lengths = own.lengths[chosen] * 100 // percent
            classes = speakers * len(copies) + number
            rows.append((offsets, lengths, classes, np.full_like(classes, warp)))
        self.num_classes = (speakers.max() + 1) * len(copies)
        self.sources = (len(copies) * len(chosen), 0)
        if p.second:
            other = bench.second
            start = bench.pool.start_of("second", other)
            classes = self.num_classes + other.speakers
            warp = np.zeros_like(classes)
            rows.append((start + other.offsets, other.lengths, classes, warp))
            self.num_classes += other.speakers.max() + 1
            self.sources = (self.sources[0], len(classes))
        table = [np.concatenate(column) for column in zip(*rows, strict=True)]
        self.offsets, self.lengths, self.classes, self.warps = (
            torch.from_numpy(column).to(self.device) for column in table
        )
        members = [np.flatnonzero(table[2] == c) for c in range(self.num_classes)]
        most = max(map(len, members))
        table = np.stack([np.resize(m, most) for m in members])  # [S, most]
        self.members = torch.from_numpy(table).to(self.device)

    def _plan(self, rng: np.random.Generator) -> None:
        p, self.stages, first = self.recipe, [], 0
        budget = self.bench.options.steps * BATCH_SIZE * SECONDS
        for share, batch_size, seconds in p.stages:
            steps = max(1, round(budget * share / (batch_size * seconds)))
            others = round(batch_size * p.second)
            counts = (batch_size - others, others)
            self.stages.append(
                Stage(rng, steps, first, counts, self.sources, seconds, self.device)
            )
            first += steps
        self.steps = first
        progress = np.arange(1, first + 1) / first
        margin = np.minimum(1, progress / p.ramp) if p.ramp else np.ones(first)
        if p.last_margin is not None:
            margin = np.where(progress > 0.8, p.last_margin / p.margin, margin)
        self.rates, self.margins, self.progress = (
            torch.from_numpy(values).float().to(self.device)
            for values in (schedule(first, p.warmup), margin, progress)
        )

    def _build_optimizers(self) -> None:
        p = self.recipe
        encoder, criterion = self.encoder.parameters(), self.criterion.parameters()
        self.weights = [*encoder, *criterion]
        muon = []
        if p.optimizer == "muon":
            of = self.weights if p.muon_classifier else self.encoder.parameters()
            muon = [w for w in of if w.ndim == 2]
        kept = {id(w) for w in muon}
        rest = [w for w in self.weights if id(w) not in kept]
        lr = torch.tensor(p.lr, device=self.device)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [w for w in rest if w.ndim > 1]},
                {"params": [w for w in rest if w.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, p.beta2),
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

    def _neighbours(self, items: Tensor) -> Tensor:
        """Groups of speakers that the classifier holds for alike, [B] -> [B]."""
        sub_centres = (
            1 if self.recipe.loss == "cross_entropy" else self.recipe.sub_centres
        )
        directions = F.normalize(self.criterion.classifier.weight.detach())
        directions = directions[::sub_centres]  # [S, E]
        anchors = directions[self.classes[items[: len(items) // self.recipe.hard]]]
        classes = (anchors @ directions.T).topk(self.recipe.hard).indices.flatten()
        members = self.members[classes]  # [B, most]
        column = torch.randint(members.shape[1], (len(items), 1), device=self.device)
        return members.gather(1, column)[:, 0]

    @torch.no_grad()
    def batch(self, stage: Stage, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, M, T], without masks, and classes [B] of step `now`."""
        p, row = self.recipe, self.now - stage.first
        items = stage.plan.index_select(0, row)[0]
        places = stage.places.index_select(0, row)[0]
        if p.hard:
            items = self._neighbours(items)
        lengths = self.lengths[items]
        room = (lengths - stage.size).clamp(min=0) + 1
        begins = self.offsets[items] + (places * room).long()
        positions = torch.arange(stage.size, device=self.device)
        fitting = lengths.clamp(max=stage.size)[:, None]
        places = begins[:, None] + positions % fitting
        x = self.bench.pool.samples[places].float() / 32768  # [B, N]
        if p.gain_db:
            drawn = 2 * torch.rand(len(x), 1, device=self.device) - 1
            x = x * 10 ** (drawn * p.gain_db / 20)
        if p.rooms:
            x = add_room(x, p.rooms * progress, self.bench.rooms)
        if p.noise:
            x = add_noise(x, p.noise * progress, self.bench.noise)
        if p.warps:
            self.front_end.filterbank = self.filterbanks[self.warps[items]]
        return self.front_end(x)[0], self.classes[items]

    def step(self, stage: Stage) -> None:
        """One step, without a wait for the device."""
        now, p = self.now, self.recipe
        rate = self.rates.index_select(0, now)[0]
        for lr, base in self.lrs:
            lr.copy_(base * rate)
        if p.loss != "cross_entropy":
            self.criterion.margin_share.copy_(self.margins.index_select(0, now)[0])
        features, classes = self.batch(stage, self.progress.index_select(0, now))
        features = self.spec_augment(features)
        for weight in self.weights:
            weight.grad = None
        bfloat16 = self.device.type == "cuda" or torch.cpu._is_amx_tile_supported()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = self.fast_encoder(features)
        loss, predictions = self.criterion(embeddings.float(), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, p.clip, foreach=True)
        self.adamw.step()
        if self.muon is not None:
            self.muon.step()
        self.average.update()
        self.losses.index_copy_(0, now, loss.detach()[None])
        accuracy = (predictions == classes).float().mean()
        self.hits.index_copy_(0, now, accuracy[None])
        now += 1

    def turns(self) -> Iterator[None]:
        """All steps."""
        if not self.bench.options.graph:
            for stage in self.stages:
                for _ in range(stage.steps):
                    self.step(stage)
                    yield
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        for stage in self.stages:
            eager = min(EAGER_STEPS, stage.steps)
            with torch.cuda.stream(stream):
                for _ in range(eager):
                    self.step(stage)
            if stage.steps > eager:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    self.step(stage)  # recorded, not run
                for _ in range(stage.steps - eager):
                    with torch.cuda.stream(stream):
                        graph.replay()
                    yield
        torch.cuda.current_stream().wait_stream(stream)

    @torch.no_grad()
    def _crops(self) -> Iterator[Tensor]:
        stage = self.stages[-1]
        none = torch.zeros(1, device=self.device)  # of noise and rooms
        for number in range(min(MEAN_BATCHES, stage.steps)):
            self.now.fill_(stage.first + number)
            yield self.batch(stage, none)[0]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """EER in percent of the last weights, of these less the mean embedding of
        training crops, and of averaged weights."""
        phase, normalization = self.job.phase, self.recipe.normalization
        embeddings, speakers = self.bench.embed(self.encoder, phase, normalization)
        centre = torch.cat([self.encoder(x) for x in self._crops()])
        centre = F.normalize(centre).mean(0)
        averaged = self.average.copy_to(copy.deepcopy(self.encoder), self.steps)
        return {
            "last": eer(embeddings, speakers),
            "last, less the mean": eer(F.normalize(embeddings - centre), speakers),
            "average 0.98": eer(*self.bench.embed(averaged, phase, normalization)),
        }


def train_jobs(bench: Bench, jobs: list[Job]) -> list[dict]:
    """Train these together and measure them."""
    began = time.perf_counter()
    runs = [Training(bench, job) for job in jobs]
    torch.backends.cudnn.benchmark = True  # batches of training have few shapes
    turns = [run.turns() for run in runs]
    while turns:
        turns = [turn for turn in turns if next(turn, "done") is None]
    records, device = [], bench.options.device
    torch.backends.cudnn.benchmark = False
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        device = torch.cuda.get_device_name()
    seconds = time.perf_counter() - began
    for run in runs:
        measured = run.measure()
        losses, hits = run.losses.tolist(), run.hits.tolist()
        tenth = max(1, len(losses) // 10)
        records.append(
            {
                **asdict(run.job),
                "eer": measured,
                "loss": mean(losses[-tenth:]),
                "accuracy": mean(hits[-tenth:]),
                "curve": [
                    round(mean(losses[i : i + tenth]), 3)
                    for i in range(0, len(losses), tenth)
                ],
                "steps": bench.options.steps,
                "batches": run.steps,
                "classes": int(run.num_classes),
                "seconds": round(seconds / len(runs), 2),
                "measured_seconds": round(time.perf_counter() - began - seconds, 2),
                "device": device,
                "recipe": asdict(run.recipe),
            }
        )
    return records


def attempt(bench: Bench, jobs: list[Job]) -> list[dict] | str:
    """Their records, or what went wrong; once more without graphs where it did with
    them."""
    try:
        return train_jobs(bench, jobs)
    except Exception:
        report = f"{[job.name for job in jobs]}\n{traceback.format_exc()}"
    if not bench.options.graph:
        return report
    print(f"from here on without graphs: {report}", flush=True)
    bench.options.graph = False
    return attempt(bench, jobs)


def work(connection: Connection, options: argparse.Namespace) -> None:
    """A worker: jobs in, records out; an empty list ends it."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    torch.zeros(1, device=options.device)  # which takes seconds on a GPU
    connection.recv()  # when all is decoded
    bench = Bench(options)
    connection.send([])
    while jobs := connection.recv():
        connection.send(attempt(bench, jobs))


# The race


def by_name(records: Sequence[dict], *phases: str) -> dict[str, list[dict]]:
    """Records of these phases by configuration, best mean EER first."""
    found = defaultdict(list)
    for record in records:
        if record["phase"] in phases:
            found[record["name"]].append(record)
    return dict(sorted(found.items(), key=lambda pair: mean_eer(pair[1])))


def mean_eer(records: Sequence[dict], variant: str = "last") -> float:
    return mean(record["eer"][variant] for record in records)


def winners(records: Sequence[dict]) -> list[str]:
    """Ideas better than the baseline, best first, of those that change the same part of
    the recipe only the best."""
    found = by_name(records, "develop")
    taken: set[str] = set()
    names = []
    for name, runs in found.items():
        if "baseline" not in found or "+" in name or name == "baseline":
            continue
        if mean_eer(runs) < mean_eer(found["baseline"]) and not taken & set(
            IDEAS[name]
        ):
            taken |= set(IDEAS[name])
            names.append(name)
    return names


def jobs_of(
    phase: str, records: Sequence[dict], options: argparse.Namespace
) -> list[Job]:
    """What a phase still has to run, in order."""
    if phase == "develop":
        names = options.configurations or list(IDEAS)
    elif phase == "combine":
        best = winners(records)[:7]
        names = ["+".join(best[:count]) for count in range(len(best), 1, -1)]
        names += [  # without one of the first four
            "+".join(best[:4][:i] + best[:4][i + 1 :]) for i in range(len(best[:4]))
        ]
    else:
        found = by_name(records, "develop", "combine")
        tried = [name for name, runs in found.items() if len(runs) > 1] or list(found)
        names = options.test_configurations or list(
            dict.fromkeys([tried[0], "baseline"])
        )
    done = {(r["phase"], r["name"], r["seed"]) for r in records}
    jobs = [
        Job(phase, name, seed)
        for seed in range(1, options.seeds + 1)
        for name in dict.fromkeys(names)
        if can_run(name, options)
    ]
    return [j for j in jobs if (j.phase, j.name, j.seed) not in done]


def can_run(name: str, options: argparse.Namespace) -> bool:
    """Whether the folders that a recipe needs are given."""
    recipe = recipe_of(name)
    return all(
        getattr(options, key) is not None or not getattr(recipe, key)
        for key in ("second", "noise", "rooms")
    )


def next_jobs(pending: list[Job], records: list[dict], count: int) -> list[Job]:
    """Take the next: the lowest seed, of further seeds the best configurations so
    far."""
    found = by_name(records, "develop", "combine")
    place = {name: number for number, name in enumerate(found)}
    lowest = min(job.seed for job in pending)
    ready = [job for job in pending if job.seed == lowest]
    if lowest > 1:
        ready.sort(key=lambda job: place.get(job.name, len(place)))
    for job in ready[:count]:
        pending.remove(job)
    return ready[:count]


def race(options: argparse.Namespace) -> None:
    """Run the phases, with records appended as they come."""
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(options.workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, options), daemon=True)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    for name in ("train", "test", "second", "noise", "rooms"):
        if (folder := getattr(options, name)) is not None:
            load_corpus(folder, options.cache)
            print(f"{time.perf_counter() - began:5.0f} s  decoded {folder}", flush=True)
    for connection in connections:
        connection.send("decoded")
    records = read_records(options.results)
    idle: list[Connection] = []
    busy = set(connections)  # until they say that they are ready
    for phase in options.phases:
        name, _, limit = phase.partition("=")
        started, limit = time.perf_counter(), float(limit or math.inf)
        pending = jobs_of(name, records, options)
        print(f"{name}: {len(pending)} runs", flush=True)
        while busy or pending:
            if time.perf_counter() - started > limit:
                pending.clear()
            while idle and pending:
                connection = idle.pop()
                connection.send(next_jobs(pending, records, options.together))
                busy.add(connection)
            if not busy:
                break
            for connection in wait(list(busy)):
                busy.remove(connection)
                try:
                    answer = connection.recv()
                except EOFError:
                    print("a worker died", flush=True)
                    continue
                idle.append(connection)
                if isinstance(answer, str):
                    print(answer, flush=True)
                    continue
                for record in answer:
                    records.append(record)
                    with options.results.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(line_of(record, time.perf_counter() - began), flush=True)
    for connection in idle:
        connection.send([])
    for process in processes:
        process.join()
    print(table(records))


def line_of(record: dict, elapsed: float) -> str:
    variants = " ".join(f"{value:.2f}" for value in record["eer"].values())
    return (
        f"{elapsed:5.0f} s  {record['phase']} {record['name']} seed {record['seed']}: "
        f"EER {variants}  loss {record['loss']:.2f}  "
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


VARIANTS = {  # shown, of those measured in every run
    "last": "EER %",
    "last, less the mean": "less the mean embedding",
    "average 0.98": "averaged weights",
}


def table(records: Sequence[dict]) -> str:
    """Markdown, a table for development and one for the test, best first; means and
    standard errors over the seeds."""
    text = ""
    for title, phases in (
        ("Development speakers:", ("develop", "combine")),
        ("Test speakers:", ("test",)),
    ):
        rows = [["recipe", "seeds", *VARIANTS.values(), "training accuracy"]]
        for name, runs in by_name(records, *phases).items():
            eers = [spread([run["eer"][v] for run in runs]) for v in VARIANTS]
            accuracy = f"{100 * mean(run['accuracy'] for run in runs):.0f} %"
            rows.append([name, str(len(runs)), *eers, accuracy])
        if rows[1:]:
            text += f"{title}\n\n{as_table(rows)}\n"
    return text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    for name in ("train", "test", "second", "noise", "rooms"):
        run.add_argument(f"--{name}", type=Path, required=name == "train")
    run.add_argument("--cache", type=Path, default=Path("data/race"))
    run.add_argument("--device", default="cpu")
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--threads", type=int, default=1, help="of a worker on a CPU")
    run.add_argument("--together", type=int, default=1, help="runs of a worker at once")
    run.add_argument("--graph", action="store_true", help="steps as CUDA graphs")
    run.add_argument("--compile", action="store_true", help="encoders of 32 x 2 s")
    run.add_argument("--steps", type=int, default=468)
    run.add_argument("--seeds", type=int, default=3)
    names = {"type": lambda text: text.split(","), "metavar": "NAME,NAME+NAME"}
    run.add_argument("--configurations", help="default: all ideas", **names)
    run.add_argument("--test-configurations", help="default: best, baseline", **names)
    names["metavar"] = "PHASE[=SECONDS],PHASE[=SECONDS]"
    run.add_argument("--phases", default=["develop"], **names)
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
        found = table(read_records(options.results))
        print(found)
        if options.document is not None:
            write_block(options.document, "race.py", found)


if __name__ == "__main__":
    main()
