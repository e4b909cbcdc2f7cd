"""The model that is trained and used.

`build_model` -> `SpeakerModel`: waveforms -> embeddings
`SpeakerModel`, batches -> `embed` -> embeddings [U, E]
`SpeakerModel`, samples of each recording [N] -> `embed_recordings` -> embeddings [U, E]

B utterances in a batch, U in all, N samples, E embedding size.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dataset import UtteranceBatches
from engine.parallel import gather_lists, progress_options
from engine.precision import ieee_float32
from losses import build_loss
from models import FLOP_PER_PRODUCT, build_encoder
from parameters import Parameters
from speech.corpora import people_key, without_label
from speech.packs import Entry, Pack
from speech.samples import Samples, end_to_end, in_blocks
from transforms import FrontEnd
from verification.scoring import Backend


@dataclass(frozen=True)
class Heard:
    """Speakers of one corpus that a model was trained on, by their names there."""

    digest: str  # of the packed corpus
    people: list  # `people_key` of the corpus
    speakers: list[str]


class SpeakerModel(nn.Module):
    """An encoder with everything needed to train and use it.

    waveforms -> `front_end` -> `encoder` -> embeddings; `criterion` is the training
    loss, and `backend`, empty until training ends, centres embeddings, and normalises
    and calibrates scores.

    `speakers` are the training speakers in the order of the classifier's rows;
    `digests` are those of their corpora, as in `Pack`. `ancestors` are the training
    speakers of the models whose weights this one started from, directly or through
    other models.
    """

    def __init__(
        self, config: Parameters, speakers: list[str], digests: dict[str, str]
    ) -> None:
        super().__init__()
        self.config, self.speakers, self.digests = config, speakers, digests
        self.front_end = FrontEnd(config.front_end)
        self.encoder = build_encoder(config.model, config.front_end.num_mels)
        size = self.encoder.embedding_size
        self.criterion = build_loss(config.loss, size, len(speakers))
        self.backend = Backend.unfitted(size)
        self.ancestors: tuple[Heard, ...] = ()

    @property
    def heard(self) -> tuple[Heard, ...]:
        """All speakers that the weights were trained on, with those of ancestors."""
        corpora, names = self.config.dataset.corpora, {}
        for speaker in self.speakers:
            label = "" if "" in corpora else speaker.partition("/")[0]
            names.setdefault(label, []).append(without_label(speaker, label))
        return (
            *(
                Heard(self.digests.get(label, ""), people_key(corpora[label]), heard)
                for label, heard in names.items()
            ),
            *self.ancestors,
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def flop(self, samples: int) -> int:
        """Return the number of the encoder's operations in a training step on a crop of
        `samples`."""
        frames = samples // self.front_end.hop
        return FLOP_PER_PRODUCT * self.encoder.products(frames)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, N] in [-1, 1], [B] samples -> [B, E], centred where the backend has a
        centre; without lengths, nothing counts as padding."""
        embeddings = self.encoder(*self.front_end(waveforms, lengths))
        return self.backend.centred(embeddings)


def build_model(
    config: Parameters,
    speakers: list[str],
    digests: dict[str, str],
    device: torch.device,
) -> SpeakerModel:
    """Return an untrained model; its weights depend on `seed`, not on the device."""
    torch.manual_seed(config.seed)
    return SpeakerModel(config, speakers, digests).to(device)


@ieee_float32()
@torch.inference_mode()
def embed(model: Callable, batches: UtteranceBatches) -> Tensor:
    """Embed every batch by `model(waveforms, lengths)`; return [U, E] float32 in the
    order of `batches.indices`.

    The embedding of a long utterance is the mean of its windows'. The ranks share the
    work, and each returns all embeddings.
    """
    embedded = []
    for batch in tqdm(
        batches, desc="embedding", unit="batch", leave=False, **progress_options()
    ):
        vectors = model(batch.waveforms, batch.lengths).float().cpu()
        embedded.append((batch.indices, vectors))
    indices, vectors = map(torch.cat, zip(*gather_lists(embedded), strict=True))
    utterances, rows, counts = indices.unique(return_inverse=True, return_counts=True)
    means = vectors.new_zeros(len(utterances), vectors.shape[1])
    means.index_add_(0, rows, vectors).div_(counts[:, None])
    return means[torch.searchsorted(utterances, torch.tensor(batches.indices))]


def embed_recordings(model: SpeakerModel, recordings: Sequence[Samples]) -> Tensor:
    """Embed the samples [N] of each recording, at the front end's rate; return [U, E]
    float32."""
    lengths = [len(samples) for samples in recordings]
    offsets = [0, *itertools.accumulate(lengths)][:-1]
    entries = [
        Entry("", "", None, None, None, offset, length)
        for offset, length in zip(offsets, lengths, strict=True)
    ]
    joined = end_to_end(itertools.chain(*map(in_blocks, recordings)))
    rate = model.config.front_end.sample_rate
    packed = Pack(joined, entries, rate, warnings=[], digests={})
    seconds = model.config.evaluation.batch_seconds
    return embed(
        model, UtteranceBatches(packed, range(len(entries)), seconds, model.device)
    )
