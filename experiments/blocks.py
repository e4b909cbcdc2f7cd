"""Blocks of documents that programs write, between two marks."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- to here -->\n"


def as_table(rows: list[list[str]]) -> str:
    """Markdown of rows, the first naming the columns."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def split_at_block(document: Path, program: str) -> tuple[str, str, str]:
    """The text before, inside and after a program's block; raise `ValueError` if the
    document has none."""
    begin = f"<!-- written by experiments/{program} -->\n"
    before, begun, rest = document.read_text(encoding="utf-8").partition(begin)
    text, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{document} has no place for experiments/{program}")
    return before + begun, text, ended + after


def write_block(document: Path, program: str, text: str) -> None:
    """Replace the text of a program's block."""
    before, _, after = split_at_block(document, program)
    document.write_text(before + text + after, encoding="utf-8")
