"""The rooms and noise that training adds to speech, recorded or simulated.

`Parameters` -> `load_surroundings` -> `Surroundings`
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from parameters import Parameters
from speech.acoustics import coloured_noise, simulate_rooms
from speech.audio import Segment
from speech.downloads import download_once, unpacked
from speech.folders import expect_folder, folders_in, recordings_below
from speech.packs import Pack, SoundBank, pack
from speech.utterances import CorpusError, Utterance

OPENSLR28_URL = "https://www.openslr.org/resources/28/rirs_noises.zip"
OPENSLR28_MD5 = "e6f48e257286e05de56413b4779d8ffb"
NUM_COLOURS, COLOURED_SECONDS = 64, 10.0  # of simulated noise
# Streams of random numbers, so that rooms and noise, trained on or held out, differ.
ROOM_STREAM, NOISE_STREAM, NUM_STREAMS = 2, 4, 8


@dataclass(frozen=True)
class Surroundings:
    """The sounds that augmentation draws from; None for a kind that it does not use."""

    responses: SoundBank | None  # impulse responses of rooms
    noise: SoundBank | None
    simulated: SoundBank | None = None  # responses, besides recorded ones
    coloured: SoundBank | None = None  # noise, besides recorded noise


def load_surroundings(parameters: Parameters, device: torch.device) -> Surroundings:
    """Load the rooms and noise for training; raise `CorpusError` for folders that
    cannot be used."""
    augmentation = parameters.augmentation
    responses = noise = simulated = coloured = None
    if augmentation.reverberation.probability:
        responses = load_responses(parameters, device)
    if augmentation.noise.probability:
        noise = load_noise(parameters, device)
    if augmentation.reverberation.simulated:
        simulated = simulated_responses(parameters, device)
    if augmentation.noise.coloured:
        coloured = simulated_noise(parameters, device)
    return Surroundings(responses, noise, simulated, coloured)


def load_responses(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> SoundBank:
    """Load room impulse responses for training, or those held out from it; simulate
    them unless the parameters name a folder."""
    rooms = parameters.augmentation.reverberation
    if rooms.root is None:
        return simulated_responses(parameters, device, held_out)
    packed = _packed_responses(parameters)
    return _side("reverberation", packed, rooms.held_out, held_out, device)


def simulated_responses(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> SoundBank:
    """Simulate room impulse responses for training, or others to hold out from it."""
    rooms = parameters.augmentation.reverberation
    rate = parameters.front_end.sample_rate
    generator = _generator(parameters.seed, ROOM_STREAM + held_out)
    low, high = rooms.rt60_seconds
    rt60 = low + torch.rand(rooms.num_rooms, generator=generator) * (high - low)
    size = round(rooms.max_seconds * rate)
    return SoundBank.simulated(simulate_rooms(rt60, rate, size, generator), device)


def load_noise(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> SoundBank:
    """Load noise for training, or that held out from it; simulate it, from white to
    brown, unless the parameters name a folder."""
    noise = parameters.augmentation.noise
    if noise.root is None:
        return simulated_noise(parameters, device, held_out)
    packed = _packed_noise(parameters)
    return _side("noise", packed, noise.held_out, held_out, device)


def simulated_noise(
    parameters: Parameters, device: torch.device, held_out: bool = False
) -> SoundBank:
    """Simulate noise for training, or other noise to hold out from it."""
    rate = parameters.front_end.sample_rate
    generator = _generator(parameters.seed, NOISE_STREAM + held_out)
    exponents = 2 * torch.rand(NUM_COLOURS, generator=generator)
    size = round(COLOURED_SECONDS * rate)
    return SoundBank.simulated(coloured_noise(exponents, rate, size, generator), device)


def recording_digests(parameters: Parameters) -> dict[str, str]:
    """Return digests of the recorded rooms and noise that training draws from, by
    section; simulated ones have no digest."""
    rooms, noise = parameters.augmentation.reverberation, parameters.augmentation.noise
    digests = {}
    if rooms.probability and rooms.root is not None:
        digests["augmentation.reverberation"] = _packed_responses(parameters).digest
    if noise.probability and noise.root is not None:
        digests["augmentation.noise"] = _packed_noise(parameters).digest
    return digests


def noise_recordings(root: Path) -> list[Utterance]:
    """Return the recordings below a folder; raise `CorpusError` for none.

    In MUSAN (arXiv 1510.08484: music, noise and speech) speech is left out: a second
    talker is no noise.
    """
    expect_folder(root, "the folder of augmentation.noise.root")
    folders = {folder.name for folder in folders_in(root)}
    is_musan = {"music", "noise", "speech"} <= folders
    return recordings_below(
        root, lambda path: not (is_musan and path.parts[0] == "speech")
    )


def response_recordings(root: Path, download: bool) -> list[Utterance]:
    """Return the room impulse responses below a folder; raise `CorpusError` for none.

    Only the first channel is used. The direct sound reaches each microphone at a
    different time, so averaging channels would act as a comb filter.

    OpenSLR 28, which can be downloaded, also has point-source and isotropic noises,
    which are left out. Isotropic noises lie beside the responses and differ from them
    by name alone.
    """
    home = root / "RIRS_NOISES"

    def fetch() -> None:
        with unpacked(OPENSLR28_URL, "md5", OPENSLR28_MD5, root) as scratch:
            os.rename(scratch / "RIRS_NOISES", home)

    if download:
        download_once(home, root, fetch)
    expect_folder(root, "the folder of augmentation.reverberation.root")
    responses = recordings_below(
        root,
        lambda path: (
            "pointsource_noises" not in path.parts and "noise" not in path.stem.lower()
        ),
    )
    return [replace(r, source=Segment(r.source, channel=0)) for r in responses]


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
    rate = parameters.front_end.sample_rate
    packed = pack(recordings, directory, rate, is_speech=False)
    if skipped := len(recordings) - len(packed.entries):
        print(f"{key}: {skipped} files skipped: {packed.warnings[0]}")
    if doubts := packed.warnings[skipped:]:
        print(f"{key}: {len(doubts)} warnings: {doubts[0]}")
    return packed


def _side(
    key: str, packed: Pack, share: float, held_out: bool, device: torch.device
) -> SoundBank:
    """Return the recordings that are held out, or those that are not; raise
    `CorpusError` for none."""
    entries = enumerate(packed.entries)
    indices = [i for i, e in entries if _is_held_out(e.id, share) == held_out]
    print(f"{key}: {len(indices)} of {len(packed.entries)} recordings")
    if not indices:
        raise CorpusError(
            f"augmentation.{key}.held_out: expected recordings to hold out and others "
            f"to train on, got {share} of {len(packed.entries)}"
        )
    return SoundBank.of(packed, indices, device)


def _is_held_out(name: str, share: float) -> bool:
    """Return whether a recording is held out. This depends on its name alone, so adding
    or removing other recordings never changes it."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(NUM_STREAMS * seed + stream)
