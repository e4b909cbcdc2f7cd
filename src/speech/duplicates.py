"""Recordings that a pack holds twice, and labels that may mean the same speaker.

`Pack` -> `copies` -> entries by the earlier entry that they equal
names of speakers -> `doubtful_names` -> lines of text
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from speech.packs import Pack

COMPARED_FIRST = 512  # samples from the middle of recordings of equal length


def copies(packed: Pack, indices: Sequence[int]) -> dict[int, int]:
    """Return each of these entries whose samples are those of an earlier one, with that
    one.

    What was decoded is compared, so a copy in another lossless format is found too.
    """
    samples = packed.samples.numpy()
    alike = defaultdict(list)
    for i in indices:
        entry = packed.entries[i]
        # Hardly any two recordings have equal lengths and equal samples in the middle.
        # Only these are read whole, since a pack may be larger than memory.
        size = min(COMPARED_FIRST, entry.samples)
        begin = entry.offset + (entry.samples - size) // 2
        alike[entry.samples, hash(samples[begin : begin + size].tobytes())].append(i)
    found = {}
    for group in alike.values():
        earlier: dict[bytes, int] = {}
        for i in group if len(group) > 1 else ():
            entry = packed.entries[i]
            whole = samples[entry.offset : entry.offset + entry.samples]
            first = earlier.setdefault(hashlib.sha256(whole).digest(), i)
            if first != i:
                found[i] = first
    return found


def doubtful_names(names: Iterable[str]) -> list[str]:
    """Return a line for each group of names that differ by case, white space, invisible
    characters or Unicode form alone: they may mean one person."""
    groups = defaultdict(list)
    for name in sorted(set(names)):
        groups[_plain(name)].append(name)
    lines = []
    for group in groups.values():
        look_alike = len({unicodedata.normalize("NFC", n) for n in group}) < len(group)
        shown = ", ".join(map(ascii if look_alike else repr, group))
        if len(group) > 1:
            lines.append(
                f"names {shown} differ by case, blanks or Unicode form alone; if they "
                "are of one person, use one of them"
            )
    return lines


def _plain(name: str) -> str:
    text = unquote(name, errors="surrogateescape")  # as `folders.quoted` wrote it
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize(
        "NFKC",
        "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf"),
    )
