"""The rooms and noise that training adds to speech, recorded or simulated.

`Parameters` -> `load_surroundings` -> `Surroundings`
"""

import hashlib
from dataclasses import dataclass

import torch

from parameters import Parameters
from speech.acoustics import coloured_noise, simulate_rooms
from speech.corpora import (
    CorpusError,
    Utterance,
    noise_recordings,
    response_recordings,
)
from speech.packs import Clips, Pack, pack

NUM_COLOURS, COLOURED_SECONDS = 64, 10.0  # of simulated noise
# Streams of random numbers, so that rooms and noise, trained on or held out, differ.
ROOM_STREAM, NOISE_STREAM, NUM_STREAMS = 2, 4, 8


@dataclass(frozen=True)
class Surroundings:
    """What augmentation draws from; None for what it does not use."""

    responses: Clips | None  # impulse responses of rooms
    noise: Clips | None


def load_surroundings(parameters: Parameters, device: torch.device) -> Surroundings:
    """The rooms and noise for training; raise `CorpusError` for folders that cannot be
    used."""
    augmentation = parameters.augmentation
    responses = noise = None
    if augmentation.reverberation.probability:
        responses = load_responses(parameters, device)
    if augmentation.noise.probability:
        noise = load_noise(parameters, device)
    return Surroundings(responses, noise)


def load_responses(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> Clips:
    """Room impulse responses for training, or those held out from it; simulated unless
    the parameters name a folder."""
    rooms = parameters.augmentation.reverberation
    rate = parameters.front_end.sample_rate
    if rooms.root is not None:
        packed = _packed_responses(parameters)
        return _side("reverberation", packed, rooms.held_out, held_out, device)
    generator = _generator(parameters.seed, ROOM_STREAM + held_out)
    low, high = rooms.rt60_seconds
    rt60 = low + torch.rand(rooms.num_rooms, generator=generator) * (high - low)
    size = round(rooms.max_seconds * rate)
    return Clips.simulated(simulate_rooms(rt60, rate, size, generator), device)


def load_noise(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> Clips:
    """Noise for training, or that held out from it; simulated, from white to brown,
    unless the parameters name a folder."""
    noise, rate = parameters.augmentation.noise, parameters.front_end.sample_rate
    if noise.root is not None:
        packed = _packed_noise(parameters)
        return _side("noise", packed, noise.held_out, held_out, device)
    generator = _generator(parameters.seed, NOISE_STREAM + held_out)
    exponents = 2 * torch.rand(NUM_COLOURS, generator=generator)
    size = round(COLOURED_SECONDS * rate)
    return Clips.simulated(coloured_noise(exponents, rate, size, generator), device)


def recording_digests(parameters: Parameters) -> dict[str, str]:
    """Digests of the recorded rooms and noise that training draws from, by their keys;
    what is simulated has none."""
    rooms, noise = parameters.augmentation.reverberation, parameters.augmentation.noise
    digests = {}
    if rooms.probability and rooms.root is not None:
        digests["augmentation.reverberation"] = _packed_responses(parameters).digest
    if noise.probability and noise.root is not None:
        digests["augmentation.noise"] = _packed_noise(parameters).digest
    return digests


def _packed_responses(parameters: Parameters) -> Pack:
    rooms = parameters.augmentation.reverberation
    recordings = response_recordings(rooms.root, rooms.download)
    return _packed("reverberation", recordings, parameters)


def _packed_noise(parameters: Parameters) -> Pack:
    recordings = noise_recordings(parameters.augmentation.noise.root)
    return _packed("noise", recordings, parameters)


def _packed(key: str, recordings: list[Utterance], parameters: Parameters) -> Pack:
    names = "\n".join(str(recording.source) for recording in recordings)
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:12]
    directory = parameters.dataset.packs / f"{key}-{digest}"
    packed = pack(recordings, directory, parameters.front_end.sample_rate)
    if skipped := len(recordings) - len(packed.entries):
        print(f"{key}: {skipped} files skipped: {packed.warnings[0]}")
    return packed


def _side(
    key: str, packed: Pack, share: float, held_out: bool, device: torch.device
) -> Clips:
    """The recordings that are held out, or those that are not; each at least one."""
    entries = enumerate(packed.entries)
    indices = [i for i, e in entries if _is_held_out(e.id, share) == held_out]
    print(f"{key}: {len(indices)} of {len(packed.entries)} recordings")
    if not indices:
        raise CorpusError(
            f"augmentation.{key}.held_out: expected recordings on both sides, got "
            f"{share} of {len(packed.entries)}"
        )
    return Clips.of(packed, indices, device)


def _is_held_out(name: str, share: float) -> bool:
    """Whether a recording is held out; by its name alone, so that adding or removing
    others never moves it."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(NUM_STREAMS * seed + stream)
