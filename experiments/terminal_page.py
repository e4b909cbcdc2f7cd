"""Draw the page that W&B shows of an offline run in a terminal.

    python experiments/terminal_page.py RUN [assets/wandb.png]

Runs `wandb leet RUN/wandb` in tmux, which must be installed, and draws the characters
of its first screen in their colours.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

PICTURE = Path(__file__).parents[1] / "assets" / "wandb.png"
COLUMNS, ROWS = 112, 35  # the last row, the path of the run, is not drawn
START_SECONDS = 15  # until the page is drawn
WIDTH, HEIGHT = 12, 24  # of a character, in pixels
FONT = ImageFont.truetype(findfont("DejaVu Sans Mono"), 20)
BRAILLE = range(0x2800, 0x2900)  # charts are made of their dots
DOTS = [(x, y) for x in (0, 1) for y in (0, 1, 2)] + [(0, 3), (1, 3)]
BACKGROUND, FOREGROUND = (24, 24, 28), (208, 208, 208)
STEPS = (0, 95, 135, 175, 215, 255)  # of red, green and blue among 256 colours
Colour = tuple[int, int, int]


def colour(number: int) -> Colour:
    """Return one of a terminal's 256 colours, from the 16th on."""
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    red, rest = divmod(number - 16, 36)
    return STEPS[red], STEPS[rest // 6], STEPS[rest % 6]


def characters(screen: str) -> Iterator[tuple[int, int, str, Colour, Colour]]:
    """Yield row, column, character, colour and background of a captured screen."""
    front, back, row, column = FOREGROUND, BACKGROUND, 0, 0
    for codes, text in re.findall(r"(?:\x1b\[([\d;]+)m)?([^\x1b]*)", screen):
        match [int(code) for code in codes.split(";") if code]:
            case [38, 5, number]:
                front = colour(number)
            case [48, 5, number]:
                back = colour(number)
            case [39]:
                front = FOREGROUND
            case [49]:
                back = BACKGROUND
            case [0]:
                front, back = FOREGROUND, BACKGROUND
        for character in text:
            if character == "\n":
                row, column = row + 1, 0
            else:
                yield row, column, character, front, back
                column += 1


def capture(run: Path) -> str:
    """Return the first screen of a run's page, with escape sequences for colours."""
    tmux = ["tmux", "-L", f"page-{time.time_ns()}", "-f", "/dev/null"]
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    wandb = Path(sys.executable).parent / "wandb"
    with tempfile.TemporaryDirectory() as home:  # for settings, which leet keeps
        leet = f"HOME={home} XDG_CONFIG_HOME={home} {wandb} leet {run}/wandb"
        subprocess.run([*tmux, "new-session", "-d", *size, leet], check=True)
        time.sleep(START_SECONDS)
        for key in ("[", "]"):  # hides the list of runs, the overview of this one
            subprocess.run([*tmux, "send-keys", key], check=True)
        time.sleep(START_SECONDS)
        shown = subprocess.check_output([*tmux, "capture-pane", "-e", "-p"])
        subprocess.run([*tmux, "kill-server"], check=True)
    return shown.decode()


def main(run: Path, target: Path = PICTURE) -> None:
    """Draw the page."""
    image = Image.new("RGB", (COLUMNS * WIDTH, (ROWS - 1) * HEIGHT), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for row, column, character, front, back in characters(capture(run)):
        x, y = column * WIDTH, row * HEIGHT
        canvas.rectangle((x, y, x + WIDTH - 1, y + HEIGHT - 1), back)
        if ord(character) not in BRAILLE:
            canvas.text((x, y), character, front, FONT)
            continue
        for bit, (across, down) in enumerate(DOTS):
            if ord(character) >> bit & 1:
                left, top = x + 1 + 6 * across, y + 1 + 6 * down
                canvas.ellipse((left, top, left + 4, top + 4), front)
    image.save(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
