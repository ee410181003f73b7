"""A model that a tool teaches: the optimizers of its two kinds of weights, its running average, and its state on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.muon import Muon, set_rates, split
from tools.progress import average_gradients, load_state, save_state


def parser_of(
    doc: str | None, *, steps: int, muon_rate: float, adam_rate: float, save_every: int
) -> argparse.ArgumentParser:
    """What every teaching tool asks, with this one's usual answers."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--muon-rate", type=float, default=muon_rate)
    parser.add_argument("--adam-rate", type=float, default=adam_rate)
    parser.add_argument("--save-every", type=int, default=save_every)
    return parser


class Learner:
    """Goes on from `store` where that exists."""

    def __init__(
        self, model: nn.Module, store: Path, options: argparse.Namespace, average: nn.Module | None = None
    ) -> None:
        """
        Args:
            average: starts as the model and follows it.
        """
        self.model, self.average, self.store, self.options = model, average, store, options
        if average is not None:
            average.load_state_dict(model.state_dict())
        self.matrices, self.others = split(model)
        self.muon = Muon(self.matrices, options.muon_rate)
        self.adam = torch.optim.AdamW(
            self.others, lr=options.adam_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.first = load_state(store, **self.parts)

    @property
    def parts(self) -> dict[str, Any]:
        found = {"model": self.model, "average": self.average, "muon": self.muon, "adam": self.adam}
        return {name: part for name, part in found.items() if part is not None}

    def step(self, number: int, loss: torch.Tensor, *, decay: float = 0.0) -> None:
        """Moves the weights against the gradients of `loss`, and the average by 1 - `decay` of the way to them."""
        options = self.options
        set_rates(number, options.steps, (self.muon, options.muon_rate), (self.adam, options.adam_rate))
        loss.backward()
        average_gradients([*self.matrices, *self.others])
        nn.utils.clip_grad_norm_(self.others, 1.0)  # Muon's steps have one length
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1 - decay
                )

    def keep(self, done: int) -> None:
        """Writes the state after every `--save-every` steps and the last one."""
        if done % self.options.save_every == 0 or done == self.options.steps:
            save_state(self.store, done, **self.parts)
