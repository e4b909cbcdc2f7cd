"""Write a speaker model as an ONNX file, for other programs such as sherpa-onnx.

`SpeakerModel` -> `save_onnx` -> model.onnx, `Agreement`

The graph takes `features` [B, M, T] float32, the log-mel of `FrontEnd.log_mel`, and
`frames` [B] int64, for any B and T. It normalises the features and returns `embedding`
[B, E] and `unit` [B, E], the embedding at length 1. B utterances, N samples, M mel
bands, T frames, E embedding size.

sherpa-onnx reads the file as a NeMo speaker model and takes the second output. Its
features differ from ours: frames begin at the first sample instead of being centred,
and mel bands end at 7,600 Hz.

Exporting needs onnxscript, and comparing needs onnxruntime:
init/requirements-onnx.txt.
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
EXCERPT_SECONDS = (0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
NUM_IN_BATCH = 4  # the shortest excerpts, which are also run as one padded batch


class OnnxError(UserError):
    """A model that cannot be exported, or a package that is missing."""


@dataclass(frozen=True)
class Agreement:
    """How well two programs agree on the unit vectors of the same features."""

    largest_difference: float  # between two coordinates
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
        self.backend = model.backend

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors and embeddings, [B, M, T], [B] -> [B, E], [B, E]."""
        embedding = self.encoder(self.front_end.normalise(features, frames), frames)
        embedding = self.backend.centred(embedding)
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

    Excerpts last 0.3 to 60 s, as far as `speech` allows, and are run one by one and in
    a padded batch. The agreement is returned and stored in the file's metadata, beside
    `digest`, which identifies the weights. Raises `OnnxError` for other encoders and if
    a package is missing.
    """
    if (name := model.config.model.name) != "titanet":
        raise OnnxError(f"model.name: expected titanet, got {name}")
    _optional("onnxscript")
    front_end = model.config.front_end
    program = _export(_Graph(model).cpu().eval(), front_end.num_mels)
    # sherpa-onnx expects the names and units of NeMo's models.
    metadata = {
        "framework": "nemo",
        "language": "any",
        "url": "https://arxiv.org/abs/2110.04410",
        "comment": f"digest {digest}",
        "sample_rate": str(front_end.sample_rate),
        "output_dim": str(model.encoder.embedding_size),
        "feat_dim": str(front_end.num_mels),
        "window_size_ms": f"{1000 * front_end.window_seconds:.0f}",
        "window_stride_ms": f"{1000 * front_end.hop_seconds:.0f}",
        "window_type": "hanning",
    }
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        program.save(str(file))
        agreement = compare(file, model, _excerpts(speech, front_end.sample_rate))
        results = {name: str(value) for name, value in asdict(agreement).items()}
        program.model.metadata_props.update(results)
        program.save(str(file))
        content = file.read_bytes()
    with atomic_write(path) as target:
        target.write(content)
    return agreement


def _export(graph: _Graph, num_mels: int) -> torch.onnx.ONNXProgram:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return torch.onnx.export(
            graph,
            (torch.randn(2, num_mels, 200), torch.tensor([200, 150])),
            dynamo=True,
            verbose=False,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={"features": {0: batch, 2: time}, "frames": {0: batch}},
        )


def _excerpts(speech: Tensor, rate: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of waveforms [B, N] and lengths [B] in samples: one of each
    excerpt alone, then one of the shortest excerpts together."""
    sizes = [min(round(seconds * rate), len(speech)) for seconds in EXCERPT_SECONDS]
    alone = [(speech[None, :size], torch.tensor([size])) for size in sizes]
    lengths = torch.tensor(sizes[:NUM_IN_BATCH])
    rows = speech[: lengths.max()].expand(NUM_IN_BATCH, -1)
    return [*alone, (rows * valid_positions(lengths, rows.shape[1]), lengths)]


@torch.inference_mode()
def compare(
    path: Path, model: SpeakerModel, batches: Sequence[tuple[Tensor, Tensor]]
) -> Agreement:
    """Compare an ONNX file in onnxruntime with its model in torch, on batches of
    waveforms [B, N] and lengths [B] in samples."""
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
