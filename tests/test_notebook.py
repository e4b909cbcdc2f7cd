"""The notebook runs from top to bottom, here in miniature, and only calls src."""

import ast
import hashlib
import io
import os
import re
import tarfile
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import MINIATURE, RATE, REPOSITORY, SPOKEN, write
from engine.parameter_files import load_parameters
from speech.synthetic import synthetic_utterances

STRANGERS = ["dataset.seed=2", *(option for option in MINIATURE if "synth" in option)]
RUNS = ("d-vector-CE", "TitaNet-CE", "TitaNet-ArcFace")


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / "titanet.ipynb", as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_cells_are_short_finished_and_define_nothing(notebook):
    for cell in notebook.cells:
        assert not re.search("@@|TODO|XXX", cell.source)
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 12
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)


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
    assert not re.findall(r"/(?:home|root|tmp|work|Users|mnt)/\w+", text)


def cell_of_studies(notebook):
    return next(cell for cell in code(notebook) if cell.source.startswith("STUDY"))


@pytest.mark.parametrize("study", ["embedded", "mini", "full", "folder", "excerpt"])
def test_parameters_of_a_study(notebook, monkeypatch, study):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("STUDY", study)
    cells = [cell.source for cell in code(notebook)]
    first = cells.index(cell_of_studies(notebook).source)
    names = {"COLAB": False, "load_parameters": load_parameters, "os": os, "Path": Path}
    with redirect_stdout(io.StringIO()):
        for cell in cells[first : first + 3]:
            exec(cell, names)
    assert [p.run.name for p in names["parameters"].values()] == list(RUNS)
    corpora = {"embedded": "synthetic", "folder": "folder", "excerpt": "mixture"}
    for p in names["parameters"].values():
        assert p.dataset.name == corpora.get(study, "librispeech")
    load_parameters(REPOSITORY / "parameters.yml", overrides=names["unseen"])


def run(notebook, tmp_path, monkeypatch, study: str) -> None:
    """Run a study with miniature models, below a folder of the test's own."""
    monkeypatch.setenv("STUDY", study)
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    paths = f"dataset.packs={tmp_path}/packs", f"run.directory={tmp_path}/runs"
    cell_of_studies(notebook).source += (
        "\nfiles, corpus, unseen, epochs = STUDIES[STUDY]"
        f"\nstrangers = {STRANGERS}"
        f"\nSTUDIES[STUDY] = files, [*corpus, *{MINIATURE + paths}], strangers, (1, 1)"
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
    cell = cell_of_studies(notebook)
    cell.source += (
        "\nfrom speech import published"
        f"\npublished.LIBRISPEECH_URL = {archive_server.url!r}"
        "\nfor subset in ('dev-clean', 'test-clean'):"
        f"\n    published.LIBRISPEECH_SHA256[subset] = {digest!r}"
    )
    run(notebook, tmp_path, monkeypatch, "mini")
    asked = [path.rpartition("/")[2] for path, _ in archive_server.requests]
    assert asked == ["dev-clean.tar.gz", "test-clean.tar.gz"]
