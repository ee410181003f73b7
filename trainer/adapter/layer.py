"""Base class of adapted layers, the strength that all of them share, and dropout.

Shapes: N rows of the batch, O outputs, I inputs (times the kernel's area, in a convolution), R rank.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Shapes = Mapping[str, tuple[int, ...]]  # of a layer's matrices, by role


class Strength:
    """The factor of the adapter's change, shared by all layers of an adapter.

    `value` is one number for all rows, or a tensor (N,) with one strength for each row of the batch.
    """

    def __init__(self) -> None:
        self.value: float | torch.Tensor = 1.0

    def scaled(self, hidden_NTR: torch.Tensor, scale: float) -> torch.Tensor:
        """Returns hidden * strength * scale, for each row its strength."""
        if isinstance(self.value, torch.Tensor):
            rows = self.value.to(hidden_NTR.dtype) * scale
            return hidden_NTR * rows.view(-1, *[1] * (hidden_NTR.dim() - 1))
        factor = self.value * scale
        return hidden_NTR if factor == 1.0 else hidden_NTR * factor


@dataclass(kw_only=True)
class Dropout:
    """Dropout in training batches, as kohya and LyCORIS define it; probabilities from 0 to 1.

    Random numbers depend on `batch_seed` and the layer's name alone: a resumed run drops the same numbers,
    and so does activation checkpointing when it recomputes a layer. Without gradients (in samples) nothing is
    dropped.
    """

    network: float = 0.0  # of hidden activations; of the outputs in layers whose change is a whole matrix
    rank: float = 0.0  # of the ranks, for each image; in LoHa and LoKr of the change's rows, for the batch
    module: float = 0.0  # of layers
    batch_seed: int | None = None

    @property
    def is_on(self) -> bool:
        """Returns whether the present call drops anything."""
        has_share = (self.network or self.rank or self.module) > 0
        return self.batch_seed is not None and has_share and torch.is_grad_enabled()

    def generator(self, layer: str, device: torch.device) -> torch.Generator:
        """Returns a generator that yields the same numbers for the same batch and layer."""
        digest = hashlib.blake2b(f"{self.batch_seed}/{layer}".encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def dropout_mask(
    shape: tuple[int, ...] | torch.Size, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Returns 0 for the dropped share and 1 / (1 - share) for the rest: mean 1 (Srivastava et al. 2014)."""
    kept = torch.rand(shape, generator=generator, device=generator.device) >= share
    return kept.float() / (1 - share)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Rank, alpha and form of one layer's change."""

    rank: int
    alpha: float
    network: str = "lora"  # lora, dora, loha, lokr or diff
    factor: int = 0  # of LoKr; see `lycoris.shapes_of`
    shapes: Shapes | None = None  # of the matrices of a file; None for the shapes of a new layer


class Layer(nn.Module, ABC):
    """A frozen linear layer or convolution plus strength times a change of its weight.

    The change is computed from fp32 master weights whatever the base's precision; their gradients are fp32
    too.

    Args:
        base: the frozen layer.
        strength: shared with all other layers of the adapter.
        name: `part/path` of the layer, from which its dropout is seeded.
    """

    network = ""  # lora, dora, loha, lokr or diff

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        spec: LayerSpec,
        *,
        strength: Strength,
        dropout: Dropout | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.base = base
        self.rank, self.alpha, self.strength = spec.rank, spec.alpha, strength
        self.dropout, self.name = dropout or Dropout(), name
        self.slots: dict[
            str, Any
        ] = {}  # role -> where a `trainer.adapter.flat_parameters.FlatVector` holds it

    @property
    def scale(self) -> float:
        """The factor of the matrices' product."""
        return self.alpha / self.rank

    @abstractmethod
    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns the master weights by role, such as `down`, `up` or `hada_w1_a`."""

    @abstractmethod
    def _replace(self, role: str, parameter: nn.Parameter) -> None:
        """Sets another parameter for a role."""

    def bind(self, role: str, parameter: nn.Parameter, slot: Any) -> None:
        """Replaces a master weight by a view of a longer vector.

        Args:
            slot: the view's `Slot`.
        """
        self._replace(role, parameter)
        # A new dictionary, not a changed one: its identity shows caches of the layer's groups that they are
        # outdated.
        self.slots = {**self.slots, role: slot}

    @property
    @abstractmethod
    def zero_init_role(self) -> str:
        """The role of the matrix that is initialised to zero; the change is proportional to it."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Draws initial values; that of `zero_init_role` is zero, so that step 0 equals the base model."""

    @abstractmethod
    def product(self) -> torch.Tensor:
        """Returns the scaled product of the matrices, without DoRA's magnitude, as a weight."""

    def change(self) -> torch.Tensor:
        """Returns the change of the base's weight at strength 1, fp32, in its shape."""
        return self.product()


def fill_random(
    parameter: nn.Parameter, generator: torch.Generator, *, uniform: float = 0.0, normal: float = 0.0
) -> None:
    """Fills a master weight from a CPU generator: uniform in +-`uniform`, or normal with that deviation."""
    values = torch.empty(parameter.shape)
    if uniform:
        values.uniform_(-uniform, uniform, generator=generator)
    else:
        values.normal_(0, normal, generator=generator)
    with torch.no_grad():
        parameter.copy_(values)


def fan_in(base: nn.Linear | nn.Conv2d) -> int:
    """Returns the number of inputs of one output: columns times the kernel's area."""
    return math.prod(base.weight.shape[1:])


def apply_weight(base: nn.Linear | nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns the output of `base` with another weight and without its bias."""
    if isinstance(base, nn.Linear):
        return F.linear(x, weight)
    settings: Any = (base.stride, base.padding, base.dilation, base.groups)
    return F.conv2d(x, weight, None, *settings)
