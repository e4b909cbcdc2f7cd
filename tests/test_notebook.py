"""The notebook runs from top to bottom, here in miniature, and only calls src."""

import ast
import hashlib
import io
import re
import tarfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from conftest import MINIATURE, RATE, REPOSITORY, SPOKEN, write
from players import to_pass_on
from speech.synthetic import synthetic_utterances
from teaching import lessons, studies

RUNS = ("d-vector-CE", "TitaNet-CE", "TitaNet-ArcFace")


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / "titanet.ipynb", as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_cells_are_short_finished_and_define_nothing(notebook):
    for cell in notebook.cells:
        assert not re.search("@@|TODO|XXX", cell.source)
    first, *others = code(notebook)  # the first one finds the repository
    assert all(len(cell.source.splitlines()) <= 12 for cell in others)
    for cell in (first, *others):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)


def test_prose_is_short_and_its_links_lead_somewhere(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    words = [len(text.split()) for text in prose]
    assert sum(words) <= 5000
    assert max(words) <= 150
    text = "\n".join(prose)
    assert not re.search("colab-badge|OWNER", text)
    headings = {title.replace(" ", "-") for title in re.findall("^#+ (.+)", text, re.M)}
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (REPOSITORY / path).exists() if path else anchor in headings


def test_committed_copy_was_run_in_order_and_can_be_passed_on(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            kinds = output.get("data", {})
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "warning" not in str(output.get("text", "")).lower()
            assert not any("widget" in kind for kind in kinds)
            # A picture has a text for those who do not see it.
            assert "alt" in cell.metadata or "image/png" not in kinds
    text = (REPOSITORY / "titanet.ipynb").read_text()
    assert len(text) < 3_000_000
    assert "data:audio" not in text
    assert not re.findall(r"/(?:home|root|tmp|work|Users|mnt)/\w+", text)


def test_a_copy_has_no_players():
    page = lessons.players({"a": np.ones(800, np.int16)}, 8000) + "<b>kept</b>"
    output = nbformat.v4.new_output("display_data", {"text/html": page})
    cell = nbformat.v4.new_code_cell(outputs=[output])
    copy = to_pass_on(nbformat.v4.new_notebook(cells=[cell]))
    (left,) = copy.cells[0].outputs
    assert "<audio" not in left.data["text/html"]
    assert "a player" in left.data["text/html"]
    assert left.data["text/html"].endswith("<b>kept</b>")


@pytest.mark.parametrize("name", ["embedded", "mini", "full", "folder", "excerpt"])
def test_parameters_of_a_study(notebook, name):
    study = studies.choose(name, "my/data")
    corpora = {"embedded": "synthetic", "folder": "folder", "excerpt": "mixture"}
    for model, run in zip(studies.MODELS, RUNS, strict=True):
        p = study.parameters(model, "seed=7")
        assert (p.run.name, p.seed) == (run, 7)
        assert p.dataset.name == corpora.get(name, "librispeech")
        assert p.wandb.mode == "auto"
    assert study.unseen_parameters().dataset.test_fraction == 1
    exercises = re.findall(r"`changed = (.*)`", notebook.cells[-1].source)
    assert len(exercises) == 2
    for line in exercises:
        assert eval(line, {"study": study}).run.name not in RUNS
    with pytest.raises(ValueError, match=f"expected .*{name}.*, got other"):
        studies.choose("other", "data")


def cell_of_study(notebook):
    return next(cell for cell in code(notebook) if cell.source.startswith("STUDY"))


def run(notebook, tmp_path, monkeypatch, study: str) -> None:
    """Run a study with miniature models, below a folder of the test's own."""
    monkeypatch.setenv("STUDY", study)
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    paths = f"dataset.packs={tmp_path}/packs", f"run.directory={tmp_path}/runs"
    few = tuple(option for option in MINIATURE if "synth" in option)
    strangers = ("dataset.name=synthetic", "dataset.seed=2", *few, *paths)
    cell = cell_of_study(notebook)
    cell.source = cell.source.replace(
        "chosen =",
        "from dataclasses import replace\nstudy = replace("
        f"study, corpus=(*study.corpus, *{MINIATURE + paths}),"
        f" unseen={strangers}, epochs=(1, 1))\nchosen =",
        1,
    )
    resources = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    for output in (output for cell in code(notebook) for output in cell.outputs):
        assert output.get("name") != "stderr", output.text
    assert all((tmp_path / "runs" / name / "report.json").exists() for name in RUNS)


def test_the_embedded_study(notebook, tmp_path, monkeypatch):
    run(notebook, tmp_path, monkeypatch, "embedded")


def librispeech(folder: Path) -> bytes:
    """An archive with five speakers of dev-clean and four of test-clean."""
    voices = SPOKEN.model_copy(update={"num_speakers": 9})
    for voice in synthetic_utterances(voices, seed=5):
        subset = "dev-clean" if voice.speaker < 5 else "test-clean"
        speaker = 100 + voice.speaker
        name = f"{subset}/{speaker}/7/{speaker}-7-{voice.index:04}.flac"
        write(folder / name, voice.render(RATE))
    (folder / "SPEAKERS.TXT").write_text("; no speaker's gender is known\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, "LibriSpeech")
    return packed.getvalue()


@pytest.mark.reliability
def test_the_mini_study_downloads(notebook, tmp_path, monkeypatch, archive_server):
    # Both subsets, whichever is asked for.
    archive_server.archive = librispeech(tmp_path / "librispeech")
    digest = hashlib.sha256(archive_server.archive).hexdigest()
    cell = cell_of_study(notebook)
    cell.source = cell.source.replace(
        "chosen =",
        "from speech import published"
        f"\npublished.LIBRISPEECH_URL = {archive_server.url!r}"
        "\nfor subset in ('dev-clean', 'test-clean'):"
        f"\n    published.LIBRISPEECH_SHA256[subset] = {digest!r}\nchosen =",
        1,
    )
    run(notebook, tmp_path, monkeypatch, "mini")
    asked = [path.rpartition("/")[2] for path, _ in archive_server.requests]
    assert asked == ["dev-clean.tar.gz", "test-clean.tar.gz"]
