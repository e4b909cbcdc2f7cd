"""Comparing recordings, recognising enrolled people, and own thresholds."""

import itertools
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
from dataset import Splits
from recognition import own_calibration, sounds
from recognition.people import People
from recognition.sounds import Clip, VoiceError
from recognition.verdicts import Threshold, Turn
from runs.backend import embed_speech
from runs.checkpoints import save_checkpoint
from speech import samples
from speech.examination import find_speech, join_speech
from speech.packs import Entry, Pack
from verification.calibration import ScoredTrials, calibrate
from verification.scoring import Calibration, unit
from voices import Voices

NAMES = ["ann", "ben", "cy", "dan"]


def sounds_of(num_people: int, count: int = 2) -> dict[str, list[np.ndarray]]:
    people = enumerate(NAMES[:num_people])
    return {name: [said(n, index) for index in range(count)] for n, name in people}


def clip(name: str, *places: int) -> Clip:
    """A clip whose vector is 0 but for equal numbers at these places."""
    vector = np.isin(np.arange(24), places) * np.float32(len(places) ** -0.5)
    return Clip(name, vector, 3.0, 3.0, name, ())


def set_calibration(voices: Voices, *numbers: float, strict: float | None = None):
    calibration = Calibration(*numbers, 0.1, 0.01, strict)
    voices.model.backend.calibrations["trained"] = calibration


@pytest.fixture
def people(voices) -> People:
    """Ann, ben and cy with two clips each."""
    return voices.enrol(sounds_of(3))


# Comparing


def test_files_are_compared_as_the_model_hears_them(voices, tmp_path):
    sounds = [said(0, 0), said(1, 0)]
    paths = [write(tmp_path / f"{n}.wav", sounds[n]) for n in (0, 1)]
    heard = [join_speech(sound, RATE, find_speech(sound, RATE)) for sound in sounds]
    waveforms = [torch.from_numpy(speech)[None] / 32768 for speech in heard]
    with torch.inference_mode():
        cosine = torch.cosine_similarity(*map(voices.model, waveforms))
    found = voices.compare(*paths)
    assert found.cosine == pytest.approx(cosine.item(), abs=1e-5)
    assert found.llr == pytest.approx(40 * found.cosine - 36)
    assert found.speech == pytest.approx([3, 3], abs=1)
    assert found.warnings == ()
    assert voices.compare(paths[0], paths[0]).cosine == pytest.approx(1)
    assert voices.compare(*map(str, paths)) == found
    arrays = voices.compare(sounds[0], sounds[1] / 32768)
    assert (arrays.cosine, arrays.first) == (found.cosine, "array 0")


@pytest.mark.parametrize(
    ("calibrated_on", "origin"),
    [
        (["development"], "development speakers of synthetic"),
        (["development/a", "development/b"], "development speakers of a, b"),
        (["test"], "test speakers of synthetic"),
        ([], "trials that it does not name"),
    ],
)
def test_a_verdict_is_by_the_calibration(voices, calibrated_on, origin):
    set_calibration(voices, 0.0, 3.5, 1.5, strict=3.0)
    voices.model.backend = replace(voices.model.backend, calibrated_on=calibrated_on)
    found = voices.compare(said(0, 0), said(1, 0))
    assert (found.llr, found.threshold) == (3.5, Threshold(1.5, 3.0, 0.01, origin))
    assert found.verdict == "the same person"


def test_no_verdict_without_a_calibration(checkpoint):
    voices = Voices.load(checkpoint(calibration=None))
    found = voices.compare(said(0, 0), said(1, 0))
    assert found.llr is found.same_speaker is found.threshold is None
    people = voices.enrol(sounds_of(1))
    for ask in (voices.identify, voices.who):
        with pytest.raises(VoiceError, match=r"^model\.pt: .*calibrated"):
            ask(said(0, 0), people)
    assert voices.disagreements(people, ["ann"]) == []


def test_few_sounds_are_in_memory_at_once(voices, monkeypatch):
    sounds = [said(speaker, index) for index in range(2) for speaker in range(4)]
    clips, embed, counts = voices.listen(sounds), module.embed_recordings, []

    def counted(model, recordings):
        counts.append(len(recordings))
        return embed(model, recordings)

    monkeypatch.setattr(module, "embed_recordings", counted)
    monkeypatch.setattr(module, "SECONDS_IN_MEMORY", 6.5)  # a sound has 2.6 to 3.4 s
    again = voices.listen(sounds)
    assert (sum(counts), max(counts)) == (8, 3)
    for one, other, vector in zip(clips, again, voices.embed(sounds), strict=True):
        assert one.vector == pytest.approx(vector, abs=1e-5)
        assert other.vector == pytest.approx(vector, abs=1e-5)
        assert vars(replace(one, vector=0)) == vars(replace(other, vector=0))
    assert voices.embed([]).shape == (0, 24)


def test_hours_are_heard_as_minutes_are(voices, people, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_UNCUT_SECONDS", 4.0)
    monkeypatch.setattr(dataset, "WINDOW_SECONDS", 2.0)
    monkeypatch.setattr(dataset, "MAX_HOP_SECONDS", 1.5)
    set_calibration(voices, 10.0, -6.0, 1.5)
    sound = np.concatenate([said(0, 0), said(1, 0), said(2, 0) // 2])
    path = write(tmp_path / "a.wav", sound + np.int16(200))
    (clip,), turns = voices.listen([path]), voices.who(path, people)
    monkeypatch.setattr(samples, "SAMPLES_IN_MEMORY", RATE)
    monkeypatch.setattr(samples, "SAMPLES_AT_ONCE", 1000)
    spoken = voices.read("a", path)
    assert isinstance(spoken.samples, samples.StoredSamples)
    assert isinstance(spoken.heard(voices.min_seconds), samples.StoredSamples)
    (again,) = voices.listen([path])
    assert again.vector == pytest.approx(clip.vector, abs=1e-5)
    assert vars(replace(again, vector=0)) == vars(replace(clip, vector=0))
    assert voices.who(path, people) == turns


def test_one_sound_is_a_list_of_it(voices, tmp_path):
    path = str(write(tmp_path / "a.wav", said(0, 0)))
    assert voices.embed(path) == pytest.approx(voices.embed([path]))
    assert voices.enrol({"Ann": path}).clips.tolist() == [path]


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


def test_a_sound_too_short_for_the_front_end(checkpoint):
    coarse = "window_seconds=0.64", "hop_seconds=0.32", "n_fft=10240"
    crops = "model.titanet.crop_seconds=[2.0]"
    voices = Voices.load(checkpoint(crops, *(f"front_end.{one}" for one in coarse)))
    with pytest.raises(VoiceError, match=r"at least 0\.64 s"):
        voices.embed([said(0, 0)[: RATE // 2]])


# What makes a verdict less sure

RANDOM = np.random.default_rng(0)
HISS = RANDOM.integers(-500, 500, 3 * RATE).astype(np.int16)
LOUD = (said(0, 0).astype(np.int32) * 20).clip(-32768, 32767).astype(np.int16)
PAUSE = RANDOM.integers(-9, 9, 5 * RATE).astype(np.int16)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (said(0, 0)[: 3 * RATE // 2], " s of speech, "),
        (LOUD, "clipped"),
        (np.concatenate([said(0, 0), PAUSE]), "long pauses"),
        (HISS, "no speech was found"),
    ],
)
def test_warnings(voices, sound, words):
    assert words in "; ".join(voices.listen([sound])[0].warnings)


def test_without_speech_there_is_no_verdict(voices, people):
    found = voices.compare(HISS, said(0, 0))
    assert found.cosine is found.llr is found.verdict is found.same_speaker is None
    assert str(found).startswith("array 0 and array 1: no verdict")
    assert "array 0: no speech was found" in found.warnings
    found = voices.identify(HISS, people)
    assert (found.name, found.nearest, found.margin) == (None, (), None)
    assert str(found) == "array 0: nobody, 0.0 s of speech"
    assert voices.who(HISS, people) == []
    for ask in (
        lambda: voices.enrol({"dan": [HISS]}, people),
        lambda: voices.embed([HISS]),
        lambda: voices.calibrate({**sounds_of(4), "eve": [HISS]}),
    ):
        with pytest.raises(VoiceError, match=r"^array \d: expected speech"):
            ask()


def test_silence_and_an_offset_change_no_vector(voices):
    sound = said(0, 0)
    silence = np.zeros(20 * RATE, np.int16)
    for changed in (np.concatenate([silence, sound, silence]), sound + np.int16(328)):
        vectors = voices.embed([sound, changed])
        assert vectors[0] @ vectors[1] > 0.999


def test_what_is_doubtful_is_said_where_no_result_says_it(voices, people):
    short = said(0, 0)[: 3 * RATE // 2]
    for ask in (
        lambda: voices.enrol({"dan": [short]}),
        lambda: voices.embed([short]),
        lambda: voices.who(short, people),
    ):
        lines = []
        voices.warn = lines.append
        ask()
        assert sum("s of speech, less than 2 s" in line for line in lines) == 1


def test_a_fit_can_hear_what_voices_hears(voices):
    sounds = [said(0, 0), said(1, 0)]
    sizes = [len(sound) for sound in sounds]
    entries = [
        Entry("", "", None, None, None, offset, size)
        for offset, size in zip((0, sizes[0]), sizes, strict=True)
    ]
    samples = torch.from_numpy(np.concatenate(sounds))
    splits = Splits(Pack(samples, entries, RATE, [], {}), [], [], [], [], [0, 1])
    vectors, seconds = embed_speech(voices.model, splits, [1, 0])
    clips = voices.listen(sounds)
    assert seconds == pytest.approx([clips[1].speech, clips[0].speech])
    for vector, clip in zip(unit(vectors.numpy()), clips[::-1], strict=True):
        assert vector == pytest.approx(clip.vector, abs=1e-5)


def test_warnings_about_files(voices, tmp_path):
    narrow = write(tmp_path / "a.wav", said(0, 0, 8000), 8000)
    cut = write(tmp_path / "b.wav", said(0, 0))
    cut.write_bytes(cut.read_bytes()[:-RATE])
    of_narrow, of_cut = (clip.warnings[0] for clip in voices.listen([narrow, cut]))
    assert of_narrow.startswith(f"{narrow}: narrow band")
    assert of_cut.startswith(f"{cut}: cut short: ")


# Enrolling and identifying


def test_a_person_is_the_mean_direction_of_its_clips(voices, people):
    vectors = voices.embed([said(0, 0), said(0, 1)]).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    names, centroids = people.centroids()
    assert names == NAMES[:3]
    assert centroids[0] == pytest.approx(unit(vectors.sum(0)[None])[0], abs=1e-6)
    assert json.loads(people.front_end)["sample_rate"] == RATE


def test_identification_by_hand(voices, people):
    (sound,) = voices.listen([said(1, 3)])
    cosines = people.centroids()[1] @ sound.vector
    best = NAMES[cosines.argmax()]
    first, second, _ = sorted(cosines)[::-1]
    for threshold, name in ((-9.0, best), (40 * first - 36 - 0.3, None)):
        set_calibration(voices, 40.0, -36.0, threshold, strict=threshold + 1)
        found = voices.identify_clip(sound, people)
        assert (found.name, found.nearest[0].name) == (name, best)
        assert found.nearest[0].llr == pytest.approx(40 * first - 36)
        assert sorted(c.name for c in found.nearest) == NAMES[:3]
        assert found.margin == pytest.approx(40 * (first - second))
        # three people are three chances of a false alarm
        assert found.threshold.llr == pytest.approx(threshold + math.log10(3))


def test_enrolling_more_adds_and_a_recording_counts_once(voices, people):
    one = voices.enrol({"ann": [said(0, 0)]})
    more = voices.enrol(sounds_of(3), one)
    assert more.names.tolist() == people.names.tolist()
    assert more.vectors == pytest.approx(people.vectors, abs=1e-5)


def test_clips_that_do_not_agree_are_named(voices):
    set_calibration(voices, 10.0, -6.0, 1.5)  # 0 at a cosine of 0.6
    agreeing = [clip("a", 0, 1, 2, 3), clip("b", 0, 1, 2), clip("c", 0, 1, 2, 3, 4)]
    people = voices.enrol({"cy": [said(2, 1)]}).with_clips("ann", agreeing)
    assert voices.disagreements(people, ["ann", "cy"]) == []
    people = people.with_clips("ann", [clip("d", 9)])
    (line,) = voices.disagreements(people, ["ann", "cy"])
    assert line.startswith("ann: d ")
    assert line.endswith(" -6.0")


@pytest.mark.parametrize("change", ["seed=2", "front_end.hop_seconds=0.02"])
def test_people_of_another_model_are_refused(voices, people, checkpoint, change):
    assert Voices.load(checkpoint(calibration=None)).digest == voices.digest
    other = Voices.load(checkpoint(change))
    digests = f"{other.digest[:8]}.*{people.digest[:8]}"
    for ask in (other.enrol, other.identify, other.who):
        with pytest.raises(VoiceError, match=digests):
            ask({} if ask == other.enrol else said(0, 0), people)


def test_people_whose_vectors_have_another_size(voices, people):
    with pytest.raises(VoiceError, match=r"24.* 23$"):
        voices.identify(said(0, 0), replace(people, vectors=people.vectors[:, 1:]))


# Who speaks when


def sounds_like(windows) -> np.ndarray:
    """The share of each level of thousands in each window, as a vector of length 1."""
    levels = [np.bincount(one // 1000, minlength=24)[:24] for one in windows]
    return unit(np.array(levels).reshape(-1, 24)).astype(np.float32)


@pytest.fixture
def levels(voices, monkeypatch) -> Callable[..., list[Turn]]:
    """Turns of a made recording, (level, seconds) after (level, seconds), where ann has
    level 1, ben has level 2 and 0 is silence."""
    people = voices.enrol({}).with_clips("ann", [clip("ann", 1)])
    people = people.with_clips("ben", [clip("ben", 2)])
    set_calibration(voices, 10.0, -6.0, 1.5)
    monkeypatch.setattr(voices, "embed_samples", sounds_like)
    monkeypatch.setattr(module, "centred", lambda window: window)

    def turns(*parts: tuple[int, float]) -> list[Turn]:
        levels, seconds = zip(*parts, strict=True)
        times = itertools.pairwise([0, *itertools.accumulate(seconds)])
        spoken = [*itertools.compress(times, levels)]
        monkeypatch.setattr(sounds, "find_speech", lambda *_: spoken)
        monkeypatch.setattr(sounds, "examine", lambda *_: [])
        sound = np.repeat(levels, [round(s * RATE) for s in seconds])
        return voices.who(1000 * sound.astype(np.int16), people)

    return turns


@pytest.mark.parametrize(
    ("parts", "names", "times"),
    [
        (
            [(1, 6), (2, 6), (0, 3), (9, 4), (0, 2), (1, 5)],
            ["ann", "ben", None, "ann"],
            [0, 6.375, 6.375, 12, 15, 19, 21, 26],  # 6 to half a hop
        ),
        ([(1, 3), (0, 0.5), (1, 3)], ["ann"], [0, 6.5]),  # a short pause ends no turn
        ([(1, 3), (0, 1.5), (1, 3)], ["ann", "ann"], [0, 3, 4.5, 7.5]),
        ([(0, 2), (2, 0.4), (0, 2)], ["ben"], [2, 2.4]),  # a word is a turn too
        ([(2, 0.1), (0, 2)], [None], [0, 0.1]),  # its window of 0.3 s reaches beyond it
    ],
)
def test_turns(levels, parts, names, times):
    found = levels(*parts)
    assert [turn.name for turn in found] == names
    ends = [time for turn in found for time in (turn.begin, turn.end)]
    assert ends == pytest.approx(times)


# Calibrating on own recordings


def test_an_own_threshold_is_found_on_all_pairs(voices):
    sounds = sounds_of(4, 4)
    own = voices.calibrate(sounds)
    assert voices.calibration is own
    assert own.num_people == 4
    speakers = np.repeat(list(sounds), 4)
    clips = voices.listen([*itertools.chain(*sounds.values())])
    vectors = np.array([clip.vector for clip in clips], float)
    vectors = unit(vectors)  # beyond float32's digits
    first, second = np.triu_indices(16, 1)
    cosines = (vectors[first] * vectors[second]).sum(1)
    seconds = np.array([clip.speech for clip in clips])
    shorter = np.minimum(seconds[first], seconds[second])
    targets = speakers[first] == speakers[second]
    group = ScoredTrials(cosines, targets, 4, shorter)
    expected = calibrate([group], 0.01, CALIBRATION)
    assert own.scale == pytest.approx(expected.scale, rel=1e-3)
    assert own.threshold == pytest.approx(expected.threshold, abs=1e-2)
    intervals = own.miss_interval, own.false_alarm_interval
    for rate, (low, high) in zip((own.miss, own.false_alarm), intervals, strict=True):
        assert 0 <= low <= rate <= high <= 1
    assert voices.threshold.origin == "your own recordings of 4 people"
    assert voices.model.backend.calibrations["trained"] == CALIBRATION


def test_rates_are_of_people_the_threshold_was_not_found_on(voices, monkeypatch):
    found = []

    def noted(groups, *others):
        (group,) = groups
        found.append((len(group.scores), group.num_speakers))
        return calibrate(groups, *others)

    monkeypatch.setattr(own_calibration, "calibrate", noted)
    voices.calibrate(
        sounds_of(4, 4) | {"once": [said(0, 0)[800:]], "again": [said(1, 0)[800:]]}
    )
    # Folds of 5, 5, 4 and 4 of the 18 recordings: pairs of those in neither fold of a
    # pair that is tested, and how many people they are of.
    four_of_six, three = (78, 4), (36, 3)
    assert found == [
        *(four_of_six, (28, 2), three, three),
        *(four_of_six, three, three),
        *((91, 5), (45, 4), (91, 5)),
        (153, 6),
    ]


def test_a_model_without_a_cohort_is_calibrated(checkpoint, tmp_path):
    voices = Voices.load(checkpoint(calibration=None))
    voices.calibrate(sounds_of(4))
    save_checkpoint(tmp_path / "mine.pt", voices.model)
    again = Voices.load(tmp_path / "mine.pt")
    assert again.calibration == voices.calibration
    assert again.model.backend.cohort.shape == (4, 24)
    assert again.digest == voices.digest


def test_too_few_people_to_calibrate_on(voices):
    with pytest.raises(VoiceError, match=r"at least 4 people.* got 3$"):
        voices.calibrate(sounds_of(3) | {"once": [said(3, 0)]})
    with pytest.raises(VoiceError, match=r"at least 4 people.* got 3$"):
        voices.calibrate(sounds_of(3) | {"twice": [said(3, 0), said(3, 0)]})


def test_a_copy_counts_once_and_never_for_two_people(voices):
    voices.warn = (lines := []).append
    name, *_ = (sounds := sounds_of(4))
    expected = voices.calibrate(sounds)
    sounds[name] = [*sounds[name], said(0, 1), said(0, 0)]
    assert voices.calibrate(sounds) == expected
    assert [line for line in lines if "counted once" in line][1:] == [
        "array 3: this person has the recording twice, counted once"
    ]
    with pytest.raises(VoiceError, match=f"of {name} and, the same, .* of eve$"):
        voices.calibrate(sounds | {"eve": [said(0, 0)]})
