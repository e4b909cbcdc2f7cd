"""Whose voice is this? Compare recordings, and find enrolled people again.

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

U clips, N samples, E embedding size. A sound is an audio file or samples. Without
`--checkpoint` the encoder is the one that comes with the repository. The encoder's
calibration maps a cosine to a log likelihood ratio: above 0 the clips are more likely
one person's. It is a natural log, so 2.3 is ten to one. Thresholds are set for a
false-alarm rate; a false alarm is two people taken for one.

`calibrate` finds a threshold for your own recordings and writes it into a copy of the
encoder, beside the encoder's own: `--checkpoint mine.pt` then decides by it. `embed`
writes a row for each recording: path, begin and end in seconds, vector. A recording of
more than two minutes has a row for each one-minute window. Run again, `embed` resumes
where it stopped.

`who` says who of the enrolled speaks when, or that somebody unknown does. It listens to
windows of 1.5 s, so turns below a second are lost, and it does not take overlapping
speech apart: of two who speak at once it names one, or none.

With P enrolled people a stranger has P chances of being taken for one of them, so
`identify` and `who` use the threshold for 1/P of the false-alarm rate.
"""

import argparse
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from dataset import UtteranceBatches, windows
from engine.files import atomic_write
from errors import UserError
from exchange.nemo_files import load_any_model
from exchange.onnx_files import save_onnx
from recognition.people import People, checked_name, load_people, read_people, unit
from recognition.sounds import (
    MIN_PEAK,
    MIN_SECONDS,
    Clip,
    Sound,
    VoiceError,
    as_int16,
    faults_of,
    speech_stretches,
    with_names,
)
from recognition.vectors import load_vectors, no_vectors, refuse_format, save_vectors
from recognition.verdicts import (
    Candidate,
    Comparison,
    Identification,
    Threshold,
    Turn,
    as_rttm,
)
from reports.figures import draw_turns
from reports.tables import FEW_SPEAKERS
from runs.checkpoints import save_checkpoint
from runs.speaker_model import SpeakerModel, embed
from speech.audio import AudioError, load_recording
from speech.folders import EXTENSIONS, audio_files
from speech.packs import FULL_SCALE, Entry, Pack
from speech.synthetic import SyntheticUtterance
from verification.calibration import calibrate
from verification.metrics import bootstrap_rates, rates_at
from verification.scoring import Backend, Calibration, cosine_scores
from verification.trials import make_trials

RELEASED = Path(__file__).parents[1] / "init" / "titanet-s.pt"
NUM_NEAREST = 3
WINDOW, HOP = 1.5, 0.75  # seconds, in which `who` listens
PAUSE = 1.0  # seconds; a shorter pause does not end a stretch of speech
OWN = "own recordings"  # a calibration's name, beside those of the training
MIN_PEOPLE = 4  # to calibrate on; two of them to find a threshold, two to measure it
MAX_TRIALS = 10**6
NUM_RESAMPLES = 1000
EMBEDDED_AT_ONCE = 64  # files
SAVED_EVERY = 60.0  # seconds
HELD = 600.0  # seconds of sounds in memory; the last sound may exceed it
CHECKED = 60.0  # seconds of speech on which ONNX is compared with torch


class Voices:
    """A speaker model put to use.

    Sounds are audio files of any rate and format, or arrays [N] at `sample_rate`,
    either int16 or floating point in [-1, 1].
    """

    def __init__(self, model: SpeakerModel, name: str = "") -> None:
        self.model, self.name = model.eval(), name
        front_end = model.config.front_end
        self.sample_rate = front_end.sample_rate  # Hz
        self.min_seconds = max(MIN_SECONDS, front_end.min_seconds)

    @classmethod
    def load(cls, checkpoint: str | Path = RELEASED) -> "Voices":
        """The model of a run, checkpoint or `.nemo` file, on a GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = Path(checkpoint)
        return cls(load_any_model(path, device), path.name)

    @property
    def calibration(self) -> Calibration | None:
        """From cosines to log likelihood ratios; one's own, if there is one."""
        calibrations = self.model.backend.calibrations
        return calibrations.get(OWN, calibrations.get("trained"))

    @property
    def threshold(self) -> Threshold | None:
        """That of the calibration."""
        calibration, config = self.calibration, self.model.config
        if calibration is None:
            return None
        people = calibration.num_people
        corpora: dict[str, list[str]] = {}  # by split
        for name in self.model.backend.calibrated_on:
            split, _, label = name.partition("/")
            corpora.setdefault(split, []).append(label or config.dataset.name)
        origins = [
            f"{s} speakers of {', '.join(names)}" for s, names in corpora.items()
        ]
        if people is not None:
            origins = [f"your own recordings of {people} people"]
        return Threshold(
            calibration.threshold,
            calibration.strict,
            config.evaluation.false_alarm_rate,
            " and ".join(origins) or "trials that it does not name",
        )

    def embed(self, sounds: Sequence[Sound]) -> NDArray[np.float32]:
        """A vector of length 1 for each sound, [U, E]; raise `VoiceError` for a sound
        that cannot be used."""
        return self._vectors(self._samples(*one)[0] for one in with_names(sounds))

    def listen(self, sounds: Sequence[Sound]) -> list[Clip]:
        """Vectors of sounds, how much speech they hold, and what is wrong with them;
        raise `VoiceError` for a sound that cannot be used."""
        rest = []  # of each clip, all but its name and vector
        named = with_names(sounds)

        def heard() -> Iterator[NDArray[np.int16]]:
            for name, sound in named:
                samples, cut = self._samples(name, sound)
                seconds = len(samples) / self.sample_rate
                stretches = speech_stretches(samples, self.sample_rate)
                speech = sum(end - begin for begin, end in stretches)
                faults = [cut] if cut else []
                faults += faults_of(samples, self.sample_rate, seconds, speech)
                labelled = tuple(f"{name}: {fault}" for fault in faults)
                digest = hashlib.sha256(samples.tobytes()).hexdigest()
                rest.append((seconds, speech, digest, labelled))
                yield samples

        vectors = self._vectors(heard())
        return [
            Clip(name, vector, *of_clip)
            for (name, _), vector, of_clip in zip(named, vectors, rest, strict=True)
        ]

    def compare(self, first: Sound, second: Sound) -> Comparison:
        """Whether two sounds are of one person."""
        return self.compare_clips(*self.listen([first, second]))

    def compare_clips(self, first: Clip, second: Clip) -> Comparison:
        """Whether two clips are of one person."""
        cosine = float(first.vector.astype(np.float64) @ second.vector)
        llr = None
        if self.calibration is not None:
            llr = float(self.calibration.llrs(np.float64(cosine)))
        return Comparison(
            first.name,
            second.name,
            cosine,
            llr,
            self.threshold,
            (first.speech, second.speech),
            # of a clip compared with itself once
            tuple(dict.fromkeys(first.warnings + second.warnings)),
        )

    def enrol(
        self, sounds: Mapping[str, Sequence[Sound]], people: People | None = None
    ) -> People:
        """People by their sounds, beside those who are enrolled already."""
        enrolled = self._nobody() if people is None else self._own(people)
        for name, of_person in sounds.items():
            enrolled = enrolled.with_clips(name, self.listen(of_person))
        return enrolled

    def identify(self, sound: Sound, people: People) -> Identification:
        """Which of the enrolled people a sound is of, if any."""
        return self.identify_clip(self.listen([sound])[0], people)

    def identify_clip(self, clip: Clip, people: People) -> Identification:
        """Which of the enrolled people a clip is of, if any; raise `VoiceError` without
        a calibration."""
        names, centroids, threshold = self._candidates(people)
        cosines = centroids @ clip.vector
        llrs = self.calibration.llrs(cosines)
        order = np.argsort(-llrs, kind="stable")[:NUM_NEAREST].tolist()
        nearest = tuple(
            Candidate(names[i], float(cosines[i]), float(llrs[i])) for i in order
        )
        known = nearest[0].llr >= threshold.llr
        return Identification(
            clip.name,
            nearest[0].name if known else None,
            nearest,
            len(names),
            threshold,
            clip.speech,
            clip.warnings,
        )

    def who(self, sound: Sound, people: People) -> list[Turn]:
        """Who of the enrolled people speaks when, in order of time.

        Each window of speech, smoothed with its neighbours, is assigned to the nearest
        person. Consecutive windows of one person form a turn, and the mean of its
        windows decides whether the speaker is that person or unknown. Raises what
        `identify` does.
        """
        names, centroids, threshold = self._candidates(people)
        (named,) = with_names([sound])
        samples, _ = self._samples(*named)
        seconds = len(samples) / self.sample_rate
        stretches = _joined(speech_stretches(samples, self.sample_rate))
        centres = [_window_centres(*stretch) for stretch in stretches]
        pieces = []
        for (begin, end), of_stretch in zip(stretches, centres, strict=True):
            size = max(min(WINDOW, end - begin), self.min_seconds)
            for centre in of_stretch:
                start = np.clip(centre - size / 2, 0, seconds - size)
                first = round(start * self.sample_rate)
                pieces.append(samples[first : first + round(size * self.sample_rate)])
        if not pieces:
            return []
        vectors = self._vectors(pieces).astype(np.float64)
        turns: list[Turn] = []
        for stretch, of_stretch, window_vectors in zip(
            stretches,
            centres,
            np.split(vectors, np.cumsum(list(map(len, centres)))[:-1]),
            strict=True,
        ):
            padded = np.pad(window_vectors, ((1, 1), (0, 0)))
            smoothed = padded[:-2] + padded[1:-1] + padded[2:]
            nearest = (smoothed @ centroids.T).argmax(1)
            changes = np.flatnonzero(np.diff(nearest)) + 1
            limits = [0, *changes.tolist(), len(window_vectors)]
            middles = (of_stretch[changes - 1] + of_stretch[changes]) / 2
            times = [stretch[0], *middles.tolist(), stretch[1]]
            for turn, (first, last) in enumerate(itertools.pairwise(limits)):
                person = nearest[first]
                mean = unit(window_vectors[first:last].sum(0, keepdims=True))[0]
                llr = float(self.calibration.llrs(mean @ centroids[person]))
                name = names[person] if llr >= threshold.llr else None
                begin, end = times[turn], times[turn + 1]
                if turn and name is None is turns[-1].name:  # unknown goes on
                    begin, llr = turns[-1].begin, max(llr, turns.pop().llr)
                turns.append(Turn(begin, end, name, llr))
        return turns

    def calibrate(self, sounds: Mapping[str, Sequence[Sound]]) -> Calibration:
        """Calibrate on these people, and use the result from now on.

        Its rates are cross-validated: each half of the people is tested at a threshold
        found on the other half. Raises `VoiceError` for too few people.
        """
        several = [name for name, of_person in sounds.items() if len(of_person) > 1]
        if len(several) < MIN_PEOPLE:
            raise VoiceError(
                f"expected at least {MIN_PEOPLE} people with two recordings or more, "
                f"got {len(several)}"
            )
        speakers = np.repeat(list(sounds), [len(files) for files in sounds.values()])
        vectors = torch.from_numpy(self.embed([*itertools.chain(*sounds.values())]))
        rate = self.model.config.evaluation.false_alarm_rate
        rng = np.random.default_rng(0)
        alone = [name for name in sounds if name not in several]
        dealt = [*rng.permutation(several), *rng.permutation(alone)]
        halves = [
            _scored(vectors, speakers, np.isin(speakers, dealt[start::2]))
            for start in (0, 1)
        ]
        accepted = []
        for (scores, *_), (others, targets, _) in (halves, halves[::-1]):
            fitted = calibrate([(others, targets)], rate)
            accepted.append(fitted.llrs(scores) >= fitted.threshold)
        accepted = np.concatenate(accepted)
        targets = np.concatenate([half[1] for half in halves])
        sides = np.concatenate([half[2] for half in halves], axis=1)
        miss, false_alarm = rates_at(1, accepted, targets)
        intervals = bootstrap_rates(accepted, targets, sides, NUM_RESAMPLES, seed=0)
        everybody = np.ones(len(speakers), bool)
        calibration = replace(
            calibrate([_scored(vectors, speakers, everybody)[:2]], rate),
            miss=miss,
            false_alarm=false_alarm,
            num_people=len(sounds),
            miss_interval=(intervals[0].low, intervals[0].high),
            false_alarm_interval=(intervals[1].low, intervals[1].high),
        )
        backend = self.model.backend
        if not len(backend.cohort):  # such as NeMo's models have none
            cohort = [vectors[speakers == name].mean(0) for name in sounds]
            backend = Backend(F.normalize(torch.stack(cohort)), {}, [])
        calibrations = {**backend.calibrations, OWN: calibration}
        self.model.backend = replace(backend, calibrations=calibrations)
        return calibration

    def disagreements(self, people: People, names: Sequence[str]) -> list[str]:
        """A line for each clip of these people whose log likelihood ratio with the
        person's other clips is below 0; none without a calibration."""
        lines = []
        for name in names if self.calibration is not None else ():
            rows = np.flatnonzero(people.names == name)
            vectors = people.vectors[rows].astype(np.float64)
            if len(rows) < 2:
                continue
            others = unit(vectors.sum(0) - vectors)
            llrs = self.calibration.llrs((others * vectors).sum(1))
            lines += [
                f"{name}: {people.clips[row]} does not sound like the person's other "
                f"clips, log likelihood ratio {llr:+.1f}"
                for row, llr in zip(rows, llrs, strict=True)
                if llr < 0
            ]
        return lines

    @cached_property
    def digest(self) -> str:
        """Of all that a vector depends on: the front end and the encoder."""
        digest = hashlib.sha256(self._front_end().encode())
        for module in (self.model.front_end, self.model.encoder):
            for name, tensor in module.state_dict().items():
                digest.update(f"{name} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _front_end(self) -> str:
        parameters = self.model.config.front_end
        keys = ("sample_rate", "window_size", "hop_size", "n_fft", "num_mels")
        keys += ("preemphasis", "normalization")
        return json.dumps({key: getattr(parameters, key) for key in keys})

    def _nobody(self) -> People:
        size = self.model.encoder.embedding_size
        texts, numbers = np.empty(0, "U1"), np.empty(0)
        vectors = np.empty((0, size), np.float32)
        rows = (texts, texts, texts, numbers, vectors)
        return People(self.name, self.digest, self._front_end(), *rows)

    def _candidates(
        self, people: People
    ) -> tuple[list[str], NDArray[np.float64], Threshold]:
        """Names and mean directions, and the threshold for so many people."""
        names, centroids = self._own(people).centroids()
        if not names:
            raise VoiceError("expected enrolled people, the store has none")
        threshold = self.threshold
        if threshold is None:
            raise VoiceError(
                f"{self.name}: expected a calibrated model, for without a threshold "
                "nobody is unknown"
            )
        return names, centroids, threshold.among(len(names))

    def _own(self, people: People) -> People:
        """The people, if this model heard them."""
        if people.digest != self.digest:
            raise VoiceError(
                f"expected people enrolled with {self.name} ({self.digest[:8]}), got "
                f"those of {people.model} ({people.digest[:8]}); vectors of two models "
                "do not compare"
            )
        return people

    def _samples(self, name: str, sound: Sound) -> tuple[NDArray[np.int16], str | None]:
        """int16 [N], and a warning if the file was cut short."""
        try:
            if isinstance(sound, np.ndarray):
                samples, warning = as_int16(sound), None
                if len(samples) < round(self.min_seconds * self.sample_rate):
                    seconds = len(samples) / self.sample_rate
                    raise AudioError(
                        f"expected at least {self.min_seconds:g} s, "
                        f"found {seconds:.4f} s"
                    )
            else:
                recording = load_recording(
                    Path(sound), self.sample_rate, self.min_seconds
                )
                samples, warning = recording.samples, recording.warning
            if max(samples.max(), -int(samples.min())) < MIN_PEAK * FULL_SCALE:
                raise AudioError("expected speech, found silence")
        except AudioError as error:
            raise VoiceError(f"{name}: {error}") from None
        return samples, warning

    def _vectors(self, sounds: Iterable[NDArray[np.int16]]) -> NDArray[np.float32]:
        """[U, E], a few sounds at a time: those read later are not held yet."""
        size = HELD * self.sample_rate
        vectors = [np.empty((0, self.model.encoder.embedding_size), np.float32)]
        vectors += [self._few_vectors(few) for few in _few(sounds, size)]
        return np.concatenate(vectors)

    def _few_vectors(self, samples: Sequence[NDArray[np.int16]]) -> NDArray[np.float32]:
        lengths = [len(one) for one in samples]
        offsets = [0, *itertools.accumulate(lengths)][:-1]
        entries = [
            Entry("", "", None, None, None, offset, length)
            for offset, length in zip(offsets, lengths, strict=True)
        ]
        joined = torch.from_numpy(np.concatenate(samples))
        packed = Pack(joined, entries, self.sample_rate, warnings=[], digests={})
        seconds = self.model.config.evaluation.batch_seconds
        batches = UtteranceBatches(
            packed, range(len(entries)), seconds, self.model.device
        )
        return unit(embed(self.model, batches).numpy())


def _few(
    sounds: Iterable[NDArray[np.int16]], size: float
) -> Iterator[list[NDArray[np.int16]]]:
    """Group sounds in order; a group ends when it has at least `size` samples."""
    few: list[NDArray[np.int16]] = []
    for samples in sounds:
        few.append(samples)
        if sum(map(len, few)) >= size:
            yield few
            few = []
    if few:
        yield few


def _scored(
    vectors: torch.Tensor, speakers: NDArray[np.str_], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Cosines [K] of the pairs of chosen clips, whether they are targets [K], and the
    numbers of their speakers [2, K]."""
    _, codes = np.unique(speakers, return_inverse=True)
    trials = make_trials(speakers[chosen], MAX_TRIALS, seed=0)
    sides = np.stack([codes[chosen][trials.enrolment], codes[chosen][trials.test]])
    return cosine_scores(vectors[chosen], trials), trials.targets, sides


def _joined(stretches: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches with short pauses between them as one."""
    joined: list[tuple[float, float]] = []
    for begin, end in stretches:
        if joined and begin - joined[-1][1] < PAUSE:
            begin, _ = joined.pop()
        joined.append((begin, end))
    return joined


def _window_centres(begin: float, end: float) -> NDArray[np.float64]:
    """Centres in seconds of the windows that cover a stretch."""
    size = min(WINDOW, end - begin)
    count = 1 + math.ceil((end - begin - size) / HOP)
    return np.linspace(begin + size / 2, end - size / 2, count)


def _print(results: Sequence[Any], as_json: bool) -> None:
    """Results as sentences after what is wrong with their clips, or as JSON."""
    if as_json:
        print(json.dumps([_as_dict(result) for result in results], indent=2))
        return
    for warning in dict.fromkeys(w for result in results for w in result.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    for result in results:
        print(result)


def _as_dict(result: Comparison | Identification) -> dict[str, Any]:
    kind = type(result)
    derived = [key for key, value in vars(kind).items() if isinstance(value, property)]
    return asdict(result) | {key: getattr(result, key) for key in derived}


def _compare(options: argparse.Namespace) -> None:
    if len(options.sounds) < 2:
        raise VoiceError(f"expected two files or more, got {len(options.sounds)}")
    voices = Voices.load(options.checkpoint)
    pairs = itertools.combinations(voices.listen(options.sounds), 2)
    _print([voices.compare_clips(*pair) for pair in pairs], options.json)


def _enrol(options: argparse.Namespace) -> None:
    sounds = read_people(options.people)
    enrolled = load_people(options.store) if options.store.exists() else None
    voices = Voices.load(options.checkpoint)
    people = voices.enrol(sounds, enrolled)
    people.save(options.store)
    for line in voices.disagreements(people, list(sounds)):
        print(f"warning: {line}", file=sys.stderr)
    before = 0 if enrolled is None else len(enrolled.names)
    print(
        f"{options.store}: {len(np.unique(people.names))} people, {len(people.names)} "
        f"clips, {len(people.names) - before} of them new"
    )


def _identify(options: argparse.Namespace) -> None:
    people = load_people(options.store)
    voices = Voices.load(options.checkpoint)
    clips = voices.listen(options.sounds)
    _print([voices.identify_clip(clip, people) for clip in clips], options.json)


def _forget(options: argparse.Namespace) -> None:
    people = load_people(options.store)
    left = people.without(checked_name(options.name))
    left.save(options.store)
    print(
        f"{options.store}: {len(people.names) - len(left.names)} clips forgotten, "
        f"{len(np.unique(left.names))} people left"
    )


def _who(options: argparse.Namespace) -> None:
    picture = options.picture
    if picture is not None and picture.suffix != ".png":
        raise VoiceError(f"{picture}: expected a file named .png")
    people = load_people(options.store)
    voices = Voices.load(options.checkpoint)
    turns = voices.who(options.sound, people)
    if options.rttm:
        with atomic_write(options.rttm) as file:
            file.write(as_rttm(turns, options.sound.stem).encode())
    if picture:
        figure = draw_turns([(t.begin, t.end, t.name) for t in turns])
        with atomic_write(picture) as file:
            figure.savefig(file)
    print("\n".join(map(str, turns)) or "no speech was found")


def _calibrate(options: argparse.Namespace) -> None:
    if options.target.exists():
        raise VoiceError(f"{options.target}: expected a new file, this one exists")
    sounds = read_people(options.people)
    voices = Voices.load(options.checkpoint)
    calibration = voices.calibrate(sounds)
    save_checkpoint(options.target, voices.model)
    counts = [len(files) for files in sounds.values()]
    num_targets = sum(math.comb(count, 2) for count in counts)
    num_others = math.comb(sum(counts), 2) - num_targets
    rate = voices.threshold.false_alarm_rate
    miss, false_alarm = (
        f"{name} {100 * measured:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        for name, measured, (low, high) in (
            ("misses", calibration.miss, calibration.miss_interval),
            ("false alarms", calibration.false_alarm, calibration.false_alarm_interval),
        )
    )
    print(
        f"{options.target}: threshold {calibration.threshold:+.1f} for "
        f"{100 * rate:g} % false alarms, found on {len(counts)} people, "
        f"{num_targets} pairs of one person and {num_others} of two\n"
        f"measured on people that it was not found on: {miss}, {false_alarm}"
    )
    if len(counts) < FEW_SPEAKERS:
        print(f"fewer than {FEW_SPEAKERS} people: the intervals are rough")
    if rate * num_others < 10:
        print(f"{num_others} pairs of two people are few to find {100 * rate:g} % of")


def _audio_below(folder: Path) -> list[Path]:
    try:
        files = sorted(audio_files(folder))
    except OSError as error:
        raise VoiceError(f"{folder}: cannot be read: {error.strerror}") from None
    if not files:
        raise VoiceError(
            f"{folder}: expected {', '.join(EXTENSIONS)} files, found none"
        )
    return files


def _embed(options: argparse.Namespace) -> None:
    folder, out = options.folder, options.out
    refuse_format(out)
    files = _audio_below(folder)
    voices = Voices.load(options.checkpoint)
    size = voices.model.encoder.embedding_size
    rows = no_vectors(voices.name, voices.digest, size)
    if out.exists():
        rows = load_vectors(out)
        if rows["digest"] != voices.digest:
            raise VoiceError(
                f"{out}: expected vectors of {voices.name}, got those of "
                f"{rows['model']}; name another file"
            )
    finished = set(rows["path"])
    names = {file: str(file.relative_to(folder)) for file in files}
    left = [file for file in files if names[file] not in finished]
    parts, saved, num_skipped = [rows], time.monotonic(), 0
    with tqdm(total=len(left), desc="recordings", unit="file", leave=False) as progress:
        for start in range(0, len(left), EMBEDDED_AT_ONCE):
            chosen = left[start : start + EMBEDDED_AT_ONCE]
            part, faults = _embed_files(voices, {file: names[file] for file in chosen})
            parts.append(part)
            num_skipped += len(faults)
            for fault in faults:
                progress.write(f"skipped {fault}", file=sys.stderr)
            progress.update(len(chosen))
            if time.monotonic() - saved > SAVED_EVERY:
                parts = [save_vectors(out, parts)]
                saved = time.monotonic()
    if num_skipped == len(files):
        raise VoiceError(f"{folder}: expected speech, none of its files can be used")
    rows = save_vectors(out, parts)
    skipped = f", {num_skipped} files skipped" if num_skipped else ""
    print(
        f"{out}: {len(rows['path'])} vectors of {len(set(rows['path']))} recordings, "
        f"{len(left) - num_skipped} recordings new{skipped}"
    )


def _export(options: argparse.Namespace) -> None:
    voices = Voices.load(options.checkpoint)
    rate, speech = voices.sample_rate, []
    if options.check is None:
        voice = SyntheticUtterance(speaker=0, index=0, seconds=CHECKED, seed=0)
        speech = [voice.render(rate)]
    else:
        for file in _audio_below(options.check):
            speech.append(voices._samples(str(file), file)[0])
            if sum(map(len, speech)) > CHECKED * rate:
                break
    waveform = torch.from_numpy(np.concatenate(speech)) / FULL_SCALE
    agreement = save_onnx(options.out, voices.model, voices.digest, waveform)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    print(f"against torch: {agreement}")


def _embed_files(
    voices: Voices, names: Mapping[Path, str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of some files, and a line for each that cannot be used."""
    rows, faults, rate = [], [], voices.sample_rate

    def pieces() -> Iterator[NDArray[np.int16]]:
        for file, name in names.items():
            try:
                samples, _ = voices._samples(str(file), file)
            except VoiceError as error:
                faults.append(str(error))
                continue
            whole = Entry(name, "", None, None, None, 0, len(samples))
            for begin, end in windows(whole, rate):
                rows.append((name, begin / rate, end / rate))
                yield samples[begin:end]

    vectors = voices._vectors(pieces())
    if not rows:
        return no_vectors(voices.name, voices.digest, vectors.shape[1]), faults
    columns = map(np.array, zip(*rows, strict=True))
    part = dict(zip(("path", "begin", "end"), columns, strict=True))
    return part | {"vector": vectors}, faults


def _demo(options: argparse.Namespace) -> None:
    from commands.page import serve  # stands on this module

    serve(options.checkpoint, options.host)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="src/voices.py", description="Whose voice is this?"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any, about: str, *shared: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=run)
        if "checkpoint" in shared:
            command.add_argument(
                "--checkpoint",
                type=Path,
                default=RELEASED,
                metavar="RUN_OR_FILE",
                help="a run, checkpoint or .nemo file instead of init/titanet-s.pt",
            )
        if "store" in shared:
            command.add_argument(
                "--store", type=Path, required=True, metavar="people.npz"
            )
        if "json" in shared:
            command.add_argument("--json", action="store_true", help="for programs")
        return command

    command = add(
        "compare", _compare, "are recordings of one person?", "checkpoint", "json"
    )
    command.add_argument("sounds", nargs="+", metavar="a.wav")
    people = "a folder with a folder for each person, or NAME=file,file"
    command = add("enrol", _enrol, "learn voices", "checkpoint", "store")
    command.add_argument("people", nargs="+", metavar="PEOPLE", help=people)
    command = add(
        "identify", _identify, "whose voice is this?", "checkpoint", "store", "json"
    )
    command.add_argument("sounds", nargs="+", metavar="x.wav")
    command = add(
        "who", _who, "who of the enrolled speaks when?", "checkpoint", "store"
    )
    command.add_argument("sound", type=Path, metavar="MEETING.wav")
    command.add_argument("--rttm", type=Path, metavar="out.rttm", help="turns, RTTM")
    command.add_argument("--picture", type=Path, metavar="out.png", help="turns, drawn")
    command = add("forget", _forget, "remove a person", "store")
    command.add_argument("name", metavar="NAME")
    command = add(
        "calibrate", _calibrate, "find a threshold for own recordings", "checkpoint"
    )
    command.add_argument("people", nargs="+", metavar="PEOPLE", help=people)
    command.add_argument(
        "target", type=Path, metavar="mine.pt", help="the encoder and its new threshold"
    )
    command = add("demo", _demo, "a page in the browser", "checkpoint")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command = add("embed", _embed, "vectors of all recordings", "checkpoint")
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("out", type=Path, metavar="out.npz|out.parquet")
    command = add("export", _export, "the encoder as ONNX", "checkpoint")
    command.add_argument("out", type=Path, metavar="model.onnx")
    command.add_argument(
        "--check",
        type=Path,
        metavar="FOLDER",
        help="compare with torch on its recordings, not on a synthetic voice",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for a mistake of the user's, and 0 whatever
    the verdict."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
