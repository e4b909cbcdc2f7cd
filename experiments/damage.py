"""Damage to sound files, drawn at random: bits, cuts, joins, runs, numbers, members.

sound file, seed -> `damaged`, `damaged_in_zip` -> damaged file
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Random = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """Sound files of one kind, and how they are read and refused."""

    files: Sequence[bytes]
    fragments: Sequence[bytes]  # hard to read, to be inserted
    read: Callable[[Path, Random], object]
    refusal: type[Exception]
    names_file: bool = True  # in a refusal; audio is named by its id, parameters by key
    rewrap: Callable[[bytes, Random], bytes] | None = None  # damages a member
    nasties: Sequence[bytes] = ()  # written by hand, read before the damaged ones
    suffix: str = ".bin"


NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
TEXT = (
    *(b"\0", b"\n", b"\r", b"\t", b" ", b"'", b'"', b"\\", b"\x1b[2J", b"\xff"),
    *("\u2028".encode(), "\ufeff".encode(), "王".encode(), b"\xed\xb0\x80"),
    *(b"-1", b"0", b"nan", b"inf", b"1e999", b"9" * 30, b"9" * 5000, b"x" * 5000),
)
YAML = (
    *TEXT,
    *(b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b"| ", b"> ", b"%", b"@", b"#"),
    *(b"&a ", b"*a", b"<<: *a\n", b"---\n", b"...\n", b"null", b"[]", b"{}"),
    *(b"!!bool x", b"!!int ''", b"!!float ''", b"!!timestamp x", b"!!binary x"),
    *(b"!!set {[a]}", b"!!omap [a]", b"!!pairs [a]", b"!!str [a]", b"!!map [a]"),
    *(b"!!python/name:os.mkdir ", b"!<\n>", b"2026-99-99", b"0o99", b"1:1:1"),
    *(b"&a [*a]", b"&a {b: *a}", b"[" * 3000, b"{a: " * 400, b'"a\\nb": 1\n'),
    b"[&a [x,x,x,x,x,x,x,x,x], "
    + b", ".join(
        b"&%c [%s]" % (98 + level, b",".join([b"*%c" % (97 + level)] * 9))
        for level in range(12)
    )
    + b"]",
)
JSON = (
    *TEXT,
    *(b"[", b"]", b"{", b"}", b":", b",", b"null", b"true", b"NaN", b"Infinity"),
    *(b"[" * 900, b"[" * 900 + b"]" * 900, b"{}", b'"\\u0000"', b'"\\ud800"'),
    *(b'"' + b"a/" * 3000 + b'"', b'"' + b"a" * 300 + b'"', b"..", b"/", b"1e-300"),
)


def damaged(content: bytes, kind: Kind, random: Random) -> bytes:
    """Change a file in one to three places."""
    for _ in range(random.integers(1, 4)):
        size = len(content)
        near = random.random() < 0.5  # headers stand at the beginning or the end
        place = int(random.integers(min(size, 300) if near else size) if size else 0)
        if near and random.random() < 0.3:
            place = size - place
        length = int(random.choice([1, 4, 30, 1000]))
        head, tail = content[:place], content[place:]
        change = random.integers(8)
        if change == 0 and tail:
            tail = bytes([tail[0] ^ 1 << int(random.integers(8))]) + tail[1:]
        elif change == 1:
            tail = random.bytes(length) + tail[length:]
        elif change == 2:
            tail = b""
        elif change == 3:
            tail = tail[length:]
        elif change == 4:
            tail = tail[:length] * int(random.integers(2, 9)) + tail[length:]
        elif change == 5:
            other = kind.files[random.integers(len(kind.files))]
            tail = other[random.integers(len(other) + 1) :]
        elif change == 6:
            width = int(random.choice([1, 2, 4, 8]))
            number = int(random.choice(NUMBERS)) % 256**width
            order = random.choice(["little", "big"])
            tail = number.to_bytes(width, str(order)) + tail[width:]
        elif change == 7 and kind.fragments:
            skipped = int(random.choice([0, 1, length]))
            fragment = kind.fragments[random.integers(len(kind.fragments))]
            tail = fragment + tail[skipped:]
        content = head + tail
    return content
