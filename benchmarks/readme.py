"""The parts of README that programs write."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
END = "<!-- to here -->\n"


def as_table(rows: list[list[str]]) -> str:
    """Markdown of rows, the first naming the columns."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def block(program: str, text: str) -> str:
    """What stands in README, from mark to mark."""
    return f"<!-- written by benchmarks/{program} -->\n{text}{END}"


def write_block(program: str, text: str) -> None:
    """Put it in the place of what the program wrote before."""
    begin = block(program, "").removesuffix(END)
    before, rest = README.read_text(encoding="utf-8").split(begin)
    after = rest.split(END, 1)[1]
    README.write_text(before + block(program, text) + after, encoding="utf-8")
