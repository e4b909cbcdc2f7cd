"""Run the commands of docs/voices.md on recordings of Common Voice's test speakers.

    python experiments/examples.py COMMON_VOICE

COMMON_VOICE is a folder with a folder for each test speaker. `assets/voices.json` names
the recordings and the commands; what these print as JSON is written into it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from voices import Voices

HOME = Path(__file__).parents[1]
EXAMPLES = HOME / "assets" / "voices.json"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("common_voice", type=Path, metavar="COMMON_VOICE")
    recordings = parser.parse_args().common_voice.resolve()
    examples = json.loads(EXAMPLES.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in examples["clips"].items():
            Path(folder, f"{name}.wav").symlink_to(recordings / clip)
        for command in examples["commands"]:
            program, *arguments = shlex.split(command)[1:]
            words = [sys.executable, HOME / program, *arguments]
            printed = subprocess.run(
                words, cwd=folder, check=True, stdout=subprocess.PIPE
            ).stdout
            if "--json" in arguments:
                examples[arguments[0]] = json.loads(printed)
    examples["encoder"] = Voices.load().digest
    EXAMPLES.write_text(json.dumps(examples, indent=1) + "\n")


if __name__ == "__main__":
    main()
