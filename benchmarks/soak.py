"""What the tests hold in small, in full: kills and hostile files; a JSON report.

    python benchmarks/soak.py [--kills 50] [--inputs 20000] [--seed 1]

Stops with the seed of the first promise that is broken.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import REPOSITORY
from hostile import fuzz
from kills import kill_and_go_on


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        inputs = fuzz(options.inputs, options.seed, Path(name) / "inputs")
        (folder := Path(name) / "kills").mkdir()
        kills = kill_and_go_on(options.kills, options.seed, folder)
    report = {"seed": options.seed, "kills": kills, "inputs": inputs}
    (REPOSITORY / "assets" / "soak.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
