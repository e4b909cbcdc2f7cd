"""The command lines of `train.py` and `eval.py`.

This module loads nothing slow, so `--help` and a mistyped option are answered at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda", "mps")


def train_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return `parameters` (paths), `resume` (a path or None) and `overrides`."""
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
        help="parameter file; may be repeated, later files win",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="resume this run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as model.name=dvector training.epochs=10",
    )
    options = parser.parse_args(arguments)
    if bool(options.parameters) == bool(options.resume):
        parser.error("expected either -p or --resume")
    return options


def eval_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return `checkpoint` (paths), or `scores` and `trials`, and `overrides`."""
    parser = argparse.ArgumentParser(
        prog="src/eval.py", description="Evaluate checkpoints on any corpus."
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="RUN_OR_FILE",
        help="runs, checkpoints or .nemo files",
    )
    parser.add_argument("--scores", type=Path, help="a file of scores, with --trials")
    parser.add_argument("--trials", type=Path, help="the trials that were scored")
    parser.add_argument(
        "--device", choices=DEVICES, help="the same as training.device=..."
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="such as dataset.name=folder dataset.root=recordings",
    )
    options = parser.parse_args(arguments)
    # argparse takes everything after --checkpoint as checkpoints, overrides too.
    words = [*options.checkpoint, *options.overrides]
    options.checkpoint = [Path(word) for word in words if "=" not in word]
    options.overrides = [word for word in words if "=" in word]
    if options.device:
        options.overrides.append(f"training.device={options.device}")
    files = (options.scores, options.trials)
    if bool(options.checkpoint) == all(files) or bool(options.checkpoint) == any(files):
        parser.error("expected either --checkpoint or --scores and --trials")
    return options
