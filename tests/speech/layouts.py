"""Corpora in miniature, and how they are asked for and refused."""

from collections import Counter
from pathlib import Path

import pytest

from conftest import REPOSITORY, write
from engine.parameter_files import load_parameters
from errors import UserError
from parameters import DatasetParameters
from speech.corpora import utterances
from speech.utterances import Utterance

DATASET = load_parameters(REPOSITORY / "parameters.yml").dataset
NOTHING = {  # chosen of a corpus unless a test does
    "librispeech": {"train": (), "development": (), "test": ()},
    "manifest": {"train": None, "development": None, "test": None},
}


def dataset(
    name: str, root: Path = Path("nowhere"), download: bool = False, **options
) -> DatasetParameters:
    """The shipped parameters of another corpus with options of its own."""
    changes = {"name": name, "root": root, "download": download}
    if options := NOTHING.get(name, {}) | options:
        changes[name] = getattr(DATASET, name).model_copy(update=options)
    return DATASET.model_copy(update=changes)


def tree(root: Path, *names: str) -> Path:
    """Write a short tone under each name."""
    for name in names:
        write(root / name)
    return root


def refuse(parameters: DatasetParameters, where: object, *words: str) -> None:
    """A message of one line that begins with `where` and has these words."""
    with pytest.raises(UserError) as caught:
        utterances(parameters)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{where}".replace("\n", r"\n"))
    assert all(word in message for word in words)


def details(found: list[Utterance]) -> list[tuple]:
    return [(u.id, u.speaker, u.split, u.gender, u.session) for u in found]


def splits(found: list[Utterance]) -> Counter:
    """How many utterances of each split."""
    return Counter(u.split for u in found)
