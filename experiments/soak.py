"""The reliability tests at full size; writes assets/soak.json and its table.

    python experiments/soak.py [--kills 50] [--inputs 20000] [--seed 1]

Stops at the first promise that is broken, and names the seed where there was chance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from blocks import DOCS, as_table, split_at_block, write_block
from hostile import fuzz
from kills import kill_and_go_on

from conftest import REPOSITORY

LARGE = {  # kinds of tests/large.py
    "hours": "six steps of TitaNet-S at batch 32 in 20 hours",
    "recording": "embedding a recording of 3 hours, miniature model",
    "utterances": "opening a pack of 200,000 utterances, and its first batch",
}
TESTS = {  # what they try, and what holds in each
    "test_disk.py": (
        "disks that are full, read-only or deleted, while packing and while saving",
        "the last good checkpoint stays whole, the message names the path",
    ),
    "test_wandb_mirror.py": (
        "W&B missing, without key, with servers that refuse, fail, hang or vanish",
        "training goes on and `metrics.jsonl` is complete",
    ),
    "test_downloads.py": (
        "downloads cut off, forged, endless, or reaching out of their folder",
        "resumed, or refused in one line and nothing unpacked",
    ),
}


def cost(kind: str) -> dict[str, float]:
    """Peak anonymous memory in bytes, and run time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, REPOSITORY / "tests" / "large.py", kind, folder]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY
        )
    memory, _, seconds = ran.stdout.split()
    return {"bytes": int(memory), "seconds": round(float(seconds), 1)}


def cases(name: str) -> int:
    """How many cases of a file of tests ran and passed; raise where one failed, or
    none was run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}"]
        subprocess.run([*command, f"tests/{name}"], check=True, cwd=REPOSITORY)
        suite = ElementTree.parse(report).getroot().find("testsuite")
    count = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    assert count, f"{name}: all tests were skipped"
    return count


def as_markdown(report: Mapping[str, Any]) -> str:
    """The table in docs/reliability.md."""
    rows = [["what was tried", "how often", "what happened"]]
    for moment, count in sorted(report["kills"].items()):
        outcome = "went on; weights, optimizer, metrics and report equal to the bit"
        rows.append([f"SIGKILL: {moment}", f"{count}", outcome])
    for kind, counts in report["inputs"].items():
        outcome = (
            f"{counts['read']:,} read, {counts['refused']:,} refused in one line; the "
            f"slowest took {1000 * counts['slowest_seconds']:.0f} ms, peak memory grew "
            f"by {counts['growth_bytes'] / 1e6:.0f} MB"
        )
        rows.append([f"damaged files: {kind}", f"{counts['tried']:,}", outcome])
    for kind, counts in report["large"].items():
        size, seconds = counts["bytes"] / 1e9, counts["seconds"]
        outcome = f"at most {size:.1f} GB of its own memory, {seconds:.0f} s"
        rows.append([LARGE[kind], "1", outcome])
    for name in report["tests"]:  # whose number grows between two soaks
        tried, outcome = TESTS[name]
        rows.append([tried, f"`tests/{name}`", outcome])
    return as_table(rows)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    split_at_block(DOCS / "reliability.md", "soak.py")  # fail now, not at the end
    with tempfile.TemporaryDirectory() as name:
        inputs = fuzz(options.inputs, options.seed, Path(name) / "inputs")
        (folder := Path(name) / "kills").mkdir()
        kills = kill_and_go_on(options.kills, options.seed, folder)
    report = {
        "seed": options.seed,
        "kills": kills,
        "inputs": inputs,
        "large": {kind: cost(kind) for kind in LARGE},
        "tests": {name: cases(name) for name in TESTS},
    }
    path = REPOSITORY / "assets" / "soak.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    write_block(DOCS / "reliability.md", "soak.py", as_markdown(report))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
