"""The parts of README that programs write."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
END = "<!-- to here -->\n"


def as_table(rows: list[list[str]]) -> str:
    """Markdown of rows, the first naming the columns."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _begin(program: str) -> str:
    return f"<!-- written by experiments/{program} -->\n"


def split_at_block(program: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks of a program."""
    before, found, rest = README.read_text(encoding="utf-8").partition(_begin(program))
    text, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{README} has no place for experiments/{program}")
    return before + found, text, ended + after


def write_block(program: str, text: str) -> None:
    """Put the text in the place of what the program wrote before."""
    before, _, after = split_at_block(program)
    README.write_text(before + text + after, encoding="utf-8")
