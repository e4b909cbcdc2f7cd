"""The house in numbers: lines by room, longest functions, imports between rooms.

    python experiments/house.py

Only the standard library is used. `make docs` writes the imports into docs/house.md.
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

from cells import table

HOME = Path(__file__).parents[1]


def room_of(path: Path, top: Path) -> str:
    """The folder of a file, or the file itself at the top."""
    parts = path.relative_to(top).parts
    return f"{parts[0]}/" if len(parts) > 1 else parts[0]


def comment_lines(text: str) -> int:
    """Lines that hold a comment or a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def functions(text: str) -> list[tuple[int, int, str]]:
    """Lines, arguments and name of every function."""
    return [
        (
            node.end_lineno - node.lineno + 1,
            len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs),
            node.name,
        )
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]


def lines_by_room() -> list[list[str]]:
    """A row for each room: lines of source, of comments, of tests, the longest
    function and the most arguments."""
    sources, tests = HOME / "src", HOME / "tests"
    rows = [["room", "source", "comments", "longest function", "most arguments"]]
    by_room: dict[str, list[str]] = {}
    for path in sorted(sources.rglob("*.py")):
        by_room.setdefault(room_of(path, sources), []).append(path.read_text())
    total = Counter()
    for room, texts in sorted(by_room.items()):
        source = sum(text.count("\n") for text in texts)
        comments = sum(map(comment_lines, texts))
        every = [function for text in texts for function in functions(text)]
        longest = max(every, default=(0, 0, ""))
        widest = max(every, key=lambda f: f[1], default=(0, 0, ""))
        total += Counter(source=source, comments=comments)
        rows.append(
            [
                f"`{room}`",
                str(source),
                str(comments),
                f"`{longest[2]}`, {longest[0]}" if every else "",
                f"`{widest[2]}`, {widest[1]}" if every else "",
            ]
        )
    num_tests = sum(path.read_text().count("\n") for path in tests.rglob("*.py"))
    rows.append(["all", str(total["source"]), str(total["comments"]), "", ""])
    rows.append(["tests", str(num_tests), "", "", ""])
    return rows


def is_entry_point(node: ast.stmt) -> bool:
    """Return whether this is the part of a file that runs as a command."""
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def imports_by_room() -> str:
    """Which rooms each room imports from, as text."""
    sources = HOME / "src"
    rooms = {path.stem for path in sources.iterdir()} - {"__pycache__"}
    uses: dict[str, set[str]] = {room: set() for room in rooms}
    for path in sources.rglob("*.py"):
        room = Path(room_of(path, sources)).stem
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if not is_entry_point(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                uses[room].add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                uses[room] |= {alias.name.partition(".")[0] for alias in node.names}
    width = max(map(len, rooms))
    lines = []
    left = {room: (used & rooms) - {room} for room, used in uses.items()}
    above = dict(left)
    while above:  # from the rooms that nobody imports down
        importers = {r: sum(r in above[other] for other in above) for r in above}
        lowest = min(importers.values())  # not 0 where two rooms import each other
        top = sorted(room for room in above if importers[room] == lowest)
        for room in top:
            lines.append(f"{room:{width}}  <- {', '.join(sorted(left[room])) or '-'}")
            del above[room]
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{table(*lines_by_room())}\n{imports_by_room()}")
