"""The page: what it says, its answers over HTTP, and in a browser with a microphone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import answers, page
from commands.parser import main
from conftest import RATE, REPOSITORY, noise, said, write
from recognition.people import load_people
from recognition.sounds import VoiceError
from reports.projections import PrincipalPlane
from voices import Voices


@pytest.fixture(scope="module")
def voices() -> Voices:
    return Voices.load()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[list[str]]:
    """Files of three recordings of each of three synthetic voices."""
    folder = tmp_path_factory.mktemp("sounds")
    return [
        [str(write(folder / f"voice-{n}-{i}.wav", said(n, i))) for i in range(3)]
        for n in range(3)
    ]


@pytest.fixture(scope="module")
def gradio_here():
    """gradio, with proxies that do not answer; the environment is restored."""
    gradio = pytest.importorskip("gradio", reason="gradio, an optional package")
    download = gradio.processing_utils.async_ssrf_protected_download
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("all_proxy", "socks5://127.0.0.1:9")
        patch.setenv("no_proxy", "")
        patch.setenv("GRADIO_TEMP_DIR", "")
        yield
    gradio.processing_utils.async_ssrf_protected_download = download


# What the page says


def test_results_are_told(voices, sounds):
    first, second, third = sounds[0]
    found = replace(voices.compare(first, second), warnings=("one: clipped", "two: x"))
    paragraphs = answers.judge(found).split("\n\n")
    assert paragraphs[:2] == ["The same person.", str(found)]
    assert [text.partition(": ")[2] for text in paragraphs[2:]] == [*found.warnings]
    found = voices.identify(third, voices.enrol({"ann": [first, second]}))
    assert answers.recognise(found) == f"Ann.\n\n{found}"
    assert answers.recognise(replace(found, name=None)).startswith("Nobody")
    explained = answers.explain(voices.threshold)
    assert f"{voices.threshold.llr:+.1f}" in explained
    assert voices.threshold.origin in explained
    assert "no calibration" in answers.explain(None)


def test_people_are_enrolled_one_after_another(voices, sounds, tmp_path):
    def add(name, recorded, files, people=None):
        return answers.Answers(voices, tmp_path).add(name, recorded, files, people)[:2]

    text, ann = add(" Ann ", sounds[0][0], None)
    assert text.endswith(": Ann (1).")
    _, both = add("Ben", None, sounds[1][:2], ann)
    text, again = add("Ann", None, sounds[0][:2], both)
    assert text.endswith(": Ann (2), Ben (2).")
    expected = voices.enrol({"Ann": sounds[0][:2], "Ben": sounds[1][:2]})
    order = np.argsort(again.names, kind="stable")
    assert again.vectors[order] == pytest.approx(expected.vectors, abs=1e-5)
    # not where the page keeps its uploads
    assert set(again.clips) <= {Path(file).name for files in sounds for file in files}
    short = str(write(tmp_path / "short.wav", said(0, 2)[: int(1.2 * RATE)]))
    text, _ = add("Ann", short, None, again)
    assert "\nshort.wav: " in text  # little speech
    without_speech = str(write(tmp_path / "other.wav", noise()))
    for name, files in (("Ann", []), ("a/b", sounds[0]), ("Ann", [without_speech])):
        with pytest.raises(VoiceError):
            add(name, None, files)


def test_people_have_their_places(voices, sounds):
    people = voices.enrol({"Ann": sounds[0][:2], "Ben": sounds[1][:1]})
    plane = PrincipalPlane.fit(voices.model.backend.cohort.numpy())
    found = answers.project_people(plane, people)
    assert {name: len(points) for name, points in found.items()} == {"Ann": 2, "Ben": 1}
    assert found["Ben"] == pytest.approx(plane.project(people.vectors[-1:]))


# Without gradio


def test_without_gradio_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is restored
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*gradio.*requirements-demo\.txt\n", err)


# Over HTTP


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_ours(voices, tmp_path, gradio_here, host):
    with pytest.raises(VoiceError, match=f"^--host: expected .*, got {host}: "):
        page.open_page(voices, host, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def served(voices, folder, gradio_here):
    """The page, listening on a port of its own."""
    with closing(page.open_page(voices, "127.0.0.1", folder)) as served:
        yield served


class Visitor:
    """A session of the page without a browser."""

    def __init__(self, url, folder):
        import gradio_client

        self.file = gradio_client.handle_file
        quiet = {"verbose": False, "analytics_enabled": False}
        self.client = gradio_client.Client(url, download_files=folder, **quiet)

    def ask(self, name, *given):
        return self.client.predict(*given, api_name=f"/{name}")

    def enrol(self, name, files):
        return self.ask("add", name, None, list(map(self.file, files)))[0]


@pytest.fixture
def visitor(served, tmp_path) -> Visitor:
    return Visitor(served.local_url, tmp_path)


def test_two_voices_are_compared(visitor, voices, sounds):
    first, second = sounds[0][0], sounds[1][0]
    told, *pictures = visitor.ask("compare", visitor.file(first), visitor.file(second))
    sentence = str(voices.compare(first, second))
    sentence = sentence.replace(first, "first voice").replace(second, "second voice")
    assert told.split("\n\n")[1] == sentence
    assert [p["plot"][:10] for p in pictures] == ["data:image"] * 2


def test_people_are_of_one_session(visitor, served, sounds, tmp_path):
    assert visitor.enrol("Ann", sounds[0][:2]).endswith("Ann (2).")
    assert visitor.enrol("Ben", sounds[1][:2]).endswith("Ann (2), Ben (2).")
    told = visitor.ask("identify", visitor.file(sounds[0][2]))
    assert told.startswith("Ann.\n\nthis voice: Ann; nearest by ")
    other = Visitor(served.local_url, tmp_path)
    assert other.ask("identify", other.file(sounds[0][2])).startswith("error: ")
    _, store = visitor.ask("save")
    store = store["value"] if isinstance(store, dict) else store
    assert sorted(set(load_people(Path(store)).names)) == ["Ann", "Ben"]
    assert other.ask("load", other.file(store)).endswith("Ann (2), Ben (2).")
    bad = tmp_path / "bad.npz"
    bad.write_text("none")
    assert other.ask("load", other.file(bad)).startswith("error: bad.npz: ")
    assert other.ask("identify", other.file(sounds[0][2])) == told
    other.enrol("Cleo", sounds[2][:1])
    told = other.ask("load", other.file(store))
    assert told.endswith(": Ann (2), Ben (2), Cleo (1).")
    assert other.ask("forget", " Ben ").endswith(": Ann (2), Cleo (1).")
    assert other.ask("forget", "Ben").startswith("error: Ben: ")


def test_a_voice_is_placed_among_others(visitor, voices, sounds):
    visitor.enrol("Ann", sounds[0][:2])
    told, plot = visitor.ask("place", visitor.file(sounds[0][2]))
    assert "192 numbers" in told
    assert plot["type"] == "plotly"
    for name in ("training speakers", "Ann", "this voice"):
        assert f'"name":"{name}"' in plot["plot"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("not audio"),
        lambda path: write(path, np.zeros(RATE)),
        write,  # too short
        None,  # nothing is recorded
    ],
)
def test_a_bad_recording_gives_a_line(visitor, folder, sounds, tmp_path, spoil):
    bad = None
    if spoil is not None:
        spoil(tmp_path / "spoiled.wav")
        bad = visitor.file(tmp_path / "spoiled.wav")
    visitor.enrol("Ann", sounds[0][:2])
    told = [
        visitor.ask("compare", visitor.file(sounds[0][0]), bad)[0],
        visitor.ask("identify", bad),
        visitor.ask("place", bad)[0],
        visitor.ask("add", "Ben", bad, None)[0],
    ]
    names = "second voice: ", "this voice: ", "this voice: ", ""
    for line, name in zip(told, names, strict=True):
        assert re.fullmatch(f"error: {name}.*", line)
        assert str(folder) not in line
    assert visitor.ask("save")[0].endswith(": Ann (2).")


def test_the_page_keeps_to_this_machine(served):
    import httpx

    found = httpx.get(served.local_url)
    assert found.headers["content-security-policy"] == page.POLICY.decode()
    assert served.config["analytics_enabled"] is False
    assert served.share_url is None
    with pytest.raises(ConnectionRefusedError):  # another address of this machine
        socket.create_connection(("127.0.0.2", served.server_port), timeout=5)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://rebound.example:{port}"},
        {"Origin": "null"},
    ],
)
def test_pages_of_others_get_no_answer(served, headers):
    import httpx

    sent = {k: v.format(port=served.server_port) for k, v in headers.items()}
    assert httpx.get(served.local_url, headers=sent).status_code == 403
    own = {"Host": f"localhost:{served.server_port}"}
    own["Origin"] = f"http://{own['Host']}"
    assert httpx.get(served.local_url, headers=own).status_code == 200


def test_nothing_is_loaded_from_an_address(visitor, served, sounds):
    import gradio_client
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/voice.wav"
        path = {"path": address, "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(gradio_client.exceptions.AppError):
            visitor.ask("compare", path, visitor.file(sounds[0][0]))
        found = httpx.get(f"{served.local_url}gradio_api/file={address}")
        assert found.status_code == 403
        with pytest.raises(BlockingIOError):
            elsewhere.accept()  # nobody came


def test_another_recording_empties_the_answer(served):
    """Also in the browser, below."""
    labels = {c["id"]: c["props"].get("label") for c in served.config["components"]}
    emptied = {
        labels[target]: labels[dependency["outputs"][0]]
        for dependency in served.config["dependencies"]
        for target, event in dependency["targets"]
        if event == "change"
    }
    assert emptied == {
        "First voice": "Verdict",
        "Second voice": "Verdict",
        "A voice": "Answer",
        "Your voice": "What this shows",
    }


def test_folders_of_killed_programs_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(page.tempfile, "tempdir", str(tmp_path))
    left, other = tmp_path / f"{page.UPLOADS}left", tmp_path / "voices-mine"
    for old in (left, other):
        old.mkdir()
        (old / "voice.wav").touch()
    with page._upload_folder() as first, page._upload_folder() as second:
        assert {*tmp_path.iterdir()} == {first, second, other}
    assert {*tmp_path.iterdir()} == {other}


def test_a_large_upload_is_refused(served, folder):
    import httpx

    files = {"files": ("large.wav", bytes(33 * 2**20))}
    found = httpx.post(f"{served.local_url}gradio_api/upload", files=files, timeout=60)
    assert found.status_code == 413
    assert not list(folder.rglob("large.wav"))


def test_uploads_are_deleted(voices, sounds, tmp_path, monkeypatch, gradio_here):
    monkeypatch.setattr(page, "UPLOAD_SECONDS", 1)
    folder = tmp_path / "uploads"
    folder.mkdir()
    with closing(page.open_page(voices, "127.0.0.1", folder)) as served:
        visitor = Visitor(served.local_url, tmp_path)
        visitor.enrol("Ann", sounds[0][:2])
        visitor.ask("save")
        deadline = time.monotonic() + 60
        # gradio also leaves empty files, one for each that it hands on
        while files := [p for p in folder.rglob("*.*") if p.is_file()]:
            assert time.monotonic() < deadline, files
            time.sleep(0.2)


@pytest.mark.reliability
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_when_the_program_is_stopped(
    sounds, tmp_path, gradio_here, monkeypatch, stop
):
    words = [sys.executable, str(REPOSITORY / "src" / "voices.py"), "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "BROWSER": "true"}
    for name in list(os.environ):  # the program has proxies, but not who visits it
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # a background job ignores signals, and so do its children
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),
    ) as program:
        try:
            visitor = Visitor(program.stdout.readline().split()[0], tmp_path / "own")
            visitor.enrol("Ann", sounds[0][:1])
            assert list(tmp_path.glob("voices-*/*"))
            program.send_signal(stop)
            program.wait(timeout=60)
        finally:
            program.kill()
    assert not list(tmp_path.glob("voices-*"))


# In a browser


@pytest.fixture
def tab(served, sounds):
    """The page in Chromium, whose microphone hears the first voice; and what it asks
    for."""
    reason = "playwright, which drives a browser, is missing"
    driver = pytest.importorskip("playwright.sync_api", reason=reason)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is missing")
    flags = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update "
        "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream "
        f"--use-file-for-fake-audio-capture={sounds[0][0]}"
    ).split()
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        tab = browser.new_page(permissions=["microphone"])
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(served.local_url)
        yield tab
        browser.close()
    schemes = ("blob:", "data:", served.local_url)
    assert asked
    assert [url for url in asked if not url.startswith(schemes)] == []


def press(tab, name: str, which: int = 0) -> None:
    buttons = tab.get_by_role("button", name=name, exact=True)
    buttons.locator("visible=true").nth(which).click()


def record(tab, seconds: float = 4.0) -> None:
    press(tab, "Record")
    tab.wait_for_timeout(1000 * seconds)
    press(tab, "Stop")
    tab.get_by_label("Download").locator("visible=true").wait_for()  # it has arrived


def answer(tab, label: str, told: str) -> str:
    """The text of a box once it has these words."""
    from playwright.sync_api import expect

    box = tab.get_by_label(label, exact=True)
    expect(box).to_have_value(re.compile(re.escape(told)), timeout=60_000)
    return box.input_value()


def test_a_recorded_voice_is_judged(tab, sounds):
    record(tab)
    press(tab, "One person or two?")
    answer(tab, "Verdict", "error: second voice: expected a recording, got none")
    press(tab, "Upload file", 1)
    tab.locator("input[type=file]").set_input_files(sounds[0][1])
    tab.get_by_label("Download").nth(1).wait_for()
    press(tab, "One person or two?")
    told = answer(tab, "Verdict", "the same person; cosine ")
    assert told.startswith("The same person.")
    assert re.search(r"threshold \+\d\.\d for 1 % false alarms on", told)
    tab.locator(".matplotlib img").nth(1).wait_for()
    assert tab.get_by_role("button", name="Share").count() == 0
    press(tab, "Clear")
    assert answer(tab, "Verdict", "") == ""


def test_a_recorded_voice_is_known_again_and_placed(tab, sounds):
    tab.get_by_role("tab", name="Enrol").click()
    for name, files in (("Ann", sounds[0]), ("<b>Ben", sounds[1])):
        tab.get_by_label("Name").fill(name)
        with tab.expect_file_chooser() as chooser:
            tab.get_by_text("Click to Upload").locator("visible=true").click()
        chooser.value.set_files(files[1:])
        tab.get_by_text(Path(files[-1]).stem).first.wait_for()
        press(tab, "Enrol")
        answer(tab, "Enrolled", f"{name} (2)")
    press(tab, "Save people.npz")
    tab.get_by_role("link", name="KB").wait_for()
    tab.get_by_role("tab", name="Who is this?").click()
    record(tab)
    press(tab, "Who is this?")
    assert answer(tab, "Answer", "nearest by ").startswith("Ann.")
    tab.get_by_role("tab", name="Map").click()
    record(tab)
    press(tab, "Where is it among others?")
    answer(tab, "What this shows", "192 numbers")
    legend = tab.locator(".legendtext")
    legend.first.wait_for()
    names = ["training speakers", "<b>Ben", "Ann", "this voice"]
    assert legend.all_text_contents() == names
