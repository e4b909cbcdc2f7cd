"""The commands of `voices.py`, a function each: options in, output and files out.

`calibrate` finds a threshold for a user's own recordings and writes it into a copy of
the encoder. With `--checkpoint mine.pt`, that threshold replaces the encoder's own.
"""

import itertools
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from commands.folder import embed_folder
from engine.files import atomic_write, file_digest, locked
from recognition.people import audio_below, composed, load_people, read_people
from recognition.sounds import NO_SPEECH, VoiceError, refuse_without_speech
from recognition.vectors import refuse_format
from recognition.verdicts import Comparison, Identification, as_rttm
from reports.tables import FEW_SPEAKERS
from runs.checkpoints import save_checkpoint
from speech.audio import lacks_decoder
from speech.duplicates import doubtful_names
from speech.packs import FULL_SCALE
from speech.synthetic import SyntheticUtterance
from voices import RELEASED, Voices

ONNX_CHECK_SECONDS = 60.0  # of speech, on which ONNX is compared with torch
MAX_WARNINGS = 20  # printed, about sounds
FEW_FALSE_ALARMS = 10  # if fewer are expected, their measured rate is rough


def _load_voices(options: Namespace) -> Voices:
    voices = Voices.load(
        options.checkpoint or RELEASED, options.channel, options.device
    )
    voices.warn = _Warnings(is_silent=getattr(options, "json", False))
    return voices


class _Warnings:
    """Keeps lines about doubtful sounds, and prints the first unless it is silent."""

    def __init__(self, is_silent: bool) -> None:
        self.lines, self.is_silent = [], is_silent

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.is_silent or len(self.lines) > MAX_WARNINGS + 1:
            return
        if len(self.lines) > MAX_WARNINGS:
            line = "there are more, which are not shown"
        tqdm.write(f"warning: {line}", file=sys.stderr)


def compare(options: Namespace) -> None:
    """Print a verdict on each pair of recordings."""
    if len(options.sounds) < 2:
        raise VoiceError(f"expected two files or more, got {len(options.sounds)}")
    voices = _load_voices(options)
    clips = voices.listen(options.sounds)
    pairs = itertools.combinations(clips, 2)
    compared = [voices.compare_clips(*pair) for pair in pairs]
    unjudged = all(comparison.verdict is None for comparison in compared)
    if options.json or not unjudged:
        _print(compared, options.json)
    if unjudged:
        refuse_without_speech(clips)


def _decodable(sounds: dict[str, list[Path]], voices: Voices) -> dict[str, list[Path]]:
    """Leave out files that only ffmpeg would read, if it is missing and the person has
    others, and warn of them."""
    left = {}
    for name, files in sounds.items():
        left[name] = [file for file in files if not lacks_decoder(file)] or files
        for file in files:
            if file not in left[name]:
                voices.warn(f"{file}: left out, since ffmpeg is not on the path")
    return left


def _refuse_target(path: Path | None) -> None:
    """Raise `VoiceError` before the work if no file can be written to a path."""
    if path is not None and (os.path.isdir(path) or not os.path.isdir(path.parent)):
        raise VoiceError(f"{path}: expected the name of a file in a folder that exists")


def _alone_with(store: Path) -> AbstractContextManager[None]:
    """Return the lock of the folder that a store lies in, behind its links."""
    return locked(Path(os.path.realpath(store)).parent)


def enrol(options: Namespace) -> None:
    """Add people to a store, which is made if it is missing."""
    _refuse_target(options.store)
    sounds = read_people(options.people)
    with _alone_with(options.store):
        enrolled = load_people(options.store) if options.store.exists() else None
        voices = _load_voices(options)
        sounds = _decodable(sounds, voices)
        people = voices.enrol(sounds, enrolled)
        people.save(options.store)
    for line in voices.disagreements(people, list(sounds)):
        voices.warn(line)
    before = 0 if enrolled is None else len(enrolled.names)
    counts = {
        "people": len(np.unique(people.names)),
        "clips": len(people.names),
        "new": len(people.names) - before,
    }
    line = "{people} people, {clips} clips, {new} of them new".format(**counts)
    _print_with_warnings(voices, options.json, f"{options.store}: {line}", **counts)


def identify(options: Namespace) -> None:
    """Print which enrolled person speaks in each recording."""
    people = load_people(options.store)
    voices = _load_voices(options)
    clips = voices.listen(options.sounds)
    _print([voices.identify_clip(clip, people) for clip in clips], options.json)


def _print(results: Sequence[Comparison | Identification], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_as_dict(result) for result in results], indent=2))
        return
    for warning in dict.fromkeys(w for result in results for w in result.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    for result in results:
        print(result)


def _print_with_warnings(
    voices: Voices, as_json: bool, text: str, **figures: Any
) -> None:
    """Print a text whose warnings were printed before it, or both as JSON."""
    if as_json:
        text = json.dumps(figures | {"warnings": voices.warn.lines}, indent=2)
    print(text, flush=True)


def _as_dict(result: Comparison | Identification) -> dict[str, Any]:
    """Return a result's fields and its properties."""
    attributes = vars(type(result)).items()
    derived = [key for key, value in attributes if isinstance(value, property)]
    return asdict(result) | {key: getattr(result, key) for key in derived}


def forget(options: Namespace) -> None:
    """Remove a person from a store."""
    with _alone_with(options.store):
        people = load_people(options.store)
        left = people.without(composed(options.name))
        left.save(options.store)
    print(
        f"{options.store}: {len(people.names) - len(left.names)} clips forgotten, "
        f"{len(np.unique(left.names))} people left"
    )


def who(options: Namespace) -> None:
    """Print who speaks when; write the turns as RTTM and as a picture if asked to."""
    picture = options.picture
    if picture is not None and picture.suffix != ".png":
        raise VoiceError(f"{picture}: expected a file named .png")
    _refuse_target(options.rttm)
    _refuse_target(picture)
    people = load_people(options.store)
    voices = _load_voices(options)
    turns = voices.who(options.sound, people)
    text = "\n".join(map(str, turns)) or NO_SPEECH
    _print_with_warnings(voices, options.json, text, turns=[*map(asdict, turns)])
    if options.rttm:
        rttm = as_rttm(turns, options.sound.stem, people.names.tolist())
        with atomic_write(options.rttm) as file:
            file.write(rttm.encode(errors="surrogateescape"))
    if picture:
        from reports.figures import draw_turns  # loads matplotlib

        figure = draw_turns([(t.begin, t.end, t.name) for t in turns])
        with atomic_write(picture) as file:
            figure.savefig(file)


def calibrate(options: Namespace) -> None:
    """Write a copy of the encoder with a threshold for these people."""
    if options.target.exists():
        raise VoiceError(f"{options.target}: expected a new file, this one exists")
    _refuse_target(options.target)
    sounds = read_people(options.people)
    voices = _load_voices(options)
    sounds = _decodable(sounds, voices)
    for line in doubtful_names(sounds):
        voices.warn(line)
    calibration = voices.calibrate(sounds)
    save_checkpoint(options.target, voices.model)
    # Copies count once; copies with other bytes are rare and only make these rough.
    counts = [len(set(map(file_digest, files))) for files in sounds.values()]
    num_targets = sum(math.comb(count, 2) for count in counts)
    num_non_targets = math.comb(sum(counts), 2) - num_targets
    rate = voices.threshold.false_alarm_rate
    miss, false_alarm = (
        f"{name} {100 * measured:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        for name, measured, (low, high) in (
            ("misses", calibration.miss, calibration.miss_interval),
            ("false alarms", calibration.false_alarm, calibration.false_alarm_interval),
        )
    )
    lines = [
        f"{options.target}: threshold {calibration.threshold:+.1f} for "
        f"{100 * rate:g} % false alarms, found on {len(counts)} people, "
        f"{num_targets} pairs of one person and {num_non_targets} of two",
        f"measured on people who were held out: {miss}, {false_alarm}",
    ]
    if len(counts) < FEW_SPEAKERS:
        lines.append(
            f"fewer than {FEW_SPEAKERS} people: the intervals are rough, and the "
            "threshold rests on the encoder's own calibration too, if it has one"
        )
    if rate * num_non_targets < FEW_FALSE_ALARMS:
        lines.append(
            f"{num_non_targets} pairs of two people are few for a rate of "
            f"{100 * rate:g} %: the threshold is rough"
        )
    figures = asdict(calibration)
    _print_with_warnings(voices, options.json, "\n".join(lines), **figures)


def embed(options: Namespace) -> None:
    """Write the vectors of all recordings in a folder."""
    folder, out = options.folder, options.out
    refuse_format(out)
    _refuse_target(out)
    files = audio_below(folder)
    voices = _load_voices(options)
    line = embed_folder(voices, folder, files, out)
    _print_with_warnings(voices, options.json, line, summary=line)


def export(options: Namespace) -> None:
    """Write the encoder as ONNX, and print how well it agrees with torch."""
    from exchange.onnx_files import save_onnx

    _refuse_target(options.out)
    voices = _load_voices(options)
    rate, speech = voices.sample_rate, []
    if options.check is None:
        seconds = ONNX_CHECK_SECONDS
        voice = SyntheticUtterance(speaker=0, index=0, seconds=seconds, seed=0)
        speech = [voice.render(rate)]
    else:
        for file in audio_below(options.check):
            samples = voices.read(str(file), file).samples
            speech.append(samples[: round(ONNX_CHECK_SECONDS * rate)])
            if sum(map(len, speech)) > ONNX_CHECK_SECONDS * rate:
                break
    waveform = torch.from_numpy(np.concatenate(speech)) / FULL_SCALE
    agreement = save_onnx(options.out, voices.model, voices.digest, waveform)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    print(f"against torch: {agreement}")


def demo(options: Namespace) -> None:
    """Serve the page in the browser."""
    from commands.page import serve

    serve(_load_voices(options), options.host)


COMMANDS = {
    command.__name__: command
    for command in (
        compare,
        enrol,
        identify,
        who,
        forget,
        calibrate,
        demo,
        embed,
        export,
    )
}
