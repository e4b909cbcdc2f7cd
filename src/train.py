"""The training loop: parameters in, a run directory out.

    python src/train.py -p parameters.yml [-p more.yml] [key=value ...]
    python src/train.py --resume runs/NAME [key=value ...]
    torchrun --nproc_per_node 2 src/train.py -p parameters.yml

B utterances, N samples, M mel bands, T frames, E embedding size. All randomness in a
step derives from (seed, epoch, batch), so a resumed run repeats an unbroken one. With
several processes, each embeds its share of a batch, and all compute the loss of the
whole batch.
"""

import argparse
import ctypes
import math
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from dataset import Batch, Splits, TrainingBatches, prepare
from engine.optimizers import build_optimizer, set_learning_rate
from engine.parallel import (
    anywhere,
    first_rank_first,
    gather,
    gather_lists,
    num_ranks,
    progress_options,
    rank,
    ranks,
)
from eval import (
    evaluate,
    fit_backend,
    identify,
    make_split_trials,
    refuse_heard,
)
from exchange.nemo_files import load_any_model
from models import FLOP_PER_PRODUCT
from parameters import (
    ParameterError,
    Parameters,
    UserError,
    check_parameters,
    load_parameters,
    override_values,
)
from reports.report import as_table, print_table, write_evaluation
from runs.checkpoints import (
    RunError,
    SpeakerModel,
    build_model,
    choose_device,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from runs.run_directory import Run
from transforms import Augmentation, recording_digests

STEPS_PER_READING = 10  # between looks at the loss, each of which waits for the device
# Hours of crops from which compiling pays on a GPU: it takes 42 s for each duration of
# crops and raises TitaNet-S from 22,600 to 40,400 audio seconds a second (H100).
COMPILING_PAYS = 1500.0
MAX_SKIPPED = 10  # steps in a row without a finite loss and gradient
MAY_CHANGE = (  # keys that do not affect the result
    "dataset.packs",
    "dataset.download",
    "training.device",
    "training.compile",
    "run",
    "wandb",
)
MAY_CHANGE_ON_RESUME = (*MAY_CHANGE, "training.epochs")
# Keys of the front end and the encoder that may differ from those of the model in
# `training.init_from`.
MAY_DIFFER = ("dither", "dropout", "crop_seconds")


class TrainingError(UserError):
    """Training that cannot go on."""


class NotFiniteError(TrainingError):
    """Training that came upon a value that is not finite."""


class StoppedError(UserError):
    """Training that was asked to stop, and did so with everything saved."""


@dataclass
class Tally:
    """Sums over the utterances and steps of an epoch so far."""

    utterances: int = 0
    correct: int = 0
    loss: float = 0.0
    audio_seconds: float = 0.0
    seconds: float = 0.0
    flop: float = 0.0  # of the encoder
    # Of gradients, by block, each the sum over the steps in which it was measured.
    block_norms: dict[str, float] = field(default_factory=dict)
    measured: int = 0  # steps
    skipped: int = 0  # steps, of a loss or gradient that was not finite
    skipped_in_a_row: int = 0

    def metrics(self) -> dict[str, float]:
        """Means over the utterances and over the steps measured, and the speed."""
        norms = {
            f"gradient_norm/{block}": total / self.measured
            for block, total in self.block_norms.items()
        }
        return {
            "train/loss": self.loss / self.utterances,
            "train/accuracy": self.correct / self.utterances,
            "train/audio_seconds_per_second": self.audio_seconds / self.seconds,
            "train/skipped_steps": self.skipped,
            **norms,
        }


SPENT = ("seconds", "audio_seconds", "flop")  # of a tally, summed over epochs


@dataclass
class State:
    """All that training changes."""

    model: SpeakerModel
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps
    tally: Tally = field(default_factory=Tally)  # of the epoch that is not finished
    best_loss: float = math.inf  # on validation
    wandb_id: str = ""
    recordings: dict[str, str] = field(default_factory=dict)  # rooms and noise, digests
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))

    def save(self, path: Path) -> None:
        """Write a checkpoint that both training and evaluation can go on from."""
        save_checkpoint(
            path,
            self.model,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            tally=asdict(self.tally),
            best_loss=self.best_loss,
            wandb_id=self.wandb_id,
            recordings=self.recordings,
            spent=self.spent,
        )

    @classmethod
    def restore(
        cls, path: Path, parameters: Parameters, device: torch.device
    ) -> "State":
        """Load the state that `save` wrote; raise `ParameterError` if the parameters
        differ from the run's or ask for fewer epochs."""
        saved = load_checkpoint(path)
        old, new = saved["parameters"], parameters.as_dict()
        _refuse_changes(path.parent, old, new, MAY_CHANGE_ON_RESUME)
        least, epochs = old["training"]["epochs"], parameters.training.epochs
        if epochs < least:
            raise ParameterError(
                f"training.epochs: expected at least {least}, which {path.parent} has, "
                f"got {epochs}"
            )
        model = restore_model(
            {**saved, "parameters": parameters.as_dict()}, path, device
        )
        chosen = parameters.training.optimizer
        optimizer = build_optimizer(model.parameters(), chosen)
        groups = saved["optimizer"]["param_groups"], optimizer.param_groups
        before, now = ([len(group["params"]) for group in of] for of in groups)
        if before != now:  # Muon had every matrix in earlier versions
            for weight in model.parameters():
                weight.muon = True
            optimizer = build_optimizer(model.parameters(), chosen)
        optimizer.load_state_dict(saved["optimizer"])
        names = ("epoch", "step", "best_loss", "wandb_id")
        added = {  # not in earlier versions
            name: saved[name] for name in ("recordings", "spent") if name in saved
        }
        tally = Tally(**saved["tally"])
        return cls(
            model,
            optimizer,
            tally=tally,
            **added,
            **{name: saved[name] for name in names},
        )


def _has_bfloat16(device: str) -> bool:
    # Older chips emulate it, more slowly than they compute in float32.
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fast_encoder(
    encoder: nn.Module, device: torch.device, choice: str, hours: float = math.inf
) -> nn.Module:
    """Wrap an encoder for training: with several ranks in DistributedDataParallel, else
    in torch.compile as `choice`, the value of `training.compile`, says. `auto` compiles
    on a GPU if the `hours` of crops reach `COMPILING_PAYS`."""
    if num_ranks() > 1:
        if choice == "always":
            raise TrainingError(
                "training.compile: expected auto or never in several processes, whose "
                "batch norms talk to each other, got always"
            )
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            encoder, device_ids=device_ids, broadcast_buffers=False
        )
    # On a CPU compiling takes minutes and spares a tenth.
    pays = device.type == "cuda" and hours >= COMPILING_PAYS
    if choice == "never" or (choice == "auto" and not pays):
        return encoder
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if choice == "always":
            raise TrainingError(
                f"training.compile: expected a compiler that works, got: {reason}"
            ) from None
        print(f"training.compile: not compiling, since no compiler works: {reason}")
        return encoder
    # One graph for each duration of crops: a dynamic one would take as long.
    return torch.compile(encoder, dynamic=False)


class StepReading(NamedTuple):
    """What a step says of its batch; tensors [] stay on the device."""

    loss: Tensor
    gradient_norm: Tensor
    hits: Tensor  # predictions that were right
    size: int  # utterances
    block_norms: dict[str, Tensor]  # empty where they were not asked for


def training_step(
    state: State,
    encoder: nn.Module,
    augmentation: Augmentation,
    batch: Batch,
    num_steps: int,
    measures_blocks: bool = False,
) -> StepReading:
    """Take one optimizer step. If the loss or gradient is not finite, weights and
    buffers, such as batch statistics, stay unchanged.

    `encoder` is the model's, as `fast_encoder` returns it.
    """
    model, training = state.model, state.model.config.training
    progress = (state.step + 1) / num_steps
    set_learning_rate(state.optimizer, training.optimizer, progress)
    model.criterion.schedule(progress)
    torch.manual_seed(batch.seed)
    buffers = [buffer.clone() for buffer in model.buffers()]
    state.optimizer.zero_grad()
    loss, hits = torch.zeros(2, device=batch.waveforms.device)
    for number, part in enumerate(batch.parts(training.accumulation), 1):
        with gradients_of_all_ranks(encoder, last=number == training.accumulation):
            waveforms = augmentation(part.waveforms, part.crop)  # [B, N]
            speakers = gather(part.speakers)  # [B], of all ranks
            features, frames = model.front_end(waveforms)  # [B, M, T]
            features = augmentation.spec_augment(features)
            with bfloat16_where_fast(features.device.type):
                embeddings = encoder(features, frames)  # [B, E]
            output = model.criterion(gather(embeddings), speakers)
            part_loss = output.loss * (len(speakers) / batch.size)
            part_loss.backward()
        loss += part_loss.detach()
        hits += (output.predictions == speakers).sum()
    norms = block_norms(model.encoder) if measures_blocks else {}
    norm = clip_gradient(state)
    step_where_finite(state, buffers, (loss + norm).isfinite())
    return StepReading(loss, norm, hits, batch.size, norms)


def gradients_of_all_ranks(
    encoder: nn.Module, last: bool
) -> AbstractContextManager[None]:
    """A context in which only the last part of a batch synchronises gradients."""
    return nullcontext() if last or num_ranks() == 1 else encoder.no_sync()


def bfloat16_where_fast(device: str) -> torch.autocast:
    """A context in which an encoder computes in bfloat16, if the device has it."""
    return torch.autocast(device, torch.bfloat16, enabled=_has_bfloat16(device))


def block_norms(encoder: nn.Module) -> dict[str, Tensor]:
    """The gradient norm [] of each block of an encoder. Names are those of checkpoints
    with the dot replaced: `blocks.0` becomes `blocks_0`."""
    gradients = defaultdict(list)
    for name, weight in encoder.named_parameters():
        block = re.match(r"\w+(\.\d+)?", name)[0].replace(".", "_")
        gradients[block].append(weight.grad)
    return {name: nn.utils.get_total_norm(group) for name, group in gradients.items()}


def clip_gradient(state: State) -> Tensor:
    """Shorten the gradient of all weights to `clip_norm` at most; its norm before."""
    groups = state.optimizer.param_groups
    weights = [weight for group in groups for weight in group["params"]]
    clip_norm = state.model.config.training.optimizer.clip_norm
    return nn.utils.clip_grad_norm_(weights, clip_norm)


def step_where_finite(state: State, buffers: Sequence[Tensor], finite: Tensor) -> None:
    """Take an optimizer step if `finite` [], else restore the model's buffers. `finite`
    stays on the device, so nothing waits for it."""
    state.optimizer.found_inf = 1 - finite.float()
    state.optimizer.step()
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(finite, buffer, before))
    state.step += 1


class Readings:
    """Figures of the latest steps, which stay on the device until they are read."""

    def __init__(self, splits: Splits, on_nonfinite: str) -> None:
        self.splits, self.on_nonfinite = splits, on_nonfinite
        self.rows: list[Tensor] = []  # loss, gradient's norm and hits, [3]
        self.batches: list[tuple[Tensor, int]] = []  # entries of the pack, size
        self.block_norms: list[dict[str, Tensor]] = []

    def add(self, reading: StepReading, batch: Batch) -> None:
        """Note what `training_step` says of a batch."""
        self.rows.append(torch.stack(reading[:3]))
        self.batches.append((batch.indices, reading.size))
        self.block_norms.append(reading.block_norms)

    def read_into(self, tally: Tally, step: int) -> None:
        """Take in the steps up to `step`; raise `TrainingError` where a loss or a
        gradient is not finite and that stops the run."""
        first = step - len(self.rows) + 1
        rows = torch.stack(self.rows).tolist()
        for number, (loss, norm, hits), (indices, size), of_blocks in zip(
            range(first, step + 1), rows, self.batches, self.block_norms, strict=True
        ):
            if math.isfinite(loss) and math.isfinite(norm):
                tally.loss += loss * size
                tally.correct += int(hits)
                tally.utterances += size
                tally.skipped_in_a_row = 0
                tally.measured += bool(of_blocks)
                for block, of_block in of_blocks.items():
                    total = tally.block_norms.get(block, 0.0) + of_block.item()
                    tally.block_norms[block] = total
                continue
            tally.skipped += 1
            tally.skipped_in_a_row += 1
            names = [self.splits.pack.entries[i].id for i in indices.tolist()]
            fault = (
                f"step {number}: expected a finite loss and gradient, got loss {loss} "
                f"and gradient norm {norm} of {', '.join(names)}"
            )
            if self.on_nonfinite == "stop":
                raise NotFiniteError(
                    f"{fault}; a lower training.optimizer.lr may help, or "
                    "training.on_nonfinite=skip"
                )
            if tally.skipped_in_a_row == MAX_SKIPPED:
                raise NotFiniteError(f"{fault}; skipped {MAX_SKIPPED} steps in a row")
            tqdm.write(f"{fault}; skipped")
        self.rows.clear()
        self.batches.clear()
        self.block_norms.clear()


class StopSignals:
    """SIGINT and SIGTERM, noted while training; a second one interrupts at once."""

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False
        self.agreed = False  # that one of the ranks has received one
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.before = {kind: signal.signal(kind, self._note) for kind in self.KINDS}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)

    def asked(self) -> bool:
        """Whether to stop, asked and answered on all ranks together."""
        self.agreed = anywhere(self.received)
        return self.agreed

    def _note(self, kind: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


def training_epoch(
    state: State,
    encoder: nn.Module,
    batches: TrainingBatches,
    augmentation: Augmentation,
    num_steps: int,
    stop: StopSignals,
) -> dict[str, float] | None:
    """Train for one epoch, or what is left of it; return its metrics, or None if
    stopped."""
    state.model.train()
    training = state.model.config.training
    readings, tally = Readings(batches.splits, training.on_nonfinite), state.tally
    began = time.perf_counter()
    products = cache(state.model.encoder.products)  # of a crop's frames
    title, done = f"epoch {state.epoch + 1}", state.step - state.epoch * len(batches)
    with tqdm(
        total=len(batches),
        initial=done,
        desc=title,
        unit="step",
        leave=False,
        **progress_options(),
    ) as progress:
        for number, batch in enumerate(batches.epoch(state.epoch, done), done + 1):
            last = number == len(batches)
            measures_blocks = last or number % STEPS_PER_READING == 0
            reading = training_step(
                state, encoder, augmentation, batch, num_steps, measures_blocks
            )
            readings.add(reading, batch)
            tally.audio_seconds += batch.size * batch.crop / batches.sample_rate
            frames = batch.crop // state.model.front_end.hop
            tally.flop += batch.size * FLOP_PER_PRODUCT * products(frames)
            progress.update()
            if stop.asked() or last or len(readings.rows) == STEPS_PER_READING:
                readings.read_into(tally, state.step)
                now = time.perf_counter()
                tally.seconds, began = tally.seconds + now - began, now
                if not tally.utterances:
                    raise NotFiniteError(
                        f"step {state.step}: no step of epoch {state.epoch + 1} had a "
                        "finite loss and gradient"
                    )
                progress.set_postfix_str(
                    "loss {train/loss:.3f}, accuracy {train/accuracy:.1%}, "
                    "{train/audio_seconds_per_second:.0f} audio s/s".format_map(
                        tally.metrics()
                    )
                )
            if stop.agreed and number < len(batches):
                return None
    rate = state.optimizer.param_groups[-1]["lr"]  # the first may be Muon's
    scheduled = state.model.criterion.scheduled()
    return {
        **tally.metrics(),
        "train/learning_rate": rate,
        **{f"train/{name}": value for name, value in scheduled.items()},
    }


Watch = Callable[[Mapping[str, float]], None]


def train(
    parameters: Parameters, resume: Path | None = None, watch: Watch | None = None
) -> Path:
    """Train, evaluate with the best checkpoint, and return the run's directory.

    `resume` is the directory of a run to resume. Its parameters must be these, except
    for where it runs and for added epochs. `watch` is called with the metrics of each
    epoch. Raises `UserError` for anything the user can fix.
    """
    keep_freed_memory()
    device = choose_device(parameters)
    with first_rank_first():
        splits = prepare(parameters)
        recordings = recording_digests(parameters)
    print(splits.summary())
    if len(splits.speakers) < 2:
        raise TrainingError(
            "dataset: expected at least two speakers to train on, got "
            f"{len(splits.speakers)} after those held out"
        )
    make_split_trials(splits, parameters)  # fail now if the splits cannot be tested
    if resume is None:
        digests = splits.pack.digests
        model = build_model(parameters, splits.speakers, digests, device)
        if parameters.training.init_from is not None:
            _start_from(parameters.training.init_from, model)
        refuse_heard(model, splits, parameters.dataset)
        optimizer = build_optimizer(model.parameters(), parameters.training.optimizer)
        run = Run.create(parameters) if rank() == 0 else None
        state = State(model, optimizer, wandb_id=run.mirror.wandb_id if run else "")
        state.recordings = recordings
    else:
        state = State.restore(resume / "last.pt", parameters, device)
        _refuse_other_audio(resume, state.model.digests, splits.pack.digests)
        _refuse_other_audio(resume, state.recordings, recordings)
        state.recordings = recordings
        run = None
        if rank() == 0:
            state.save(resume / "last.pt")  # keeps these parameters if interrupted
            run = Run.reopen(resume, parameters, state.epoch, state.wandb_id)
    directory = gather_lists([run and run.directory])[0]
    failed = True
    try:
        _train_epochs(state, splits, run, directory, watch)
        best = State.restore(directory / "best.pt", parameters, device)
        best.model.backend = fit_backend(best.model, splits)
        evaluation = evaluate(best.model, splits)
        if run is not None:
            best.save(directory / "best.pt")
            write_evaluation(directory, evaluation, splits, best.model)
            run.mirror.log_evaluation(evaluation, splits)
            print_table(as_table(evaluation))
            print(f"run: {directory}")
        failed = False
    except NotFiniteError as error:
        if run is not None:
            run.mirror.alert("A value that is not finite", f"{directory}: {error}")
        raise
    finally:
        if run is not None:
            run.mirror.finish(failed)
    return directory


def train_once(parameters: Parameters, watch: Watch | None = None) -> Path:
    """Return the run named `run.name`: reused if finished, resumed if stopped, else
    trained. An existing run must have these parameters."""
    name = parameters.run.name
    if name is None or not (directory := parameters.run.directory / name).exists():
        return train(parameters, watch=watch)
    if not (directory / "last.pt").exists():
        raise RunError(
            f"{directory}: stopped before its first checkpoint; remove it to train anew"
        )
    old = load_checkpoint(directory / "last.pt")
    _refuse_changes(directory, old["parameters"], parameters.as_dict(), MAY_CHANGE)
    if (directory / "report.json").exists():
        _refuse_other_audio(directory, old["digests"], prepare(parameters).pack.digests)
        recordings = recording_digests(parameters)
        _refuse_other_audio(directory, old.get("recordings", {}), recordings)
        return directory
    return train(parameters, directory, watch)


def _train_epochs(
    state: State,
    splits: Splits,
    run: Run | None,
    directory: Path,
    watch: Watch | None,
) -> None:
    """Train to the last epoch; the first rank alone has a run."""
    parameters = state.model.config
    device = state.model.device
    batches = TrainingBatches(splits, parameters, device)
    with first_rank_first():
        augmentation = Augmentation(parameters, device)
    epochs = parameters.training.epochs
    num_weights = sum(w.numel() for w in state.model.encoder.parameters())
    print(
        f"training {parameters.model.name} ({num_weights / 1e6:.2f} M weights) with "
        f"{parameters.loss.name} on {device}: {epochs} epochs of {len(batches)} steps"
    )
    num_steps = epochs * len(batches)
    crops = (num_steps - state.step) * parameters.training.batch_size
    hours = crops * mean(parameters.model.crop_seconds) / 3600
    encoder = fast_encoder(
        state.model.encoder, device, parameters.training.compile, hours
    )
    with StopSignals() as stop, _memory_for_batches(parameters):
        while state.epoch < epochs:
            trained = training_epoch(
                state, encoder, batches, augmentation, num_steps, stop
            )
            if trained is not None:
                metrics = _end_epoch(state, splits, run, trained)
                if watch is not None:
                    watch(metrics)
            with first_rank_first():
                if run is not None:
                    state.save(directory / "last.pt")
            if stop.agreed and state.epoch < epochs:
                raise StoppedError(
                    f"stopped after step {state.step} of {num_steps}; "
                    f"go on with --resume {directory}"
                )


@contextmanager
def _memory_for_batches(parameters: Parameters) -> Iterator[None]:
    """Raise `TrainingError` where a GPU's memory runs out."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "training.batch_size: expected utterances that the GPU has memory for, got "
            f"{parameters.training.batch_size}; fewer, or a larger "
            "training.accumulation, may fit"
        ) from None


def _end_epoch(
    state: State, splits: Splits, run: Run | None, trained: Mapping[str, float]
) -> dict[str, float]:
    """Validate, log, keep the model where it is the best so far; the epoch's
    metrics."""
    for name in SPENT:
        state.spent[name] += getattr(state.tally, name)
    state.epoch, state.tally = state.epoch + 1, Tally()
    spent = {f"spent/{name}": total for name, total in state.spent.items()}
    metrics = {"epoch": state.epoch, "step": state.step, **trained, **spent}
    # Without validation utterances the last epoch is as good a choice as any.
    loss = -state.epoch
    if identified := identify(state.model, splits):
        for name, report in identified.items():
            metrics[f"{name}/loss"] = report.loss
            metrics[f"{name}/accuracy"] = report.accuracy
        # Of a mixture the mean over its corpora, however large each, chooses the best.
        reports = identified.values()
        metrics["validation/loss"] = loss = mean(r.loss for r in reports)
        metrics["validation/accuracy"] = mean(r.accuracy for r in reports)
    if not math.isfinite(loss):
        raise NotFiniteError(f"step {state.step}: the validation loss is {loss}")
    better = loss < state.best_loss
    state.best_loss = min(loss, state.best_loss)
    if run is not None:
        run.log_epoch(metrics)
        if better:
            state.save(run.directory / "best.pt")
    print(_epoch_line(metrics, state.model.config.training.epochs))
    return metrics


def _epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    line = f"epoch {metrics['epoch']}/{epochs}"
    for split in ("train", "validation"):
        if f"{split}/loss" in metrics:
            loss, accuracy = metrics[f"{split}/loss"], metrics[f"{split}/accuracy"]
            line += f"  {split} loss {loss:.3f} accuracy {accuracy:.1%}"
    return f"{line}  {metrics['train/audio_seconds_per_second']:.0f} audio s/s"


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks: to map and clear fresh pages for every activation
    takes a third of a training step on a CPU."""
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_threshold = -1, -3
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(m_mmap_threshold, 2**30)
            library.mallopt(m_trim_threshold, 2**30)


def _refuse_changes(
    source: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    allowed: Sequence[str],
    path: str = "",
) -> None:
    """Raise `ParameterError` for the first key that differs and is not allowed to."""
    for name, value in new.items():
        key = path + name
        if key in allowed:
            continue
        if isinstance(value, dict):
            _refuse_changes(source, old[name], value, allowed, f"{key}.")
        elif value != old[name]:
            raise ParameterError(
                f"{key}: expected {old[name]!r}, which {source} has, got {value!r}"
            )


def _refuse_other_audio(
    run: Path, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
    """Raise `RunError` where a digest of recordings is not that which a run has."""
    for key, digest in new.items():
        if old.get(key, digest) != digest:
            raise RunError(
                f"{run}: the recordings of {key or 'the corpus'} have changed since it "
                "began; put them back as they were, or train anew"
            )


def _architecture(parameters: Parameters) -> dict[str, Any]:
    """All that a front end's and an encoder's weights depend on."""

    def kept(section: dict[str, Any]) -> dict[str, Any]:
        return {k: value for k, value in section.items() if k not in MAY_DIFFER}

    values, name = parameters.as_dict(), parameters.model.name
    model = {"name": name, name: kept(values["model"][name])}
    return {"front_end": kept(values["front_end"]), "model": model}


def _start_from(source: Path, model: SpeakerModel) -> None:
    """Take over another model's front end and encoder, and its classifier where both
    have the same speakers and the same loss."""
    other = load_any_model(source, torch.device("cpu"))
    old, new = _architecture(other.config), _architecture(model.config)
    _refuse_changes(source, old, new, ())
    model.front_end.load_state_dict(other.front_end.state_dict())
    model.encoder.load_state_dict(other.encoder.state_dict())
    parts = "encoder"
    same_loss = other.config.loss.name == model.config.loss.name
    same_speakers = (other.speakers, other.digests) == (model.speakers, model.digests)
    if same_loss and same_speakers:
        model.criterion.load_state_dict(other.criterion.state_dict())
        parts = "encoder and classifier"
    model.ancestors = tuple(one for one in other.heard if one not in model.heard)
    print(f"starting from the {parts} of {source}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="src/train.py", description="Train a speaker encoder and evaluate it."
    )
    parser.add_argument(
        "-p",
        "--parameters",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="parameter file; of several, later ones win",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with this run"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as model.name=dvector training.epochs=10",
    )
    options = parser.parse_args(arguments)
    if bool(options.parameters) == bool(options.resume):
        parser.error("expected either -p or --resume")
    try:
        if options.resume:
            old = load_checkpoint(options.resume / "last.pt")["parameters"]
            parameters = check_parameters(override_values(old, options.overrides))
        else:
            parameters = load_parameters(
                *options.parameters, overrides=options.overrides
            )
        with ranks():
            train(parameters, options.resume)
    except StoppedError as stopped:
        print(stopped)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; a run with finished epochs goes on with --resume")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
