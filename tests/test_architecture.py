"""The house stays as it is drawn: imports go down only, a library has one owner."""

import ast
import sys

import pytest

from conftest import REPOSITORY

# A module may import those above it. Lower in the list is higher in the house.
ORDER = [
    "parameters",
    "verification.metrics",
    "engine.parallel",
    "engine.optimizers",
    "engine.kernels",
    "engine.layers",
    "speech.synthetic",
    "speech.acoustics",
    "speech.downloads",
    "speech.audio",
    "speech.corpora",
    "verification.trials",
    "dataset",
    "transforms",
    "models",
    "teaching.anatomy",
    "losses",
    "verification.scoring",
    "reports.figures",
    "teaching.lessons",
    "runs.checkpoints",
    "reports.tables",
    "runs.wandb_mirror",
    "runs.run_directory",
    "exchange.nemo_files",
    "exchange.onnx_files",
    "recognition.sounds",
    "recognition.people",
    "recognition.vectors",
    "recognition.verdicts",
    "nemo_checkpoint",
    "eval",
    "voices",
    "commands.page",
    "train",
]
OPENS = {"voices": {"commands.page"}}  # when its command is called
KNOWS_NOTHING_OF_OURS = ("parameters", "verification.metrics", "engine.parallel")
OWNERS = {
    "wandb": {"runs.wandb_mirror"},
    "matplotlib": {"reports.figures", "teaching.lessons"},
    "umap": {"reports.figures"},
    "plotly": {"reports.figures"},
    "soundfile": {"speech.audio"},
    "triton": {"engine.kernels"},
    "gradio": {"commands.page"},
    "silero_vad": {"recognition.sounds"},
    "pyarrow": {"recognition.vectors"},
    "torchaudio": {"speech.audio"},
    "yaml": {"parameters"},
    "pydantic": {"parameters"},
}
SOURCES = REPOSITORY / "src"
MODULES = {
    ".".join(path.relative_to(SOURCES).with_suffix("").parts): path
    for path in SOURCES.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            ours = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (ours | {node.module}) & set(MODULES)
            found.add(node.module.split(".")[0])
    return found


def test_every_module_has_its_place():
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_down_only(name):
    ours = imports(name) & set(ORDER)
    below = ORDER[: ORDER.index(name)]
    allowed = set(below) | OPENS.get(name, set())
    assert ours <= (set() if name in KNOWS_NOTHING_OF_OURS else allowed)


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_owner(library):
    assert {name for name in MODULES if library in imports(name)} == OWNERS[library]


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
    used = set().union(*map(imports, MODULES)) - set(MODULES)
    used -= {name.partition(".")[0] for name in MODULES}
    libraries = {name for name in used if name not in sys.stdlib_module_names}
    assert {packages.get(name, name) for name in libraries} <= pinned


def test_no_module_asks_which_loss_it_has():
    named = {
        alias.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "losses"
        for alias in node.names
    }
    assert named == {"build_loss"}


def test_no_drawers_for_odds_and_ends():
    assert not {"utils", "util", "helpers", "common", "base"} & set(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_nothing_from_outside_is_executed(name):
    calls = {
        ast.unparse(node.func): ast.unparse(node)
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Call)
    }
    assert not {"eval", "exec", "pickle.load", "pickle.loads", "os.system"} & set(calls)
    if "torch.load" in calls:
        assert "weights_only=True" in calls["torch.load"]
