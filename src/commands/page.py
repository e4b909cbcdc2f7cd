"""The page of `src/voices.py demo`: voices compared and recognised in a browser.

`Voices` -> `Answers`, `Layout` -> `open_page`, `serve`

This is the only module that needs gradio, an optional package:
init/requirements-demo.txt.

Nothing leaves the machine. The page listens on 127.0.0.1 unless `--host` says
otherwise. It has no analytics, no public link and no history of runs. Its content
security policy keeps the browser from loading anything from other servers.

Uploads lie in a folder that only the user can read. Gradio deletes those that are older
than `UPLOAD_SECONDS`, and all of them when the program ends. Enrolled people are
vectors, not recordings, and are forgotten when their page is closed.
"""

import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from commands.answers import Answers, explain
from errors import UserError
from recognition.people import People
from recognition.sounds import VoiceError
from speech.audio import EXTENSIONS
from voices import Voices

MAX_UPLOAD = "32mb"
UPLOAD_SECONDS = 1800  # from an upload to its deletion, and between two deletions
POLICY = b"default-src 'self' 'unsafe-inline' data: blob:"

ABOUT = """\
# Whose voice is this?

Record voices or upload recordings. The computer that runs this page listens to them,
sends them nowhere and deletes them within the hour. Three seconds of clear speech or
more are best.

**It makes mistakes.** Never let it alone decide about somebody's access, guilt or
money. Enrol only people who have agreed.
"""
ABOUT_ENROLMENT = """\
Enrol people by name, each with a few recordings if you can. Another recording under the
same name adds to that person. Everybody is forgotten when you close this page, unless
you save them: the file holds numbers that describe the voices, no recordings.
"""


class Layout:
    """The tabs of the page, made of gradio's components, and what their buttons do."""

    def __init__(self, gr: ModuleType, answers: Answers) -> None:
        self.gr, self.answers = gr, answers
        self.about_numbers = explain(answers.voices.threshold)

    def build(self) -> Any:
        """Return gradio's `Blocks`."""
        gr = self.gr
        with gr.Blocks(
            title="Whose voice is this?",
            analytics_enabled=False,
            delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS),
        ) as page:
            people = gr.State()
            gr.Markdown(ABOUT)
            with gr.Tab("Compare"):
                self._comparison()
            with gr.Tab("Enrol"):
                self._enrolment(people)
            with gr.Tab("Who is this?"):
                self._identification(people)
            with gr.Tab("Map"):
                self._map(people)
        return page

    def _comparison(self) -> None:
        gr = self.gr
        with gr.Row():
            sounds = [self._voice("First voice"), self._voice("Second voice")]
        button = gr.Button("One person or two?", variant="primary")
        verdict = gr.Textbox(label="Verdict")
        with gr.Row():
            pictures = [gr.Plot(show_label=False, min_width=320) for _ in sounds]
        self._on(button.click, self.answers.compare, sounds, verdict, *pictures)
        gr.Markdown(self.about_numbers)

    def _enrolment(self, people: Any) -> None:
        gr = self.gr
        gr.Markdown(ABOUT_ENROLMENT)
        name = gr.Textbox(label="Name", max_lines=1)
        with gr.Row():
            sound = self._voice("A recording")
            files = gr.File(
                label="More recordings",
                file_count="multiple",
                file_types=list(EXTENSIONS),
                min_width=320,
            )
        button = gr.Button("Enrol", variant="primary")
        enrolled = gr.Textbox(label="Enrolled")
        inputs, outputs = [name, sound, files, people], [enrolled, people, sound, files]
        self._on(button.click, self.answers.add, inputs, *outputs)
        with gr.Row():
            loader = gr.UploadButton("Load people.npz", file_types=[".npz"])
            saver = gr.Button("Save people.npz")
        store = gr.File(label="Saved", visible=False)

        def save(people: People | None) -> tuple:
            text, file = self.answers.save(people)
            return text, gr.File(str(file), visible=True)

        self._on(loader.upload, self.answers.load, loader, enrolled, people)
        self._on(saver.click, save, people, enrolled, store)

    def _identification(self, people: Any) -> None:
        gr = self.gr
        sound = self._voice("A voice")
        button = gr.Button("Who is this?", variant="primary")
        answer = gr.Textbox(label="Answer")
        self._on(button.click, self.answers.identify, [sound, people], answer)
        gr.Markdown(self.about_numbers)

    def _map(self, people: Any) -> None:
        gr = self.gr
        sound = self._voice("Your voice")
        button = gr.Button("Where is it among others?", variant="primary")
        text = gr.Textbox(label="What this shows")
        plot = gr.Plot(show_label=False)
        self._on(button.click, self.answers.place, [sound, people], text, plot)

    def _voice(self, label: str) -> Any:
        return self.gr.Audio(
            sources=["microphone", "upload"],
            type="filepath",
            label=label,
            min_width=320,
            editable=False,
            buttons=["download"],  # gradio's default also has one that shares
        )

    def _on(self, event: Callable, run: Callable, inputs: Any, *outputs: Any) -> None:
        """Call `run` when an event comes; it returns a text, then values for the other
        outputs. An error becomes the text, and pictures of an earlier answer vanish."""
        gr = self.gr

        @wraps(run)
        def answer(*values: Any) -> Any:
            try:
                return run(*values)
            except UserError as error:
                others = [
                    None if isinstance(output, gr.Plot) else gr.skip()
                    for output in outputs[1:]
                ]
                text = f"error: {error}"
                return (text, *others) if others else text

        event(
            answer,
            inputs,
            list(outputs),
            api_name=run.__name__,
            concurrency_id="voices",  # one at a time: silero-vad keeps a state
        )


def open_page(voices: Voices, host: str, folder: Path) -> Any:
    """Start serving the page, and return gradio's `Blocks`, whose `local_url` is its
    address.

    Uploads go to `folder`. Raises `VoiceError` if gradio is missing or `host` is not an
    address of this computer.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        import gradio
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise VoiceError(
            f"expected the package {error.name}, found none: "
            "pip install -r init/requirements-demo.txt"
        ) from None
    page = Layout(gradio, Answers(voices, folder)).build()
    try:
        socket.create_server((host, 0)).close()  # gradio would retry for minutes
        page.launch(
            server_name=host,
            share=False,
            mcp_server=False,
            run_history=False,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Default(font=("system-ui", "sans-serif")),
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(_only_from_here)]},
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise VoiceError(
            f"--host: expected an address of this computer, got {host}: {error}"
        ) from None
    return page


def _only_from_here(app: Callable) -> Callable:
    """Return an ASGI app whose pages load nothing from other servers."""

    async def answer(scope: Any, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY)
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer


def serve(voices: Voices, host: str) -> None:
    """Open the page in a browser and serve it until the program is stopped; raise
    `VoiceError` as `open_page` does."""
    for stop in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: uploads are deleted
        signal.signal(stop, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="voices-") as folder:
        page = open_page(voices, host, Path(folder))
        print(f"{page.local_url} (Ctrl-C stops it)", flush=True)
        webbrowser.open(page.local_url)
        page.block_thread()
