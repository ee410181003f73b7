"""What each step tells: kept on the device and read together, so that the host never waits for one step to end."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.errors import NotFiniteError

SECONDS = 0.5  # between two looks at a device that computes by itself


@dataclass
class _Step:
    number: int  # steps done
    rate: float
    names: list[str]  # of its last batch
    loss: torch.Tensor
    norm: torch.Tensor | None


@dataclass
class DeferredMetrics:
    """Steps whose numbers have not been read yet."""

    device: torch.device
    first: int  # steps done before
    steps: int
    begun: float = field(default_factory=time.monotonic)
    _waiting: list[_Step] = field(default_factory=list)
    _looked: float = field(default_factory=time.monotonic)

    def add(
        self, number: int, *, loss: torch.Tensor, norm: torch.Tensor | None, rate: float, names: list[str]
    ) -> None:
        self._waiting.append(_Step(number, rate, names, loss, norm))

    @property
    def is_due(self) -> bool:
        """A CPU has computed a step when it is called: nothing is gained by waiting."""
        return self.device.type == "cpu" or time.monotonic() - self._looked > SECONDS

    def read(self) -> list[tuple[dict[str, Any], float]]:
        """(facts, seconds) of each step since the last call; the device is waited for once.

        Raises NotFiniteError at the first step whose loss, or norm of the gradient, is no number.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        norms = [step.loss if step.norm is None else step.norm for step in waiting]
        read = torch.stack([number.float() for number in (*(step.loss for step in waiting), *norms)]).tolist()
        now = time.monotonic()
        seconds, self._looked = (now - self._looked) / len(waiting), now
        told = []
        for step, loss, norm in zip(waiting, read, read[len(waiting) :], strict=False):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFiniteError(step.number, step.names)
            left = (now - self.begun) / (step.number - self.first) * (self.steps - step.number)
            facts = {
                "step": step.number,
                "steps": self.steps,
                "loss": loss,
                "learning_rate": step.rate,
                "seconds_left": round(left, 1),
            }
            told.append((facts, seconds))
        return told


def zero_grads_unless_finite(vectors: list[torch.nn.Parameter], norm: torch.Tensor) -> None:
    """Gradients become zeros where their norm is no number, without a look at it: the weights stay numbers until it is told."""
    for vector in vectors:
        assert vector.grad is not None
        torch.where(torch.isfinite(norm), vector.grad, torch.zeros((), device=norm.device), out=vector.grad)


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """On the device, without waiting until it is there."""
    tensor = tensor if dtype is None else tensor.to(dtype)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda" and tensor.device.type == "cpu"
        else tensor.to(device)
    )
