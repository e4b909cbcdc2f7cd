"""Write every measured number of README.md, docs/ and init/titanet-s.md.

    make docs

JSON files in assets/ -> `read_figures` -> `write` -> documents

A document has two kinds of marks. A block names a function of `tables.py`, which
writes all that stands between:

    <!-- written by make docs: race -->
    <!-- to here -->

A figure in a sentence names a value and how it is printed, as an f-string does; a unit
may divide it. No mark may begin a line: Markdown would take the line for HTML.

    downloads <!--install.download_bytes / 1e9:.1f-->3.0<!----> GB
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tables

HOME = Path(__file__).parents[1]
ASSETS = HOME / "assets"
DOCUMENTS = [
    HOME / "README.md",
    HOME / "init" / "titanet-s.md",
    *sorted(HOME.glob("docs/*.md")),
]
BLOCK = re.compile(
    r"(<!-- written by make docs: (\w+) -->\n).*?(<!-- to here -->\n)", re.DOTALL
)
FIGURE = re.compile(r"(<!--(\S[^:\n]*?)(?: / (\d\S*))?:(\S+)-->)[^<\n]*(<!---->)")


def read_figures() -> dict[str, Any]:
    """Return what the files hold by their names, and four more: `race` by phase and
    recipe, `training` of the released encoder at its end, `released` by test, and the
    lines of the `excerpts` by corpus."""
    figures = {
        path.stem: json.loads(path.read_text()) for path in ASSETS.glob("*.json")
    }
    recipes: dict[str, dict[str, list]] = {"develop": {}, "test": {}}
    for run in read_lines("race"):
        recipes[run["phase"]].setdefault(run["name"], []).append(run)
    figures["race"] = recipes
    figures["training"] = read_lines("titanet-s-training")[-1]
    measured = figures["titanet-s"]
    tests = (
        measured["mixture"]["verification"] | measured["librispeech"]["verification"]
    )
    figures["released"] = {
        shown: tests[test]["systems"] for test, shown in tables.TESTS.items()
    }
    figures["excerpts"] = {
        path.stem.removesuffix("-excerpt"): path.read_text().splitlines()
        for path in ASSETS.glob("*-excerpt.txt")
    }
    return figures


def read_lines(name: str) -> list[dict[str, Any]]:
    """Return the records of a .jsonl file."""
    lines = (ASSETS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def look_up(values: Any, name: str) -> Any:
    """Return the value of a dotted name, whose keys may themselves have dots; raise
    `KeyError` where there is none."""
    if isinstance(values, list):
        values = {str(index): value for index, value in enumerate(values)}
    if name in values:
        return values[name]
    for key in values:
        if name.startswith(f"{key}."):
            return look_up(values[key], name.removeprefix(f"{key}."))
    raise KeyError(name)


def write(text: str, figures: Mapping[str, Any]) -> str:
    """Return a document with its blocks and figures written anew."""

    def block(match: re.Match) -> str:
        begin, name, end = match.groups()
        return begin + getattr(tables, name)(figures) + end

    def figure(match: re.Match) -> str:
        begin, name, divisor, form, end = match.groups()
        value = look_up(figures, name)
        if divisor:
            value /= float(divisor)
        return f"{begin}{value:{form}}{end}"

    return FIGURE.sub(figure, BLOCK.sub(block, text))


def main() -> None:
    """Command line."""
    figures = read_figures()
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        if (after := write(before, figures)) != before:
            document.write_text(after, encoding="utf-8")
            print(document.relative_to(HOME))


if __name__ == "__main__":
    main()
