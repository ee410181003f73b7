"""What every adapted layer has in common: its face, the strength it shares with all others, and what a batch leaves out.

Shapes: N rows of the batch, O outputs, I inputs (times the kernel's area, in a convolution), R rank.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Strength:
    """How much of the change is applied; shared by all layers of an adapter.

    A number for all rows, or a tensor (N,) with one strength per batch row.
    """

    def __init__(self) -> None:
        self.value: float | torch.Tensor = 1.0

    def scaled(self, hidden_NTR: torch.Tensor, scale: float) -> torch.Tensor:
        if isinstance(self.value, torch.Tensor):
            rows = self.value.to(hidden_NTR.dtype) * scale
            return hidden_NTR * rows.view(-1, *[1] * (hidden_NTR.dim() - 1))
        factor = self.value * scale
        return hidden_NTR if factor == 1.0 else hidden_NTR * factor


@dataclass(kw_only=True)
class Dropout:
    """What each layer leaves out of a training batch: shares from 0 to 1, as kohya and LyCORIS define them.

    All is drawn from `batch_seed` and the layer's name alone: a resumed run leaves out the same, and so does gradient
    checkpointing when it computes a layer again. Nothing is left out where no gradient is asked for, as in pictures.
    """

    network: float = (
        0.0  # of the hidden activations (of the change's outputs, where the change is a whole matrix)
    )
    rank: float = 0.0  # of the rank, for each picture (of the change's rows in LoHa and LoKr, for the batch)
    module: float = 0.0  # of the layers
    batch_seed: int | None = None

    @property
    def is_on(self) -> bool:
        return (
            self.batch_seed is not None
            and (self.network or self.rank or self.module) > 0
            and torch.is_grad_enabled()
        )

    def draws(self, layer: str, device: torch.device) -> torch.Generator:
        """A generator that gives the same numbers for the same batch and layer."""
        digest = hashlib.blake2b(f"{self.batch_seed}/{layer}".encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def keep(shape: tuple[int, ...] | torch.Size, share: float, draws: torch.Generator) -> torch.Tensor:
    """Zero for the dropped share, 1 / (1 - share) for the rest, so that the mean stays (Srivastava et al. 2014)."""
    return (torch.rand(shape, generator=draws, device=draws.device) >= share).float() / (1 - share)


class Layer(nn.Module, ABC):
    """A frozen linear layer or convolution plus strength times a change of its weight.

    The change is made of fp32 masters whatever the base's dtype; their gradients are fp32 too.
    """

    network = ""  # what the form is called: lora, dora, loha, lokr or diff

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float,
        strength: Strength,
        dropout: Dropout | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.base = base
        self.rank, self.alpha, self.strength = rank, alpha, strength
        self.dropout, self.name = dropout or Dropout(), name
        self.slots: dict[
            str, Any
        ] = {}  # role -> where a `trainer.adapter.flat_parameters.FlatVector` holds it

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @abstractmethod
    def tensors(self) -> dict[str, nn.Parameter]:
        """The masters by their role: `down`, `up`, `hada_w1_a`, ..."""

    @abstractmethod
    def _replace(self, role: str, parameter: nn.Parameter) -> None:
        """Takes another parameter for a role."""

    def place(self, role: str, parameter: nn.Parameter, place: Any) -> None:
        """Takes a view of a longer vector for a master; `place` says which part of it."""
        self._replace(role, parameter)
        self.slots = {
            **self.slots,
            role: place,
        }  # a new dictionary: what was made of the old one is outdated

    @property
    @abstractmethod
    def zero_init_role(self) -> str:
        """The role of the matrix that starts at zero; the change is proportional to it."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """First values; `zero` is zero, so that step 0 equals the base model."""

    @abstractmethod
    def product(self) -> torch.Tensor:
        """The product of the matrices, scaled, in the shape of the base's weight (DoRA's magnitude left aside)."""

    def change(self) -> torch.Tensor:
        """What strength 1 adds to the base's weight, fp32, in its shape."""
        return self.product()


def draw(
    parameter: nn.Parameter, generator: torch.Generator, *, uniform: float = 0.0, normal: float = 0.0
) -> None:
    """Fills a master from a CPU generator: uniform in +-`uniform`, or with a deviation of `normal`."""
    values = torch.empty(parameter.shape)
    if uniform:
        values.uniform_(-uniform, uniform, generator=generator)
    else:
        values.normal_(0, normal, generator=generator)
    with torch.no_grad():
        parameter.copy_(values)


def fan_in(base: nn.Linear | nn.Conv2d) -> int:
    """Numbers that one output is made of."""
    return math.prod(base.weight.shape[1:])


def applied(base: nn.Linear | nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What `base` would give with another weight and no bias."""
    if isinstance(base, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, base.stride, base.padding, base.dilation, base.groups)  # pyright: ignore[reportArgumentType]
