"""torch.hub: the encoder works in a program that has modules of the same names."""

import ast
import subprocess
import sys

from conftest import REPOSITORY

LOADS = """
import copy, pickle, sys
import torch
import models, layers

def load(entry, **options):
    return torch.hub.load(sys.argv[1], entry, source="local", **options)

paths = list(sys.path)
model = load("titanet", checkpoint="model.pt")
waveforms, lengths = torch.randn(2, 16_000), torch.tensor([16_000, 4800])
expected = model(waveforms, lengths)
assert expected.shape == (2, 24)
for other in (
    load("titanet", checkpoint="model.pt"),
    copy.deepcopy(model),
    pickle.loads(pickle.dumps(model)),
):
    assert type(other) is type(model)
    assert torch.equal(other(waveforms, lengths), expected)
compiled = torch.compile(model, backend="eager")
torch.testing.assert_close(compiled(waveforms, lengths), expected)
torch.save((waveforms, lengths, expected.detach()), "expected.pt")
pickle.dump(model, open("model.pickle", "wb"))

assert load("titanet")(waveforms).shape == (2, 192)
assert load("voices", checkpoint="model.pt").name == "model.pt"
assert load("voices").model.encoder.embedding_size == 192
import dataset
for mine in (models, layers, dataset, sys.modules["models"]):
    assert mine.WHOSE == "the caller"
assert not {"losses", "engine", "runs", "speech", "voices"} & set(sys.modules)
assert sys.path == paths
"""
UNPICKLES = """
import pickle, sys
import torch

torch.hub.load(sys.argv[1], "titanet", source="local", checkpoint="model.pt")
model = pickle.load(open("model.pickle", "rb"))
waveforms, lengths, expected = torch.load("expected.pt")
assert torch.equal(model(waveforms, lengths), expected)
"""


def test_the_hub_works_beside_modules_of_the_same_names(tmp_path, checkpoint):
    for name in ("models", "dataset", "layers"):
        (tmp_path / f"{name}.py").write_text("WHOSE = 'the caller'")
    checkpoint()
    for program in (LOADS, UNPICKLES):
        command = [sys.executable, "-c", program, str(REPOSITORY)]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def test_every_import_is_one_that_the_hub_renames():
    """`from models import ...` is renamed; `import models` would be the caller's."""
    sources = REPOSITORY / "src"
    plain = {
        alias.name.partition(".")[0]
        for path in sources.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not plain & {path.stem for path in sources.iterdir()}
