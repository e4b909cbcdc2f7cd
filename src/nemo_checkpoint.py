"""Exchange speaker models with NVIDIA NeMo.

python src/nemo_checkpoint.py import model.nemo model.pt
python src/nemo_checkpoint.py export RUN_OR_FILE model.nemo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from errors import UserError
from exchange.nemo_files import NemoError, load_nemo, save_nemo
from runs.checkpoints import load_model, save_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="src/nemo_checkpoint.py",
        description="Exchange speaker models with NVIDIA NeMo.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="a .nemo file as a checkpoint")
    command.add_argument("source", type=Path, metavar="model.nemo")
    command.add_argument("target", type=Path, metavar="model.pt")
    command = commands.add_parser("export", help="a run or checkpoint as a .nemo file")
    command.add_argument("source", type=Path, metavar="RUN_OR_FILE")
    command.add_argument("target", type=Path, metavar="model.nemo")
    options = parser.parse_args(arguments)
    try:
        if options.target.exists():
            raise NemoError(f"{options.target}: expected a new file, this one exists")
        if options.command == "import":
            model = load_nemo(options.source)
            save_checkpoint(options.target, model)
        else:
            model = load_model(options.source, torch.device("cpu"))
            save_nemo(options.target, model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    num_weights = sum(w.numel() for w in model.encoder.parameters())
    print(
        f"{options.target}: {num_weights / 1e6:.2f} M weights, "
        f"{len(model.speakers)} speakers"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
