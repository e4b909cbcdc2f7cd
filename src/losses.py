"""Training criteria: cross-entropy, ArcFace, CosFace, SphereFace and GE2E.

embeddings [B, E], speakers [B] -> criterion -> `LossOutput(loss [], predictions [B])`

Shapes: B utterances in a batch, E embedding size, S training speakers. Embeddings come
in unnormalised, and losses are computed in float32 (float64 stays float64) whatever the
precision around them. Sources: ArcFace arXiv 1801.07698, CosFace 1801.09414, SphereFace
1704.08063, GE2E 1710.10467.
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import at_least_float32
from parameters import UNLABELLED, LossParameters


class LossOutput(NamedTuple):
    """The result of a criterion for a batch."""

    loss: Tensor  # [], mean over the utterances whose speakers are known
    predictions: Tensor  # [B], speaker indices, int64


class Criterion(nn.Module):
    """A loss of embeddings, its schedule, and how it identifies speakers.

    Subclasses define `forward(embeddings, speakers) -> LossOutput` and `logits`. Use
    training mode for training batches: in evaluation mode, a loss does not depend on
    the progress of training.
    """

    num_enrolled = 0  # utterances whose mean represents a speaker; 0 with a classifier

    def schedule(self, progress: float) -> None:
        """Set the values that change in training; `progress` is the share of it that is
        over."""

    def scheduled(self) -> dict[str, float]:
        """Return the values that `schedule` set, by name; wait for the device."""
        return {}

    def identify(
        self, embeddings: Tensor, speakers: Tensor, centroids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss [] of embeddings [B, E], and their scores with all
        training speakers [B, S].

        `centroids` [S, E] are means of `num_enrolled` utterances, None if that is 0.
        """
        return self(embeddings, speakers).loss, self.logits(embeddings)


def _in_full_precision(method: Callable) -> Callable:
    """Run a method without autocast, its embeddings in float32 or wider."""

    @wraps(method)
    def wrapped(self: nn.Module, embeddings: Tensor, *others: Tensor):
        with torch.autocast(embeddings.device.type, enabled=False):
            return method(self, at_least_float32(embeddings), *others)

    return wrapped


def _build_classifier(embedding_size: int, num_speakers: int, bias: bool) -> nn.Linear:
    classifier = nn.Linear(embedding_size, num_speakers, bias)
    nn.init.xavier_uniform_(classifier.weight)
    return classifier


def _cross_entropy(logits: Tensor, speakers: Tensor) -> Tensor:
    """Return the mean over the labelled rows, 0 if there are none: [B, S], [B] -> []"""
    total = F.cross_entropy(logits, speakers, ignore_index=UNLABELLED, reduction="sum")
    return total / (speakers != UNLABELLED).sum().clamp(min=1)


class CrossEntropyLoss(Criterion):
    """Softmax cross-entropy over a linear classifier with bias."""

    def __init__(self, embedding_size: int, num_speakers: int):
        super().__init__()
        self.classifier = _build_classifier(embedding_size, num_speakers, bias=True)
        # Muon's steps are as long for a small gradient as for a large one: they would
        # make these unnormalised rows grow, and with them the loss.
        self.classifier.weight.muon = False

    @_in_full_precision
    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the scores of all speakers: [B, E] -> [B, S]."""
        return self.classifier(embeddings)

    @_in_full_precision
    def forward(self, embeddings: Tensor, speakers: Tensor) -> LossOutput:
        """Compute the mean cross-entropy of embeddings [B, E] with speakers [B]."""
        logits = self.logits(embeddings)  # [B, S]
        return LossOutput(_cross_entropy(logits, speakers), logits.argmax(dim=1))


def angles_between(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles, 0 to pi radians, between the rows of a and those of b: [B, E]
    twice -> [B].

    Kahan's 2 atan2(|a - b|, |a + b|) of the unit vectors. Its gradient is finite even
    at 0 and pi, where that of arccos is not. A zero row is at pi / 2 to any other.
    """
    a, b = F.normalize(a), F.normalize(b)
    return 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))


def monotone_cosine(angles: Tensor) -> Tensor:
    """Return the cosine up to pi, and beyond it a smooth continuation that keeps
    decreasing.

    (-1)^k cos(angle) - 2k with k = floor(angle / pi): psi of arXiv 1612.02295, eq. 6,
    which SphereFace took over.
    """
    half_turns = torch.floor(angles / torch.pi)
    return (1 - 2 * (half_turns % 2)) * torch.cos(angles) - 2 * half_turns


class AngularMarginLoss(Criterion):
    """Cross-entropy over scaled cosines to the class vectors, where a margin lowers the
    target's cosine.

    Embeddings and class vectors are both normalised. The margin grows linearly over the
    first part of training, whose share is `ramp`, 0 to 1. Subclasses define
    `target_cosine`, which decreases with the angle from 0 to pi.
    """

    scheduled_share: Tensor
    no_margin = 0.0  # the margin that changes nothing

    def __init__(
        self,
        embedding_size: int,
        num_speakers: int,
        scale: float,
        margin: float,
        ramp: float = 0.0,
    ):
        super().__init__()
        self.classifier = _build_classifier(embedding_size, num_speakers, bias=False)
        self.scale = scale
        self.margin = margin
        self.ramp = ramp
        self.register_buffer("scheduled_share", torch.tensor(1.0), persistent=False)

    def schedule(self, progress: float) -> None:
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        self.scheduled_share.fill_(share)  # in place: a captured graph reads it there

    def scheduled(self) -> dict[str, float]:
        growth = self.margin - self.no_margin
        return {"margin": self.no_margin + growth * self.scheduled_share.item()}

    @property
    def margin_share(self) -> Tensor | float:
        """The share of the margin that applies now, 0 to 1."""
        return self.scheduled_share if self.training else 1.0

    def target_cosine(self, angles: Tensor) -> Tensor:
        """Return what replaces the target speaker's cos(angle): [B] radians -> [B]."""
        raise NotImplementedError

    @_in_full_precision
    def logits(self, embeddings: Tensor) -> Tensor:
        """Return scaled cosines to all speakers, without margin: [B, E] -> [B, S]."""
        class_vectors = F.normalize(self.classifier.weight)
        return self.scale * F.normalize(embeddings) @ class_vectors.T

    @_in_full_precision
    def forward(self, embeddings: Tensor, speakers: Tensor) -> LossOutput:
        """Compute the mean loss of embeddings [B, E] with speakers [B]."""
        logits = self.logits(embeddings)  # [B, S]
        # `weight[speakers]` would sum its gradient in an order that varies on a CPU.
        classes = speakers.clamp(min=0)  # any for the unlabelled, who do not count
        target_vectors = F.embedding(classes, self.classifier.weight)  # [B, E]
        angles = angles_between(embeddings, target_vectors)  # [B]
        targets = self.scale * self.target_cosine(angles)  # [B]
        with_margin = logits.scatter(1, classes[:, None], targets[:, None])
        loss = _cross_entropy(with_margin, speakers)
        return LossOutput(loss, logits.argmax(dim=1))


class ArcFaceLoss(AngularMarginLoss):
    """cos(angle + margin), margin in radians (arXiv 1801.07698, eq. 3).

    Beyond pi, the cosine of angle + margin continues as `monotone_cosine`.
    """

    def target_cosine(self, angles: Tensor) -> Tensor:
        return monotone_cosine(angles + self.margin * self.margin_share)


class CosFaceLoss(AngularMarginLoss):
    """cos(angle) - margin (arXiv 1801.09414, eq. 4)."""

    def target_cosine(self, angles: Tensor) -> Tensor:
        return torch.cos(angles) - self.margin * self.margin_share


class SphereFaceLoss(AngularMarginLoss):
    """psi(margin * angle), any real margin of at least 1 (arXiv 1704.08063).

    The paper's margins are whole numbers and its embeddings keep their lengths; here
    `monotone_cosine` takes real margins and embeddings are normalised.
    """

    no_margin = 1.0

    def target_cosine(self, angles: Tensor) -> Tensor:
        return monotone_cosine(angles * (1 + (self.margin - 1) * self.margin_share))


class GE2ELoss(Criterion):
    """Generalised end-to-end loss, softmax variant (arXiv 1710.10467).

    Each utterance is compared with the centroids of the speakers in its batch by
    scale * cosine + bias (eq. 9). Its own speaker's centroid leaves it out (eq. 8). The
    loss is the mean, not the sum, of eq. 6 over the batch. The scale is learnt as its
    logarithm, which keeps it above 0. The bias is the paper's, though the softmax
    cancels it.
    """

    def __init__(self, num_enrolled: int = 2):
        super().__init__()
        self.num_enrolled = num_enrolled
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-5.0))

    @_in_full_precision
    def logits(self, embeddings: Tensor, centroids: Tensor) -> Tensor:
        """Return scale * cosine + bias: [B, E], centroids [S, E] of any norm ->
        [B, S]."""
        centroids = F.normalize(centroids.to(embeddings.dtype))
        cosines = F.normalize(embeddings) @ centroids.T  # [B, S]
        return self.log_scale.exp() * cosines + self.bias

    def identify(
        self, embeddings: Tensor, speakers: Tensor, centroids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.logits(embeddings, centroids)  # [B, S]
        return F.cross_entropy(logits, speakers), logits

    @_in_full_precision
    def forward(self, embeddings: Tensor, speakers: Tensor) -> LossOutput:
        """Compute the mean loss of embeddings [B, E] with speakers [B], in any order.

        Each speaker should have at least two utterances in the batch: a speaker's only
        utterance counts as orthogonal to that speaker. Predictions are values of
        `speakers`.
        """
        directions = F.normalize(embeddings)
        same = speakers[:, None] == speakers  # [B, B]
        others = same.clone().fill_diagonal_(False)
        # Shapes stay static with a column for each utterance, the centroid of its
        # speaker. Sums serve as centroids, since only their directions matter.
        centroids = same.to(directions.dtype) @ directions  # [B, E]
        own_centroids = others.to(directions.dtype) @ directions  # [B, E]
        own_cosines = (directions * F.normalize(own_centroids)).sum(dim=1)  # [B]
        own_logits = self.log_scale.exp() * own_cosines + self.bias  # [B]
        logits = self.logits(directions, centroids)  # [B, B]
        logits = torch.where(same, own_logits[:, None], logits)
        # A speaker's columns are equal: dividing by their count counts them once.
        counts = same.sum(dim=1)  # [B]
        losses = torch.logsumexp(logits - counts.log(), dim=1) - own_logits  # [B]
        return LossOutput(losses.mean(), speakers[logits.argmax(dim=1)])


def teacher_loss(
    embeddings: Tensor, targets: Tensor, anchors: Tensor, temperature: float
) -> Tensor:
    """Compute how far embeddings [B, E] are from a teacher's vectors of the same
    utterances, `targets` [B, E], and of others, `anchors` [A, E]; unit vectors -> [].

    The mean of 1 - cosine, and the divergence of softmax(cosines to the vectors of all
    B + A utterances / temperature) from the teacher's (SEED, arXiv 2101.04731).
    """
    embeddings = F.normalize(at_least_float32(embeddings))
    keys = torch.cat([targets, anchors]).T / temperature  # [E, B + A]
    wanted = F.log_softmax(targets @ keys, dim=1)
    found = F.log_softmax(embeddings @ keys, dim=1)
    divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return (1 - (embeddings * targets).sum(1)).mean() + divergence


def build_loss(
    parameters: LossParameters, embedding_size: int, num_speakers: int
) -> Criterion:
    """Build the criterion that `parameters.name` chooses."""
    if parameters.name == "cross_entropy":
        return CrossEntropyLoss(embedding_size, num_speakers)
    if parameters.name == "ge2e":
        return GE2ELoss(parameters.ge2e.utterances_per_speaker)
    angular = {
        "arcface": ArcFaceLoss,
        "cosface": CosFaceLoss,
        "sphereface": SphereFaceLoss,
    }[parameters.name]
    chosen = getattr(parameters, parameters.name)
    return angular(
        embedding_size, num_speakers, chosen.scale, chosen.margin, chosen.ramp
    )
