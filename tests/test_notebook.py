"""The notebook runs from top to bottom, here in miniature, and only calls src."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import MINIATURE, REPOSITORY


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
            assert "warning" not in str(output.get("text", "")).lower()


def test_notebook_runs(notebook, tmp_path):
    folders = [f"dataset.packs={tmp_path / 'packs'}", f"run.directory={tmp_path}/runs"]
    cell = next(cell for cell in code(notebook) if "overrides = [" in cell.source)
    first_line, _, rest = cell.source.partition("\n")
    assert first_line.startswith("overrides = [")
    cell.source = f"overrides = {[*MINIATURE, *folders]}\n{rest}"
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(REPOSITORY)}}
    ).execute()
    assert len(list((tmp_path / "runs").glob("*/report.json"))) == 1
