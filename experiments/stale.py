"""List the files in assets/ that measured another encoder than a released one.

    python experiments/stale.py

A file that measured a released encoder names its `Voices.digest` as `encoder`, at the
top or beside each encoder's figures. A picture's encoder stands in a JSON file of its
name. A file may go on to show an older encoder if it says so: its `encoder` then begins
with the words "an earlier encoder", and the documents that show it have to say them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from voices import Voices

HOME = Path(__file__).parents[1]
ASSETS = HOME / "assets"
RELEASED = "init/titanet-s.pt", "init/titanet-s-wild.pt"
EARLIER = "an earlier encoder"
MEASURED_BY = {  # file in assets: the program that measures it anew, and its arguments
    "titanet-s": f"release.py measure {RELEASED[0]} assets/titanet-s.json",
    "embeddings": f"release.py draw {RELEASED[0]} assets/embeddings.png",
    "wild": f"wild.py measure WILD {RELEASED[1]} assets/wild.json",
    "voices": "examples.py COMMON_VOICE",
    "open_set": "open_set.py COMMON_VOICE SPEECHOCEAN",
    "silence": "silence.py",
    "turns": "turns.py COMMON_VOICE",
    "onnx": "../benchmarks/onnx_file.py COMMON_VOICE assets/onnx.json",
    "page": "page.py",
}


def encoders(figures: Any) -> Iterator[str]:
    """Yield every `encoder` that nested figures name."""
    if isinstance(figures, dict):
        for key, value in figures.items():
            if key == "encoder" and isinstance(value, str):
                yield value
            yield from encoders(value)


def measured_encoders() -> dict[str, list[str]]:
    """Return what each file names as `encoder`: [] if it names none and should."""
    files = {path.stem: path for path in sorted(ASSETS.glob("*.json"))}
    named = {n: list(encoders(json.loads(f.read_text()))) for n, f in files.items()}
    return {name: of for name, of in named.items() if of or name in MEASURED_BY}


def stale_files() -> list[str]:
    """Return the names of files that measured another encoder and do not say so."""
    released = {Voices.load(HOME / path).digest for path in RELEASED}
    return [
        name
        for name, named in measured_encoders().items()
        if not named
        or any(e not in released and not e.startswith(EARLIER) for e in named)
    ]


def main() -> None:
    """Print each stale file with the command that measures it anew."""
    for name in stale_files():
        command = MEASURED_BY.get(name, f"{name}.py")
        print(f"assets/{name}.json: python experiments/{command}")


if __name__ == "__main__":
    main()
