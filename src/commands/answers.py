"""What the page of `src/voices.py demo` answers, in words and pictures.

recordings -> `hear` -> `Clip`s -> `judge`, `recognise` -> text
what the page's boxes hold -> `Answers` -> what they show

U clips, E embedding size.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recognition.people import ROWS, People, checked_name, load_people
from recognition.sounds import NO_SPEECH, Clip, VoiceError, refuse_without_speech
from recognition.verdicts import Comparison, Identification, Threshold
from reports.figures import draw_sounds
from reports.maps import map_voices
from reports.projections import PrincipalPlane
from speech.audio import load_recording
from speech.packs import FULL_SCALE
from voices import Voices

SECONDS_DRAWN = 20  # from the beginning of a recording
ABOUT_MAP = (
    "Each grey dot is a voice that the encoder was trained on. The star is this voice, "
    "and everybody whom you enrolled has a colour. The encoder describes a voice by "
    "{size} numbers. The map keeps the two directions in which voices differ most, "
    "which hold {share:.0%} of all differences: dots far apart are different voices, "
    "but dots close together need not be one voice. Compare them to find out."
)


def hear(voices: Voices, sounds: Sequence[tuple[str, str | None]]) -> list[Clip]:
    """Return the clips of (name, file) pairs; a clip and its warnings have the name of
    the pair, not of the file.

    Raises `VoiceError` for a recording that is missing or cannot be used.
    """
    for name, file in sounds:
        if file is None:
            raise VoiceError(f"{name}: expected a recording, got none")
    try:
        clips = voices.listen([file for _, file in sounds])
    except VoiceError as error:
        message = str(error)
        for name, file in sounds:
            message = message.replace(file, name)
        raise VoiceError(message) from None
    return [
        replace(
            clip,
            name=name,
            warnings=tuple(line.replace(file, name) for line in clip.warnings),
        )
        for clip, (name, file) in zip(clips, sounds, strict=True)
    ]


def judge(comparison: Comparison) -> str:
    """Return a comparison in words."""
    return _in_words(comparison.verdict or "no verdict", comparison)


def recognise(identification: Identification) -> str:
    """Return an identification in words."""
    nobody = "nobody who is enrolled" if identification.nearest else NO_SPEECH
    return _in_words(identification.name or nobody, identification)


def _in_words(answer: str, result: Comparison | Identification) -> str:
    paragraphs = [f"{answer[0].upper()}{answer[1:]}.", str(result)]
    paragraphs += [f"Less sure: {warning}" for warning in result.warnings]
    return "\n\n".join(paragraphs)


def explain(threshold: Threshold | None) -> str:
    """Explain an answer's numbers to people who have never heard of them."""
    if threshold is None:
        return (
            "This model has no calibration: it gives a cosine, but neither a log "
            "likelihood ratio nor a verdict."
        )
    rate = f"{100 * threshold.false_alarm_rate:g} %"
    return (
        "**What the numbers mean.** The *cosine* says how alike two voices are, up to "
        "1. The *log likelihood ratio* turns it into odds: at 0 one person and two "
        "people are equally likely, at +2.3 one person is ten times as likely, at -2.3 "
        "two people are. Voices that reach the *threshold* count as one person's. For "
        f"two recordings it is {threshold.llr:+.1f}: {rate} of the pairs of two people "
        f"reach it on {threshold.origin}, and more may with other microphones, rooms "
        "and languages. Among enrolled people it is higher, since a stranger may "
        "resemble any of them."
    )


def count_recordings(people: People) -> str:
    """Return a line that names the enrolled people and counts their recordings."""
    names, counts = np.unique(people.names, return_counts=True)
    counted = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    return f"People, and their recordings: {', '.join(counted) or 'none'}."


def project_people(
    plane: PrincipalPlane, people: People
) -> dict[str, NDArray[np.float64]]:
    """Return each person's clips in the plane, [U, 2] by name."""
    return {
        name: plane.project(people.vectors[people.names == name])
        for name in np.unique(people.names).tolist()
    }


def join_people(people: People, others: People) -> People:
    """Return the clips of both, each once for a person; both are of one model."""
    known = set(zip(people.names, people.clip_digests, strict=True))
    pairs = zip(others.names, others.clip_digests, strict=True)
    new = np.array([pair not in known for pair in pairs], dtype=bool)
    rows = {
        key: np.concatenate([getattr(people, key), getattr(others, key)[new]])
        for key in ROWS
    }
    return replace(people, **rows)


class Answers:
    """The answers to the page's buttons.

    Recordings are files of the page, or None. People are those of one visitor, or None
    before the first is enrolled. Methods raise `VoiceError`.
    """

    def __init__(self, voices: Voices, folder: Path) -> None:
        self.voices, self.folder = voices, folder

    def compare(self, first: str | None, second: str | None) -> tuple[str, Any, Any]:
        """Return a verdict on two recordings, and a matplotlib figure of each."""
        sounds = [("first voice", first), ("second voice", second)]
        verdict = judge(self.voices.compare_clips(*hear(self.voices, sounds)))
        return verdict, *(self._picture(*sound) for sound in sounds)

    def _picture(self, name: str, file: str) -> Any:
        rate = self.voices.sample_rate
        samples = load_recording(Path(file), rate).samples[: SECONDS_DRAWN * rate]
        return draw_sounds({name: samples / np.float32(FULL_SCALE)}, rate)

    def add(
        self,
        name: str,
        recorded: str | None,
        files: Sequence[str] | None,
        people: People | None,
    ) -> tuple[str, People, None, None]:
        """Enrol recordings of one person. Return a text of who is enrolled and what may
        be wrong, the people, and twice None, which empties the two boxes."""
        recordings = [*([recorded] if recorded else []), *(files or [])]
        if not recordings:
            raise VoiceError("expected recordings of the person, got none")
        clips = hear(self.voices, [(Path(file).name, file) for file in recordings])
        refuse_without_speech(clips)
        people = self.voices.enrol({}, people).with_clips(name, clips)
        faults = [fault for clip in clips for fault in clip.warnings]
        names = np.unique(people.names).tolist()
        faults += self.voices.disagreements(people, names)
        return "\n".join([count_recordings(people), *faults]), people, None, None

    def save(self, people: People | None) -> tuple[str, Path]:
        """Return who is enrolled, and the file of a new store."""
        people = self.voices.enrol({}, people)
        store = Path(tempfile.mkdtemp(dir=self.folder)) / "people.npz"
        people.save(store)
        return count_recordings(people), store

    def load(self, file: str, people: People | None) -> tuple[str, People]:
        """Add the people of a store; return who is enrolled, and the people."""
        try:
            stored = self.voices.enrol({}, load_people(Path(file)))
        except VoiceError as error:
            raise VoiceError(str(error).replace(file, Path(file).name)) from None
        people = join_people(self.voices.enrol({}, people), stored)
        return count_recordings(people), people

    def forget(self, name: str, people: People | None) -> tuple[str, People]:
        """Forget a person; return who is enrolled, and the people."""
        people = self.voices.enrol({}, people).without(checked_name(name))
        return count_recordings(people), people

    def identify(self, file: str | None, people: People | None) -> str:
        """Return whose voice a recording is of."""
        (clip,) = hear(self.voices, [("this voice", file)])
        enrolled = self.voices.enrol({}, people)
        return recognise(self.voices.identify_clip(clip, enrolled))

    def place(self, file: str | None, people: People | None) -> tuple[str, Any]:
        """Return what a map shows, and the map as plotly's figure: a voice among those
        that the encoder was trained on."""
        (clip,) = hear(self.voices, [("this voice", file)])
        refuse_without_speech([clip])
        cohort = self.voices.model.backend.cohort.cpu().numpy()  # [S, E]
        if not len(cohort):
            name = self.voices.name
            raise VoiceError(f"{name}: expected a model with a cohort, got none")
        plane = PrincipalPlane.fit(cohort)
        figure = map_voices(
            plane.project(cohort),
            project_people(plane, self.voices.enrol({}, people)),
            plane.project(clip.vector[None])[0],
        )
        return ABOUT_MAP.format(size=cohort.shape[1], share=plane.share), figure
