"""Comparing recordings, and finding enrolled people: decisions, stores, bad input."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import voices as using
from conftest import RATE, REPOSITORY, said, write
from recognition.people import load_people, read_people
from recognition.sounds import Clip, VoiceError
from recognition.verdicts import Threshold, Turn
from runs.checkpoints import save_checkpoint
from runs.speaker_model import build_model, embed
from verification.calibration import calibrate
from verification.scoring import Backend, Calibration
from voices import Voices, main

CPU = torch.device("cpu")
CALIBRATION = Calibration(40.0, -36.0, 1.5, 0.1, 0.01, 3.0)


@pytest.fixture
def people(tmp_path) -> Path:
    """Folders of Ann, Ben and Cy with three recordings each."""
    for number, name in enumerate(("ann", "ben", "cy")):
        for index in range(3):
            write(tmp_path / "people" / name / f"{index}.wav", said(number, index))
    return tmp_path / "people"


@pytest.fixture
def checkpoint(tmp_path, miniature) -> Callable[..., Path]:
    """A file of an untrained model, with a calibration unless told otherwise."""

    def build(*overrides: str, calibration=CALIBRATION):
        model = build_model(miniature(*overrides), ["a", "b"], {"": "digest"}, CPU)
        if calibration is not None:
            calibrations = {"trained": calibration}
            cohort = torch.eye(model.encoder.embedding_size)[:2]
            model.backend = Backend(cohort, calibrations, ["development"])
        save_checkpoint(tmp_path / "model.pt", model)
        return tmp_path / "model.pt"

    return build


@pytest.fixture
def voices(checkpoint) -> Voices:
    return Voices.load(checkpoint())


@pytest.fixture
def command(checkpoint, capsys) -> Callable[..., tuple[int, str, str]]:
    """src/voices.py with the model; its exit status, output and errors."""
    model = checkpoint()

    def run(name, *arguments):
        ours = [] if name == "forget" else ["--checkpoint", str(model)]
        status = main([name, *map(str, arguments), *ours])
        return status, *capsys.readouterr()

    return run


def refused(found: tuple[int, str, str], *words: str) -> None:
    """Exit status 2 and one line that has these words."""
    status, out, err = found
    lines = [line.rpartition("\r")[2] for line in err.split("\n")]  # bars are erased
    lines = [line for line in lines if line.strip()]
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


# Comparing


def test_files_are_compared_as_the_model_hears_them(voices, tmp_path):
    paths = [write(tmp_path / f"{n}.wav", said(n, 0)) for n in (0, 1)]
    with torch.inference_mode():
        vectors = [
            voices.model(torch.from_numpy(said(n, 0))[None] / 32768) for n in (0, 1)
        ]
    cosine = torch.cosine_similarity(*vectors).item()
    found = voices.compare(*paths)
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert found.llr == pytest.approx(40 * found.cosine - 36)
    assert found.speech == pytest.approx([3, 3], abs=1)
    assert found.warnings == ()
    assert voices.compare(paths[0], paths[0]).cosine == pytest.approx(1)
    assert voices.compare(*map(str, paths)) == found
    arrays = voices.compare(said(0, 0), said(1, 0) / 32768)
    assert (arrays.cosine, arrays.first) == (found.cosine, "array 0")


def test_a_verdict_is_by_the_calibration(checkpoint):
    calibration = Calibration(0.0, 3.5, 1.5, 0.1, 0.01, 3.0)
    found = Voices.load(checkpoint(calibration=calibration)).compare(
        said(0, 0), said(1, 0)
    )
    origin = "development speakers of synthetic"
    assert (found.llr, found.threshold) == (3.5, Threshold(1.5, 3.0, 0.01, origin))
    assert (found.first, found.second) == ("array 0", "array 1")
    assert found.verdict == "the same person"


@pytest.mark.parametrize(
    ("calibrated_on", "origin"),
    [
        (["development"], "development speakers of synthetic"),
        (["development/a", "development/b"], "development speakers of a, b"),
        (["test"], "test speakers of synthetic"),
        ([], "trials that it does not name"),
    ],
)
def test_a_threshold_says_where_it_comes_from(voices, calibrated_on, origin):
    backend = replace(voices.model.backend, calibrated_on=calibrated_on)
    voices.model.backend = backend
    assert voices.threshold.origin == origin


def test_no_verdict_without_a_calibration(checkpoint):
    voices = Voices.load(checkpoint(calibration=None))
    found = voices.compare(said(0, 0), said(1, 0))
    assert found.llr is found.same_speaker is found.threshold is None
    assert "no verdict" in str(found)
    with pytest.raises(VoiceError, match="expected a calibrated model"):
        voices.identify(said(0, 0), voices.enrol({"ann": [said(0, 1)]}))


def test_calibration_without_a_strict_threshold(checkpoint):
    calibration = Calibration(0.0, 9.0, 1.5, 0.1, 0.01)
    found = Voices.load(checkpoint(calibration=calibration)).compare(
        said(0, 0), said(1, 0)
    )
    assert found.verdict == "probably the same person"


def test_every_pair_has_a_line(command, people):
    files = sorted(people.glob("*/0.wav"))
    status, out, _ = command("compare", *files)
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        f"{files[i]} and {files[j]}" for i, j in ((0, 1), (0, 2), (1, 2))
    ]


def test_comparisons_for_programs(command, people, voices):
    files = [people / "ann" / "0.wav", people / "ben" / "0.wav"]
    status, out, _ = command("compare", *files, "--json")
    (found,) = json.loads(out)
    expected = voices.compare(*files)
    assert status == 0
    assert found["cosine"] == pytest.approx(expected.cosine)
    assert found["verdict"] == expected.verdict
    assert found["same_speaker"] == expected.same_speaker
    assert found["threshold"] == asdict(expected.threshold)


def test_the_released_encoder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert using.RELEASED.parents[1] == Path(using.__file__).parents[1]
    assert using.RELEASED.name == "titanet-s.pt"


def test_long_sound_has_the_mean_of_its_windows(voices, monkeypatch):
    import dataset

    sound = np.concatenate([said(0, 0), said(1, 0)])
    with torch.inference_mode():
        halves = [said(0, 0), said(1, 0)]
        size = min(map(len, halves))
        vectors = [
            voices.model(torch.from_numpy(part.copy())[None] / 32768)
            for part in (sound[:size], sound[-size:])
        ]
    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 1.1 * size / RATE)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", size / RATE)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", len(sound) / RATE)
    mean = sum(vectors)[0].numpy()
    assert voices.embed([sound])[0] == pytest.approx(
        mean / np.linalg.norm(mean), abs=1e-5
    )


# What is wrong with a clip


def warned(voices: Voices, sound: np.ndarray) -> str:
    return "; ".join(voices.listen([sound])[0].warnings)


def test_no_warning_without_a_cause(voices):
    assert warned(voices, said(0, 0)) == ""


def test_warnings(voices):
    speech = said(0, 0)
    assert "s of speech, below 2 s" in warned(voices, speech[: 3 * RATE // 2])
    loud = (speech.astype(np.int32) * 20).clip(-32768, 32767).astype(np.int16)
    assert "clipped" in warned(voices, loud)
    pause = np.random.default_rng(0).integers(-9, 9, 5 * RATE).astype(np.int16)
    long = np.concatenate([speech, pause])
    assert "long pauses" in warned(voices, long)
    hiss = np.random.default_rng(0).integers(-500, 500, 3 * RATE).astype(np.int16)
    assert "no speech was found" in warned(voices, hiss)


def test_sound_of_8_khz_is_noticed(voices, tmp_path):
    path = write(tmp_path / "a.wav", said(0, 0, 8000), 8000)
    assert "narrow band" in "; ".join(voices.listen([path])[0].warnings)


def test_cut_file_is_noticed(voices, tmp_path):
    path = write(tmp_path / "a.wav", said(0, 0))
    path.write_bytes(path.read_bytes()[:-RATE])
    (warning,) = voices.listen([path])[0].warnings
    assert warning.startswith(f"{path}: cut short: ")


def test_warnings_stand_before_the_verdicts(command, people, tmp_path):
    short = write(tmp_path / "short.wav", said(0, 0)[: RATE // 2])
    status, out, err = command("compare", short, people / "ann" / "0.wav")
    assert status == 0
    assert f"warning: {short}: 0." in err
    assert out.startswith(f"{short} and ")


# Enrolling and identifying


def enrolled(voices: Voices, count: int = 2):
    return voices.enrol(
        {
            name: [said(number, index) for index in range(count)]
            for number, name in enumerate(("ann", "ben", "cy"))
        }
    )


def test_a_person_is_the_mean_direction_of_its_clips(voices):
    vectors = voices.embed([said(0, 0), said(0, 1)]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    names, centroids = enrolled(voices).centroids()
    assert names == ["ann", "ben", "cy"]
    mean = vectors.sum(0)
    assert centroids[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_identification_by_hand(voices):
    people = enrolled(voices)
    (clip,) = voices.listen([said(1, 3)])
    _, centroids = people.centroids()
    cosines = centroids @ clip.vector
    best = int(cosines.argmax())
    names = ["ann", "ben", "cy"]
    for threshold, known in ((-9.0, True), (40 * cosines[best] - 36 - 0.3, False)):
        calibration = Calibration(40.0, -36.0, threshold, 0.1, 0.01, threshold + 1)
        voices.model.backend.calibrations["trained"] = calibration
        found = voices.identify_clip(clip, people)
        assert found.nearest[0].name == names[best]
        assert found.nearest[0].llr == pytest.approx(40 * cosines[best] - 36)
        assert sorted(c.name for c in found.nearest) == names
        first, second, _ = sorted(cosines)[::-1]
        assert found.margin == pytest.approx(40 * (first - second))
        # three people are three chances of a false alarm
        assert found.threshold.llr == pytest.approx(threshold + math.log10(3))
        assert found.name == (names[best] if known else None)
        assert str(found).startswith(f"{clip.name}: {names[best] if known else 'unk'}")


def test_one_person_has_no_margin(voices):
    people = voices.enrol({"ann": [said(0, 0)]})
    found = voices.identify(said(0, 0), people)
    assert (found.name, found.margin) == ("ann", None)
    assert found.threshold == Threshold(
        1.5, 3, 0.01, "development speakers of synthetic"
    )
    assert "margin" not in str(found)


def test_store_survives_reading_and_writing(voices, tmp_path):
    people = enrolled(voices)
    people.save(tmp_path / "p.npz")
    read = load_people(tmp_path / "p.npz")
    for key, value in vars(people).items():
        assert np.array_equal(value, getattr(read, key)), key
    assert json.loads(read.front_end)["sample_rate"] == RATE
    assert voices.identify(said(0, 3), read) == voices.identify(said(0, 3), people)


def test_enrolling_more_adds_and_a_recording_counts_once(voices):
    one = voices.enrol({"ann": [said(0, 0)]})
    two = voices.enrol({"ann": [said(0, 0), said(0, 1)], "ben": [said(1, 0)]}, one)
    assert two.names.tolist() == ["ann", "ann", "ben"]
    together = voices.enrol({"ann": [said(0, 0), said(0, 1)]}).centroids()[1]
    assert two.centroids()[1][0] == pytest.approx(together[0], abs=1e-5)
    left = two.without("ann")
    assert left.names.tolist() == ["ben"]
    with pytest.raises(VoiceError, match="ann: expected one of the enrolled"):
        left.without("ann")


def test_clips_that_do_not_agree_are_named(checkpoint):
    def clip(name: str, *places: int) -> Clip:
        vector = np.zeros(24, np.float32)
        vector[list(places)] = len(places) ** -0.5
        return Clip(name, vector, 3.0, 3.0, name, ())

    voices = Voices.load(checkpoint())
    people = voices.enrol({"cy": [said(2, 1)]})
    agreeing = [clip("a", 0, 1, 2, 3), clip("b", 0, 1, 2), clip("c", 0, 1, 2, 3, 4)]
    calibration = Calibration(10.0, -6.0, 1.5, 0.1, 0.01)  # 0 at a cosine of 0.6
    voices.model.backend.calibrations["trained"] = calibration
    people = people.with_clips("ann", agreeing)
    assert voices.disagreements(people, ["ann", "cy"]) == []
    people = people.with_clips("ann", [clip("d", 9)])
    assert voices.disagreements(people, ["ann", "cy"]) == [
        "ann: d does not sound like the person's other clips, log likelihood ratio -6.0"
    ]
    voices.model.backend = Backend.unfitted(24)
    assert voices.disagreements(people, ["ann"]) == []


def test_people_from_the_command_line(command, people, tmp_path):
    store = tmp_path / "people.npz"
    status, out, _ = command("enrol", people, "--store", store)
    assert (status, out) == (0, f"{store}: 3 people, 9 clips, 9 of them new\n")
    extra = write(tmp_path / "d.wav", said(3, 0)), write(tmp_path / "e.wav", said(3, 1))
    more = f"Dé={extra[0]},{extra[1]}", f"ann={write(tmp_path / 'f.wav', said(0, 3))}"
    status, out, _ = command("enrol", *more, "--store", store)
    assert (status, out) == (0, f"{store}: 4 people, 12 clips, 3 of them new\n")
    status, out, _ = command("identify", extra[0], "--store", store)
    assert status == 0
    assert out.startswith(f"{extra[0]}: ")
    status, out, _ = command("identify", *extra, "--store", store, "--json")
    found = json.loads(out)
    assert [one["clip"] for one in found] == list(map(str, extra))
    assert found[0]["num_people"] == 4
    assert len(found[0]["nearest"]) == 3
    assert found[0]["margin"] >= 0
    status, out, _ = command("forget", "Dé", "--store", store)
    assert (status, out) == (0, f"{store}: 2 clips forgotten, 3 people left\n")
    assert "Dé" not in load_people(store).names


def test_names_are_compared_as_they_look(people):
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    with pytest.raises(VoiceError, match="expected a name of one person, got two"):
        read_people([f"{composed}=a.wav", f"{decomposed}=b.wav"])
    assert list(read_people([f"{decomposed}=a.wav"])) == [composed]


# Who speaks when


def sounds_like(pieces) -> np.ndarray:
    """The share of each level of thousands in each piece, as a vector of length 1."""
    vectors = np.stack([np.bincount(p // 1000, minlength=24)[:24] for p in pieces])
    return (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float32)


@pytest.fixture
def levels(voices, monkeypatch) -> Callable[..., list[Turn]]:
    """Turns of a made recording, (level, seconds) after (level, seconds), where ann has
    level 1, ben has level 2 and 0 is silence."""
    people = voices.enrol({"cy": [said(2, 1)]}).without("cy")
    for level, name in ((1, "ann"), (2, "ben")):
        (vector,) = sounds_like([np.full(9, 1000 * level)])
        people = people.with_clips(name, [Clip(name, vector, 3.0, 3.0, name, ())])
    calibration = Calibration(10.0, -6.0, 1.5, 0.1, 0.01)
    voices.model.backend.calibrations["trained"] = calibration
    monkeypatch.setattr(voices, "_vectors", sounds_like)

    def turns(*parts: tuple[int, float]) -> list[Turn]:
        ends = np.cumsum([seconds for _, seconds in parts]).tolist()
        spoken = [
            (end - seconds, end)
            for (level, seconds), end in zip(parts, ends, strict=True)
            if level
        ]
        monkeypatch.setattr(using, "speech_stretches", lambda *_: spoken)
        levels = [np.full(round(s * RATE), 1000 * n, np.int16) for n, s in parts]
        return voices.who(np.concatenate(levels), people)

    return turns


def test_turns_of_two_people_and_a_stranger(levels):
    found = levels((1, 6), (2, 6), (0, 3), (9, 4), (0, 2), (1, 5))
    assert [turn.name for turn in found] == ["ann", "ben", None, "ann"]
    times = [(turn.begin, turn.end) for turn in found]
    expected = [(0, 6), (6, 12), (15, 19), (21, 26)]
    for one, other in zip(times, expected, strict=True):
        assert one == pytest.approx(other, abs=using.HOP)
    assert found[0].begin == 0
    assert found[-1].end == pytest.approx(26)
    assert found[0].end == found[1].begin


def test_a_short_pause_ends_no_turn(levels):
    ((begin, end),) = [(t.begin, t.end) for t in levels((1, 3), (0, 0.5), (1, 3))]
    assert (begin, end) == pytest.approx((0, 6.5))
    assert len(levels((1, 3), (0, 1.5), (1, 3))) == 2


def test_a_word_is_a_turn_too(levels):
    (turn,) = levels((0, 2), (2, 0.4), (0, 2))
    assert (turn.begin, turn.end, turn.name) == (2, pytest.approx(2.4), "ben")
    (turn,) = levels((2, 0.1), (0, 2))  # a window of 0.3 s reaches beyond it
    assert turn.begin == 0


def test_windows_cover_a_stretch():
    for seconds in (0.2, 1.5, 1.6, 7.0):
        centres = using._window_centres(3.0, 3.0 + seconds)
        size = min(using.WINDOW, seconds)
        assert centres[0] - size / 2 == pytest.approx(3)
        assert centres[-1] + size / 2 == pytest.approx(3 + seconds)
        assert (np.diff(centres) <= using.HOP + 1e-9).all()


def test_who_from_the_command_line(command, people, tmp_path):
    store, rttm, picture = (tmp_path / n for n in ("p.npz", "m.rttm", "m.png"))
    meeting = write(tmp_path / "m.wav", np.concatenate([said(0, 3), said(1, 3)]))
    command("enrol", people, "--store", store)
    wanted = [meeting, "--store", store, "--rttm", rttm, "--picture", picture]
    status, out, _ = command("who", *wanted)
    assert status == 0
    lines = rttm.read_text().splitlines()
    assert len(out.splitlines()) == len(lines) > 0
    assert all(line.startswith("SPEAKER m 1 ") for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")
    hiss = np.random.default_rng(0).integers(-500, 500, 3 * RATE).astype(np.int16)
    quiet = write(tmp_path / "quiet.wav", hiss)
    status, out, _ = command("who", quiet, *wanted[1:])
    assert (status, out) == (0, "no speech was found\n")
    assert rttm.read_text() == ""
    refused(command("who", tmp_path / "none.wav", *wanted[1:]), "expected a file")


# Calibrating on own recordings


def four_people(count: int = 4) -> dict[str, list[np.ndarray]]:
    return {
        f"person {speaker}": [said(speaker, index) for index in range(count)]
        for speaker in range(4)
    }


def test_own_threshold_is_that_of_all_pairs_and_rates_are_of_others(voices):
    sounds = four_people()
    own = voices.calibrate(sounds)
    assert voices.calibration is own
    assert own.num_people == 4
    speakers = np.repeat(list(sounds), 4)
    vectors = voices.embed([sound for files in sounds.values() for sound in files])
    first, second = np.triu_indices(16, 1)
    vectors = vectors.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # beyond float32's digits
    cosines = (vectors[first] * vectors[second]).sum(1)
    targets = speakers[first] == speakers[second]
    expected = calibrate([(cosines, targets)], 0.01)
    assert own.scale == pytest.approx(expected.scale, rel=1e-3)
    assert own.threshold == pytest.approx(expected.threshold, abs=1e-2)
    for rate, (low, high) in (
        (own.miss, own.miss_interval),
        (own.false_alarm, own.false_alarm_interval),
    ):
        assert 0 <= low <= rate <= high <= 1
    assert voices.threshold.origin == "your own recordings of 4 people"
    assert voices.model.backend.calibrations["trained"] == CALIBRATION


def test_rates_are_measured_on_people_the_threshold_was_not_found_on(
    voices, monkeypatch
):
    found = []

    def noted(parts, rate):
        ((scores, targets),) = parts
        found.append((len(scores), int(targets.sum())))
        return calibrate(parts, rate)

    monkeypatch.setattr(using, "calibrate", noted)
    sounds = four_people() | {"once": [said(0, 0)], "and again": [said(1, 0)]}
    voices.calibrate(sounds)
    half = (36, 12)  # pairs of 9 recordings of three people, one with a single one
    assert found == [half, half, (153, 24)]


def test_own_threshold_from_the_command_line(command, people, tmp_path, checkpoint):
    files = [write(tmp_path / f"d{index}.wav", said(3, index)) for index in range(3)]
    mine = tmp_path / "mine.pt"
    given = [people, f"dan={files[0]},{files[1]},{files[2]}", mine]
    status, out, _ = command("calibrate", *given)
    assert status == 0
    assert "found on 4 people, 12 pairs of one person and 54 of two" in out
    assert "measured on people that it was not found on: misses " in out
    assert "fewer than 20 people" in out
    assert "54 pairs of two people are few to find 1 % of" in out
    voices = Voices.load(mine)
    before = Voices.load(checkpoint())
    assert voices.digest == before.digest
    assert voices.calibration.num_people == 4
    assert voices.calibration.miss_interval is not None
    assert voices.model.backend.calibrations["trained"] == CALIBRATION
    assert "your own recordings of 4 people" in str(voices.compare(*files[:2]))
    content = mine.read_bytes()
    refused(command("calibrate", *given), f"{mine}: expected a new file")
    assert mine.read_bytes() == content


def test_a_model_without_a_backend_is_calibrated(checkpoint, tmp_path):
    voices = Voices.load(checkpoint(calibration=None))
    voices.calibrate(four_people(2))
    save_checkpoint(tmp_path / "mine.pt", voices.model)
    again = Voices.load(tmp_path / "mine.pt")
    assert again.calibration == voices.calibration
    assert again.model.backend.cohort.shape == (4, 24)
    assert again.compare(said(0, 0), said(0, 1)).llr is not None


def test_too_few_people_to_calibrate_on(command, people, tmp_path):
    found = command("calibrate", people, tmp_path / "mine.pt")
    refused(found, "expected at least 4 people with two recordings or more, got 3")
    assert not (tmp_path / "mine.pt").exists()


# Vectors of many recordings


def rows_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_vectors_of_a_folder(command, people, tmp_path, voices):
    (people / "ben" / "bad.wav").write_text("none")
    out = tmp_path / "out.npz"
    status, printed, err = command("embed", people, out)
    assert status == 0
    assert printed == (
        f"{out}: 9 vectors of 9 recordings, 9 recordings new, 1 files skipped\n"
    )
    assert f"skipped {people / 'ben' / 'bad.wav'}: not readable" in err
    rows = rows_of(out)
    files = sorted(set(people.glob("*/*.wav")) - {people / "ben" / "bad.wav"})
    assert rows["path"].tolist() == [str(f.relative_to(people)) for f in files]
    assert rows["begin"].tolist() == [0] * 9
    assert rows["end"].tolist() == [soundfile.info(f).duration for f in files]
    assert rows["vector"] == pytest.approx(voices.embed(files), abs=1e-5)
    assert (rows["model"], rows["digest"]) == ("model.pt", voices.digest)


def test_a_long_recording_has_a_row_for_each_window(
    command, tmp_path, monkeypatch, voices
):
    import dataset

    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 4.0)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", 2.0)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", 1.5)
    sound = np.concatenate([said(0, 0), said(1, 0)])[: 5 * RATE]
    write(tmp_path / "long" / "a.wav", sound)
    command("embed", tmp_path / "long", tmp_path / "out.npz")
    rows = rows_of(tmp_path / "out.npz")
    assert rows["begin"].tolist() == [0, 1.5, 3]
    assert rows["end"].tolist() == [2, 3.5, 5]
    parts = [sound[24_000 * n : 24_000 * n + 32_000] for n in range(3)]
    assert rows["vector"] == pytest.approx(voices.embed(parts), abs=1e-5)


def test_embedding_goes_on_where_it_was_stopped(command, people, tmp_path, monkeypatch):
    out, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    command("embed", people, whole)
    monkeypatch.setattr(using, "EMBEDDED_AT_ONCE", 2)
    monkeypatch.setattr(using, "SAVED_EVERY", -1.0)
    embed_files, embedded = using._embed_files, []

    def stopped(voices, names):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(list(names.values()))
        return embed_files(voices, names)

    monkeypatch.setattr(using, "_embed_files", stopped)
    with pytest.raises(KeyboardInterrupt):
        command("embed", people, out)
    assert len(rows_of(out)["path"]) == 4
    monkeypatch.setattr(using, "_embed_files", embed_files)
    status, printed, _ = command("embed", people, out)
    assert (status, "5 recordings new" in printed) == (0, True)
    rows, expected = rows_of(out), rows_of(whole)
    assert rows["path"].tolist() == expected["path"].tolist()
    assert rows["vector"] == pytest.approx(expected["vector"], abs=1e-5)
    status, printed, _ = command("embed", people, out)
    assert (status, " 0 recordings new" in printed) == (0, True)


def test_vectors_of_two_models_do_not_mix(command, checkpoint, people, tmp_path):
    out = tmp_path / "out.npz"
    command("embed", people, out)
    before = out.read_bytes()
    checkpoint("seed=2")
    refused(command("embed", people, out), f"{out}: expected vectors of model.pt")
    assert out.read_bytes() == before


def test_what_cannot_be_embedded(command, people, tmp_path):
    refused(command("embed", people, tmp_path / "out.txt"), "expected a file named")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.npz"
    refused(command("embed", tmp_path / "empty", out), "files, found none")
    refused(command("embed", tmp_path / "nothing", out), "cannot be read")
    (tmp_path / "empty" / "a.wav").write_text("none")
    status, _, err = command("embed", tmp_path / "empty", out)
    assert status == 2
    assert "error: " in err.splitlines()[-1]
    assert not out.exists()
    out.write_bytes(b"half")
    refused(command("embed", people, out), f"{out}: not a readable file of vectors")
    assert out.read_bytes() == b"half"


# torch.hub

HUB = """
import sys, types, torch
mine = sys.modules["models"] = types.ModuleType("models")
model = torch.hub.load(sys.argv[1], "titanet", source="local", checkpoint=sys.argv[2])
assert sys.modules["models"] is mine
assert not {"dataset", "losses", "checkpoints", "audio"} & set(sys.modules)
assert not any(path.endswith("src") for path in sys.path)
with torch.inference_mode():
    print(model(torch.ones(2, 16000)).shape, model(torch.ones(1, 4800)).shape)
"""


def test_torch_hub_loads_the_encoder_beside_other_modules(checkpoint, tmp_path):
    (tmp_path / "hub.py").write_text(HUB)
    words = [sys.executable, "hub.py", str(REPOSITORY), str(checkpoint())]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "torch.Size([2, 24]) torch.Size([1, 24])\n"


# Bad input: one line, and the store that was there is still there


BAD_SOUNDS = {
    "text": ("a.wav", lambda path: path.write_text("not audio"), "not readable"),
    "empty": ("a.wav", lambda path: path.write_bytes(b""), "a.wav"),
    "nothing": ("a.wav", lambda path: None, "expected a file, found none"),
    "folder": ("a.wav", lambda path: path.mkdir(), "expected a file"),
    "no samples": ("a.wav", lambda path: write(path, np.zeros(0)), "no samples"),
    "silence": ("a.wav", lambda path: write(path, np.zeros(RATE)), "silence"),
    "0.1 s": ("a.wav", lambda path: write(path), "at least 0.3 s, found 0.1000 s"),
    "NaN": (
        "a.wav",
        lambda path: write(path, np.full(RATE, np.nan), subtype="FLOAT"),
        "NaN",
    ),
}


@pytest.mark.parametrize("kind", BAD_SOUNDS)
@pytest.mark.parametrize("name", ["compare", "enrol", "identify", "who", "calibrate"])
def test_bad_sounds(command, people, tmp_path, kind, name):
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    before = store.read_bytes()
    file, spoil, words = BAD_SOUNDS[kind]
    spoil(tmp_path / file)
    arguments = {
        "compare": [people / "ann" / "0.wav", tmp_path / file],
        "enrol": [f"dan={tmp_path / file}", "--store", store],
        "identify": [tmp_path / file, "--store", store],
        "who": [tmp_path / file, "--store", store],
        "calibrate": [
            people,
            f"dan={people / 'ann' / '0.wav'},{tmp_path / file}",
            tmp_path / "mine.pt",
        ],
    }
    refused(command(name, *arguments[name]), str(tmp_path / file), words)
    assert store.read_bytes() == before
    assert not (tmp_path / "mine.pt").exists()


@pytest.mark.parametrize("kind", sorted({*BAD_SOUNDS} - {"nothing", "folder"}))
def test_bad_sounds_are_skipped_in_a_folder(command, people, tmp_path, kind):
    file, spoil, words = BAD_SOUNDS[kind]
    spoil(people / "ann" / file)
    status, out, err = command("embed", people, tmp_path / "out.npz")
    assert (status, "1 files skipped" in out) == (0, True)
    (line,) = [line for line in err.splitlines() if "skipped" in line]
    assert f"skipped {people / 'ann' / file}: " in line
    assert words in line


@pytest.mark.parametrize("name", ["embed", "export", "enrol", "calibrate"])
def test_a_folder_without_audio(command, tmp_path, name):
    empty = tmp_path / "people" / "ann"
    empty.mkdir(parents=True)
    (empty / "notes.txt").write_text("none")
    out = tmp_path / "out.npz"
    arguments = {
        "embed": [empty, out],
        "export": [out, "--check", empty],
        "enrol": [empty.parent, "--store", out],
        "calibrate": [empty.parent, out],
    }
    refused(command(name, *arguments[name]), f"{empty}: expected .wav", "found none")
    for word in map(str, (empty / "notes.txt", tmp_path / "nowhere")):
        given = [
            word if part in (empty, empty.parent) else part for part in arguments[name]
        ]
        refused(command(name, *given), word)
    assert not out.exists()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, RATE)), r"expected samples \[N\].* got float64 \[2, 16000\]"),
        (np.zeros(RATE, np.int32), "expected int16 or floating point, got int32"),
        (np.zeros(RATE, complex), "expected samples"),
        (np.full(RATE, np.nan), "found NaN"),
        (np.full(RATE, 300.0), r"expected samples in \[-1, 1\], got 300"),
        (np.zeros(RATE), "found silence"),
        (np.ones(100), "expected at least 0.3 s"),
        (np.ones(0), "expected at least 0.3 s"),
    ],
)
def test_bad_arrays(voices, samples, words):
    with pytest.raises(VoiceError, match=f"array 1: .*{words}"):
        voices.embed([said(0, 0), samples])


def test_a_file_too_short_for_the_front_end(checkpoint, tmp_path):
    coarse = "window_seconds=0.64", "hop_seconds=0.32", "n_fft=10240"
    crops = "model.titanet.crop_seconds=[2.0]"
    model = checkpoint(crops, *(f"front_end.{setting}" for setting in coarse))
    path = write(tmp_path / "a.wav", said(0, 0)[: RATE // 2])
    with pytest.raises(VoiceError, match=r"a\.wav: expected at least 0\.64 s"):
        Voices.load(model).compare(path, path)


@pytest.mark.parametrize("name", ["a/b", "a\\b", " ", "a\nb"])
def test_bad_names(command, people, tmp_path, name):
    store = tmp_path / "people.npz"
    found = command("enrol", f"{name}={people / 'ann' / '0.wav'}", "--store", store)
    refused(found, "expected a name of printable characters")
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["ann=PEOPLE/ann/0.wav", "ann=PEOPLE/ben/0.wav"],
            "ann: expected a name of one",
        ),
        (["PEOPLE", "ben=PEOPLE/ann/0.wav"], "ben: expected a name of one person"),
        (["PEOPLE/ann"], "expected a folder for each person, found none"),
        (["EMPTY"], "expected .wav"),
        (["PEOPLE/nobody"], "expected a folder of people or NAME=file,file"),
        (["dan="], "expected files such as dan=a.wav,b.wav"),
    ],
)
def test_bad_people(command, people, tmp_path, arguments, words):
    (tmp_path / "empty" / "dan").mkdir(parents=True)
    (tmp_path / "empty" / "dan" / "notes.txt").write_text("none")
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    before = store.read_bytes()
    given = [
        word.replace("PEOPLE", str(people)).replace("EMPTY", str(tmp_path / "empty"))
        for word in arguments
    ]
    refused(command("enrol", *given, "--store", store), words)
    assert store.read_bytes() == before


def spoiled_stores(content: bytes, tmp_path: Path) -> dict[str, bytes]:
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "pickled.npz", version=np.array([{}], object))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"people",
        "flipped": bytes(flipped),
        "other": (tmp_path / "other.npz").read_bytes(),
        "pickled": (tmp_path / "pickled.npz").read_bytes(),
    }


@pytest.mark.parametrize(
    "kind", ["half", "empty", "text", "flipped", "other", "pickled"]
)
def test_damaged_stores(command, people, tmp_path, kind):
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    spoiled = spoiled_stores(store.read_bytes(), tmp_path)[kind]
    store.write_bytes(spoiled)
    clip = people / "ann" / "0.wav"
    for arguments in (
        ["enrol", people],
        ["identify", clip],
        ["who", clip],
        ["forget", "ann"],
    ):
        found = command(*arguments, "--store", store)
        refused(found, str(store), "not a readable store of people")
        assert store.read_bytes() == spoiled


def test_store_of_another_version_or_missing(command, people, tmp_path):
    store = tmp_path / "people.npz"
    refused(
        command("identify", people / "ann" / "0.wav", "--store", store), "found none"
    )
    command("enrol", people, "--store", store)
    with np.load(store) as file:
        np.savez(store, **{**file, "version": 99})
    refused(command("forget", "ann", "--store", store), "version 1, got 99")


def test_store_with_rows_that_do_not_fit(command, people, tmp_path):
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    with np.load(store) as file:
        rows = dict(file)
    for key, value in (
        ("names", rows["names"][:-1]),
        ("vectors", rows["vectors"][0]),
        ("vectors", np.full_like(rows["vectors"], np.nan)),
        ("vectors", rows["names"]),
        ("names", rows["seconds"]),
    ):
        np.savez(store, **{**rows, key: value})
        refused(command("forget", "ann", "--store", store), "not a readable store")


def test_store_of_another_model(command, checkpoint, people, tmp_path):
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    before = store.read_bytes()
    checkpoint("seed=2")
    clip = people / "ann" / "0.wav"
    for arguments in (["enrol", people], ["identify", clip], ["who", clip]):
        found = command(*arguments, "--store", store)
        refused(
            found, "expected people enrolled with model.pt", "got those of model.pt"
        )
    assert store.read_bytes() == before


def test_another_calibration_is_the_same_model(checkpoint):
    one = Voices.load(checkpoint())
    other = Voices.load(checkpoint(calibration=None))
    assert one.digest == other.digest
    assert one.digest != Voices.load(checkpoint("front_end.hop_seconds=0.02")).digest


OUTPUTS = {
    "p.npz": ["enrol", "PEOPLE", "--store"],
    "out.npz": ["embed", "PEOPLE"],
    "out.parquet": ["embed", "PEOPLE"],
    "mine.pt": ["calibrate", "PEOPLE", "dan=PEOPLE/ann/0.wav,PEOPLE/ben/0.wav"],
    "m.rttm": ["who", "PEOPLE/ann/0.wav", "--store", "STORE", "--rttm"],
    "m.png": ["who", "PEOPLE/ann/0.wav", "--store", "STORE", "--picture"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_disk_that_is_full(command, people, tmp_path, monkeypatch, name):
    store, out, real_open = tmp_path / "people.npz", tmp_path / name, open
    command("enrol", people, "--store", store)
    words = [
        word.replace("PEOPLE", str(people)).replace("STORE", str(store))
        for word in OUTPUTS[name]
    ]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if name != "mine.pt":  # which must be a new file
        command(*words, out)
    before = out.read_bytes() if out.exists() else None

    def full_open(file, *arguments, **options):
        if str(file) == f"{out}.partial":
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", full_open)
    found = command(*words, out)
    refused(found, f"{out}: cannot be written", os.strerror(errno.ENOSPC))
    if name == "p.npz":
        found = command("forget", "ann", "--store", out)
        refused(found, f"{out}: cannot be written", os.strerror(errno.ENOSPC))
    assert (out.read_bytes() if out.exists() else None) == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_picture_of_another_format(command, people, tmp_path):
    store = tmp_path / "people.npz"
    command("enrol", people, "--store", store)
    wanted = [people / "ann" / "0.wav", "--store", store, "--picture"]
    refused(command("who", *wanted, tmp_path / "m.jpg"), "m.jpg: expected", ".png")
    assert not (tmp_path / "m.jpg").exists()


# Long recordings


def test_few_sounds_are_held_at_once(voices, monkeypatch):
    sounds = [said(speaker, index) for index in range(2) for speaker in range(4)]
    together, clips = voices.embed(sounds), voices.listen(sounds)
    embedded, counts = voices._few_vectors, []

    def counted(few):
        counts.append(len(few))
        return embedded(few)

    monkeypatch.setattr(voices, "_few_vectors", counted)
    monkeypatch.setattr(using, "HELD", 6.5)  # a sound has 2.6 to 3.4 s
    assert voices.embed(sounds) == pytest.approx(together, abs=1e-5)
    assert sum(counts) == 8
    assert max(counts) == 3
    for clip, again in zip(clips, voices.listen(sounds), strict=True):
        assert again.vector == pytest.approx(clip.vector, abs=1e-5)
        kept = ("name", "seconds", "speech", "digest", "warnings")
        assert [getattr(again, k) for k in kept] == [getattr(clip, k) for k in kept]


def test_one_file_is_no_pair(command, people):
    refused(command("compare", people / "ann" / "0.wav"), "expected two files or more")


def test_no_such_checkpoint(people, tmp_path, capsys):
    files = map(str, sorted(people.glob("*/0.wav")))
    status = main(["compare", *files, "--checkpoint", str(tmp_path / "none.pt")])
    refused((status, *capsys.readouterr()), "none.pt: expected a checkpoint")


def test_embedding_is_that_of_eval(voices):
    assert using.embed is embed


def test_vectors_as_parquet(checkpoint, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, out = tmp_path / "recordings", tmp_path / "out.parquet"
    for number in range(2):
        write(folder / f"{number}.wav", said(number, 0), RATE)
    arguments = ["embed", str(folder), str(out), "--checkpoint", str(checkpoint())]
    assert main(arguments) == 0
    write(folder / "2.wav", said(2, 0), RATE)
    assert main(arguments) == 0  # goes on where it was stopped
    assert "1 recordings new" in capsys.readouterr().out
    table = parquet.read_table(out)
    assert table["path"].to_pylist() == ["0.wav", "1.wav", "2.wav"]
    assert main([*arguments[:2], str(tmp_path / "out.npz"), *arguments[3:]]) == 0
    with np.load(tmp_path / "out.npz") as file:
        found = np.array(table["vector"].to_pylist())
        assert np.abs(found - file["vector"]).max() < 1e-5  # batched otherwise
        assert table["end"].to_pylist() == file["end"].tolist()
        assert table.schema.metadata[b"digest"].decode() == str(file["digest"])


@pytest.mark.parametrize("name", ["out.parquet", "out.npz", "out.csv"])
def test_file_that_is_no_vectors(checkpoint, tmp_path, capsys, name):
    pytest.importorskip("pyarrow")
    write(tmp_path / "recordings" / "a.wav", said(0, 0), RATE)
    (tmp_path / name).write_bytes(b"no vectors")
    folder, out = str(tmp_path / "recordings"), str(tmp_path / name)
    assert main(["embed", folder, out, "--checkpoint", str(checkpoint())]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert name in shown
    assert shown.count("\n") == 1
    assert (tmp_path / name).read_bytes() == b"no vectors"


def test_parquet_without_its_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["embed", str(tmp_path), str(tmp_path / "out.parquet")]) == 2
    assert "expected pyarrow, which is not installed" in capsys.readouterr().err
