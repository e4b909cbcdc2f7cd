"""Refuse to test a model on speakers that it was trained on.

model, splits -> `refuse_heard` -> an error that names one of them
"""

from dataset import Splits
from parameters import DatasetParameters, ParameterError
from runs.speaker_model import SpeakerModel
from speech.corpora import people_key, without_label


def refuse_heard(
    model: SpeakerModel, splits: Splits, dataset: DatasetParameters
) -> None:
    """Raise `ParameterError` if the model, or one whose weights it started from, was
    trained on development or test speakers.

    Speakers of other corpora are other people, so for equal names it only prints a
    note.
    """
    namesakes: set[str] = set()
    for label, corpus in dataset.corpora.items():
        unseen = {
            without_label(splits.pack.entries[i].speaker, label)
            for i in splits.development + splits.test
            if splits.pack.entries[i].corpus == label
        }
        for heard in model.heard:
            names = unseen & set(heard.speakers)
            same_corpus = splits.pack.digests.get(label) == heard.digest
            if names and (same_corpus or people_key(corpus) == heard.people):
                raise ParameterError(
                    "dataset: expected to test speakers that the model was not trained "
                    f"on, but it heard {len(names)} of them, such as {min(names)}"
                )
            namesakes |= names
    if namesakes:
        print(f"note: {len(namesakes)} tested speakers have names of training speakers")
