"""A speaker model as an ONNX file, for other programs and for sherpa-onnx.

`SpeakerModel` -> `save_onnx` -> model.onnx, `Agreement`

The graph takes `features` [B, M, T] float32, log-mel before normalisation as
`FrontEnd.log_mel` computes it, and `frames` [B] int64, both of any size. It normalises
them and gives `unit` [B, E], vectors of length 1, and `embedding` [B, E], the same
before that. B utterances, N samples, M mel bands, T frames, E embedding size.

sherpa-onnx reads the file as a NeMo speaker model, from whose graph it takes the second
output. Its features are not quite ours: frames begin at the first sample instead of
being centred, and mel bands end at 7,600 Hz.

Packages: onnxscript to export, onnxruntime to compare; init/requirements-onnx.txt.
"""

import importlib
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.files import atomic_write
from engine.layers import valid_positions
from errors import UserError
from runs.speaker_model import SpeakerModel

INPUTS, OUTPUTS = ("features", "frames"), ("unit", "embedding")
SECONDS, NUM_SHORT = (0.3, 1.0, 3.0, 10.0, 30.0, 60.0), 4  # of excerpts


class OnnxError(UserError):
    """A model that cannot be exported, or a package that is missing."""


@dataclass(frozen=True)
class Agreement:
    """How far two programs' unit vectors of the same features lie apart."""

    largest_difference: float  # of a number
    smallest_cosine: float
    num_vectors: int

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.1e}, smallest cosine "
            f"1 - {1 - self.smallest_cosine:.1e}, {self.num_vectors} vectors"
        )


class _Graph(nn.Module):
    def __init__(self, model: SpeakerModel) -> None:
        super().__init__()
        self.front_end, self.encoder = model.front_end, model.encoder

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, T], [B] -> [B, E], [B, E]"""
        embedding = self.encoder(self.front_end.normalise(features, frames), frames)
        return F.normalize(embedding), embedding


def _optional(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise OnnxError(
            f"expected {package}, which is not installed: "
            "pip install -r init/requirements-onnx.txt"
        ) from None


def save_onnx(
    path: Path, model: SpeakerModel, digest: str, speech: Tensor
) -> Agreement:
    """Write a TitaNet as ONNX and compare it with torch on excerpts of speech [N].

    Excerpts last 0.3 to 60 s, or as long as `speech` allows, and are run alone and in a
    padded batch. The agreement is returned and stored in the file's metadata with
    `digest`, which identifies the weights.
    """
    parameters = model.config
    if parameters.model.name != "titanet":
        raise OnnxError(f"model.name: expected titanet, got {parameters.model.name}")
    _optional("onnxscript")
    graph = _Graph(model).cpu().eval()
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    example = (
        torch.randn(2, parameters.front_end.num_mels, 200),
        torch.tensor([200, 150]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={"features": {0: batch, 2: time}, "frames": {0: batch}},
        )
    # Names and units as sherpa-onnx reads them of NeMo's models.
    metadata = {
        "framework": "nemo",
        "language": "any",
        "url": "https://arxiv.org/abs/2110.04410",
        "comment": f"digest {digest}",
        "sample_rate": str(parameters.front_end.sample_rate),
        "output_dim": str(model.encoder.embedding_size),
        "feat_dim": str(parameters.front_end.num_mels),
        "window_size_ms": f"{1000 * parameters.front_end.window_seconds:.0f}",
        "window_stride_ms": f"{1000 * parameters.front_end.hop_seconds:.0f}",
        "window_type": "hanning",
    }
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        program.save(str(file))
        agreement = compare(
            file, model, _excerpts(speech, parameters.front_end.sample_rate)
        )
        checked = {name: str(value) for name, value in asdict(agreement).items()}
        program.model.metadata_props.update(checked)
        program.save(str(file))
        content = file.read_bytes()
    with atomic_write(path) as target:
        target.write(content)
    return agreement


def _excerpts(speech: Tensor, rate: int) -> list[tuple[Tensor, Tensor]]:
    """Waveforms [B, N] and lengths [B]: each duration, and the short ones together."""
    sizes = [min(round(seconds * rate), len(speech)) for seconds in SECONDS]
    alone = [(speech[None, :size], torch.tensor([size])) for size in sizes]
    short = torch.tensor(sizes[:NUM_SHORT])
    rows = speech[: short.max()].expand(NUM_SHORT, -1)
    return [*alone, (rows * valid_positions(short, rows.shape[1]), short)]


@torch.inference_mode()
def compare(
    path: Path, model: SpeakerModel, batches: Sequence[tuple[Tensor, Tensor]]
) -> Agreement:
    """Hold an ONNX file by onnxruntime against its model by torch, on batches of
    waveforms [B, N] and their lengths [B] in samples."""
    runtime = _optional("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    graph = _Graph(model).cpu().eval()
    differences, cosines = [], []
    for waveforms, lengths in batches:
        features = model.front_end.log_mel(waveforms, lengths)
        frames = lengths // model.front_end.hop
        inputs = dict(zip(INPUTS, (features.numpy(), frames.numpy()), strict=True))
        unit, _ = session.run(OUTPUTS, inputs)
        expected = graph(features, frames)[0].double().numpy()
        differences.append(np.abs(unit - expected).max())
        cosines += (unit * expected).sum(1).tolist()
    return Agreement(float(max(differences)), min(cosines), len(cosines))
