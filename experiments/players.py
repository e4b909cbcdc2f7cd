"""Copy an executed notebook so that it can be passed on: without players, and small.

    python experiments/players.py runs/titanet.ipynb titanet.ipynb

`make notebook` writes the first one. Nobody's recording leaves the machine on which
the notebook was run: in the copy a line stands where each player was. Pictures keep 256
colours, which halves their size and cannot be seen.
"""

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

PLAYER = re.compile(r"<audio[^>]*></audio>")
INSTEAD = "<em>(a player, for those who run this)</em>"
COLOURS = 256


def to_pass_on(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each player in the outputs by a line that says so, and each picture by a
    smaller one."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = PLAYER.sub(INSTEAD, data["text/html"])
            if "image/png" in data:
                data["image/png"] = in_few_colours(data["image/png"])
    return notebook


def in_few_colours(picture: str) -> str:
    """Return a PNG, in base64, with a palette; it is drawn as it was."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    file = io.BytesIO()
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        file, "png", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    executed, copy = map(Path, sys.argv[1:])
    notebook = nbformat.read(executed, as_version=4)
    nbformat.write(to_pass_on(notebook), copy)
