"""The embedded corpus: a source-filter speech synthesiser, so no run needs a download.

`SyntheticParameters` -> `synthetic_utterances` -> `SyntheticUtterance` -> int16 [N]

A voice (what a speaker keeps) and a sequence of phonemes become tracks of T frames of
8 ms: formants, gains, pitch. Glottal pulses and noise are cut into short windows, each
window is filtered by the response of its frame over all frequencies, and the windows
are added up again: a time-varying filter without a loop over samples.

N samples, T frames.

Sources: Klatt, JASA 67 (1980) 971, for the cascade of resonators, the nasal pole and
zero and the consonants; Peterson & Barney, JASA 24 (1952) 175, for the vowels; Doval,
d'Alessandro & Henrich, Acta Acustica 92 (2006) 1026, for a glottal pulse that is a
resonance and a tilt.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from parameters import SyntheticParameters

VERSION = 1  # raised when the sound changes; part of an utterance's repr

RATE = 16_000  # Hz, at which speech is made; other rates are resampled from it
HOP = 128  # samples of a frame, 8 ms
WINDOW = np.hanning(2 * HOP + 1)[:-1]
N_FFT = 4 * HOP  # a window, and 16 ms for its response to ring
FREQUENCIES = np.fft.rfftfreq(N_FFT, 1 / RATE)
DELAYS = np.exp(-2j * np.pi * FREQUENCIES / RATE) ** np.arange(15)[:, None]  # z^-k

NASAL_POLE = 270.0  # Hz; in phones that are not nasal, a zero at it cancels it
NASAL_WIDTH = np.array([100.0])  # Hz, of pole and zero
BANDWIDTHS = np.array([70.0, 90.0, 130.0, 200.0, 270.0, 350.0])  # Hz, F1 to F6


class Phone(NamedTuple):
    """Targets of one stretch of sound for a male vocal tract: Hz, gains and seconds."""

    f1: float
    f2: float
    f3: float
    seconds: float
    voice: float = 0.0
    breath: float = 0.0  # noise at the glottis, filtered by the vocal tract
    noise: float = 0.0  # noise at a constriction, with a centre and a width of its own
    centre: float = 1000.0
    width: float = 1000.0
    zero: float = NASAL_POLE


Sound = tuple[Phone, ...]

SILENCE: Sound = (Phone(500, 1500, 2500, 0.2),)
VOWELS = tuple(
    (Phone(f1, f2, f3, seconds, voice=1.0),)
    for f1, f2, f3, seconds in [
        (270, 2290, 3010, 0.11),  # heed
        (390, 1990, 2550, 0.08),  # hid
        (530, 1840, 2480, 0.10),  # head
        (660, 1720, 2410, 0.13),  # had
        (730, 1090, 2440, 0.13),  # hod
        (570, 840, 2410, 0.13),  # hawed
        (440, 1020, 2240, 0.08),  # hood
        (300, 870, 2240, 0.11),  # who'd
        (640, 1190, 2390, 0.09),  # hud
        (490, 1350, 1690, 0.12),  # heard
    ]
)


def _plosive(
    f2: float, f3: float, centre: float, width: float, gain: float
) -> tuple[Sound, Sound]:
    """The voiceless and the voiced plosive of one place of articulation."""
    burst = Phone(350, f2, f3, 0.012, noise=gain, centre=centre, width=width)
    return (
        (Phone(300, f2, f3, 0.06), burst, Phone(400, f2, f3, 0.03, breath=0.12)),
        (Phone(200, f2, f3, 0.05, voice=0.12), burst._replace(voice=0.3)),
    )


def _fricative(
    f2: float, f3: float, centre: float, width: float, gain: float
) -> tuple[Sound, Sound]:
    """The voiceless and the voiced fricative of one place of articulation."""
    voiceless = Phone(320, f2, f3, 0.09, 0, 0.01, gain, centre, width)
    voiced = voiceless._replace(seconds=0.06, voice=0.2, noise=0.5 * gain)
    return (voiceless,), (voiced,)


CONSONANTS = (
    *_plosive(900, 2200, 1000, 900, 0.5),  # p b
    *_plosive(1700, 2650, 4500, 1500, 0.6),  # t d
    *_plosive(1900, 2300, 2000, 600, 0.8),  # k g
    *_fricative(1000, 2200, 5000, 3500, 0.13),  # f v
    *_fricative(1400, 2600, 6300, 1000, 0.8),  # s z
    *_fricative(1800, 2500, 3300, 800, 0.8),  # sh zh
    (Phone(500, 1500, 2500, 0.06, breath=0.15),),  # h
    (Phone(300, 1000, 2200, 0.07, voice=0.35, zero=900),),  # m
    (Phone(300, 1500, 2500, 0.06, voice=0.35, zero=1500),),  # n
    (Phone(330, 1000, 2700, 0.06, voice=0.5),),  # l
    (Phone(330, 1100, 1500, 0.06, voice=0.5),),  # r
    (Phone(290, 650, 2200, 0.06, voice=0.5),),  # w
    (Phone(270, 2200, 3000, 0.06, voice=0.5),),  # y
)
SOUNDS = (SILENCE, *VOWELS, *CONSONANTS)
PHONES = np.array([phone for sound in SOUNDS for phone in sound])  # [phones, 10]
# The rows of PHONES that each sound has.
SOUND_ROWS = np.split(np.arange(len(PHONES)), np.cumsum([*map(len, SOUNDS)]))
FORMANTS = np.hstack([PHONES[:, :3], np.tile([3500, 4500, 5500], (len(PHONES), 1))])
VOWEL_ROWS = SOUND_ROWS[1 : 1 + len(VOWELS)]
CONSONANT_ROWS = SOUND_ROWS[1 + len(VOWELS) : len(SOUNDS)]


@dataclass(frozen=True)
class Voice:
    """What a speaker keeps from one utterance to the next."""

    pitch: float  # Hz, median
    liveliness: float  # semitones, deviation of a syllable's pitch
    jitter: float  # of a period
    shimmer: float  # of a pulse's amplitude
    breath: float  # noise at the glottis while voiced, 1 is as strong as the pulses
    rate: float  # of speaking, 1 is usual
    glottal_formant: float  # Hz
    tilt: float  # Hz, above which the pulses lose another 6 dB per octave
    formants: np.ndarray  # Hz, [phones, 6]
    bandwidths: np.ndarray  # Hz, [6]
    zeros: np.ndarray  # Hz, of the nose, [phones]
    noises: np.ndarray  # gain at a constriction, [phones, frequencies]


def _gender(speaker: int) -> str:
    return "fm"[speaker % 2]


def draw_voice(seed: int, speaker: int) -> Voice:
    """Draw the voice of a speaker, the same whatever the size of the corpus."""
    random = np.random.default_rng([seed, speaker])
    female = _gender(speaker) == "f"
    pitch = (205.0 if female else 118.0) * np.exp(random.normal(0, 0.2))
    tract = (1.16 if female else 1.0) * np.exp(random.normal(0, 0.07))  # 1 / length
    anatomy = random.normal(0, 0.1, len(BANDWIDTHS))
    accent = random.normal(0, 0.04, FORMANTS.shape)
    formants = FORMANTS * tract * np.exp(anatomy + accent)
    louder, lift, broaden, nose = np.exp(random.normal(0, [0.4, 0.18, 0.25, 0.2]))
    gain, centre, width, zero = np.hsplit(PHONES[:, 6:], 4)  # [phones, 1] each
    offsets = (FREQUENCIES - centre * lift) / (width * broaden)  # [phones, frequencies]
    return Voice(
        pitch=pitch,
        liveliness=random.uniform(1.0, 3.0),
        jitter=random.uniform(0.003, 0.015),
        shimmer=random.uniform(0.02, 0.12),
        breath=10 ** random.uniform(-2.6, -1.0),
        rate=np.exp(random.normal(0, 0.15)),
        glottal_formant=pitch * random.uniform(0.8, 1.8),
        tilt=np.exp(random.uniform(np.log(1500), np.log(6000))),
        formants=np.minimum(formants, 0.49 * RATE),
        bandwidths=BANDWIDTHS * np.exp(random.normal(0, 0.25, len(BANDWIDTHS))),
        zeros=np.where(zero > NASAL_POLE, zero * nose, NASAL_POLE)[:, 0],
        noises=louder * gain * np.exp(-0.5 * offsets**2),
    )


def _draw_phones(
    random: np.random.Generator, seconds: float, voice: Voice
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw phrases of syllables: rows of PHONES, seconds, semitones and loudness."""
    phones = [(0, random.uniform(0.05, 0.2), 0.0, 1.0)]  # row 0 is silence
    while sum(duration for _, duration, _, _ in phones) < seconds:
        num_syllables = random.integers(4, 11)
        for fall in np.linspace(2.0, -2.0, num_syllables):
            semitones = fall + voice.liveliness * random.normal()
            loudness = 10 ** (random.normal(0, 4) / 20)
            sounds = [VOWEL_ROWS[random.integers(len(VOWEL_ROWS))]]
            if random.random() < 0.85:
                sounds.insert(0, CONSONANT_ROWS[random.integers(len(CONSONANT_ROWS))])
            if random.random() < 0.3:
                sounds.append(CONSONANT_ROWS[random.integers(len(CONSONANT_ROWS))])
            for row in np.concatenate(sounds):
                stretch = np.exp(random.normal(0, 0.15)) / voice.rate
                phones.append((row, PHONES[row, 3] * stretch, semitones, loudness))
        phones.append((0, random.uniform(0.1, 0.4), -2.0, 1.0))
    rows, durations, semitones, loudness = map(np.array, zip(*phones, strict=True))
    return rows, durations * seconds / durations.sum(), semitones, loudness


def _smooth(track: np.ndarray, seconds: float) -> np.ndarray:
    """Slide a Hann window of this many seconds along the first axis, [T, ...]."""
    half = round(seconds * RATE / HOP / 2)
    kernel = np.hanning(2 * half + 3)[1:-1]
    padding = [(half, half)] + [(0, 0)] * (track.ndim - 1)
    padded = np.pad(track, padding, mode="edge")
    return sliding_window_view(padded, len(kernel), axis=0) @ (kernel / kernel.sum())


def _pulses(
    random: np.random.Generator, pitch: np.ndarray, voiced: np.ndarray, voice: Voice
) -> np.ndarray:
    """Draw band-limited pulses of unit power, one a period of `pitch` [T] Hz: [N]."""
    cycles = np.cumsum(pitch) * HOP / RATE
    periods = np.arange(1.0, cycles[-1])
    wobble = voice.jitter * random.normal(size=periods.shape)
    positions = HOP * np.interp(periods + wobble, cycles, np.arange(len(pitch)))
    frames = (positions / HOP).astype(int)
    heights = 1 + voice.shimmer * random.normal(size=periods.shape)
    heights *= voiced[frames] * np.sqrt(RATE / pitch[frames])
    taps = np.arange(-7, 9)
    offsets = taps - (positions % 1)[:, None]  # samples from the pulse, [pulses, taps]
    shapes = np.sinc(offsets) * np.cos(np.pi * offsets / 18) ** 2
    where = positions.astype(int)[:, None] + taps + 8
    samples = np.bincount(
        where.ravel(), (heights[:, None] * shapes).ravel(), (len(pitch) + 1) * HOP + 32
    )
    return samples[8 : 8 + (len(pitch) + 1) * HOP]


def _resonances(centres: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return 1 / response of resonators in cascade, 1 at 0 Hz: centres [T, resonators]
    and widths [resonators] in Hz -> [T, frequencies]."""
    radii = np.exp(-np.pi * widths / RATE)
    polynomial = np.zeros((len(centres), 2 * len(widths) + 1))
    polynomial[:, 0] = 1
    for radius, centre in zip(radii, centres.T, strict=True):
        once, twice = polynomial[:, :-1].copy(), polynomial[:, :-2].copy()
        cosine = np.cos(2 * np.pi * centre / RATE)[:, None]
        polynomial[:, 1:] -= 2 * radius * cosine * once
        polynomial[:, 2:] += radius**2 * twice
    polynomial /= polynomial.sum(1, keepdims=True)
    delays = DELAYS[: polynomial.shape[1]].view(float)  # a real product is faster
    return (polynomial @ delays).view(complex)


def _glottis(voice: Voice) -> np.ndarray:
    """Return the response [frequencies] that turns pulses into the pressure radiated by
    glottal flow."""
    peak, hz = voice.glottal_formant, FREQUENCIES
    pulse = 1j * hz * peak / (peak**2 - hz**2 + 1j * hz * peak)
    return pulse / (1 + 1j * hz / voice.tilt)


def _draw_channel(random: np.random.Generator) -> np.ndarray:
    """Draw the response [frequencies] of room and microphone, smooth along a mel-like
    axis."""
    warped = np.log1p(FREQUENCIES / 700) / np.log1p(RATE / 2 / 700)
    waves = np.cos(np.pi * np.arange(1, 6)[:, None] * warped)
    return 10 ** (random.normal(0, [3, 2.5, 2, 1.5, 1.5]) @ waves / 20)


def _spectra(samples: np.ndarray) -> np.ndarray:
    """Transform half-overlapping windows of a signal: [N] -> [T, frequencies]."""
    windows = sliding_window_view(samples, len(WINDOW))[::HOP]
    return np.fft.rfft(windows * WINDOW, N_FFT)


def _overlap_add(spectra: np.ndarray) -> np.ndarray:
    """Transform back and add the windows up: [T, frequencies] -> samples
    [(T + 3) * HOP]."""
    blocks = np.fft.irfft(spectra, N_FFT).reshape(len(spectra), -1, HOP)
    num_frames, num_blocks, _ = blocks.shape
    samples = np.zeros((num_frames + num_blocks - 1, HOP))
    for k in range(num_blocks):
        samples[k : k + num_frames] += blocks[:, k]
    return samples.ravel()


@dataclass(frozen=True)
class SyntheticUtterance:
    """All that the samples of an utterance depend on: equal reprs have equal
    samples."""

    speaker: int
    index: int
    seconds: float
    seed: int
    version: int = VERSION

    @property
    def id(self) -> str:
        """The name of the utterance, unique within a corpus."""
        return f"{self.speaker_id}-{self.index:03d}"

    @property
    def speaker_id(self) -> str:
        """The name of the speaker."""
        return f"speaker-{self.speaker:04d}"

    @property
    def gender(self) -> str:
        """The gender of the speaker, `f` or `m`."""
        return _gender(self.speaker)

    def render(self, sample_rate: int) -> np.ndarray:
        """Return samples, int16 [round(seconds * sample_rate)], with nothing above
        8 kHz."""
        # 1 +: NumPy takes [seed, speaker] and [seed, speaker, 0] for the same seed.
        random = np.random.default_rng([self.seed, self.speaker, 1 + self.index])
        voice = draw_voice(self.seed, self.speaker)
        speech = _synthesise(random, voice, self.seconds)
        speech = speech[: round(self.seconds * RATE)]
        num_samples = round(self.seconds * sample_rate)
        if num_samples != len(speech):
            scale = num_samples / len(speech)
            speech = np.fft.irfft(np.fft.rfft(speech), num_samples) * scale
        level = 10 ** (random.normal(-25, 2.5) / 20)
        gain = min(level / np.sqrt(np.mean(speech**2)), 0.95 / np.abs(speech).max())
        return np.round(32767 * gain * speech).astype(np.int16)


def _synthesise(
    random: np.random.Generator, voice: Voice, seconds: float
) -> np.ndarray:
    """Return speech at `RATE`, at least seconds * RATE samples, at an arbitrary
    level."""
    effort = np.exp(random.normal(0, 0.5))
    voice = replace(voice, tilt=voice.tilt * effort, breath=voice.breath / effort)
    rows, durations, semitones, loudness = _draw_phones(random, seconds, voice)
    num_frames = int(np.ceil(seconds * RATE / HOP)) + 1
    times = np.arange(num_frames) * HOP / RATE
    # The index [T] of the phone that each frame belongs to.
    phones = np.searchsorted(np.cumsum(durations)[:-1], times, side="right")
    rows, loudness = rows[phones], _smooth(loudness[phones], 0.05)
    formants = np.exp(_smooth(np.log(voice.formants[rows]), 0.08))  # [T, 6]
    zeros = np.exp(_smooth(np.log(voice.zeros[rows]), 0.03))  # [T]
    semitones = _smooth(semitones[phones], 0.2) + 0.7 * random.normal()
    pitch = voice.pitch * 2 ** (semitones / 12)
    voiced = loudness * PHONES[rows, 4]
    breath = voiced * voice.breath + loudness * PHONES[rows, 5]

    poles = np.column_stack([formants, np.full(num_frames, NASAL_POLE)])
    pulses = _spectra(_pulses(random, pitch, voiced, voice)) * _glottis(voice)
    hiss = _spectra(random.normal(size=(num_frames + 1) * HOP))
    at_glottis = pulses + hiss * breath[:, None]
    through_tract = (
        at_glottis
        * _resonances(zeros[:, None], NASAL_WIDTH)
        / _resonances(poles, np.append(voice.bandwidths, NASAL_WIDTH))
    )
    background = (1 + FREQUENCIES / 300) ** random.uniform(-1, 0)
    background *= 10 ** (random.uniform(-48, -26) / 20)
    at_constriction = hiss * (voice.noises[rows] * loudness[:, None] + background)
    return _overlap_add((through_tract + at_constriction) * _draw_channel(random))


def synthetic_utterances(
    parameters: SyntheticParameters, seed: int
) -> list[SyntheticUtterance]:
    """Return every utterance of the corpus, speaker by speaker; durations are drawn
    uniformly."""
    shortest, longest = parameters.min_seconds, parameters.max_seconds
    utterances = []
    for speaker in range(parameters.num_speakers):
        for index in range(parameters.utterances_per_speaker):
            random = np.random.default_rng([seed, speaker, 1 + index, 1])
            seconds = float(random.uniform(shortest, longest))
            utterances.append(SyntheticUtterance(speaker, index, seconds, seed))
    return utterances
