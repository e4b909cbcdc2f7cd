"""The page of `src/voices.py demo`: voices compared and found again in a browser.

recordings -> `hear` -> `Clip`s -> `judge`, `recognise` -> text
name, recordings, `People` -> `enrol` -> `People`
cohort [S, E] -> `Plane`: vectors [U, E] -> [U, 2]
all of these -> `open_page`, `serve`

S training speakers, U clips, E embedding size. Only the last line needs gradio, an
optional package: init/requirements-demo.txt.

Nothing leaves the machine. The page listens on 127.0.0.1 unless `--host` says
otherwise. It has no analytics, no public link and no history of runs, and its content
security policy forbids the browser to ask any other server for anything.

An upload above `MAX_UPLOAD` is refused. Uploads lie in a folder that only the user can
read. Every `KEPT` seconds gradio deletes those older than `KEPT` seconds, and all when
the program ends. Enrolled people are vectors, not recordings, and are forgotten when
their page is closed.
"""

import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from recognition.people import People, load_people
from recognition.sounds import Clip, VoiceError
from recognition.verdicts import Comparison, Identification, Threshold
from reports.figures import draw_sounds
from reports.maps import map_voices
from speech.audio import load_recording
from speech.folders import EXTENSIONS
from speech.packs import FULL_SCALE
from voices import Voices

MAX_UPLOAD = "32mb"
KEPT = 1800  # seconds, of an upload
DRAWN = 20  # seconds of a recording
POLICY = b"default-src 'self' 'unsafe-inline' data: blob:"

ABOUT = """\
# Whose voice is this?

Record voices or upload recordings. The computer that runs this page listens to them,
sends them nowhere and deletes them within the hour. Three seconds of clear speech or
more are best.

**It makes mistakes.** Never decide by it alone on somebody's access, guilt or money.
Enrol nobody who has not agreed.
"""
ABOUT_ENROLMENT = """\
Enrol people by name, each with a few recordings if you can. Another recording under the
same name adds to that person. Everybody is forgotten when you close this page, unless
you save them: the file holds numbers that describe the voices, no recordings.
"""
ABOUT_MAP = (
    "Each grey dot is a voice that the encoder was trained on. The star is this voice, "
    "and everybody whom you enrolled has a colour. The encoder describes a voice by "
    "{size} numbers. The map keeps the two directions in which voices differ most, "
    "which are {share:.0%} of all differences: dots far apart are different voices, "
    "but dots close together need not be one. To know that, compare them."
)


def hear(voices: Voices, sounds: Sequence[tuple[str, str | None]]) -> list[Clip]:
    """Clips of (name, file) pairs under these names, not those that files have here.

    Raises `VoiceError` for a recording that is missing or cannot be used.
    """
    for name, file in sounds:
        if file is None:
            raise VoiceError(f"{name}: expected a recording, got none")
    try:
        clips = voices.listen([file for _, file in sounds])
    except VoiceError as error:
        message = str(error)
        for name, file in sounds:
            message = message.replace(file, name)
        raise VoiceError(message) from None
    return [
        replace(
            clip,
            name=name,
            warnings=tuple(line.replace(file, name) for line in clip.warnings),
        )
        for clip, (name, file) in zip(clips, sounds, strict=True)
    ]


def judge(comparison: Comparison) -> str:
    """A comparison in words."""
    return _told(comparison.verdict, comparison)


def recognise(identification: Identification) -> str:
    """An identification in words."""
    return _told(identification.name or "nobody who is enrolled", identification)


def _told(answer: str, result: Comparison | Identification) -> str:
    parts = [f"{answer[0].upper()}{answer[1:]}.", str(result)]
    parts += [f"Less sure: {warning}" for warning in result.warnings]
    return "\n\n".join(parts)


def explain(threshold: Threshold | None) -> str:
    """What an answer's numbers mean, for people who have never heard of them."""
    if threshold is None:
        return "This model has no calibration: it tells a cosine, but gives no verdict."
    return (
        "**What the numbers mean.** The *cosine* says how alike two voices are, up to "
        "1. The *log likelihood ratio* makes odds of it: at 0 one person and two are "
        "equally likely, at +2.3 one person is ten times as likely, at -2.3 two. From "
        "the *threshold* on, voices are taken for one person's. For two recordings it "
        f"is {threshold.llr:+.1f}, so that {100 * threshold.false_alarm_rate:g} % of "
        f"the pairs of two people pass for one, on {threshold.origin}; with other "
        "microphones, rooms and languages it may be more. Among enrolled people it is "
        "higher, as a stranger may resemble any of them."
    )


def enrol(
    voices: Voices, name: str, files: Sequence[str], people: People | None
) -> tuple[People, str]:
    """People with more recordings of one of them, and what there is to say."""
    if not files:
        raise VoiceError("expected recordings of the person, got none")
    clips = hear(voices, [(Path(file).name, file) for file in files])
    enrolled = voices.enrol({}, people).with_clips(name, clips)
    faults = [fault for clip in clips for fault in clip.warnings]
    faults += voices.disagreements(enrolled, np.unique(enrolled.names).tolist())
    return enrolled, "\n".join([roll(enrolled), *faults])


def load_store(voices: Voices, file: str) -> People:
    """The people of a store; raise `VoiceError` if another model heard them."""
    try:
        return voices.enrol({}, load_people(Path(file)))
    except VoiceError as error:
        raise VoiceError(str(error).replace(file, Path(file).name)) from None


def roll(people: People) -> str:
    """Who is enrolled, with how many recordings."""
    names, counts = np.unique(people.names, return_counts=True)
    counted = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    return f"People, and their recordings: {', '.join(counted) or 'none'}."


@dataclass(frozen=True)
class Plane:
    """The two directions in which the voices of a cohort differ most.

    It depends on the cohort alone, so no point moves when a voice is added.
    """

    mean: NDArray[np.float64]  # [E]
    directions: NDArray[np.float64]  # [2, E]
    share: float  # of the cohort's variance

    @classmethod
    def of(cls, cohort: NDArray[np.float32]) -> "Plane":
        """That of unit vectors [S, E]."""
        mean = cohort.mean(0, dtype=np.float64)
        _, singular, directions = np.linalg.svd(cohort - mean, full_matrices=False)
        variances = singular**2
        return cls(mean, directions[:2], variances[:2].sum() / variances.sum())

    def places(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """[U, E] -> [U, 2]."""
        return (vectors - self.mean) @ self.directions.T

    def places_of(self, people: People) -> dict[str, NDArray[np.float64]]:
        """[U, 2] of each person."""
        return {
            name: self.places(people.vectors[people.names == name])
            for name in np.unique(people.names).tolist()
        }


def _build_page(gr: ModuleType, voices: Voices, folder: Path) -> Any:
    """The layout, of gradio's `gr`, and what answers its buttons."""

    def picture(name: str, file: str) -> Any:
        samples = load_recording(Path(file), voices.sample_rate).samples
        beginning = samples[: DRAWN * voices.sample_rate] / np.float32(FULL_SCALE)
        return draw_sounds({name: beginning}, voices.sample_rate)

    def compare(first: str | None, second: str | None) -> tuple:
        sounds = [("first voice", first), ("second voice", second)]
        verdict = judge(voices.compare_clips(*hear(voices, sounds)))
        return verdict, *(picture(*sound) for sound in sounds)

    def add(
        name: str, recorded: str | None, files: list[str] | None, people: People | None
    ) -> tuple:
        recordings = [*([recorded] if recorded else []), *(files or [])]
        people, answer = enrol(voices, name, recordings, people)
        return answer, people, None, None

    def save(people: People | None) -> tuple:
        people = voices.enrol({}, people)
        store = Path(tempfile.mkdtemp(dir=folder)) / "people.npz"
        people.save(store)
        return roll(people), gr.File(str(store), visible=True)

    def load(file: str) -> tuple:
        people = load_store(voices, file)
        return roll(people), people

    def identify(file: str | None, people: People | None) -> str:
        (clip,) = hear(voices, [("this voice", file)])
        return recognise(voices.identify_clip(clip, voices.enrol({}, people)))

    def place(file: str | None, people: People | None) -> tuple:
        (clip,) = hear(voices, [("this voice", file)])
        if not len(voices.model.backend.cohort):
            raise VoiceError(f"{voices.name}: expected a model with a cohort, got none")
        cohort = voices.model.backend.cohort.cpu().numpy()
        plane = Plane.of(cohort)
        figure = map_voices(
            plane.places(cohort),
            plane.places_of(voices.enrol({}, people)),
            plane.places(clip.vector[None])[0],
        )
        about = ABOUT_MAP.format(size=cohort.shape[1], share=plane.share)
        return about, figure

    def voice(label: str) -> Any:
        return gr.Audio(
            sources=["microphone", "upload"],
            type="filepath",
            label=label,
            min_width=320,
            editable=False,
            buttons=["download"],  # gradio's default also has one that shares
        )

    with gr.Blocks(
        title="Whose voice is this?", analytics_enabled=False, delete_cache=(KEPT, KEPT)
    ) as page:
        people = gr.State()

        def on(event: Callable, run: Callable, inputs: Any, *outputs: Any) -> None:
            """Let `run` answer an event: a text, then values of the other outputs."""

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

        gr.Markdown(ABOUT)
        with gr.Tab("Compare"):
            with gr.Row():
                sounds = [voice("First voice"), voice("Second voice")]
            button = gr.Button("One person or two?", variant="primary")
            answer = gr.Textbox(label="Verdict")
            with gr.Row():
                pictures = [gr.Plot(show_label=False, min_width=320) for _ in sounds]
            on(button.click, compare, sounds, answer, *pictures)
            gr.Markdown(explain(voices.threshold))
        with gr.Tab("Enrol"):
            gr.Markdown(ABOUT_ENROLMENT)
            name = gr.Textbox(label="Name", max_lines=1)
            with gr.Row():
                sound = voice("A recording")
                files = gr.File(
                    label="More recordings",
                    file_count="multiple",
                    file_types=list(EXTENSIONS),
                    min_width=320,
                )
            button = gr.Button("Enrol", variant="primary")
            answer = gr.Textbox(label="Enrolled")
            inputs = [name, sound, files, people]
            on(button.click, add, inputs, answer, people, sound, files)
            with gr.Row():
                loader = gr.UploadButton("Load people.npz", file_types=[".npz"])
                saver = gr.Button("Save people.npz")
            store = gr.File(label="Saved", visible=False)
            on(loader.upload, load, loader, answer, people)
            on(saver.click, save, people, answer, store)
        with gr.Tab("Who is this?"):
            sound = voice("A voice")
            button = gr.Button("Who is this?", variant="primary")
            answer = gr.Textbox(label="Answer")
            on(button.click, identify, [sound, people], answer)
            gr.Markdown(explain(voices.threshold))
        with gr.Tab("Map"):
            sound = voice("Your voice")
            button = gr.Button("Where is it among others?", variant="primary")
            answer = gr.Textbox(label="What this shows")
            plot = gr.Plot(show_label=False)
            on(button.click, place, [sound, people], answer, plot)
    return page


def open_page(voices: Voices, host: str, folder: Path) -> Any:
    """Serve the page; gradio's `Blocks`, of which `local_url` says where.

    Uploads go to `folder`. Raises `VoiceError` without gradio, or where it cannot
    listen.
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
    page = _build_page(gradio, voices, folder)
    try:
        socket.create_server((host, 0)).close()  # gradio would try for minutes
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
    """An ASGI app whose pages may load nothing from elsewhere."""

    async def answer(scope: Any, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY)
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer


def serve(checkpoint: Path, host: str) -> None:
    """Open the page in a browser and serve it until the program is stopped; raise
    `UserError` for a model that cannot be loaded, and what `open_page` does."""
    voices = Voices.load(checkpoint)
    for stop in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, so that uploads go
        signal.signal(stop, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="voices-") as folder:
        page = open_page(voices, host, Path(folder))
        print(f"{page.local_url} (Ctrl-C stops it)", flush=True)
        webbrowser.open(page.local_url)
        page.block_thread()
