"""EMA weights: the average of the trained weights that the file and the sample images use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from trainer.adapter.lora import Adapter
from trainer.training.optim import is_schedule_free


class EmaWeights:
    """An exponential moving average of the adapter, or a schedule-free optimizer's average, or none.

    The decay rises from 0 to `decay` over the first steps, (1 + n) / (10 + n), so that the initial weights
    lose their influence quickly.
    """

    def __init__(self, adapter: Adapter, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.adapter, self.decay = adapter, decay
        self.optimizer: Any = optimizer if is_schedule_free(optimizer) else None
        self.ema = EMAModel(adapter.vectors(), decay=decay) if decay else None

    @property
    def is_on(self) -> bool:
        """True if the averaged weights differ from the trained ones."""
        return self.ema is not None or self.optimizer is not None

    def step(self) -> None:
        """Updates the average; must be called after each step of the optimizer."""
        if self.ema:
            self.ema.step(self.adapter.vectors())

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Puts the averaged weights into the adapter for a block; then the trained ones, bit for bit."""
        if not self.is_on:
            yield
            return
        vectors = self.adapter.vectors()
        trained = [vector.detach().clone() for vector in vectors]
        if self.ema:
            self.ema.copy_to(vectors)
        else:
            self.optimizer.eval()
        self.adapter.mark_dirty()
        try:
            yield
        finally:
            if self.optimizer:
                self.optimizer.train()
            # A schedule-free optimizer's train() interpolates the weights back, which rounds.
            with torch.no_grad():
                for vector, original in zip(vectors, trained, strict=True):
                    vector.copy_(original)

    def apply(self) -> None:
        """Puts the averaged weights into the adapter for good; no further step can be trained."""
        if self.ema:
            self.ema.copy_to(self.adapter.vectors())
        elif self.optimizer:
            self.optimizer.eval()
        self.adapter.mark_dirty()
        self.ema = self.optimizer = None

    def tensors(self) -> dict[str, torch.Tensor] | None:
        """Returns the averaged weights for a checkpoint, or None when nothing is averaged."""
        if not self.is_on:
            return None
        with self.swapped_in():
            return self.adapter.tensors()

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Restores the result of `tensors()` at `step`; a schedule-free optimizer has it in its own state."""
        if not self.ema:
            return
        trained = self.adapter.tensors()
        self.adapter.load(tensors)
        self.ema.shadow_params = [vector.detach().clone() for vector in self.adapter.vectors()]
        self.ema.optimization_step = step
        self.adapter.load(trained)
