"""LoRA's linear layers that read the same input, as one node of autograd.

    h = x [A_q; A_k; A_v]^T                  (T, R)   one product for the down matrices of all members
    q = x W_q^T + b_q + s_q h_q B_q^T        (T, O)   added in place, scaled inside the product

with s = strength * alpha / rank. A and B are the down and up matrices, W and b the frozen layer's.

Backward pass. With dq (T, O) the gradient of q, h_q (T, R_q) the columns of h that belong to q, and R the
ranks of all members together:

    dh_q = s_q dq B_q                        (T, R_q)   since q depends on h_q by the factor s_q B_q^T
    dB_q = s_q dq^T h_q                      (O, R_q)
    dA   = dh^T x                            (R, I)     one product for all members, dh = [dh_q dh_k dh_v]
    dx   = sum over members of dq W_q, + dh A    (T, I)

h is computed again rather than saved: it costs one thin product, and saving it for all layers takes 20 MiB.
Only x is saved, once for all members. dA and dB are added by the products themselves to the slots of a
`FlatVector`, so that autograd launches no separate sum for each of 1,120 matrices. Gradients of W and b do
not exist: the base is frozen.

Why not plain autograd: a LoRA layer is several nodes there, each with its launches, saved tensors and a sum
of gradients. On SDXL's 560 layers and on small bases that overhead is a large part of a step
(benchmarks/NOTES.md).

Products with A and B are thin. On a CPU they are computed in fp32 from the master weights, whatever the
base's precision: oneDNN's setup of one bf16 product takes longer than the whole product in fp32
(benchmarks/NOTES.md).

Shapes: T rows (tokens of all images together), I inputs, O outputs, R ranks of all members together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapter.flat_parameters import FlatVector
from trainer.adapter.layer import Layer
from trainer.sdxl.quantised import QuantisedLinear

PLAIN = (nn.Linear, QuantisedLinear)  # frozen layers whose products are computed here


class _Matrices(NamedTuple):
    """A of all members and B of each, with their transposes; or the gradients of these."""

    down_RI: torch.Tensor
    down_IR: torch.Tensor
    ups_OR: list[torch.Tensor]
    ups_RO: list[torch.Tensor]


class LinearGroup:
    """LoRA layers over frozen linear layers that read the same input.

    Args:
        members: layers whose down matrices lie side by side in a `FlatVector`; see `fits`.
    """

    reads_input = True  # the backward pass needs x, for dA

    def __init__(self, members: tuple[Layer, ...]) -> None:
        self.members = members
        self.strength, self.dropout = members[0].strength, members[0].dropout
        self.bases: list[Any] = [member.base for member in members]
        self.dtype = working_dtype(self.bases[0])
        self.scales = [member.scale for member in members]
        self.ranks = [member.rank for member in members]
        self._views: dict[str, tuple[Any, torch.Tensor, _Matrices]] = {}
        # The slots that the vectors were looked up for, the vector of the downs, the vectors of the ups.
        self._vectors: tuple[Any, FlatVector, list[FlatVector]] | None = None

    @staticmethod
    def fits(members: Sequence[Any]) -> bool:
        """Returns whether layers can be one group.

        Frozen layers of known types, down matrices side by side.
        """
        if not all(type(member.base) in PLAIN and member.slots for member in members):
            return False
        downs = [member.slots["down"] for member in members]
        return all(
            following.flat is slot.flat and following.start == slot.start + slot.shape.numel()
            for slot, following in pairwise(downs)
        )

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns each member's output (..., O) for x (..., I)."""
        x_TI, strength = x.reshape(-1, x.shape[-1]), self.strength.value
        if torch.is_grad_enabled():
            outputs: Any = _GroupFunction.apply(x_TI, self.trained_vector, self, float(strength))
        else:
            outputs = self.outputs(x_TI, strength)
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @property
    def vectors(self) -> tuple[FlatVector, list[FlatVector]]:
        """The vector that contains all down matrices, and those that contain the up matrices.

        With LoRA+ the ups train at another learning rate and are in another vector. A layer gets a new
        dictionary of slots when its master weights move, so the identity of that dictionary shows whether the
        result is current.
        """
        slots = self.members[0].slots
        if self._vectors is None or self._vectors[0] is not slots:
            ups = dict.fromkeys(member.slots["up"].flat for member in self.members)
            self._vectors = slots, slots["down"].flat, list(ups)
        return self._vectors[1:]

    @property
    def trained_vector(self) -> torch.Tensor:
        """The vector of the downs, an input of every autograd node that computes with this group.

        Autograd runs the backward pass of a node only if one of its inputs requires a gradient. The frozen
        layers and, in the first layers of the UNet, x require none, so that the vector must be an input
        although its gradient is not returned through autograd.
        """
        return self.vectors[0].value

    def _matrices(self, dtype: torch.dtype) -> _Matrices:
        """Returns the matrices in `dtype`."""
        down, ups = self.vectors
        vector = down.working(dtype)
        for flat in ups:
            if flat is not down:
                flat.working(dtype)  # renews the copy that the cached views show
        return self._viewed("values", vector, lambda flat: flat.working(dtype))

    def _gradients(self, dtype: torch.dtype) -> _Matrices:
        """Returns the tensors to which gradients of the matrices are added; only inside a backward pass."""
        vector = self.vectors[0].gradient(dtype)
        return self._viewed("gradients", vector, lambda flat: flat.gradient(dtype))

    def _viewed(
        self, kind: str, vector: torch.Tensor, vector_of: Callable[[FlatVector], torch.Tensor]
    ) -> _Matrices:
        """Returns views of the vectors, cached while slots and vector are the same objects."""
        slots = self.members[0].slots
        known = self._views.get(kind)
        if known is None or known[0] is not slots or known[1] is not vector:
            first = slots["down"]
            inputs, rank = first.shape[1], sum(self.ranks)
            # The members' downs are neighbours, so that one view shows all of them as a matrix (R, I).
            down = vector[first.start : first.start + rank * inputs].view(rank, inputs)
            ups = [member.slots["up"].of(vector_of(member.slots["up"].flat)) for member in self.members]
            matrices = _Matrices(down, down.t(), ups, [up.t() for up in ups])
            known = self._views[kind] = slots, vector, matrices
        return known[2]

    def _parts(self, wide_TR: torch.Tensor) -> Sequence[torch.Tensor]:
        """Returns the columns of each member."""
        return (wide_TR,) if len(self.members) == 1 else wide_TR.split(self.ranks, 1)

    def outputs(
        self, x_TI: torch.Tensor, strength: float | torch.Tensor, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """Returns each member's output (T, O).

        Args:
            strength: for all rows, or one for each image (N,).
            dtype: of the outputs; by default the base's.
        """
        outputs = frozen_outputs(self.bases, x_TI.to(self.dtype), dtype or self.dtype)
        if isinstance(strength, float | int) and strength == 0:
            return outputs
        x_TI = _in_lora_precision(x_TI)
        matrices, factor = self._matrices(x_TI.dtype), 1.0
        hidden_TR = x_TI @ matrices.down_IR
        if isinstance(strength, torch.Tensor):
            # An image is a run of rows: (N, tokens x R) times (N, 1).
            hidden_TR.view(len(strength), -1).mul_(strength.to(x_TI.dtype)[:, None])
        else:
            factor = strength
        hidden_parts = self._parts(hidden_TR)
        for output, hidden, up, scale in zip(
            outputs, hidden_parts, matrices.ups_RO, self.scales, strict=True
        ):
            _add_product(output, hidden, up, scale * factor)
        return outputs

    def backward(
        self,
        x_TI: Any,
        gradients_TO: Sequence[torch.Tensor],
        strength: float,
        *,
        dtype: torch.dtype | None,
    ) -> torch.Tensor | None:
        """Adds the gradients of A and B to their slots and returns that of x (formulas: top of the file).

        Args:
            gradients_TO: of each member's output.
            dtype: of the returned gradient (T, I); None omits its computation and returns None.
        """
        x_TI = _in_lora_precision(x_TI)
        matrices, gradients = self._matrices(x_TI.dtype), self._gradients(x_TI.dtype)
        hidden_TR = x_TI @ matrices.down_IR
        hidden_gradient_TR = x_TI.new_empty(len(x_TI), sum(self.ranks))
        members = zip(self._parts(hidden_TR), self._parts(hidden_gradient_TR), strict=True)
        for number, (hidden, hidden_gradient) in enumerate(members):
            gradient, factor = gradients_TO[number].to(x_TI.dtype), self.scales[number] * strength
            # dh_q = s_q dq B_q. `beta=0` makes addmm ignore what the memory contains, so that it need not be
            # zeroed.
            up = matrices.ups_OR[number]
            torch.addmm(hidden_gradient, gradient, up, beta=0, alpha=factor, out=hidden_gradient)
            gradients.ups_OR[number].addmm_(gradient.t(), hidden, alpha=factor)  # dB_q += s_q dq^T h_q
        gradients.down_RI.addmm_(hidden_gradient_TR.t(), x_TI)  # dA += dh^T x
        if dtype is None:
            return None
        input_gradient = frozen_input_gradient(self.bases, gradients_TO, self.dtype).to(dtype)
        _add_product(input_gradient, hidden_gradient_TR, matrices.down_RI)  # dx += dh A
        return input_gradient


class FrozenGroup:
    """Linear layers without an adapter that read the same input, with the interface of `LinearGroup`."""

    reads_input = False  # without dA, the backward pass needs no x

    def __init__(self, bases: Sequence[Any]) -> None:
        self.bases, self.dtype = bases, working_dtype(bases[0])

    def outputs(
        self, x_TI: torch.Tensor, strength: float, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """Returns each layer's output (T, O); the strength is ignored."""
        return frozen_outputs(self.bases, x_TI.to(self.dtype), dtype or self.dtype)

    def backward(
        self, x_TI: Any, gradients_TO: Sequence[torch.Tensor], strength: float, *, dtype: torch.dtype | None
    ) -> torch.Tensor | None:
        """Returns the gradient of x (T, I), or None if `dtype` is None."""
        if dtype is None:
            return None
        return frozen_input_gradient(self.bases, gradients_TO, self.dtype).to(dtype)


class _GroupFunction(torch.autograd.Function):
    """The autograd node of a `LinearGroup`.

    The trained vector is an input only so that the node requires a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, trained_vector: torch.Tensor, group: LinearGroup, strength: float
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x_TI)
        ctx.group, ctx.strength = group, strength
        return tuple(group.outputs(x_TI, strength))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore
        (x_TI,) = ctx.saved_tensors
        dtype = x_TI.dtype if ctx.needs_input_grad[0] else None
        return ctx.group.backward(x_TI, grad_outputs, ctx.strength, dtype=dtype), None, None, None


def working_dtype(base: Any) -> torch.dtype:
    """Returns the precision of a frozen layer's products."""
    return base.dtype if isinstance(base, QuantisedLinear) else base.weight.dtype


def frozen_outputs(bases: Sequence[Any], x_TI: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns the output (T, O) of each frozen layer."""
    return [F.linear(x_TI, base.weight, base.bias).to(dtype) for base in bases]


def frozen_input_gradient(
    bases: Sequence[Any], gradients_TO: Sequence[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """Returns the gradient of the layers' input (T, I), sum of dq W_q, in the precision of the weights."""
    total = gradients_TO[0].to(dtype) @ bases[0].weight
    for gradient, base in zip(gradients_TO[1:], bases[1:], strict=True):
        total.addmm_(gradient.to(dtype), base.weight)
    return total


def _in_lora_precision(x_TI: torch.Tensor) -> torch.Tensor:
    """Returns x in the precision of products with A and B: fp32 on a CPU, that of the base elsewhere."""
    return x_TI.float() if x_TI.device.type == "cpu" and x_TI.itemsize < 4 else x_TI


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float = 1.0) -> None:
    """Adds factor * left @ right in place; without a temporary matrix where the precisions are equal."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=factor)
    else:
        total.add_(left @ right, alpha=factor)
