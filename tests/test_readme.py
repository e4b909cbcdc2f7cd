"""Documents: their links, pictures and commands are right, their numbers measured."""

import re
import shlex
from pathlib import Path

import pytest

import documents
import stale
from conftest import REPOSITORY
from documents import ASSETS, DOCUMENTS
from engine.parameter_files import SHIPPED, load_parameters, parse_yaml
from runs.checkpoints import load_checkpoint

README = REPOSITORY / "README.md"


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.stem)
def document(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def figures() -> dict:
    return documents.read_figures()


def test_numbers_are_those_measured(document, figures):
    text = document.read_text(encoding="utf-8")
    assert documents.write(text, figures) == text, "run make docs"
    # Markdown takes a line that begins with a comment for HTML.
    assert not re.search(
        r"^ {0,3}<!--(?! written by make docs: | to here )", text, re.M
    )
    assert text.count("<!---->") == len(documents.FIGURE.findall(text))
    assert text.count("<!-- written") == len(documents.BLOCK.findall(text))


def test_readme_is_short():
    text = re.sub(r"<!--.*?-->", "", README.read_text())
    assert len(text.split()) <= 1200


def test_commands_are_understood(document):
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if "src/train.py -p" in line):
        words = shlex.split(line)
        files = [REPOSITORY / word for word in words if word.endswith(".yml")]
        values = [w for w in words if "=" in w and "$" not in w and "{" not in w]
        load_parameters(*files, overrides=values)


def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_figure_is_shown():
    text = "".join(path.read_text() for path in DOCUMENTS)
    shown = set(re.findall(r"\]\((?:\.\./)?assets/([\w/-]+\.(?:png|jpg))\)", text))
    pictures = (*ASSETS.rglob("*.png"), *ASSETS.rglob("*.jpg"))
    assert shown == {str(picture.relative_to(ASSETS)) for picture in pictures}


class Read(dict):
    """Figures that note the names which are looked up."""

    def __init__(self, figures: dict) -> None:
        super().__init__(figures)
        self.names = set()

    def __getitem__(self, name: str):
        self.names.add(name)
        return super().__getitem__(name)


def test_figures_are_of_the_released_encoder():
    assert stale.stale_files() == [], "python experiments/stale.py"


def test_an_earlier_encoder_is_called_one(document, figures):
    text, read = document.read_text(encoding="utf-8"), Read(figures)
    documents.write(text, read)
    read.names |= set(re.findall(r"assets/([\w-]+)\.", text))
    older = {
        name
        for name, encoders in stale.measured_encoders().items()
        if any(encoder.startswith(stale.EARLIER) for encoder in encoders)
    }
    assert not older & read.names or stale.EARLIER in text


def test_readme_leads_to_every_document():
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", README.read_text()))
    assert linked == {path.name for path in (REPOSITORY / "docs").glob("*.md")}


def test_the_map_names_every_room():
    files = {path.name for path in (REPOSITORY / "src").glob("*.py")}
    folders = {f"{path.parent.name}/" for path in REPOSITORY.glob("src/*/__init__.py")}
    _, _, table = README.read_text().partition("## What is in `src`")
    named = set(re.findall(r"`(\w+(?:\.py|/))`", table.partition("\n## ")[0]))
    assert named == files | folders


def leaves(values: dict, name: str = "") -> dict:
    """Dotted name -> value of nested values."""
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= leaves(value, f"{name}{key}.") if nested else {f"{name}{key}": value}
    return flat


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("titanet-s.pt", ["titanet-s.yml"]),
        ("titanet-s-wild.pt", ["titanet-s-wild.yml", "titanet-s-wild-end.yml"]),
    ],
)
def test_the_recipe_is_that_of_the_released_encoder(name, files):
    paths = [REPOSITORY / "init" / file for file in files]
    released = load_checkpoint(REPOSITORY / "init" / name)["parameters"]
    recipe = leaves(load_parameters(SHIPPED, *paths).as_dict())
    for path in paths:
        for key in leaves(parse_yaml(path.read_text(), str(path))):
            assert leaves(released)[key] == recipe[key]


def test_the_soak_was_a_soak(figures):
    soak = figures["soak"]
    assert sum(soak["kills"].values()) >= 50
    assert len(soak["kills"]) == 4
    assert sum(kind["tried"] for kind in soak["inputs"].values()) >= 20_000
