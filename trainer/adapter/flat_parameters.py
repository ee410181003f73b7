"""Many small master weights as views of one long vector.

    value       fp32   | A_q | A_k | A_v | B_q | B_k | B_v | A_out | B_out |  trained; each matrix is a view
    gradient    fp32   the same slots; each matrix's `.grad` is a view
    working     a copy in the base's dtype, renewed when the value has changed; none for an fp32 base

An SDXL LoRA has 1,120 to 1,444 small matrices. Clipping, EMA and the optimizer each launch several kernels
for every parameter, which on a card takes longer than the arithmetic. Over one vector each of them is one
launch.

Down matrices of layers that read the same input lie side by side, so that one product computes all of them
(`trainer.adapter.fused_linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from trainer.adapter.layer import Layer


@dataclass(frozen=True)
class Slot:
    """The position of a master weight in a vector."""

    flat: FlatVector
    start: int  # numbers before it
    shape: torch.Size

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns the view of this slot in a vector of the same layout.

        Values, gradients or optimizer state.
        """
        return vector[self.start : self.start + self.shape.numel()].view(self.shape)


class FlatVector:
    """One vector of master weights; the layers' own parameters become views of it and keep their values.

    Three tensors share the layout: `value` (fp32, the parameter that the optimizer trains), its gradient, and
    a working copy in the precision of the base, which the forward and backward passes multiply with.

    Args:
        members: (layer, role) of each master weight.
        order: returns the key by which members are laid out.
    """

    def __init__(
        self, members: Iterable[tuple[Layer, str]], order: Callable[[tuple[Layer, str]], Any]
    ) -> None:
        self.members = list(members)  # in the order given, which is that of saved optimizer states
        laid_out = sorted(self.members, key=order)
        parameters = [layer.tensors()[role] for layer, role in laid_out]
        self.value = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        # The same memory without gradient. One tensor object for all callers: `LinearGroup` recognises by
        # identity that its cached views are still valid, and `detach()` would make a new object at each call.
        self._values = self.value.detach()
        self._gradient: torch.Tensor | None = None
        self._views: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._copy: torch.Tensor | None = None
        self._copied_at = -1
        self._low_gradient: torch.Tensor | None = None
        self._is_open = False
        start = 0
        for (layer, role), parameter in zip(laid_out, parameters, strict=True):
            slot = Slot(self, start, parameter.shape)
            layer.bind(role, nn.Parameter(slot.of(self.value.detach())), slot)
            start += parameter.numel()

    @property
    def slots(self) -> list[Slot]:
        """The slot of each member, in the order given."""
        return [layer.slots[role] for layer, role in self.members]

    def working(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the values in `dtype`, without gradient; a cached copy unless they are fp32."""
        if dtype == self.value.dtype:
            return self._values
        if self._copy is None or self._copy.dtype != dtype:
            # A sample may be the first to need the copy. A tensor that is made in inference mode could not be
            # used in a training step afterwards.
            with torch.inference_mode(False):
                self._copy = torch.empty_like(self.value, dtype=dtype, requires_grad=False)
                self._copied_at = -1
        # `_version` is the counter by which autograd detects that a saved tensor was changed in place: every
        # in-place operation on the vector or on any view of it adds 1. Comparing it is the only way to notice
        # a change without reading the values; without it, each of the 560 layers would convert its matrices
        # to bf16 in every pass. Writes through `.data` do not count, and some optimizers use them: therefore
        # `mark_dirty`.
        if self._copied_at != self.value._version:
            self._copy.copy_(self.value.detach())
            self._copied_at = self.value._version
        return self._copy

    def mark_dirty(self) -> None:
        """Renews the working copy at its next use; call it after each step of an optimizer.

        Changes through `.data`, which some optimizers make, are not visible in the version counter.
        """
        self._copied_at = -1

    def gradient(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the vector to which a backward pass adds gradients; call it only inside a backward pass.

        For fp32 it is the gradient itself. For a lower precision it is a second vector, in which the
        gradients of one backward pass are summed by the products themselves, and which is added to the fp32
        gradient at the end of the pass. Sums over several passes (gradient accumulation) are therefore in
        fp32.
        """
        total = self._open()
        if dtype == total.dtype:
            return total
        if self._low_gradient is None or self._low_gradient.dtype != dtype:
            self._low_gradient = torch.zeros_like(total, dtype=dtype)
        return self._low_gradient

    def _open(self) -> torch.Tensor:
        """Prepares the gradient at the first use in a backward pass.

        The custom autograd functions write gradients to this vector and return None for the parameter, so
        autograd runs no hook when the last of them is complete. `queue_callback` is the engine's own means to
        run a function at the end of the current backward pass; DistributedDataParallel and FSDP use it for
        the same purpose, although it is private. Without it, low-precision gradients would never reach the
        fp32 gradient. It raises outside a backward pass, which is the reason for the restriction in
        `gradient`.
        """
        if not self._is_open:
            self._is_open = True
            self._ensure_gradients()
            engine: Any = Variable._execution_engine
            engine.queue_callback(self._close)
        assert self._gradient is not None
        return self._gradient

    def _ensure_gradients(self) -> None:
        """Sets `.grad` of the vector and of all members to the same memory, even if a caller removed one."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.value, requires_grad=False)
            parameters = [layer.tensors()[role] for layer, role in self.members]
            self._views = [
                (parameter, slot.of(self._gradient))
                for parameter, slot in zip(parameters, self.slots, strict=True)
            ]
            for parameter, view in self._views:
                parameter.grad = view if parameter.grad is None else parameter.grad
        self.value.grad = self._gradient
        for parameter, view in self._views:
            if parameter.grad is None:
                parameter.grad = view.zero_()

    def _close(self) -> None:
        """Adds the pass's low-precision gradients to the fp32 gradient."""
        self._is_open = False
        if self._low_gradient is not None and self._gradient is not None:
            self._gradient.add_(self._low_gradient)
            self._low_gradient.zero_()

    def zero_grad(self) -> None:
        """Fills the gradient with zeros in place.

        It is never None afterwards: all backward passes add to the same memory, which the views of the
        members share.
        """
        if self._gradient is not None:
            self._gradient.zero_()
        # A backward pass that was interrupted (out of memory, Ctrl-C) has left its sums and runs no callback
        # any more.
        if self._is_open and self._low_gradient is not None:
            self._low_gradient.zero_()
        self._is_open = False
        self._ensure_gradients()


def split_state(optimizer: torch.optim.Optimizer, flat_vectors: list[FlatVector]) -> dict[str, Any]:
    """Returns an optimizer's state on the CPU as one over the separate master weights.

    Checkpoints contain this form: it depends neither on the layout of the vectors nor on whether the
    optimizer is over vectors. Parameters are numbered in the order of each `FlatVector.members`.

    The state is returned unchanged if the optimizer is over the master weights themselves, or if it has
    entries that are neither one number nor as long as a vector.
    """
    state, layout = optimizer.state_dict(), _Layout(flat_vectors)
    numbers = range(len(flat_vectors))
    can_split = all(layout.can_split(number, state["state"].get(number, {})) for number in numbers)
    if not layout.is_optimized_by(optimizer) or not can_split:
        return state
    whole: dict[str, Any] = {"state": {}, "param_groups": []}
    for number, (flat, group) in enumerate(zip(flat_vectors, state["param_groups"], strict=True)):
        first = sum(len(earlier.members) for earlier in flat_vectors[:number])
        entries = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in state["state"].get(number, {}).items()
        }
        for index, slot in enumerate(flat.slots, start=first):
            parts = {name: _part(value, slot, flat) for name, value in entries.items()}
            if parts:
                whole["state"][index] = parts
        whole["param_groups"].append({**group, "params": list(range(first, first + len(flat.members)))})
    return whole


def join_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, flat_vectors: list[FlatVector]
) -> dict[str, Any]:
    """Returns the state for an optimizer over vectors from one over separate master weights.

    Inverts `split_state`.
    """
    counts = [len(group["params"]) for group in state["param_groups"]]
    is_split = counts == [len(flat.members) for flat in flat_vectors]
    if not _Layout(flat_vectors).is_optimized_by(optimizer) or not is_split:
        return state
    whole: dict[str, Any] = {"state": {}, "param_groups": []}
    for number, (flat, group) in enumerate(zip(flat_vectors, state["param_groups"], strict=True)):
        entries = [state["state"].get(index, {}) for index in group["params"]]
        if any(entries):
            whole["state"][number] = {
                name: _joined([entry[name] for entry in entries], flat) for name in entries[0]
            }
        whole["param_groups"].append({**group, "params": [number]})
    return whole


@dataclass(frozen=True)
class _Layout:
    """Vectors in the order of an optimizer's parameter groups."""

    flat_vectors: list[FlatVector]

    def is_optimized_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Returns whether each group of the optimizer is exactly one of the vectors."""
        groups = [group["params"] for group in optimizer.param_groups]
        return len(groups) == len(self.flat_vectors) and all(
            len(parameters) == 1 and parameters[0] is flat.value
            for parameters, flat in zip(groups, self.flat_vectors, strict=True)
        )

    def can_split(self, number: int, entries: dict[str, Any]) -> bool:
        """Returns whether each tensor of a state is one number or as long as the vector."""
        size = self.flat_vectors[number].value.numel()
        tensors = [value for value in entries.values() if isinstance(value, torch.Tensor)]
        return all(value.numel() in (1, size) for value in tensors)


def _part(value: Any, slot: Slot, flat: FlatVector) -> Any:
    """Returns the part of a state entry that belongs to one master weight; single numbers belong to each."""
    if not isinstance(value, torch.Tensor):
        return value
    return (slot.of(value.flatten()) if value.numel() == flat.value.numel() else value).clone()


def _joined(values: list[Any], flat: FlatVector) -> Any:
    """Returns a state entry of the vector from those of its members."""
    if not any(isinstance(value, torch.Tensor) and value.numel() > 1 for value in values):
        return values[0]
    vector = torch.zeros(flat.value.shape, dtype=values[0].dtype)
    for slot, value in zip(flat.slots, values, strict=True):
        slot.of(vector).copy_(value.reshape(slot.shape) if value.numel() > 1 else value)
    return vector
