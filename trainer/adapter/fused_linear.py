"""LoRA's linear layers that read the same input, as one step of the forward and one of the backward pass.

    h = x [A_q; A_k; A_v]^T                  one product for all downs
    q = W_q x + s h_q B_q^T                  added where the frozen product lies, the scale folded into the product

The backward pass computes h again: x is kept once for all of them, and nothing else. It adds gradients of A and B to
the place where they belong, so that no sum of gradients is launched.

Products with A and B are thin. On a CPU they are made in fp32 of the masters themselves, whatever the base's precision:
one of bf16 takes oneDNN longer to begin than the whole product takes in fp32 (benchmarks/NOTES.md).

Shapes: T rows of all pictures together, I inputs, O outputs, R ranks of all members together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.flat_parameters import FlatVector
from trainer.adapter.layer import Layer
from trainer.sdxl.quantised import QuantisedLinear

PLAIN = (nn.Linear, QuantisedLinear)  # frozen layers whose products are made here


class _Matrices(NamedTuple):
    """A of all members, and each one's B; each as it is and transposed. Or their gradients."""

    down_RI: torch.Tensor
    down_IR: torch.Tensor
    ups_OR: list[torch.Tensor]
    ups_RO: list[torch.Tensor]


class LinearGroup:
    """Members share an input; each is LoRA over a frozen linear layer of this project or torch, and their downs lie side by side."""

    reads_input = True  # in its backward pass

    def __init__(self, members: tuple[Layer, ...]) -> None:
        self.members = members
        self.strength, self.dropout = members[0].strength, members[0].dropout
        self.bases: list[Any] = [member.base for member in members]
        self.dtype = working_dtype(self.bases[0])
        self.scales = [member.scale for member in members]
        self.ranks = [member.rank for member in members]
        self._views: dict[str, tuple[Any, torch.Tensor, _Matrices]] = {}
        self._flat_vectors: tuple[Any, FlatVector, list[FlatVector]] | None = (
            None  # of the downs, and of the ups
        )

    @staticmethod
    def fits(members: Sequence[Any]) -> bool:
        """Whether these layers can be one group."""
        if not all(type(member.base) in PLAIN and member.slots for member in members):
            return False
        slots = [member.slots["down"] for member in members]
        follows = pairwise(slots)
        return all(b.flat is a.flat and b.start == a.start + a.shape.numel() for a, b in follows)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each member's output (..., O)."""
        x_TI, strength = x.reshape(-1, x.shape[-1]), self.strength.value
        is_learning = torch.is_grad_enabled()
        made = (
            _Grouped.apply(x_TI, self.learned, self, float(strength))
            if is_learning
            else self.outputs(x_TI, strength)
        )  # pyright: ignore
        return tuple(output.view(*x.shape[:-1], -1) for output in made)

    @property
    def flat_vectors(self) -> tuple[FlatVector, list[FlatVector]]:
        """Where all downs lie, and where the ups do."""
        slots = self.members[0].slots
        if self._flat_vectors is None or self._flat_vectors[0] is not slots:
            self._flat_vectors = (
                slots,
                slots["down"].flat,
                list({member.slots["up"].flat: None for member in self.members}),
            )
        return self._flat_vectors[1:]

    @property
    def learned(self) -> torch.Tensor:
        """The vector of the downs: an input of every node of autograd that computes with this group, so that a gradient is asked for."""
        return self.flat_vectors[0].value

    def _matrices(self, dtype: torch.dtype) -> _Matrices:
        down, ups = self.flat_vectors
        vector = down.working(dtype)
        for flat in ups:
            if flat is not down:
                flat.working(dtype)
        return self._viewed("values", vector, lambda flat: flat.working(dtype))

    def _gradients(self, dtype: torch.dtype) -> _Matrices:
        """Where the gradients of `_matrices` are added."""
        vector = self.flat_vectors[0].gradient(dtype)
        return self._viewed("gradients", vector, lambda flat: flat.gradient(dtype))

    def _viewed(self, kind: str, vector: torch.Tensor, of: Any) -> _Matrices:
        slots = self.members[0].slots
        known = self._views.get(kind)
        if known is None or known[0] is not slots or known[1] is not vector:
            first = slots["down"]
            inputs, rank = first.shape[1], sum(self.ranks)
            down = vector[first.start : first.start + rank * inputs].view(rank, inputs)
            ups = [member.slots["up"].of(of(member.slots["up"].flat)) for member in self.members]
            known = self._views[kind] = (
                slots,
                vector,
                _Matrices(down, down.t(), ups, [up.t() for up in ups]),
            )
        return known[2]

    def _parts(self, wide_TR: torch.Tensor) -> Sequence[torch.Tensor]:
        """The columns of each member."""
        return (wide_TR,) if len(self.members) == 1 else wide_TR.split(self.ranks, 1)

    def outputs(
        self, x_TI: torch.Tensor, strength: float | torch.Tensor, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """Each member's output (T, O).

        Args:
            strength: for all rows, or one for each picture (N,).
            dtype: of the outputs; the base's without.
        """
        made = frozen_outputs(self.bases, x_TI.to(self.dtype), dtype or self.dtype)
        if isinstance(strength, float | int) and strength == 0:
            return made
        x_TI = _in_lora_precision(x_TI)
        matrices, factor = self._matrices(x_TI.dtype), 1.0
        hidden_TR = x_TI @ matrices.down_IR
        if isinstance(strength, torch.Tensor):
            hidden_TR.view(len(strength), -1).mul_(strength.to(x_TI.dtype)[:, None])
        else:
            factor = strength
        for output, hidden, up, scale in zip(
            made, self._parts(hidden_TR), matrices.ups_RO, self.scales, strict=True
        ):
            _add_product(output, hidden, up, scale * factor)
        return made

    def backward(
        self,
        x_TI: torch.Tensor,
        gradients_TO: Sequence[torch.Tensor],
        strength: float,
        *,
        dtype: torch.dtype | None,
    ) -> torch.Tensor | None:
        """The gradient of x (T, I) in `dtype`, None where that is None; adds those of A and B where they lie."""
        x_TI = _in_lora_precision(x_TI)
        matrices, gradients = self._matrices(x_TI.dtype), self._gradients(x_TI.dtype)
        hidden_TR, hidden_gradient = x_TI @ matrices.down_IR, x_TI.new_empty(len(x_TI), sum(self.ranks))
        members = zip(self._parts(hidden_TR), self._parts(hidden_gradient), strict=True)
        for number, (hidden, into) in enumerate(members):
            gradient, factor = gradients_TO[number].to(x_TI.dtype), self.scales[number] * strength
            torch.addmm(into, gradient, matrices.ups_OR[number], beta=0, alpha=factor, out=into)
            gradients.ups_OR[number].addmm_(gradient.t(), hidden, alpha=factor)
        gradients.down_RI.addmm_(hidden_gradient.t(), x_TI)
        if dtype is None:
            return None
        input_gradient = frozen_input_gradient(self.bases, gradients_TO, self.dtype).to(dtype)
        _add_product(input_gradient, hidden_gradient, matrices.down_RI)
        return input_gradient


class FrozenGroup:
    """Linear layers that read the same input and learn nothing, with the face of a `LinearGroup`."""

    reads_input = False

    def __init__(self, bases: Sequence[Any]) -> None:
        self.bases, self.dtype = bases, working_dtype(bases[0])

    def outputs(
        self, x_TI: torch.Tensor, strength: float, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        return frozen_outputs(self.bases, x_TI.to(self.dtype), dtype or self.dtype)

    def backward(
        self, x_TI: Any, gradients_TO: Sequence[torch.Tensor], strength: float, *, dtype: torch.dtype | None
    ) -> torch.Tensor | None:
        return (
            None if dtype is None else frozen_input_gradient(self.bases, gradients_TO, self.dtype).to(dtype)
        )


class _Grouped(torch.autograd.Function):
    """The learned vector is an input so that a gradient is asked for; it goes to `LinearGroup._gradients`, not through autograd."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, learned: torch.Tensor, group: LinearGroup, strength: float
    ) -> tuple[torch.Tensor, ...]:  # pyright: ignore
        ctx.save_for_backward(x_TI)
        ctx.group, ctx.strength = group, strength
        return tuple(group.outputs(x_TI, strength))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # pyright: ignore
        (x_TI,) = ctx.saved_tensors
        dtype = x_TI.dtype if ctx.needs_input_grad[0] else None
        return ctx.group.backward(x_TI, outputs, ctx.strength, dtype=dtype), None, None, None


def working_dtype(base: Any) -> torch.dtype:
    return base.dtype if isinstance(base, QuantisedLinear) else base.weight.dtype


def frozen_outputs(bases: Sequence[Any], x_TI: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    return [F.linear(x_TI, base.weight, base.bias).to(dtype) for base in bases]


def frozen_input_gradient(
    bases: Sequence[Any], gradients_TO: Sequence[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """(T, I) of all layers together, in the precision of their weights."""
    total = gradients_TO[0].to(dtype) @ bases[0].weight
    for gradient, base in zip(gradients_TO[1:], bases[1:], strict=True):
        total.addmm_(gradient.to(dtype), base.weight)
    return total


def _in_lora_precision(x_TI: torch.Tensor) -> torch.Tensor:
    """In the precision of products with A and B."""
    return x_TI.float() if x_TI.device.type == "cpu" and x_TI.itemsize < 4 else x_TI


def _add_product(to: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float = 1.0) -> None:
    if to.dtype == left.dtype:
        to.addmm_(left, right, alpha=factor)
    else:
        to.add_(left @ right, alpha=factor)
