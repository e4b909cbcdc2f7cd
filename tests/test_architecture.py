"""The house stays as it is drawn: imports go down only, a library has one owner."""

import ast
import sys
from graphlib import TopologicalSorter

import pytest

from conftest import REPOSITORY

SOURCES = REPOSITORY / "src"
# A room, a folder or a file at the top, imports from the floors before its own.
FLOORS = (
    ("errors",),
    ("command_lines",),
    ("parameters",),
    ("engine",),
    ("speech",),
    ("dataset", "transforms", "models", "losses", "verification"),
    ("reports",),
    ("runs",),
    ("exchange",),
    ("nemo_checkpoint", "eval", "recognition"),
    ("voices", "teacher"),
    ("commands", "train"),
    ("teaching",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OWNERS = {
    "wandb": {"runs.wandb_mirror"},
    "matplotlib": {"reports", "teaching"},
    "umap": {"reports"},
    "plotly": {"reports"},
    "sklearn": {"reports"},
    "soundfile": {"speech.audio"},
    "torchaudio": {"speech.audio"},
    "triton": {"engine.kernels"},
    "gradio": {"commands.page"},
    "silero_vad": {"speech.examination"},
    "pyarrow": {"recognition.vectors"},
    "yaml": {"engine.parameter_files"},
    "pydantic": {"parameters", "engine.parameter_files"},
}
MODULES = {
    ".".join(path.relative_to(SOURCES).with_suffix("").parts): path
    for path in SOURCES.rglob("*.py")
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def imports(module: str) -> set[str]:
    """Full names of what a module imports; an entry point is not part of it."""
    names = set()
    entries = [
        node
        for node in TREES[module].body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    ]
    skipped = {inner for entry in entries for inner in ast.walk(entry)}
    for node in ast.walk(TREES[module]):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members & set(MODULES) or {node.module}
    return names


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    rooms = {room(name) for name in imports(module)} & set(FLOOR) - {room(module)}
    assert {name for name in rooms if FLOOR[name] >= FLOOR[room(module)]} == set()


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(module) & set(MODULES) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_owner(library):
    owners = OWNERS[library]
    users = {m for m in MODULES if library in map(room, imports(m))}
    assert {m if m in owners else room(m) for m in users} == owners


def test_every_library_is_a_pinned_requirement():
    files = (REPOSITORY / "init").glob("requirements*.txt")
    texts = [file.read_text() for file in files if file.stem != "requirements-dev"]
    lines = "".join(texts).splitlines()
    assert all("==" in line for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    packages = {
        "yaml": "pyyaml",
        "umap": "umap-learn",
        "sklearn": "scikit-learn",
        "silero_vad": "silero-vad",
        "triton": "torch",  # which brings it where it has a GPU
        "starlette": "gradio",  # which is made with it
    }
    used = {room(name) for module in MODULES for name in imports(module)} - set(FLOOR)
    libraries = {name for name in used if name not in sys.stdlib_module_names}
    assert {packages.get(name, name) for name in libraries} <= pinned


def test_no_module_asks_which_loss_it_has():
    named = {
        alias.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "losses"
        for alias in node.names
    }
    assert named == {"build_loss", "teacher_loss"}  # which is added to any loss


def test_no_drawers_for_odds_and_ends():
    names = {part for module in MODULES for part in module.split(".")}
    assert not {"utils", "util", "helpers", "common", "base"} & names


@pytest.mark.parametrize("module", MODULES)
def test_nothing_from_outside_is_executed(module):
    calls = {
        ast.unparse(node.func): ast.unparse(node)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
    }
    assert not {"eval", "exec", "pickle.load", "pickle.loads", "os.system"} & set(calls)
    if "torch.load" in calls:
        assert "weights_only=True" in calls["torch.load"]
