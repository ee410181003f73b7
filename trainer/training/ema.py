"""The weights that a file and its pictures take: the trained ones, or an average of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from trainer.adapter.lora import Adapter
from trainer.training.optim import is_schedule_free


class EmaWeights:
    """An exponential moving average of the adapter, or the one that a schedule-free optimizer keeps, or none.

    The decay rises from 0 to `decay` over the first steps, (1 + n) / (10 + n), so that the start is forgotten.
    """

    def __init__(self, adapter: Adapter, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.adapter, self.decay = adapter, decay
        self.optimizer: Any = optimizer if is_schedule_free(optimizer) else None
        self.ema = EMAModel(adapter.vectors(), decay=decay) if decay else None

    @property
    def is_kept(self) -> bool:
        return self.ema is not None or self.optimizer is not None

    def step(self) -> None:
        """Called after each step of the optimizer."""
        if self.ema:
            self.ema.step(self.adapter.vectors())

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The adapter holds the averaged weights meanwhile; afterwards the trained ones, to the bit."""
        if not self.is_kept:
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
            with torch.no_grad():  # train() interpolates back, which rounds
                for vector, kept in zip(vectors, trained, strict=True):
                    vector.copy_(kept)

    def settle(self) -> None:
        """The adapter takes the averaged weights for good; nothing can be trained afterwards."""
        if self.ema:
            self.ema.copy_to(self.adapter.vectors())
        elif self.optimizer:
            self.optimizer.eval()
        self.adapter.mark_dirty()
        self.ema = self.optimizer = None

    def tensors(self) -> dict[str, torch.Tensor] | None:
        """What a checkpoint keeps beside the trained weights; None when nothing is averaged."""
        if not self.is_kept:
            return None
        with self.shown():
            return self.adapter.tensors()

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Puts back what `tensors()` gave at `step`. A schedule-free optimizer has its own in its state."""
        if not self.ema:
            return
        trained = self.adapter.tensors()
        self.adapter.load(tensors)
        self.ema.shadow_params = [vector.detach().clone() for vector in self.adapter.vectors()]
        self.ema.optimization_step = step
        self.adapter.load(trained)
