"""What the tests share: the shipped parameters and small ones, trainings, audio files,
a server of archives, and optional real data."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dataset import Splits, TrainingBatches, prepare
from engine.optimizers import build_optimizer
from engine.parameter_files import SHIPPED, load_parameters
from parameters import Parameters, SyntheticParameters
from runs.checkpoints import load_checkpoint, save_checkpoint
from runs.resuming import State
from runs.run_directory import read_metrics
from runs.speaker_model import SpeakerModel, build_model
from speech import surroundings
from speech.synthetic import synthetic_utterances
from transforms import Augmentation
from verification.scoring import Backend, Calibration
from voices import Voices

os.environ["TQDM_DISABLE"] = "1"  # bars would stand before the lines that are read
REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
CPU = torch.device("cpu")
RATE = 16_000  # Hz
TIMED = {"train/audio_seconds_per_second", "spent/seconds"}  # metrics

MINIATURE = (
    "dataset.synthetic.num_speakers=8",
    "dataset.synthetic.utterances_per_speaker=5",
    "dataset.synthetic.min_seconds=1.6",
    "dataset.synthetic.max_seconds=2.4",
    "dataset.test_fraction=0.25",
    "model.titanet.channels=16",
    "model.titanet.epilog_channels=32",
    "model.titanet.embedding_size=24",
    "model.dvector.hidden_size=24",
    "model.dvector.projection_size=16",
    "model.dvector.num_layers=1",
    "model.dvector.embedding_size=12",
    "augmentation.reverberation.num_rooms=4",
    "loss.ge2e.speakers_per_batch=4",
    "loss.ge2e.utterances_per_speaker=2",
    "training.device=cpu",
    "training.epochs=2",
    "training.batch_size=6",
    "evaluation.num_resamples=20",
    "wandb.mode=disabled",
)
# Two synthetic corpora whose speakers have the same names, of 6 and of 5 speakers.
MIXTURE = (
    *MINIATURE,
    "dataset.name=mixture",
    "dataset.synthetic.num_speakers=6",
    "dataset.mixture=[{label: one, weight: 1, name: synthetic, seed: 1},"
    "{label: two, weight: 1.5, name: synthetic, seed: 2, test_fraction: 0.4,"
    " development_fraction: 0.4, synthetic: {num_speakers: 6}}]",
)
NO_CHANCE = (  # nothing in a step is drawn: ranks would each draw something else
    "augmentation.speed.probability=0",
    "augmentation.reverberation.probability=0",
    "augmentation.noise.probability=0",
    "augmentation.spec_augment.frequency_masks=0",
    "augmentation.spec_augment.time_masks=0",
    "front_end.dither=0",
    "model.titanet.dropout=0",
)


def tone(seconds=0.1, rate=RATE, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(seconds * rate) / rate)


def noise(seconds=3.0):
    random = np.random.default_rng(1)
    return random.integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)


def write(path, samples=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if samples is None else samples, rate, **options)
    return path


SPOKEN = SyntheticParameters(
    num_speakers=4, utterances_per_speaker=4, min_seconds=2.6, max_seconds=3.4
)


def said(speaker: int, index: int, rate: int = RATE) -> np.ndarray:
    """An utterance of one of four synthetic voices, int16 [N]."""
    (utterance,) = (
        u
        for u in synthetic_utterances(SPOKEN, seed=3)
        if (u.speaker, u.index) == (speaker, index)
    )
    return utterance.render(rate)


@pytest.fixture
def shipped() -> Callable[..., Parameters]:
    """parameters.yml with overrides."""

    def load(*overrides: str) -> Parameters:
        return load_parameters(SHIPPED, overrides=overrides)

    return load


@pytest.fixture
def miniature(tmp_path, monkeypatch, shipped) -> Callable[..., Parameters]:
    """A training of seconds that writes below the test's own folder."""
    monkeypatch.setattr(surroundings, "NUM_COLOURS", 4)

    def load(*overrides: str) -> Parameters:
        return shipped(
            *MINIATURE,
            f"dataset.packs={tmp_path / 'packs'}",
            f"run.directory={tmp_path / 'runs'}",
            *overrides,
        )

    return load


@pytest.fixture
def shared() -> Path:
    """The folder of test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ does not stand beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def strike(monkeypatch) -> Callable[..., None]:
    """Have an action precede one call of a function."""

    def strike(place, name: str, action: Callable[[], object], call: int = 1) -> None:
        real, calls = getattr(place, name), itertools.count(1)

        def struck(*arguments, **options):
            if next(calls) == call:
                action()
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, struck)

    return strike


def interrupt() -> None:
    raise KeyboardInterrupt


@dataclass
class Steps:
    """What the steps of a training need."""

    state: State
    batches: TrainingBatches
    augmentation: Augmentation

    @classmethod
    def of(
        cls, p: Parameters, device: torch.device = CPU, splits: Splits | None = None
    ) -> "Steps":
        """Before the first step."""
        splits = splits or prepare(p.dataset, p.front_end)
        model = build_model(p, splits.speakers, splits.pack.digests, device).train()
        optimizer = build_optimizer(model.parameters(), p.training.optimizer)
        rooms_and_noise = surroundings.load_surroundings(p, device)
        rate = p.front_end.sample_rate
        return cls(
            State(model, optimizer),
            TrainingBatches(splits, p, device),
            Augmentation(p.augmentation, rate, rooms_and_noise).to(device),
        )

    def take(self, batch, num_steps: int = 10, **options):
        """Take a step; return its reading."""
        from train import training_step

        encoder = self.state.model.encoder
        return training_step(
            self.state, encoder, self.augmentation, batch, num_steps, **options
        )


def outcome(run: Path) -> dict:
    """All that a run leaves, except what depends on time."""
    kept = ("front_end", "encoder", "criterion", "optimizer", "step", "backend")
    states = {name: load_checkpoint(run / name) for name in ("last.pt", "best.pt")}
    files = ("report.json", "trials.txt", "scores.txt", "errors.tsv")
    rows = read_metrics(run)
    return {
        "metrics": [{k: v for k, v in r.items() if k not in TIMED} for r in rows],
        **{name: {key: state[key] for key in kept} for name, state in states.items()},
        **{name: (run / name).read_bytes() for name in files},
    }


def same(one: object, other: object) -> bool:
    """Equal to the bit, tensors within containers too."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


CALIBRATION = Calibration(40.0, -36.0, 1.5, 0.1, 0.01, 3.0)


@pytest.fixture
def checkpoint(tmp_path, miniature, monkeypatch) -> Callable[..., Path]:
    """A file of an untrained model, with a calibration unless told otherwise."""
    # To such a model, people may be no more alike than recordings dealt at random.
    monkeypatch.setattr("recognition.own_calibration.LEVEL", 1.0)

    def build(*overrides: str, calibration=CALIBRATION):
        model = build_model(miniature(*overrides), ["a", "b"], {"": "digest"}, CPU)
        if calibration is not None:
            cohort = torch.eye(model.encoder.embedding_size)[:2]
            calibrations = {"trained": calibration}
            model.backend = Backend(cohort, calibrations, ["development"])
        save_checkpoint(tmp_path / "model.pt", model)
        return tmp_path / "model.pt"

    return build


@pytest.fixture
def model(miniature) -> SpeakerModel:
    return build_model(miniature(), ["a", "b", "c"], {"": "digest"}, CPU)


@pytest.fixture
def voices(checkpoint) -> Voices:
    return Voices.load(checkpoint())


@pytest.fixture
def people(tmp_path) -> Path:
    """Folders of ann, ben and cy with three recordings each."""
    for speaker, name in enumerate(("ann", "ben", "cy")):
        for index in range(3):
            write(tmp_path / "people" / name / f"{index}.wav", said(speaker, index))
    return tmp_path / "people"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append((self.path, wanted))
        resumes = wanted and server.knows_ranges
        start = int(wanted[len("bytes=") : -1]) if resumes else 0
        if server.status:
            self.send_error(server.status)
        elif resumes and start >= len(server.archive):
            self.send_error(416)
        else:
            body = server.archive[start:]
            self.send_response(206 if resumes else 200)
            if server.says_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut_after])
            server.cut_after = None


class ArchiveServer(ThreadingHTTPServer):
    """Serves one archive as kindly or as badly as a test wants."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/resources"
        self.archive = b""
        self.requests = []
        self.knows_ranges = True
        self.cut_after = None  # bytes, once
        self.status = None
        self.says_length = True


@pytest.fixture
def archive_server(monkeypatch) -> Iterator[ArchiveServer]:
    """A server on loopback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ArchiveServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()
