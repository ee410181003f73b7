"""LoRA's linear layers that read the same input, as one step of the forward and one node of the backward pass.

    h = x [A_q; A_k; A_v]^T                  one product for all downs
    q = W_q x + s h_q B_q^T                  added where the frozen product lies, the scale folded into the product

The backward pass computes h again: x is kept once for all of them, and nothing else. It adds gradients of A and B to
the place where they belong, so that no sum of gradients is launched.

Shapes: T rows of all pictures together, I inputs, O outputs, R ranks of all members together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.flat import Flat
from trainer.adapter.layer import Layer
from trainer.sdxl.quantised import QuantisedLinear


class Group:
    """Members share an input; each is LoRA over a frozen linear layer of this project or torch, and their downs lie side by side."""

    def __init__(self, members: tuple[Layer, ...]) -> None:
        self.members = members
        self.strength, self.dropout = members[0].strength, members[0].dropout
        self.bases: list[Any] = [member.base for member in members]
        self.scales = [member.scale for member in members]
        ends = [0]
        for member in members:
            ends.append(ends[-1] + member.rank)
        self.columns = [slice(first, last) for first, last in pairwise(ends)]
        self.rank = ends[-1]
        self._views: dict[str, tuple[Any, torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]]]] = {}
        self._flats: tuple[Any, Flat, list[Flat]] | None = None  # of the downs, and of the ups

    @staticmethod
    def fits(members: list[Any]) -> bool:
        """Whether these layers can be one group."""
        if not all(type(member.base) in (nn.Linear, QuantisedLinear) and member.places for member in members):
            return False
        places = [member.places["down"] for member in members]
        follows = pairwise(places)
        return all(b.flat is a.flat and b.start == a.start + a.shape.numel() for a, b in follows)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each member's output (..., O)."""
        strength = self.strength.value
        if not torch.is_grad_enabled():
            return self.outputs(x, strength)
        return _Grouped.apply(x, self.flats[0].value, self, float(strength))  # pyright: ignore

    @property
    def flats(self) -> tuple[Flat, list[Flat]]:
        """Where all downs lie, and where the ups do."""
        places = self.members[0].places
        if self._flats is None or self._flats[0] is not places:
            self._flats = (places, places["down"].flat, list({member.places["up"].flat: None for member in self.members}))
        return self._flats[1:]

    def part(self, wide: torch.Tensor, number: int) -> torch.Tensor:
        """The columns of one member."""
        return wide if len(self.members) == 1 else wide[:, self.columns[number]]

    def matrices(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A of all members (R, I), and each one's B (O, R), in the base's dtype."""
        down, ups = self.flats
        vector = down.working(dtype)
        for flat in ups:
            if flat is not down:
                flat.working(dtype)
        return self._viewed("values", vector, lambda flat: flat.working(dtype))

    def gradients(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Where the gradients of `matrices` are added."""
        vector = self.flats[0].gradient(dtype)
        return self._viewed("gradients", vector, lambda flat: flat.gradient(dtype))

    def _viewed(self, kind: str, vector: torch.Tensor, of: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        places = self.members[0].places
        known = self._views.get(kind)
        if known is None or known[0] is not places or known[1] is not vector:
            first = places["down"]
            inputs = first.shape[1]
            downs = vector[first.start : first.start + self.rank * inputs].view(self.rank, inputs)
            ups = [member.places["up"].of(of(member.places["up"].flat)) for member in self.members]
            known = self._views[kind] = (places, vector, (downs, ups))
        return known[2]

    def outputs(self, x: torch.Tensor, strength: float | torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = tuple(F.linear(x, base.weight, base.bias) for base in self.bases)
        if isinstance(strength, float | int) and strength == 0:
            return made
        downs, ups = self.matrices(x.dtype)
        hidden_TR = x.reshape(-1, x.shape[-1]) @ downs.t()
        factor = 1.0
        if isinstance(strength, torch.Tensor):
            hidden_TR.view(len(strength), -1).mul_(strength.to(x.dtype)[:, None])
        else:
            factor = strength
        for number, (output, up, scale) in enumerate(zip(made, ups, self.scales, strict=True)):
            output.view(-1, output.shape[-1]).addmm_(self.part(hidden_TR, number), up.t(), alpha=scale * factor)
        return made


class _Grouped(torch.autograd.Function):
    """The learned vector is an input so that a gradient is asked for; it goes to `Group.gradients`, not through autograd."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, learned: torch.Tensor, group: Group, strength: float) -> tuple[torch.Tensor, ...]:  # pyright: ignore
        ctx.save_for_backward(x)
        ctx.group, ctx.strength = group, strength
        return group.outputs(x, strength)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # pyright: ignore
        (x,), group = ctx.saved_tensors, ctx.group
        x_TI = x.reshape(-1, x.shape[-1])
        downs, ups = group.matrices(x.dtype)
        down_gradient, up_gradients = group.gradients(x.dtype)
        hidden_TR, hidden_gradient = x_TI @ downs.t(), x_TI.new_empty(len(x_TI), group.rank)
        gradients = [output.reshape(-1, output.shape[-1]) for output in outputs]
        for number, gradient in enumerate(gradients):
            factor, into = group.scales[number] * ctx.strength, group.part(hidden_gradient, number)
            torch.addmm(into, gradient, ups[number], beta=0, alpha=factor, out=into)
            up_gradients[number].addmm_(gradient.t(), group.part(hidden_TR, number), alpha=factor)
        down_gradient.addmm_(hidden_gradient.t(), x_TI)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        input_gradient = gradients[0] @ group.bases[0].weight
        for gradient, base in zip(gradients[1:], group.bases[1:], strict=True):
            input_gradient.addmm_(gradient, base.weight)
        input_gradient.addmm_(hidden_gradient, downs)
        return input_gradient.view(x.shape), None, None, None
