"""Whose voice is this? Compare recordings, and recognise enrolled people.

sounds -> `Voices.listen` -> `Clip`s -> `Voices.compare` -> `Comparison`
sounds by name -> `Voices.enrol` -> `People` <-> people.npz
sound, `People` -> `Voices.identify` -> `Identification`
sound, `People` -> `Voices.who` -> `Turn`s

    python src/voices.py compare a.wav b.wav [...]
    python src/voices.py enrol PEOPLE --store people.npz
    python src/voices.py identify x.wav [...] --store people.npz
    python src/voices.py forget NAME --store people.npz
    python src/voices.py calibrate PEOPLE mine.pt
    python src/voices.py embed FOLDER out.npz|out.parquet
    python src/voices.py export model.onnx [--check FOLDER]
    python src/voices.py who MEETING.wav --store people.npz [--rttm out.rttm]
    python src/voices.py demo

U clips, N samples, P people, E embedding size. Without
`--checkpoint` the encoder is the one that comes with the repository.

The encoder's calibration maps a cosine to a log likelihood ratio: above 0 the clips are
more likely to be of one person. It is a natural log, so 2.3 means ten times as likely.
Thresholds are set for a false-alarm rate; a false alarm is two people taken for one.
With P people enrolled, `identify` and `who` use the threshold for 1/P of that rate.
"""

import sys

if __name__ == "__main__":  # arguments are parsed before torch is loaded
    from errors import begin_program

    begin_program()
    from commands.parser import main

    sys.exit(main())

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from engine.devices import errors_of_gpu, usable_device
from exchange.nemo_files import load_any_model
from recognition.inputs import Sound, as_list, load_sound, with_names
from recognition.own_calibration import (
    calibrate_on,
    first_of_each,
    refuse_few_people,
)
from recognition.people import People
from recognition.sounds import (
    MIN_SECONDS,
    Clip,
    Spoken,
    VoiceError,
    listen_to,
    refuse_without_speech,
)
from recognition.turns import as_stretches, turns_in, windows_of
from recognition.verdicts import Candidate, Comparison, Identification, Threshold, Turn
from runs.speaker_model import SpeakerModel, embed_recordings
from speech.audio import AudioError
from speech.examination import centred
from speech.samples import Samples
from verification.scoring import Calibration, unit

RELEASED = Path(__file__).parents[1] / "init" / "titanet-s.pt"
WAY_OUT = '--device cpu, in Python with device="cpu"'
NUM_NEAREST = 3  # people that an identification names
OWN_RECORDINGS = "own recordings"  # key of a user's calibration, beside "trained"
SECONDS_IN_MEMORY = 600.0  # of sounds held at once; the last sound may exceed it
# The parameters of the front end that a vector depends on.
FRONT_END_KEYS = ("sample_rate", "window_size", "hop_size", "n_fft", "num_mels")
FRONT_END_KEYS += ("preemphasis", "normalization")
Label = TypeVar("Label")


class Voices:
    """A speaker model in use.

    A sound is the path of an audio file, its content as bytes, the file opened for
    bytes, or (samples, rate): an array or tensor [N], [C, N] or [N, C], int16 or
    floating point in [-1, 1], and its rate in Hz. Samples [N] without a rate are taken
    for samples at `sample_rate`; nothing tells if they have another, and verdicts are
    then wrong. Where several sounds are expected, one counts as a list of it.

    `channel` chooses one of each file,
    counted from 0. Methods raise `VoiceError` for a sound that cannot be used. What is
    doubtful in one stands in `warnings` of their results; those of `enrol`, `who`,
    `calibrate` and `embed` have none, so these call `warn` with each line.
    """

    def __init__(
        self, model: SpeakerModel, name: str = "", channel: int | None = None
    ) -> None:
        self.model, self.name, self.channel = model.eval(), name, channel
        front_end = model.config.front_end
        self.sample_rate = front_end.sample_rate  # Hz
        self.min_seconds = max(MIN_SECONDS, front_end.min_seconds)
        self.warn: Callable[[str], object] = warnings.warn

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = RELEASED,
        channel: int | None = None,
        device: str = "auto",
    ) -> "Voices":
        """Load a run, checkpoint or `.nemo` file.

        `device` is cpu, cuda or mps; auto is the fastest available. Raises
        `DeviceError` for a GPU that is full or that torch has no kernels for.
        """
        path = Path(checkpoint)
        model = load_any_model(path, torch.device("cpu"))
        chosen = usable_device(device, model.config.model, WAY_OUT)
        with errors_of_gpu(WAY_OUT):
            return cls(model.to(chosen), path.name, channel)

    @property
    def calibration(self) -> Calibration | None:
        """The map from cosines to log likelihood ratios; the user's own comes first."""
        calibrations = self.model.backend.calibrations
        return calibrations.get(OWN_RECORDINGS, calibrations.get("trained"))

    @property
    def threshold(self) -> Threshold | None:
        """The threshold that calibration chose, and where it comes from."""
        calibration = self.calibration
        if calibration is None:
            return None
        rate = self.model.config.evaluation.false_alarm_rate
        origin = self._origin(calibration)
        return Threshold(calibration.threshold, calibration.strict, rate, origin)

    def _origin(self, calibration: Calibration) -> str:
        if calibration.num_people is not None:
            return f"your own recordings of {calibration.num_people} people"
        corpora: dict[str, list[str]] = {}  # by split
        for name in self.model.backend.calibrated_on:
            split, _, label = name.partition("/")
            corpus = label or self.model.config.dataset.name
            corpora.setdefault(split, []).append(corpus)
        origins = [f"{s} speakers of {', '.join(c)}" for s, c in corpora.items()]
        return " and ".join(origins) or "trials that it does not name"

    def listen(self, sounds: Sequence[Sound]) -> list[Clip]:
        """Return each sound as a clip: its vector, how much speech it holds, and what
        makes a verdict on it less sure."""
        spoken = (self.read(name, sound) for name, sound in with_names(sounds))
        labelled = ((_unheard(one), one.heard(self.min_seconds)) for one in spoken)
        return [
            replace(clip, vector=vector)
            for clip, vector in self.embed_labelled(labelled)
        ]

    def _listen_to_speech(self, sounds: Sequence[Sound]) -> list[Clip]:
        """Return clips as `listen` does, and warn of what is doubtful; raise
        `VoiceError` for a clip without speech."""
        clips = self.listen(sounds)
        refuse_without_speech(clips)
        for line in itertools.chain(*(clip.warnings for clip in clips)):
            self.warn(line)
        return clips

    def compare(self, first: Sound, second: Sound) -> Comparison:
        """Return whether two sounds are of one person."""
        return self.compare_clips(*self.listen([first, second]))

    def compare_clips(self, first: Clip, second: Clip) -> Comparison:
        """Return whether two clips are of one person; without speech in both there is
        no verdict."""
        cosine = llr = None
        if first.speech and second.speech:
            cosine = float(first.vector.astype(np.float64) @ second.vector)
        if cosine is not None and self.calibration is not None:
            shorter = min(first.speech, second.speech)
            llr = float(self.calibration.llrs(np.float64(cosine), shorter))
        return Comparison(
            first.name,
            second.name,
            cosine,
            llr,
            self.threshold,
            (first.speech, second.speech),
            # a clip compared with itself gives its warnings once
            tuple(dict.fromkeys(first.warnings + second.warnings)),
        )

    def enrol(
        self, sounds: Mapping[str, Sequence[Sound]], people: People | None = None
    ) -> People:
        """Return `people` with these sounds added, by name; raise `VoiceError` if
        `people` were enrolled with another model."""
        enrolled = self._nobody() if people is None else self._checked(people)
        for name, sounds_of_person in sounds.items():
            enrolled = enrolled.with_clips(
                name, self._listen_to_speech(sounds_of_person)
            )
        return enrolled

    def _nobody(self) -> People:
        texts, numbers = np.empty(0, "U1"), np.empty(0)
        vectors = np.empty((0, self.model.encoder.embedding_size), np.float32)
        rows = (texts, texts, texts, numbers, vectors)
        return People(self.name, self.digest, self._front_end(), *rows)

    def _checked(self, people: People) -> People:
        if people.digest != self.digest:
            raise VoiceError(
                f"expected people enrolled with {self.name} ({self.digest[:8]}), got "
                f"those of {people.model} ({people.digest[:8]}); vectors of two models "
                "cannot be compared"
            )
        size, expected = people.vectors.shape[1], self.model.encoder.embedding_size
        if size != expected:
            raise VoiceError(f"expected people's vectors [U, {expected}], got {size}")
        return people

    def disagreements(self, people: People, names: Sequence[str]) -> list[str]:
        """Return a line for each clip of these people whose log likelihood ratio with
        the person's other clips is below 0; return none without a calibration."""
        lines = []
        for name in names if self.calibration is not None else ():
            rows = np.flatnonzero(people.names == name)
            if len(rows) < 2:
                continue
            vectors = people.vectors[rows].astype(np.float64)
            others = unit(vectors.sum(0) - vectors)
            seconds = people.seconds[rows]
            shorter = np.minimum(seconds, seconds.sum() - seconds)
            llrs = self.calibration.llrs((others * vectors).sum(1), shorter)
            lines += [
                f"{name}: {people.clips[row]} does not sound like the person's other "
                f"clips, log likelihood ratio {llr:+.1f}"
                for row, llr in zip(rows, llrs, strict=True)
                if llr < 0
            ]
        return lines

    def identify(self, sound: Sound, people: People) -> Identification:
        """Return which enrolled person speaks in a sound, if any."""
        return self.identify_clip(self.listen([sound])[0], people)

    def identify_clip(self, clip: Clip, people: People) -> Identification:
        """Return which enrolled person speaks in a clip, if any; nobody does without
        speech. Raises `VoiceError` without people or without a calibration."""
        names, centroids, threshold = self._candidates(people)
        cosines = centroids @ clip.vector
        shorter = np.minimum(clip.speech, people.speech())
        llrs = self.calibration.llrs(cosines, shorter)
        order = np.argsort(-llrs, kind="stable")[:NUM_NEAREST].tolist()
        if not clip.speech:
            order = []
        nearest = tuple(
            Candidate(names[i], float(cosines[i]), float(llrs[i])) for i in order
        )
        known = nearest and nearest[0].llr >= threshold.llr
        return Identification(
            clip.name,
            nearest[0].name if known else None,
            nearest,
            len(names),
            threshold,
            clip.speech,
            clip.warnings,
        )

    def _candidates(
        self, people: People
    ) -> tuple[list[str], NDArray[np.float64], Threshold]:
        """Return names [P], mean directions [P, E] and the threshold for P people."""
        names, centroids = self._checked(people).centroids()
        if not names:
            raise VoiceError("expected enrolled people, got none")
        threshold = self.threshold
        if threshold is None:
            raise VoiceError(
                f"{self.name}: expected a calibrated model, got one without a "
                'threshold, which cannot say "unknown"; run `calibrate` first'
            )
        return names, centroids, threshold.among(len(names))

    def who(self, sound: Sound, people: People) -> list[Turn]:
        """Return when each enrolled person speaks, as turns in order of time.

        Windows last 1.5 s, so turns below a second are lost. Where two people speak at
        once, a turn names one of them or nobody. Raises `VoiceError` as `identify`
        does.
        """
        names, centroids, threshold = self._candidates(people)
        spoken = self.read(*with_names([sound])[0])
        for line in spoken.warnings:
            self.warn(line)
        stretches = as_stretches(spoken.stretches)
        windows = [
            windows_of(stretch, len(spoken.samples), self.sample_rate, self.min_seconds)
            for stretch in stretches
        ]
        heard = (
            centred(spoken.samples[window]) for window in itertools.chain(*windows)
        )
        vectors = self.embed_samples(heard).astype(np.float64)
        ends = np.cumsum([len(of_stretch) for of_stretch in windows], dtype=int)
        turns = []
        # `np.split` also returns what follows the last end, which is nothing.
        for stretch, of_stretch in zip(
            stretches, np.split(vectors, ends), strict=False
        ):
            turns += turns_in(
                stretch, of_stretch, names, centroids, self.calibration, threshold.llr
            )
        return turns

    def calibrate(self, sounds: Mapping[str, Sequence[Sound]]) -> Calibration:
        """Calibrate on these people, and use the result from now on.

        The fit is drawn to the encoder's own calibration, if it has one. Rates are
        cross-validated. A recording that a person has twice counts once. Raises
        `VoiceError` for too few people, for a recording of two, and for recordings that
        are not sorted by person.
        """
        sounds = {name: as_list(several) for name, several in sounds.items()}
        speakers = np.repeat(list(sounds), [*map(len, sounds.values())])
        refuse_few_people(speakers)
        clips = self._listen_to_speech([*itertools.chain(*sounds.values())])
        kept = first_of_each(clips, speakers)
        for clip in itertools.compress(clips, ~kept):
            self.warn(f"{clip.name}: this person has the recording twice, counted once")
        clips, speakers = list(itertools.compress(clips, kept)), speakers[kept]
        refuse_few_people(speakers)
        vectors = torch.from_numpy(self._as_rows([clip.vector for clip in clips]))
        backend = self.model.backend
        calibration = calibrate_on(
            vectors,
            speakers,
            [clip.speech for clip in clips],
            self.model.config.evaluation.false_alarm_rate,
            backend.calibrations.get("trained"),
        )
        cohort = backend.cohort
        if not len(cohort):  # a model from NeMo has none, but a checkpoint needs one
            means = [vectors[speakers == name].mean(0) for name in sounds]
            cohort = F.normalize(torch.stack(means))
        calibrations = {**backend.calibrations, OWN_RECORDINGS: calibration}
        self.model.backend = replace(backend, cohort=cohort, calibrations=calibrations)
        return calibration

    def embed(self, sounds: Sequence[Sound]) -> NDArray[np.float32]:
        """Return a vector of length 1 for each sound, [U, E]; raise `VoiceError` for
        one without speech."""
        return self._as_rows([clip.vector for clip in self._listen_to_speech(sounds)])

    def embed_samples(self, recordings: Iterable[Samples]) -> NDArray[np.float32]:
        """Return a vector of length 1 for the samples [N] of each recording, [U, E]."""
        labelled = ((None, samples) for samples in recordings)
        return self._as_rows([vector for _, vector in self.embed_labelled(labelled)])

    def _as_rows(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        size = self.model.encoder.embedding_size
        return np.array(vectors, np.float32).reshape(-1, size)

    def embed_labelled(
        self, labelled: Iterable[tuple[Label, Samples]]
    ) -> Iterator[tuple[Label, NDArray[np.float32]]]:
        """Yield each label with the vector [E] of its samples [N], in order; hold only
        about `SECONDS_IN_MEMORY` of samples at once."""
        limit = SECONDS_IN_MEMORY * self.sample_rate
        for group in _groups(labelled, limit):
            labels, recordings = zip(*group, strict=True)
            with errors_of_gpu(WAY_OUT):
                vectors = unit(embed_recordings(self.model, recordings).numpy())
            yield from zip(labels, vectors, strict=True)

    def read(self, name: str, sound: Sound) -> Spoken:
        """Return a sound as int16 samples [N] at `sample_rate`, where it holds speech,
        and what is doubtful in it; raise `VoiceError` with its name if it cannot be
        used."""
        rate = self.sample_rate
        try:
            recording = load_sound(sound, rate, self.min_seconds, self.channel)
            return listen_to(name, recording, rate)
        except AudioError as error:
            raise VoiceError(f"{name}: {error}") from None

    @cached_property
    def digest(self) -> str:
        """The digest of all that a vector depends on: front end, encoder and centre."""
        digest = hashlib.sha256(self._front_end().encode())
        if (centre := self.model.backend.centre) is not None:
            digest.update(centre.numpy().tobytes())
        for module in (self.model.front_end, self.model.encoder):
            for name, tensor in module.state_dict().items():
                digest.update(f"{name} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _front_end(self) -> str:
        parameters = self.model.config.front_end
        return json.dumps({key: getattr(parameters, key) for key in FRONT_END_KEYS})


def _unheard(spoken: Spoken) -> Clip:
    """Return a clip that has no vector yet."""
    vector = np.empty(0, np.float32)
    measures = spoken.seconds, spoken.speech, spoken.digest
    return Clip(spoken.name, vector, *measures, spoken.warnings)


def _groups(
    labelled: Iterable[tuple[Label, Samples]], limit: float
) -> Iterator[list[tuple[Label, Samples]]]:
    """Group recordings in order; a group ends when it has at least `limit` samples."""
    group: list[tuple[Label, Samples]] = []
    for recording in labelled:
        group.append(recording)
        if sum(len(samples) for _, samples in group) >= limit:
            yield group
            group = []
    if group:
        yield group
