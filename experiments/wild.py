"""Test encoders in the wild: telephones, noisy rooms, silence, short speech, calls.

    python experiments/wild.py make WILD [--split development]
    python experiments/wild.py measure WILD init/titanet-s-wild.pt assets/wild.json
    python experiments/wild.py peer WILD VECTORS.npz NAME assets/wild.json

Run all in the folder that has the corpora below `data`, as init/titanet-s-wild.yml
names them. `make` writes test recordings as they are and changed in each way, as
WILD/CORPUS/CONDITION/SPEAKER/UTTERANCE.wav: at most eight of a speaker, three in some
conditions, and in rooms and noises that training never uses. LibriSpeech's test-other
and the real calls of data/telephone are added. `measure` tests an encoder of this
program as `voices.py` uses it, with misses and false alarms at its threshold. `peer`
tests any other by its vectors of the same files, whose paths end like theirs;
peer_vectors.py makes some. Both add their figures to the JSON file.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import soundfile

from dataset import Splits, prepare
from engine.parameter_files import SHIPPED, load_parameters
from errors import run_command
from eval import verify
from parameters import Parameters
from robustness import in_a_noisy_room
from speech.audio import FULL_SCALE, load_recording
from speech.examination import find_speech
from speech.utterances import CorpusError
from transforms import Telephone
from verification.metrics import equal_error_rate
from verification.scoring import unit
from verification.trials import Trials, make_trials, read_trials
from voices import VoiceError, Voices

CPU = torch.device("cpu")
RATE = 16_000  # Hz
UTTERANCES, MANY = 3, 8  # at most, of a speaker
MEASURED_WITH_PEERS = ("as recorded", "telephone", "room and noise")  # many
SILENCE = 3.0  # seconds, on either side
QUIET = 0.01  # of the level
SECONDS_OF_SPEECH = (5, 2, 1)
LONGEST = f"{SECONDS_OF_SPEECH[0]} s of speech"
CALLS = Path("data/telephone")
TEST_OTHER = (
    "dataset.name=librispeech",
    "dataset.root=data",
    "dataset.librispeech.train=[]",
    "dataset.librispeech.test=[test-other]",
)
RECIPE = Path(__file__).parents[1] / "init" / "titanet-s-wild.yml"


def speech_of(waveform: Tensor) -> Tensor:
    """Return the stretches of speech in a waveform [1, N], joined; all if there are
    none."""
    samples = (waveform[0] * FULL_SCALE).round().short().numpy()
    stretches = find_speech(samples, RATE)
    pieces = [waveform[:, round(b * RATE) : round(e * RATE)] for b, e in stretches]
    return torch.cat(pieces or [waveform], 1)


def changes(parameters: Parameters) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return each condition's change of a waveform [1, N]."""
    silence = torch.zeros(1, round(SILENCE * RATE))
    return {
        "as recorded": lambda x: x,
        "telephone": Telephone(1.0, RATE),
        "room and noise": in_a_noisy_room(parameters, CPU),
        "silence around": lambda x: torch.cat([silence, x, silence], 1),
        "quiet": lambda x: QUIET * x,
        LONGEST: lambda x: speech_of(x)[:, : SECONDS_OF_SPEECH[0] * RATE],
    }


def make(wild: Path, split: str) -> None:
    """Write all recordings, each changed in each way."""
    parameters = load_parameters(SHIPPED, RECIPE)
    splits = [prepare(parameters.dataset, parameters.front_end)]
    if split == "test":
        other = load_parameters(SHIPPED, overrides=TEST_OTHER)
        splits.append(prepare(other.dataset, other.front_end))
    for name, change in changes(parameters).items():
        torch.manual_seed(1)
        for of_corpora in splits:
            write_changed(wild, name, change, of_corpora, split)
    for path in sorted(wild.glob(f"*/{LONGEST}/*/*.wav")):
        speech, _ = soundfile.read(path, dtype="int16")
        for seconds in SECONDS_OF_SPEECH[1:]:
            shorter = wild / path.parts[-4] / f"{seconds} s of speech"
            write(shorter / Path(*path.parts[-2:]), speech[: seconds * RATE])
    write_calls(wild)


def write(path: Path, samples: np.ndarray) -> None:
    """Write samples [N] as 16-bit WAV, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE)


def write_changed(
    wild: Path, condition: str, change: Callable, splits: Splits, split: str
) -> None:
    """Write one condition of all corpora of a split."""
    for name, indices in splits.by_corpus(split).items():
        corpus = name.partition("/")[2] or "librispeech"
        limit = MANY if condition in MEASURED_WITH_PEERS else UTTERANCES
        taken: Counter[str] = Counter()
        for index in indices:
            entry = splits.pack.entries[index]
            taken[entry.speaker] += 1
            if taken[entry.speaker] > limit:
                continue
            samples = splits.pack.samples[entry.offset :][: entry.samples]
            waveform = change(samples[None].float() / FULL_SCALE)[0].clamp(-1, 1)
            speaker = entry.speaker.rpartition("/")[2]
            name = Path(entry.id).with_suffix(".wav").name
            write(wild / corpus / condition / speaker / name, waveform.numpy())


def write_calls(wild: Path) -> None:
    """Write the real calls, and their trials with the names of the new files."""
    home = wild / "calls" / "as recorded"
    for path in sorted((CALLS / "development").rglob("*.opus")):
        target = home / path.relative_to(CALLS / "development").with_suffix(".wav")
        write(target, load_recording(path, RATE).samples)
    listed = (CALLS / "trials.txt").read_text().replace(".opus", ".wav")
    (wild / "calls.txt").write_text(listed)


def tests_in(wild: Path) -> dict[tuple[str, str], tuple[list[Path], Trials]]:
    """Return files and trials by corpus and condition; raise `CorpusError` for none."""
    found = {}
    for folder in sorted(wild.glob("*/*/")):
        files = sorted(folder.rglob("*.wav"))
        speakers = [file.parent.name for file in files]
        if folder.parent.name == "calls":
            ids = [file.relative_to(folder).as_posix() for file in files]
            trials, _ = read_trials(wild / "calls.txt", ids, speakers)
        else:
            trials = make_trials(speakers, max_trials=10**6, seed=1)
        found[folder.parent.name, folder.name] = files, trials
    if not found:
        raise CorpusError(f"{wild}: expected what `make` writes, found nothing")
    return found


def measure(wild: Path, checkpoint: Path, figures: Path) -> None:
    """Test an encoder of this program as `voices.py` uses it. A recording that it
    refuses, or finds no speech in, has a vector of zeros and is never accepted."""
    voices, results = Voices.load(checkpoint), {}
    nobody = np.zeros(voices.model.encoder.embedding_size)
    for (corpus, condition), (files, trials) in tests_in(wild).items():
        vectors, speech = [], []
        for file in files:
            try:
                (clip,) = voices.listen([file])
            except VoiceError as error:
                print(error)
                clip = None
            heard = clip is not None and clip.speech > 0
            vectors.append(clip.vector if heard else nobody)
            speech.append(clip.speech if heard else 0.0)
        report = scored(np.stack(vectors), files, trials)
        shorter = trials.shorter(np.array(speech))
        llrs = voices.calibration.llrs(report.pop("cosines"), shorter)
        accepted = (llrs >= voices.calibration.threshold) & (shorter > 0)
        report["refused"] = speech.count(0.0)
        report["miss"] = float((~accepted[trials.targets]).mean())
        report["false_alarm"] = float(accepted[~trials.targets].mean())
        results.setdefault(corpus, {})[condition] = report
        print(corpus, condition, report, flush=True)
    add(figures, checkpoint.name, results, encoder=voices.digest)


def peer(wild: Path, vectors: Path, name: str, figures: Path) -> None:
    """Test another encoder by its vectors of the files."""
    with np.load(vectors) as table:
        by_name = {
            "/".join(Path(path).parts[-4:]): vector
            for path, vector in zip(table["path"], table["vector"], strict=True)
        }
    results: dict[str, dict] = {}
    for (corpus, condition), (files, trials) in tests_in(wild).items():
        names = [file.relative_to(wild).as_posix() for file in files]
        if names[0] not in by_name:
            continue
        report = scored(np.stack([by_name[n] for n in names]), files, trials)
        del report["cosines"]
        results.setdefault(corpus, {})[condition] = report
        print(corpus, condition, report, flush=True)
    add(figures, name, results)


def scored(vectors: np.ndarray, files: list[Path], trials: Trials) -> dict:
    """Return EER and minDCF with intervals, the EER after the test's own mean vector is
    subtracted, and the cosines."""
    speakers = [file.parent.name for file in files]
    cosines, centred = (
        (v[trials.enrolment] * v[trials.test]).sum(1)
        for v in (unit(vectors), unit(unit(vectors) - unit(vectors).mean(0)))
    )
    report = verify(cosines, trials, load_parameters(SHIPPED).evaluation, speakers)
    return {
        "utterances": len(files),
        "speakers": len(set(speakers)),
        "eer": report.eer,
        "eer_interval": asdict(report.eer_interval),
        "min_dcf": report.min_dcf,
        "centred": equal_error_rate(centred, trials.targets),
        "cosines": cosines,
    }


def add(figures: Path, name: str, results: dict, **notes: str) -> None:
    """Add a system's results to the JSON file."""
    systems = json.loads(figures.read_text()) if figures.exists() else {}
    systems[name] = {**notes, "command": " ".join(sys.argv), "tests": results}
    figures.write_text(json.dumps(systems, indent=1))


COMMANDS = {"make": make, "measure": measure, "peer": peer}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("wild", type=Path)
    making.add_argument("--split", choices=("development", "test"), default="test")
    measuring = commands.add_parser("measure")
    for name in ("wild", "checkpoint", "figures"):
        measuring.add_argument(name, type=Path)
    of_peer = commands.add_parser("peer")
    of_peer.add_argument("wild", type=Path)
    of_peer.add_argument("vectors", type=Path)
    of_peer.add_argument("name")
    of_peer.add_argument("figures", type=Path)
    options = vars(parser.parse_args())
    command = COMMANDS[options.pop("command")]
    return run_command(lambda: command(**options))


if __name__ == "__main__":
    sys.exit(main())
