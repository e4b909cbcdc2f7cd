"""Optimizers and the schedule of the learning rate.

`OptimizerParameters`, weights -> `build_optimizer` -> `torch.optim.Optimizer`

Muon is by Jordan et al., kellerjordan.github.io/posts/muon (2024), with the length of
its steps matched to AdamW's as in arXiv 2502.16982.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from parameters import OptimizerParameters

MUON_MOMENTUM = 0.95
# The factors of x, x x' x and x x' x x' x in a step of the Newton-Schulz iteration.
NEWTON_SCHULZ_FACTORS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalised(x: Tensor) -> Tensor:
    """Return matrices [..., rows, columns] with their singular values brought near
    1."""
    a, b, c = NEWTON_SCHULZ_FACTORS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the groups of matrices that set `muon`, AdamW for the others.

    A matrix moves along the momentum of its gradient after all singular values are made
    equal. The step is as long as AdamW's would be.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.param_groups:
            for weight in group["params"] if group.setdefault("muon", False) else []:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
                self.state[weight]["step"] = torch.zeros(())  # AdamW expects it

    @torch.no_grad()
    def step(self) -> None:
        """Take one step for all weights that have a gradient."""
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
                for weight in group["params"]:
                    weight.grad = None  # so that AdamW skips it
        super().step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)  # matrices of one shape are computed together
        for weight in group["params"]:
            by_shape[weight.shape].append(weight)
        for weights in by_shape.values():
            old = torch.stack(weights)
            gradient = torch.stack([weight.grad for weight in weights])
            momenta = [self.state[weight]["momentum"] for weight in weights]
            momentum = torch.stack(momenta).lerp(gradient, 1 - MUON_MOMENTUM)
            direction = gradient.lerp(momentum, MUON_MOMENTUM)  # Nesterov's
            if direction.is_cuda:  # exact enough, and faster there
                direction = direction.bfloat16()
            lr = group["lr"]
            # The length of AdamW's usual step for a matrix of this size (2502.16982).
            length = lr * 0.2 * math.sqrt(max(old.shape[1:]))
            new = old * (1 - lr * group["weight_decay"])
            new = new - length * orthogonalised(direction)
            # `step_where` sets `found_inf`; without it no step is skipped.
            skipped = getattr(self, "found_inf", old.new_zeros(())) > 0
            for i, (weight, buffer) in enumerate(zip(weights, momenta, strict=True)):
                weight.copy_(torch.where(skipped, weight, new[i]))
                buffer.copy_(torch.where(skipped, buffer, momentum[i]))


def build_optimizer(
    weights: Iterable[nn.Parameter], parameters: OptimizerParameters
) -> torch.optim.Optimizer:
    """Return the optimizer that the parameters name; only matrices and filters decay.

    With Muon, AdamW trains the matrices whose attribute `muon` is false.
    """
    weights = list(weights)
    common = {"lr": parameters.lr, "weight_decay": parameters.decay, "fused": True}
    vectors = {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0}
    if parameters.name == "muon":
        matrices = {"params": [w for w in weights if _suits_muon(w)], "muon": True}
        others = {"params": [w for w in weights if w.ndim > 1 and not _suits_muon(w)]}
        return Muon([matrices, others, vectors], **common)
    groups = [{"params": [w for w in weights if w.ndim > 1]}, vectors]
    if parameters.name == "sgd":
        sgd = torch.optim.SGD(groups, momentum=parameters.momentum, **common)
        # SGD would leave the buffers uninitialised if it skipped its first step.
        for weight in weights:
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[parameters.name]
    return adam(groups, **common)


def _suits_muon(weight: nn.Parameter) -> bool:
    return weight.ndim == 2 and getattr(weight, "muon", True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, parameters: OptimizerParameters, progress: float
) -> None:
    """Set the learning rate of every group; `progress` is the share of the training
    that is over halfway through the step."""
    rate = learning_rate(parameters, progress)
    for group in optimizer.param_groups:
        ratio = parameters.muon_lr / parameters.lr if group.get("muon") else 1.0
        group["lr"] = rate * ratio


def learning_rate(parameters: OptimizerParameters, progress: float) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine. `progress` is the
    share of the training that is over."""
    if progress < parameters.warmup:
        return parameters.lr * progress / parameters.warmup
    falling = (progress - parameters.warmup) / max(1 - parameters.warmup, 1e-9)
    share = (1 + math.cos(math.pi * falling)) / 2
    return parameters.final_lr + (parameters.lr - parameters.final_lr) * share


def clip_gradient(optimizer: torch.optim.Optimizer, clip_norm: float) -> Tensor:
    """Shorten the gradient of all weights to `clip_norm` at most; return the norm []
    that it had before."""
    groups = optimizer.param_groups
    weights = [weight for group in groups for weight in group["params"]]
    return nn.utils.clip_grad_norm_(weights, clip_norm)


def step_where(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take a step if `finite` [] is true, else leave weights and momenta unchanged.

    The decision stays on the device, so nothing waits for it: torch's fused optimizers
    and Muon here skip the step if their attribute `found_inf` is 1.
    """
    optimizer.found_inf = 1 - finite.float()
    optimizer.step()


def block_norms(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the gradient norm [] of each block of an encoder, by its name in
    checkpoints with the dot replaced: `blocks.0` becomes `blocks_0`."""
    gradients = defaultdict(list)
    for name, weight in encoder.named_parameters():
        block = re.match(r"\w+(\.\d+)?", name)[0].replace(".", "_")
        gradients[block].append(weight.grad)
    return {name: nn.utils.get_total_norm(group) for name, group in gradients.items()}
