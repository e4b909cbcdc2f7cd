"""What the tests share: the shipped parameters, cut down, and optional real data."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parameters import Parameters, load_parameters

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

MINIATURE = (
    "dataset.synthetic.num_speakers=8",
    "dataset.synthetic.utterances_per_speaker=5",
    "dataset.synthetic.min_seconds=1.6",
    "dataset.synthetic.max_seconds=2.4",
    "dataset.test_fraction=0.25",
    "model.titanet.channels=16",
    "model.titanet.epilog_channels=32",
    "model.titanet.embedding_size=24",
    "model.dvector.hidden_size=24",
    "model.dvector.projection_size=16",
    "model.dvector.num_layers=1",
    "model.dvector.embedding_size=12",
    "loss.ge2e.speakers_per_batch=4",
    "loss.ge2e.utterances_per_speaker=2",
    "training.device=cpu",
    "training.epochs=2",
    "training.batch_size=6",
    "wandb.mode=disabled",
)


@pytest.fixture
def shipped() -> Callable[..., Parameters]:
    """parameters.yml with overrides."""

    def load(*overrides: str) -> Parameters:
        return load_parameters(REPOSITORY / "parameters.yml", overrides=overrides)

    return load


@pytest.fixture
def miniature(tmp_path, shipped) -> Callable[..., Parameters]:
    """A training of seconds that writes below the test's own folder."""

    def load(*overrides: str) -> Parameters:
        return shipped(
            *MINIATURE,
            f"dataset.packs={tmp_path / 'packs'}",
            f"run.directory={tmp_path / 'runs'}",
            *overrides,
        )

    return load


@pytest.fixture
def shared() -> Path:
    """The folder of test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ does not stand beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
