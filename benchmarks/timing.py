"""What the benchmarks share: ways of one task timed in turns, and the same model in
NeMo."""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from exchange.nemo_files import save_nemo
from runs.speaker_model import SpeakerModel


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the seconds of each way's first call, and of its calls in the rounds
    after it. Each round calls every way, so that other load on the machine meets all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            seconds[name].append(time.perf_counter() - began)
    first = {name: of_way.pop(0) for name, of_way in seconds.items()}
    return first, seconds


def nemo_is_installed() -> bool:
    """Return whether NeMo can be imported; print if it cannot."""
    try:
        import nemo.collections.asr  # noqa: F401
    except ImportError:
        print("NeMo is not installed here: without it")
        return False
    return True


def as_nemos(model: SpeakerModel, device: torch.device) -> Any:
    """Return NeMo's model with the same weights, by way of a `.nemo` file."""
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nemo"
        save_nemo(path, model)
        return EncDecSpeakerLabelModel.restore_from(str(path), map_location=device)
