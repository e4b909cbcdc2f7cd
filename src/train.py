"""Train a speaker encoder: parameters in, a run directory out.

    python src/train.py -p parameters.yml [-p more.yml] [key=value ...]
    python src/train.py --resume runs/NAME [key=value ...]
    torchrun --nproc_per_node 2 src/train.py -p parameters.yml

The file reads from the top: a step, an epoch, a run. B utterances, N samples, M mel
bands, T frames, E embedding size. All randomness in a step derives from (seed, epoch,
batch, rank), so a resumed run repeats an unbroken one. With several processes, or
ranks, each embeds its share of a batch, and all compute the loss of the whole batch.
"""

import sys

from command_lines import train_options
from errors import StoppedError, begin_program, run_command

if __name__ == "__main__":  # before torch is loaded
    begin_program()
    train_options()  # answers --help

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from dataset import Batch, Splits, TrainingBatches, prepare
from engine.acceleration import fast_encoder, gradients_of_all_ranks
from engine.devices import (
    choose_device,
    errors_of_gpu,
    keep_freed_memory,
    memory_for_batches,
)
from engine.optimizers import (
    block_norms,
    build_optimizer,
    clip_gradient,
    set_learning_rate,
    step_where,
)
from engine.parallel import first_rank_first, gather, progress_options, rank, ranks
from engine.parameter_files import check_parameters, load_parameters, override_values
from engine.precision import bfloat16_where_fast
from engine.signals import StopSignals
from eval import evaluate, identify
from exchange.nemo_files import load_any_model
from losses import teacher_loss
from parameters import (
    UNLABELLED,
    DatasetParameters,
    EvaluationParameters,
    Parameters,
)
from runs.backend import fit_backend, make_split_trials
from runs.checkpoints import load_checkpoint
from runs.heard import refuse_heard
from runs.resuming import State, file_digests, refuse_other_files, start_from
from runs.run_directory import Run
from runs.speaker_model import build_model
from runs.tally import SPENT, NotFiniteError, Readings, StepReading, Tally, epoch_line
from speech.surroundings import load_surroundings, recording_digests
from speech.utterances import CorpusError
from teacher import load_teacher, teacher_digests
from transforms import Augmentation

STEPS_PER_READING = 10
CPU = torch.device("cpu")
Watch = Callable[[Mapping[str, float]], None]


def training_step(
    state: State,
    encoder: nn.Module,
    augmentation: Augmentation,
    batch: Batch,
    num_steps: int,
    measures_blocks: bool = False,
) -> StepReading:
    """Take one optimizer step. If the loss or gradient is not finite, weights, momenta
    and buffers, such as batch statistics, stay unchanged.

    `state.model` holds the front end, the encoder and the criterion, which is the loss
    with its classifier. `encoder` is that encoder, compiled or shared among ranks.
    """
    model, training = state.model, state.model.config.training
    teacher = training.teacher
    progress = (state.step + 0.5) / num_steps  # halfway, or the last rate would be 0
    # The rate rises over the first steps (a tenth of them by default), while momenta
    # and batch statistics have seen too little to be trusted. Then it falls.
    set_learning_rate(state.optimizer, training.optimizer, progress)
    model.criterion.schedule(progress)  # sets the margin, which grows
    torch.manual_seed(batch.seed)  # for augmentation and dropout
    # The forward pass updates batch statistics before the loss is known to be finite.
    # These copies are put back if it is not.
    buffers = [buffer.clone() for buffer in model.buffers()]
    state.optimizer.zero_grad()
    loss = torch.zeros((), device=batch.waveforms.device)
    sums = defaultdict(float)  # over the batch; their means are logged as train/NAME
    # Ranks add up their gradients once, with the last part.
    for number, part in enumerate(batch.parts(training.accumulation), 1):
        with gradients_of_all_ranks(encoder, last=number == training.accumulation):
            waveforms = augmentation(part.waveforms, part.crop)  # [B, N]
            speakers = gather(part.speakers)  # [B], of all ranks
            features, frames = model.front_end(waveforms)  # [B, M, T]
            features = augmentation.spec_augment(features)
            with bfloat16_where_fast(features.device.type):
                embeddings = encoder(features, frames)  # [B, E]
            # With several ranks, each computes the loss of the rows of all ranks.
            embeddings = gather(embeddings)  # [B, E]
            output = model.criterion(embeddings, speakers)
            row_loss = output.loss
            if part.targets is not None:
                targets = gather(part.targets)  # [B, E]
                away = teacher_loss(
                    embeddings, targets, part.anchors, teacher.temperature
                )
                row_loss = torch.lerp(output.loss, away, teacher.weight)
                cosines = F.cosine_similarity(embeddings.detach(), targets)
                sums["teacher_cosine"] += cosines.sum()
            # Each part is weighted by its share of the rows, so that the sum over the
            # parts is the mean loss of the batch.
            part_loss = row_loss * (len(speakers) / batch.size)
            part_loss.backward()
        loss = loss + part_loss.detach()
        hits = (output.predictions == speakers).sum()
        # Over the labelled rows, but counted as if all were.
        known = (speakers != UNLABELLED).sum().clamp(min=1)
        sums["accuracy"] += hits * len(speakers) / known
    norms = block_norms(model.encoder) if measures_blocks else {}
    # A long gradient is shortened, so that one bad batch cannot throw the weights far.
    norm = clip_gradient(state.optimizer, training.optimizer.clip_norm)
    finite = (loss + norm).isfinite()  # stays on the device, so nothing waits for it
    step_where(state.optimizer, finite)  # skips the step where `finite` is false
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(finite, buffer, before))
    state.step += 1  # a skipped step counts too: the schedule goes on
    return StepReading(loss, norm, sums, norms)


def training_epoch(
    state: State,
    encoder: nn.Module,
    batches: TrainingBatches,
    augmentation: Augmentation,
    num_steps: int,
    stop: StopSignals,
) -> dict[str, float] | None:
    """Train for one epoch, or for the rest of one; return its metrics, or None if
    stopped."""
    model, training = state.model.train(), state.model.config.training
    skips = training.on_nonfinite == "skip"
    readings = Readings(state.tally, batches.splits.pack, model.flop, skips)
    done = state.step - state.epoch * len(batches)  # more than 0 in a resumed epoch
    with tqdm(
        total=len(batches),
        initial=done,
        desc=f"epoch {state.epoch + 1}",
        unit="step",
        leave=False,
        **progress_options(),
    ) as progress:
        for number, batch in enumerate(batches.epoch(state.epoch, done), done + 1):
            last = number == len(batches)
            # Reading a loss waits for the GPU that computes it. Losses are read rarely,
            # so that the GPU always has steps to work on.
            reads = last or number % STEPS_PER_READING == 0
            reading = training_step(
                state, encoder, augmentation, batch, num_steps, measures_blocks=reads
            )
            readings.add(reading, batch)
            progress.update()
            # All ranks ask together, so that all stop after the same step.
            if stop.asked() or reads:
                readings.read(state.step)  # raises for a loss that is not finite
                progress.set_postfix_str(str(state.tally))
            if stop.agreed and not last:  # after the last step, validate first
                return None
    rate = state.optimizer.param_groups[-1]["lr"]  # Muon's group is the first
    scheduled = model.criterion.scheduled()
    return {
        **state.tally.metrics(),
        "train/learning_rate": rate,
        **{f"train/{name}": value for name, value in scheduled.items()},
    }


def end_epoch(
    state: State, splits: Splits, run: Run, trained: Mapping[str, float]
) -> dict[str, float]:
    """Validate, log, save the model if it is the best so far; return the epoch's
    metrics."""
    for name in SPENT:
        state.spent[name] += getattr(state.tally, name)
    in_a_row = state.tally.skipped_in_a_row  # goes on in the next epoch
    state.epoch, state.tally = state.epoch + 1, Tally(skipped_in_a_row=in_a_row)
    spent = {f"spent/{name}": total for name, total in state.spent.items()}
    metrics = {"epoch": state.epoch, "step": state.step, **trained, **spent}
    # Without validation utterances each epoch counts as better than those before.
    loss = -state.epoch
    if identified := identify(state.model, splits):
        for name, report in identified.items():
            metrics[f"{name}/loss"] = report.loss
            metrics[f"{name}/accuracy"] = report.accuracy
        # In a mixture each corpus weighs the same, however large it is.
        reports = identified.values()
        metrics["validation/loss"] = loss = mean(r.loss for r in reports)
        metrics["validation/accuracy"] = mean(r.accuracy for r in reports)
    if not math.isfinite(loss):
        raise NotFiniteError(f"step {state.step}: the validation loss is {loss}")
    run.log_epoch(metrics)
    if loss < state.best_loss:
        state.best_loss = loss
        run.save(state, "best")
    print(epoch_line(metrics, state.model.config.training.epochs))
    return metrics


def train(
    parameters: Parameters, resume: Path | None = None, watch: Watch | None = None
) -> Path:
    """Train, evaluate with the best checkpoint, and return the run's directory.

    `resume` is the directory of a run to resume. That run must have these parameters,
    except for keys that do not affect the result, more epochs, and the paths of
    recordings that have moved. `watch` is called with the metrics of each epoch. Raises
    `UserError` for anything the user can fix.
    """
    keep_freed_memory()
    device = choose_device(parameters.training, parameters.model)
    with first_rank_first():  # rank 0 decodes the recordings for all
        splits = prepare(parameters.dataset, parameters.front_end)
        targets = load_teacher(parameters, splits)
        recordings = recording_digests(parameters) | teacher_digests(parameters)
    print(splits.summary())
    refuse_splits(splits, parameters.dataset, parameters.evaluation)
    if resume is None:
        state = begin(parameters, splits, targets, device)
        state.recordings, state.files = recordings, file_digests(parameters)
        run = Run.create(parameters)
        state.wandb_id = run.wandb_id
    else:
        state = State.restore(resume / "last.pt", parameters, device)
        refuse_other_files(resume, state.model.digests, splits.pack.digests)
        refuse_other_files(resume, state.recordings, recordings)
        state.recordings = recordings  # runs of earlier versions have none
        if rank() == 0:  # the next resumption is compared with these parameters
            state.save(resume / "last.pt")
        run = Run.reopen(resume, parameters, state.epoch, state.wandb_id)
    with run:
        train_epochs(state, splits, targets, run, watch)
        best = State.restore(run.directory / "best.pt", parameters, device)
        fit_backend(best.model, splits)
        evaluation = evaluate(best.model, splits)
        run.save(best, "best")
        run.log_evaluation(evaluation, splits)
    return run.directory


def refuse_splits(
    splits: Splits, dataset: DatasetParameters, evaluation: EvaluationParameters
) -> None:
    """Raise `UserError` before training if there is too little to train or test on."""
    if len(splits.speakers) < 2:
        raise CorpusError(
            "dataset: expected at least two speakers to train on, got "
            f"{len(splits.speakers)} who are not held out"
        )
    make_split_trials(splits, dataset, evaluation)


def begin(
    parameters: Parameters, splits: Splits, targets: Tensor | None, device: torch.device
) -> State:
    """Return the state before the first step: fresh weights, or those of
    `training.init_from`. A teacher's vectors begin the classifier as their means."""
    model = build_model(parameters, splits.speakers, splits.pack.digests, device)
    if targets is not None and hasattr(model.criterion, "classifier"):
        classes = torch.tensor(splits.classes_of(splits.train))
        sums = torch.zeros(len(splits.speakers), targets.shape[1])
        sums.index_add_(0, classes, targets[: len(classes)])
        with torch.no_grad():
            model.criterion.classifier.weight.copy_(F.normalize(sums))
    if (source := parameters.training.init_from) is not None:
        copied = start_from(load_any_model(source, CPU), source, model)
        print(f"starting from the {copied} of {source}")
    refuse_heard(model, splits, parameters.dataset)
    optimizer = build_optimizer(model.parameters(), parameters.training.optimizer)
    return State(model, optimizer)


def train_epochs(
    state: State,
    splits: Splits,
    targets: Tensor | None,
    run: Run,
    watch: Watch | None,
) -> None:
    """Train to the last epoch; after a signal, save all and raise `StoppedError`."""
    parameters, device = state.model.config, state.model.device
    training, epochs = parameters.training, parameters.training.epochs
    batches = TrainingBatches(splits, parameters, device, targets)
    with first_rank_first():
        surroundings = load_surroundings(parameters, device)
    rate = parameters.front_end.sample_rate
    augmentation = Augmentation(parameters.augmentation, rate, surroundings).to(device)
    num_weights = sum(w.numel() for w in state.model.encoder.parameters())
    print(
        f"training {parameters.model.name} ({num_weights / 1e6:.2f} M weights) with "
        f"{parameters.loss.name} on {device}: {epochs} epochs of {len(batches)} steps"
    )
    num_steps = epochs * len(batches)
    crops = (num_steps - state.step) * training.batch_size
    hours_of_crops = crops * mean(parameters.model.crop_seconds) / 3600
    choice = training.compile
    encoder = fast_encoder(state.model.encoder, device, choice, hours_of_crops)
    with StopSignals() as stop, memory_for_batches(training.batch_size):
        while state.epoch < epochs:
            trained = training_epoch(
                state, encoder, batches, augmentation, num_steps, stop
            )
            if trained is not None:
                metrics = end_epoch(state, splits, run, trained)
                if watch is not None:
                    watch(metrics)
            run.save(state, "last")
            if stop.agreed and state.epoch < epochs:
                raise StoppedError(
                    f"stopped after step {state.step} of {num_steps}; "
                    f"go on with --resume {run.directory}"
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 2 for a user's mistake, 130 if
    stopped."""
    options = train_options(arguments)

    def command() -> None:
        if options.resume:
            old = load_checkpoint(options.resume / "last.pt")["parameters"]
            parameters = check_parameters(override_values(old, options.overrides))
        else:
            files = options.parameters
            parameters = load_parameters(*files, overrides=options.overrides)
        with ranks(), errors_of_gpu("training.device=cpu"):
            train(parameters, options.resume)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
