"""The notebook runs from top to bottom, here in miniature, and only calls src."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import MINIATURE, REPOSITORY, write
from parameters import SyntheticParameters
from synthetic import synthetic_utterances


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / "titanet.ipynb", as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_cells_are_short_and_define_nothing(notebook):
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 12
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)


def test_committed_copy_was_run_in_order(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "warning" not in str(output.get("text", "")).lower()


def test_committed_copy_can_be_passed_on():
    text = (REPOSITORY / "titanet.ipynb").read_text()
    assert len(text) < 2_000_000
    assert not re.findall(r"/(?:home|root|tmp|Users|mnt)/\w+", text)


def choose(notebook, corpus: list[str], unseen: list[str]) -> None:
    """Rewrite the one cell that chooses the corpora."""
    (cell,) = [cell for cell in code(notebook) if cell.source.startswith("DATA")]
    epochs = {"dvector": 1, "titanet": 1}
    chosen = ("miniature", corpus, unseen, epochs)
    cell.source = f"DATA = None\nstudy, corpus, unseen, epochs = {chosen!r}"


def run(notebook) -> None:
    resources = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()


@pytest.fixture
def vctk(tmp_path) -> Path:
    """Five speakers of three utterances each, laid out as VCTK is."""
    root = tmp_path / "vctk"
    audio = root / "VCTK-Corpus-0.92" / "wav48_silence_trimmed"
    voices = SyntheticParameters(
        num_speakers=5, utterances_per_speaker=3, min_seconds=1.6, max_seconds=2.4
    )
    for voice in synthetic_utterances(voices, seed=5):
        speaker = f"p{225 + voice.speaker}"
        path = audio / speaker / f"{speaker}_{voice.index:03}_mic2.flac"
        write(path, voice.render(48_000), 48_000)
    return root


@pytest.mark.reliability
def test_notebook_runs(notebook, tmp_path, vctk):
    folders = [f"dataset.packs={tmp_path / 'packs'}", f"run.directory={tmp_path}/runs"]
    corpus = [*(option for option in MINIATURE if "epochs" not in option), *folders]
    choose(notebook, corpus, ["dataset.name=vctk", f"dataset.root={vctk}"])
    run(notebook)
    for name in ("d-vector-CE", "TitaNet-CE", "TitaNet-ArcFace"):
        assert (tmp_path / "runs" / name / "report.json").exists()
