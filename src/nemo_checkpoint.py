"""Exchange speaker models with NVIDIA NeMo.

python src/nemo_checkpoint.py import model.nemo model.pt
python src/nemo_checkpoint.py export RUN_OR_FILE model.nemo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import begin_program, run_command

if __name__ == "__main__":
    begin_program()

import torch

from exchange.nemo_archives import NemoError
from exchange.nemo_files import load_nemo, save_nemo
from runs.checkpoints import load_model, save_checkpoint


def convert(command: str, source: Path, target: Path) -> None:
    """Write a `.nemo` file as a checkpoint (`import`), or a run or checkpoint as a
    `.nemo` file (`export`)."""
    if target.exists():
        raise NemoError(f"{target}: expected a new file, this one exists")
    if command == "import":
        model = load_nemo(source)
        save_checkpoint(target, model)
    else:
        model = load_model(source, torch.device("cpu"))
        save_nemo(target, model)
    num_weights = sum(w.numel() for w in model.encoder.parameters())
    print(
        f"{target}: {num_weights / 1e6:.2f} M weights, {len(model.speakers)} speakers"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="src/nemo_checkpoint.py",
        description="Exchange speaker models with NVIDIA NeMo.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, target, description in (
        ("import", "model.nemo", "model.pt", "a .nemo file as a checkpoint"),
        ("export", "RUN_OR_FILE", "model.nemo", "a run or checkpoint as a .nemo file"),
    ):
        command = commands.add_parser(name, help=description)
        command.add_argument("source", type=Path, metavar=source)
        command.add_argument("target", type=Path, metavar=target)
    options = parser.parse_args(arguments)
    return run_command(lambda: convert(**vars(options)))


if __name__ == "__main__":
    sys.exit(main())
