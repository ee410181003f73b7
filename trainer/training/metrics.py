"""Deferred step metrics: losses and norms stay on the device and are read for several steps at once.

Reading a number from a CUDA tensor blocks the host until the device has computed it. With a read in every
step the host could not queue the next step's kernels in time; with one read each half second the device never
runs dry.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from trainer.errors import NotFiniteError
from trainer.hardware.memory_watch import SpillWatch
from trainer.runs.run import Run

SECONDS = 0.5  # between two reads from a device that computes asynchronously


@dataclass
class _Step:
    number: int  # steps done
    learning_rate: float
    names: list[str]  # images of its last batch
    loss: torch.Tensor
    norm: torch.Tensor | None


@dataclass(frozen=True)
class StepMetrics:
    """The fields of a `step` event, and how long the step took."""

    fields: dict[str, Any]  # step, steps, loss, learning_rate, seconds_left
    seconds: float


@dataclass
class DeferredMetrics:
    """Steps whose numbers have not been read from the device yet."""

    device: torch.device
    first: int  # steps done before this process
    steps: int  # of the whole training
    begun: float = field(default_factory=time.monotonic)
    _pending: list[_Step] = field(default_factory=list)
    _last_read: float = field(default_factory=time.monotonic)

    def add(
        self,
        number: int,
        loss: torch.Tensor,
        norm: torch.Tensor | None,
        learning_rate: float,
        names: list[str],
    ) -> None:
        """Stores the numbers of a step without reading them.

        Args:
            number: steps done, this one included.
            norm: of the gradient; None where a gradient that is not finite is no error.
            names: of the images of the step's last batch.
        """
        self._pending.append(_Step(number, learning_rate, names, loss, norm))

    @property
    def is_due(self) -> bool:
        """True if numbers should be read now; always on a CPU, where each step is already computed."""
        return self.device.type == "cpu" or time.monotonic() - self._last_read > SECONDS

    def read(self) -> list[StepMetrics]:
        """Returns the metrics of all steps since the last call; waits for the device once.

        Raises:
            NotFiniteError: of the first step whose loss, or norm of the gradient, is NaN or infinite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        norms = [step.loss if step.norm is None else step.norm for step in pending]
        numbers = [number.float() for number in (*(step.loss for step in pending), *norms)]
        values = torch.stack(numbers).tolist()
        now = time.monotonic()
        seconds, self._last_read = (now - self._last_read) / len(pending), now
        metrics = []
        for step, loss, norm in zip(pending, values, values[len(pending) :], strict=False):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFiniteError(step.number, step.names)
            left = (now - self.begun) / (step.number - self.first) * (self.steps - step.number)
            fields = {
                "step": step.number,
                "steps": self.steps,
                "loss": loss,
                "learning_rate": step.learning_rate,
                "seconds_left": round(left, 1),
            }
            metrics.append(StepMetrics(fields, seconds))
        return metrics


class StepReporter:
    """Emits a `step` event for each step and logs its loss and learning rate in the tracker."""

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.spill_watch = SpillWatch(accelerator.device)

    def emit(self, metrics: list[StepMetrics]) -> None:
        """Emits the steps, and a problem where they have become slow for lack of memory."""
        for step in metrics:
            warning = self.spill_watch.check(step.seconds)
            if warning:
                self.run.emit("problem", message=warning)
            fields = step.fields
            self.run.emit("step", **fields)
            logged = {"loss": fields["loss"], "learning_rate": fields["learning_rate"]}
            self.accelerator.log(logged, step=fields["step"])


def zero_grads_unless_finite(vectors: list[torch.nn.Parameter], norm: torch.Tensor) -> None:
    """Zeroes all gradients if their norm is not finite, without reading the norm from the device.

    The weights so stay finite until the norm is read and the error is raised, some steps later; a checkpoint
    of them can still be saved then.
    """
    for vector in vectors:
        assert vector.grad is not None
        torch.where(torch.isfinite(norm), vector.grad, torch.zeros((), device=norm.device), out=vector.grad)


def to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Returns the tensor on the device, through pinned memory so that the host does not wait for the copy."""
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
