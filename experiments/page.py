"""Take a picture of the page of `src/voices.py demo`, with two synthetic recordings.

    python experiments/page.py [assets/page.jpg]

Needs init/requirements-dev.txt, and Chromium.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import soundfile
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from commands.page import open_page
from speech.synthetic import SyntheticUtterance
from voices import Voices

PICTURE = Path(__file__).parents[1] / "assets" / "page.jpg"
RATE = 16_000  # Hz
SIZE = {"width": 1000, "height": 600}  # pixels


def main(target: Path) -> None:
    """Upload two recordings of one voice, press the button, save a screenshot."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        voices = Voices.load()
        page = open_page(voices, "127.0.0.1", Path(folder))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.local_url)
        for index in (0, 1):
            file = Path(folder) / f"{index}.wav"
            spoken = SyntheticUtterance(speaker=0, index=index, seconds=4.0, seed=3)
            soundfile.write(file, spoken.render(RATE), RATE)
            tab.get_by_label("Upload file").nth(index).click()
            tab.locator("input[type=file]").set_input_files(file)
            tab.get_by_label("Download").nth(index).wait_for()
        tab.get_by_role("button", name="One person or two?").click()
        tab.locator(".matplotlib img").nth(1).wait_for()
        tab.mouse.move(0, 0)
        tab.screenshot(path=target, full_page=True, quality=80)
        browser.close()
        page.close()
    shown = json.dumps({"encoder": voices.digest})
    target.with_suffix(".json").write_text(f"{shown}\n")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or [PICTURE]))
