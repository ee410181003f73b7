"""Muon for the matrices and convolutions of a model, AdamW for all else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix by its momentum with all singular
values made equal. From the same start and in the same 200 s of one core, the bundled base's autoencoder reached 21.9 dB
with it and 18.1 dB with AdamW (benchmarks/NOTES.md). `torch.optim.Muon` takes no convolutions and iterates in bf16,
which processors without it only emulate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tools.progress import sums

MOMENTUM = 0.95
SMALLEST_SIDE = 16  # thinner matrices gain nothing
# Coefficients of the quintic Newton-Schulz iteration and their number, from the source above.
A, B, C, ITERATIONS = 3.4445, -4.7750, 2.0315, 5


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(O, I) nearly U V^T of its singular value decomposition: singular values between about 0.7 and 1.2."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = A * x + torch.addmm(B * gram, gram, gram, alpha=C) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Steps of root mean square 0.2 x rate, as AdamW's are (Liu et al. 2025, section 2.2). No weight decay."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Under `torchrun` each process makes every n-th matrix orthogonal, and all move all."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            moves = []
            for number, parameter in enumerate(moving):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                direction = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                moves.append(orthogonal(direction) if number % world == rank else torch.zeros_like(direction))
            for parameter, move in zip(moving, sums(moves), strict=True):
                parameter.add_(move.view(parameter.shape), alpha=-group["lr"] * 0.2 * max(move.shape) ** 0.5)


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(for Muon, for AdamW): weights of linear layers and convolutions, and the rest (norms, biases, embeddings)."""
    layers = (nn.Linear, nn.Conv2d)
    weights = [
        module.weight
        for module in model.modules()
        if isinstance(module, layers) and module.weight.requires_grad
    ]
    matrices: list[Any] = [
        weight for weight in weights if min(weight.shape[0], weight[0].numel()) >= SMALLEST_SIDE
    ]
    chosen = {id(weight) for weight in matrices}
    return matrices, [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]


def set_rates(step: int, steps: int, *optimizers: tuple[torch.optim.Optimizer, float]) -> None:
    """Each (optimizer, peak rate): warm-up over 50 steps, then a straight line to nearly nothing."""
    factor = min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
