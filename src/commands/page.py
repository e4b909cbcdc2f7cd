"""The page of `src/voices.py demo`: voices compared and recognised in a browser.

`Voices` -> `Answers`, `Layout` -> `open_page`, `serve`

This is the only module that needs gradio, an optional package:
init/requirements-demo.txt.

Nothing leaves the machine. The page listens on 127.0.0.1 unless `--host` says
otherwise. It has no analytics, no public link and no history of runs. Its content
security policy keeps the browser from loading anything from other servers. The program
answers no pages of others and loads nothing from an address that it is given.

Uploads lie in a folder that only the user can read. Gradio deletes those that are older
than `UPLOAD_SECONDS`, and all of them when the program ends; what a killed program left
is deleted by the next. Enrolled people are vectors, not recordings, and are forgotten
when their page is closed.
"""

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
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
UPLOADS = "voices-page-uploads-"  # how the names of upload folders begin
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
        self._clear(sounds, verdict, *pictures)
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
            forgetter = gr.Button("Forget the person of this name")
            loader = gr.UploadButton("Add people of a people.npz", file_types=[".npz"])
            saver = gr.Button("Save people.npz")
        store = gr.File(label="Saved", visible=False)

        def save(people: People | None) -> tuple:
            text, file = self.answers.save(people)
            return text, gr.File(str(file), visible=True)

        given = [name, people]
        self._on(forgetter.click, self.answers.forget, given, enrolled, people)
        given = [loader, people]
        self._on(loader.upload, self.answers.load, given, enrolled, people)
        self._on(saver.click, save, people, enrolled, store)

    def _identification(self, people: Any) -> None:
        gr = self.gr
        sound = self._voice("A voice")
        button = gr.Button("Who is this?", variant="primary")
        answer = gr.Textbox(label="Answer")
        self._on(button.click, self.answers.identify, [sound, people], answer)
        self._clear([sound], answer)
        gr.Markdown(self.about_numbers)

    def _map(self, people: Any) -> None:
        gr = self.gr
        sound = self._voice("Your voice")
        button = gr.Button("Where is it among others?", variant="primary")
        text = gr.Textbox(label="What this shows")
        plot = gr.Plot(show_label=False)
        self._on(button.click, self.answers.place, [sound, people], text, plot)
        self._clear([sound], text, plot)

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

    def _clear(self, sounds: Sequence[Any], *outputs: Any) -> None:
        """Empty the outputs when a recording changes: they are of the one before."""
        for sound in sounds:
            sound.change(
                lambda: [None] * len(outputs) if len(outputs) > 1 else None,
                None,
                list(outputs),
                api_visibility="private",
                queue=False,
            )


def open_page(voices: Voices, host: str, folder: Path) -> Any:
    """Start serving the page, and return gradio's `Blocks`, whose `local_url` is its
    address.

    Uploads go to `folder`. Raises `VoiceError` if gradio is missing or `host` is not an
    address of this computer.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["no_proxy"] = "*"  # gradio asks its own page whether it is there
    try:
        import gradio
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise VoiceError(
            f"expected the package {error.name}, found none: "
            "pip install -r init/requirements-demo.txt"
        ) from None
    gradio.processing_utils.async_ssrf_protected_download = _refuse_address
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
            app_kwargs={"middleware": [Middleware(partial(_only_from_here, host))]},
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise VoiceError(
            f"--host: expected an address of this computer, got {host}: {error}"
        ) from None
    return page


async def _refuse_address(address: str, **_: Any) -> str:
    raise VoiceError(f"expected an uploaded recording, got the address {address}")


def _only_from_here(host: str, app: Callable) -> Callable:
    """Return an ASGI app whose pages load nothing from other servers, and which answers
    no requests of pages of others.

    A page of another server is known by its Origin, also if that server's name leads to
    this computer: then the name is also in Host.
    """

    async def answer(scope: Any, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY)
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        if scope["type"] == "http" and not _is_from_here(scope, host):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not from here\n"})
        else:
            await app(scope, receive, send_with_policy)

    return answer


def _is_from_here(scope: Any, host: str) -> bool:
    """Return whether a request names this server, and asks for nothing of another."""
    address, port = scope["server"]
    names = {address, host, "localhost", socket.gethostname()}
    ours = {f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names}
    headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = {value for name, value in headers if name == b"host"}
    origins = {value for name, value in headers if name == b"origin"}
    return (
        bool(hosts)
        and hosts <= ours
        and origins <= {f"http://{name}" for name in ours}
        and "://" not in scope["path"]  # gradio's /file= and /proxy= would fetch it
    )


def serve(voices: Voices, host: str) -> None:
    """Open the page in a browser and serve it until the program is stopped; raise
    `VoiceError` as `open_page` does."""
    for stop in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: uploads are deleted
        signal.signal(stop, signal.default_int_handler)
    with _upload_folder() as folder:
        page = open_page(voices, host, folder)
        print(f"{page.local_url} (Ctrl-C stops it)", flush=True)
        webbrowser.open(page.local_url)
        page.block_thread()


@contextmanager
def _upload_folder() -> Iterator[Path]:
    """Yield a new folder, locked and deleted at the end; first delete the folders of
    killed programs, whose locks are gone."""
    for old in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*"):
        with suppress(OSError), _locked(old):  # it may be in use, or another user's
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=UPLOADS) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raise `OSError` if another program does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
