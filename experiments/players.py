"""Copy an executed notebook without its players, so that it can be passed on.

    python experiments/players.py runs/titanet.ipynb titanet.ipynb

`make notebook` writes the first one. Nobody's recording leaves the machine on which
the notebook was run: in the copy a line stands where each player was.
"""

import re
import sys
from pathlib import Path

import nbformat

PLAYER = re.compile(r"<audio[^>]*></audio>")
INSTEAD = "<em>(a player, for those who run this)</em>"


def without_players(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each player in the outputs by a line that says so."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = PLAYER.sub(INSTEAD, data["text/html"])
    return notebook


if __name__ == "__main__":
    executed, copy = map(Path, sys.argv[1:])
    notebook = nbformat.read(executed, as_version=4)
    nbformat.write(without_players(notebook), copy)
