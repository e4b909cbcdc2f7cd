"""Run the reliability tests at full size, and write assets/soak.json.

    python experiments/soak.py [--kills 50] [--rounds 1000] [--inputs 100000]
        [--seed 1]

Stops at the first promise that is broken, and names the seed where there was chance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import REPOSITORY
from hostile import fuzz
from kills import kill_and_go_on
from stores import kill_and_start_again, share_a_store

LARGE = ("hours", "recording", "utterances")  # kinds of large.py


def cost(kind: str) -> dict[str, float]:
    """Return peak anonymous memory in bytes, and run time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(__file__).with_name("large.py")
        command = [sys.executable, program, kind, folder]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY
        )
    memory, _, seconds = ran.stdout.split()
    return {"bytes": int(memory), "seconds": round(float(seconds), 1)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        inputs = fuzz(options.inputs, options.seed, Path(name) / "inputs")
        (folder := Path(name) / "kills").mkdir()
        kills = kill_and_go_on(options.kills, options.seed, folder)
        (folder := Path(name) / "stores").mkdir()
        stores = share_a_store(options.rounds, options.seed, folder)
        again = kill_and_start_again(options.kills, options.seed, folder)
    report = {
        "command": " ".join(sys.argv),
        "seed": options.seed,
        "kills": kills,
        "stores": stores,
        "commands": again,
        "inputs": inputs,
        "large": {kind: cost(kind) for kind in LARGE},
    }
    path = REPOSITORY / "assets" / "soak.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
