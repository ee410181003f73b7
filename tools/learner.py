"""Training state of one model: two optimizers, an exponential moving average, and a file to resume from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.muon import Muon, set_rates, split
from tools.progress import average_gradients, load_state, save_state


def build_parser(
    doc: str | None, *, steps: int, muon_rate: float, adam_rate: float, save_every: int
) -> argparse.ArgumentParser:
    """Returns the options that all trainings have, with the defaults of one of them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--muon-rate", type=float, default=muon_rate)
    parser.add_argument("--adam-rate", type=float, default=adam_rate)
    parser.add_argument("--save-every", type=int, default=save_every)
    return parser


class Learner:
    """A model in training, resumed from its file if that exists.

    Args:
        store: file of the state.
        options: of `build_parser`.
        average: another instance of the model, for the exponential moving average of its weights.

    Attributes:
        first: number of the first step to do, 0 unless the training is resumed.
    """

    def __init__(
        self, model: nn.Module, store: Path, options: argparse.Namespace, average: nn.Module | None = None
    ) -> None:
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
        """The objects whose state is saved."""
        parts = {"model": self.model, "average": self.average, "muon": self.muon, "adam": self.adam}
        return {name: part for name, part in parts.items() if part is not None}

    def step(self, number: int, loss: torch.Tensor, *, decay: float = 0.0) -> None:
        """Does one step of both optimizers.

        Args:
            number: of the step, from which the learning rates follow.
            decay: of the moving average; it moves by 1 - `decay` of the way to the weights.
        """
        options = self.options
        set_rates(number, options.steps, (self.muon, options.muon_rate), (self.adam, options.adam_rate))
        loss.backward()
        average_gradients([*self.matrices, *self.others])
        nn.utils.clip_grad_norm_(self.others, 1.0)  # the length of Muon's steps does not depend on gradients
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1 - decay
                )

    def save_if_due(self, steps_done: int) -> None:
        """Writes the state after every `--save-every` steps and after the last one."""
        if steps_done % self.options.save_every == 0 or steps_done == self.options.steps:
            save_state(self.store, steps_done, **self.parts)
