"""Comparing recordings, recognising enrolled people, and own thresholds."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import dataset
import voices as module
from conftest import CALIBRATION, RATE, said, write
from recognition import own_calibration
from recognition.sounds import Clip, VoiceError
from recognition.verdicts import Threshold, Turn
from runs.checkpoints import save_checkpoint
from verification.calibration import calibrate
from verification.scoring import Backend, Calibration, unit
from voices import Voices

HISS = np.random.default_rng(0).integers(-500, 500, 3 * RATE).astype(np.int16)
ORIGIN = "development speakers of synthetic"


def enrolled(voices: Voices):
    return voices.enrol(
        {
            name: [said(number, index) for index in range(2)]
            for number, name in enumerate(("ann", "ben", "cy"))
        }
    )


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


@pytest.mark.parametrize(
    ("strict", "verdict"),
    [(3.0, "the same person"), (None, "probably the same person")],
)
def test_a_verdict_is_by_the_calibration(checkpoint, strict, verdict):
    calibration = Calibration(0.0, 3.5, 1.5, 0.1, 0.01, strict)
    voices = Voices.load(checkpoint(calibration=calibration))
    found = voices.compare(said(0, 0), said(1, 0))
    assert (found.llr, found.threshold) == (3.5, Threshold(1.5, strict, 0.01, ORIGIN))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("calibrated_on", "origin"),
    [
        (["development"], ORIGIN),
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
    people = voices.enrol({"ann": [said(0, 1)]})
    for ask in (voices.identify, voices.who):
        with pytest.raises(
            VoiceError, match=r"^model\.pt: expected a calibrated model"
        ):
            ask(said(0, 0), people)
    assert voices.disagreements(people, ["ann"]) == []


def test_a_long_sound_has_the_mean_of_its_windows(voices, monkeypatch):
    sound = np.concatenate([said(0, 0), said(1, 0)])
    size = min(len(said(0, 0)), len(said(1, 0)))
    with torch.inference_mode():
        vectors = [
            voices.model(torch.from_numpy(window.copy())[None] / 32768)
            for window in (sound[:size], sound[-size:])
        ]
    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 1.1 * size / RATE)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", size / RATE)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", len(sound) / RATE)
    mean = unit(sum(vectors).numpy())
    assert voices.embed([sound]) == pytest.approx(mean, abs=1e-5)


def test_few_sounds_are_in_memory_at_once(voices, monkeypatch):
    sounds = [said(speaker, index) for index in range(2) for speaker in range(4)]
    clips, embed, counts = voices.listen(sounds), module.embed, []

    def counted(model, batches):
        counts.append(len(batches.indices))
        return embed(model, batches)

    monkeypatch.setattr(module, "embed", counted)
    monkeypatch.setattr(module, "SECONDS_IN_MEMORY", 6.5)  # a sound has 2.6 to 3.4 s
    again = voices.listen(sounds)
    assert (sum(counts), max(counts)) == (8, 3)
    vectors = np.stack([clip.vector for clip in clips])
    assert voices.embed(sounds) == pytest.approx(vectors, abs=1e-5)
    for one, other in zip(clips, again, strict=True):
        assert other.vector == pytest.approx(one.vector, abs=1e-5)
        assert (
            replace(other, vector=None).__dict__ == replace(one, vector=None).__dict__
        )
    assert voices.embed([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, RATE)), r"expected samples \[N\].* float64 \[2, 16000\]"),
        (np.zeros(RATE, np.int32), "int32"),
        (np.zeros(RATE, complex), "complex128"),
        (np.full(RATE, np.nan), "NaN"),
        (np.full(RATE, 300.0), r"\[-1, 1\], got 300"),
        (np.zeros(RATE), "silence"),
        (np.ones(100), r"at least 0\.3 s"),
        (np.ones(0), r"at least 0\.3 s"),
    ],
)
def test_bad_arrays(voices, samples, words):
    with pytest.raises(VoiceError, match=f"^array 1: .*{words}"):
        voices.embed([said(0, 0), samples])


def test_a_sound_too_short_for_the_front_end(checkpoint, tmp_path):
    coarse = "window_seconds=0.64", "hop_seconds=0.32", "n_fft=10240"
    crops = "model.titanet.crop_seconds=[2.0]"
    voices = Voices.load(checkpoint(crops, *(f"front_end.{one}" for one in coarse)))
    short = said(0, 0)[: RATE // 2]
    for sound in (short, write(tmp_path / "a.wav", short)):
        with pytest.raises(VoiceError, match=r"at least 0\.64 s"):
            voices.compare(sound, sound)


# What makes a verdict less sure


LOUD = (said(0, 0).astype(np.int32) * 20).clip(-32768, 32767).astype(np.int16)
PAUSE = np.random.default_rng(0).integers(-9, 9, 5 * RATE).astype(np.int16)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (said(0, 0)[: 3 * RATE // 2], "s of speech, below 2 s"),
        (LOUD, "clipped"),
        (np.concatenate([said(0, 0), PAUSE]), "long pauses"),
        (HISS, "no speech was found"),
    ],
)
def test_warnings(voices, sound, words):
    assert words in "; ".join(voices.listen([sound])[0].warnings)


def test_warnings_about_files(voices, tmp_path):
    narrow = write(tmp_path / "a.wav", said(0, 0, 8000), 8000)
    cut = write(tmp_path / "b.wav", said(0, 0))
    cut.write_bytes(cut.read_bytes()[:-RATE])
    of_narrow, of_cut = (clip.warnings for clip in voices.listen([narrow, cut]))
    assert "narrow band" in "; ".join(of_narrow)
    assert of_cut[0].startswith(f"{cut}: cut short: ")


# Enrolling and identifying


def test_a_person_is_the_mean_direction_of_its_clips(voices):
    vectors = voices.embed([said(0, 0), said(0, 1)]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    names, centroids = enrolled(voices).centroids()
    assert names == ["ann", "ben", "cy"]
    assert centroids[0] == pytest.approx(unit(vectors.sum(0)[None])[0], abs=1e-6)


def test_identification_by_hand(voices):
    people = enrolled(voices)
    (clip,) = voices.listen([said(1, 3)])
    cosines = people.centroids()[1] @ clip.vector
    best, names = int(cosines.argmax()), ["ann", "ben", "cy"]
    first, second, _ = sorted(cosines)[::-1]
    for threshold, known in ((-9.0, True), (40 * first - 36 - 0.3, False)):
        calibration = Calibration(40.0, -36.0, threshold, 0.1, 0.01, threshold + 1)
        voices.model.backend.calibrations["trained"] = calibration
        found = voices.identify_clip(clip, people)
        assert found.nearest[0].name == names[best]
        assert found.nearest[0].llr == pytest.approx(40 * first - 36)
        assert sorted(c.name for c in found.nearest) == names
        assert found.margin == pytest.approx(40 * (first - second))
        # three people are three chances of a false alarm
        assert found.threshold.llr == pytest.approx(threshold + math.log10(3))
        assert found.name == (names[best] if known else None)


def test_enrolling_more_adds_and_a_recording_counts_once(voices):
    one = voices.enrol({"ann": [said(0, 0)]})
    two = voices.enrol({"ann": [said(0, 0), said(0, 1)], "ben": [said(1, 0)]}, one)
    assert two.names.tolist() == ["ann", "ann", "ben"]
    together = voices.enrol({"ann": [said(0, 0), said(0, 1)]}).centroids()[1]
    assert two.centroids()[1][0] == pytest.approx(together[0], abs=1e-5)
    assert json.loads(two.front_end)["sample_rate"] == RATE


def test_clips_that_do_not_agree_are_named(voices):
    def clip(name: str, *places: int) -> Clip:
        vector = np.zeros(24, np.float32)
        vector[list(places)] = len(places) ** -0.5
        return Clip(name, vector, 3.0, 3.0, name, ())

    calibration = Calibration(10.0, -6.0, 1.5, 0.1, 0.01)  # 0 at a cosine of 0.6
    voices.model.backend.calibrations["trained"] = calibration
    agreeing = [clip("a", 0, 1, 2, 3), clip("b", 0, 1, 2), clip("c", 0, 1, 2, 3, 4)]
    people = voices.enrol({"cy": [said(2, 1)]}).with_clips("ann", agreeing)
    assert voices.disagreements(people, ["ann", "cy"]) == []
    people = people.with_clips("ann", [clip("d", 9)])
    (line,) = voices.disagreements(people, ["ann", "cy"])
    assert line.startswith("ann: d ")
    assert line.endswith(" -6.0")
    voices.model.backend = Backend.unfitted(24)
    assert voices.disagreements(people, ["ann"]) == []


def test_people_of_another_model_are_refused(voices, checkpoint):
    people = enrolled(voices)
    other = Voices.load(checkpoint("seed=2"))
    for ask in (
        lambda: other.enrol({}, people),
        lambda: other.identify(said(0, 0), people),
        lambda: other.who(said(0, 0), people),
    ):
        with pytest.raises(
            VoiceError, match=f"{other.digest[:8]}.*{voices.digest[:8]}"
        ):
            ask()


def test_another_calibration_is_the_same_model(voices, checkpoint):
    assert Voices.load(checkpoint(calibration=None)).digest == voices.digest
    other = Voices.load(checkpoint("front_end.hop_seconds=0.02"))
    assert other.digest != voices.digest


# Who speaks when


def sounds_like(windows) -> np.ndarray:
    """The share of each level of thousands in each window, as a vector of length 1."""
    levels = [np.bincount(one // 1000, minlength=24)[:24] for one in windows]
    return unit(np.array(levels).reshape(-1, 24)).astype(np.float32)


@pytest.fixture
def levels(voices, monkeypatch) -> Callable[..., list[Turn]]:
    """Turns of a made recording, (level, seconds) after (level, seconds), where ann has
    level 1, ben has level 2 and 0 is silence."""
    people = voices.enrol({})
    for level, name in ((1, "ann"), (2, "ben")):
        (vector,) = sounds_like([np.full(9, 1000 * level)])
        people = people.with_clips(name, [Clip(name, vector, 3.0, 3.0, name, ())])
    calibration = Calibration(10.0, -6.0, 1.5, 0.1, 0.01)
    voices.model.backend.calibrations["trained"] = calibration
    monkeypatch.setattr(voices, "embed_samples", sounds_like)

    def turns(*parts: tuple[int, float]) -> list[Turn]:
        ends = np.cumsum([seconds for _, seconds in parts]).tolist()
        spoken = [
            (end - seconds, end)
            for (level, seconds), end in zip(parts, ends, strict=True)
            if level
        ]
        monkeypatch.setattr(module, "speech_stretches", lambda *_: spoken)
        levels = [np.full(round(s * RATE), 1000 * n, np.int16) for n, s in parts]
        return voices.who(np.concatenate(levels), people)

    return turns


def test_turns_of_two_people_and_a_stranger(levels):
    found = levels((1, 6), (2, 6), (0, 3), (9, 4), (0, 2), (1, 5))
    assert [turn.name for turn in found] == ["ann", "ben", None, "ann"]
    times = [(turn.begin, turn.end) for turn in found]
    expected = [(0, 6), (6, 12), (15, 19), (21, 26)]
    assert np.array(times) == pytest.approx(np.array(expected), abs=0.75)
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


def test_no_turn_without_speech(voices):
    assert voices.who(HISS, voices.enrol({"ann": [said(0, 0)]})) == []


# Calibrating on own recordings


def four_people(count: int = 4) -> dict[str, list[np.ndarray]]:
    return {
        f"person {speaker}": [said(speaker, index) for index in range(count)]
        for speaker in range(4)
    }


def test_an_own_threshold_is_found_on_all_pairs(voices):
    sounds = four_people()
    own = voices.calibrate(sounds)
    assert voices.calibration is own
    assert own.num_people == 4
    speakers = np.repeat(list(sounds), 4)
    vectors = voices.embed([sound for files in sounds.values() for sound in files])
    vectors = unit(vectors.astype(np.float64))  # beyond float32's digits
    first, second = np.triu_indices(16, 1)
    cosines = (vectors[first] * vectors[second]).sum(1)
    expected = calibrate([(cosines, speakers[first] == speakers[second])], 0.01)
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

    def noted(corpora, rate):
        ((scores, targets),) = corpora
        found.append((len(scores), int(targets.sum())))
        return calibrate(corpora, rate)

    monkeypatch.setattr(own_calibration, "calibrate", noted)
    voices.calibrate(four_people() | {"once": [said(0, 0)], "again": [said(1, 0)]})
    half = (36, 12)  # pairs of 9 recordings of three people, one with a single one
    assert found == [half, half, (153, 24)]


def test_a_model_without_a_cohort_is_calibrated(checkpoint, tmp_path):
    voices = Voices.load(checkpoint(calibration=None))
    voices.calibrate(four_people(2))
    save_checkpoint(tmp_path / "mine.pt", voices.model)
    again = Voices.load(tmp_path / "mine.pt")
    assert again.calibration == voices.calibration
    assert again.model.backend.cohort.shape == (4, 24)
    assert again.digest == voices.digest


def test_too_few_people_to_calibrate_on(voices):
    sounds = four_people(2) | {"person 3": [said(3, 0)]}
    with pytest.raises(VoiceError, match=r"at least 4 people.* got 3$"):
        voices.calibrate(sounds)
