"""Muon, an optimizer for matrices and convolutions.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) updates a matrix by its momentum with
all singular values set to about 1. From the same start and in the same 200 s of one core, the bundled base's
autoencoder reached 21.9 dB with Muon and 18.1 dB with AdamW (benchmarks/NOTES.md). `torch.optim.Muon` rejects
convolutions and iterates in bf16, which many CPUs only emulate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tools.progress import sum_over_processes

MOMENTUM = 0.95
SMALLEST_SIDE = 16  # smaller matrices don't gain from it
# Coefficients of the quintic Newton-Schulz iteration and their number, from the source above.
A, B, C, ITERATIONS = 3.4445, -4.7750, 2.0315, 5


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Returns nearly U V^T of a matrix U S V^T (O, I): singular values between about 0.7 and 1.2."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = A * x + torch.addmm(B * gram, gram, gram, alpha=C) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon with steps of root mean square 0.2 x rate, as those of AdamW (Liu et al. 2025, section 2.2).

    Without weight decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Does one step; under `torchrun` each process orthogonalises every n-th matrix for all processes."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = []
            for number, parameter in enumerate(parameters):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                direction = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                is_mine = number % world == rank
                updates.append(orthogonalise(direction) if is_mine else torch.zeros_like(direction))
            for parameter, update in zip(parameters, sum_over_processes(updates), strict=True):
                length = group["lr"] * 0.2 * max(update.shape) ** 0.5
                parameter.add_(update.view(parameter.shape), alpha=-length)


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns (weights of linear layers and convolutions for Muon, all other weights for AdamW)."""
    layers = (nn.Linear, nn.Conv2d)
    weights = [
        module.weight
        for module in model.modules()
        if isinstance(module, layers) and module.weight.requires_grad
    ]
    matrices: list[Any] = [
        weight for weight in weights if min(weight.shape[0], weight[0].numel()) >= SMALLEST_SIDE
    ]
    for_muon = {id(weight) for weight in matrices}
    return matrices, [p for p in model.parameters() if p.requires_grad and id(p) not in for_muon]


def set_rates(step: int, steps: int, *optimizers: tuple[torch.optim.Optimizer, float]) -> None:
    """Sets the learning rates of a step: linear warm-up over 50 steps, then linear decay to 2 % of the peak.

    Args:
        optimizers: (optimizer, peak rate).
    """
    factor = min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
