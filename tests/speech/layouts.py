"""Corpora in miniature, how they are asked for and refused, and archives of them."""

import io
import tarfile
import zipfile
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


def scanned(*arguments, **options) -> list[Utterance]:
    return utterances(dataset(*arguments, **options))


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


def archive(name: str, contents: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    """A zip or tar.gz file, by its name."""
    packed = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
            for member, content in contents.items():
                zipped.writestr(member, content)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for member in (*map(tarfile.TarInfo, contents), *others):
                content = contents.get(member.name, b"")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()
