"""Many small masters as views of one long vector, so that clipping, averaging and the optimizer take one launch each.

    value       fp32   | A_q | A_k | A_v | B_q | B_k | B_v | A_out | B_out | ...    what learns; each matrix is a view
    gradient    fp32   the same slots; each matrix's `.grad` is a view
    working     the base's dtype, a copy made when the value has changed; the value itself where the base is fp32

Downs of layers that read the same input lie side by side, so that one product serves them all.
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
    """Where a master lies."""

    flat: FlatVector
    start: int
    shape: torch.Size

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[self.start : self.start + self.shape.numel()].view(self.shape)


class FlatVector:
    """One vector of the masters given, which become views of it; their values stay.

    Args:
        order: gives the key by which they are laid out.
    """

    def __init__(
        self, masters: Iterable[tuple[Layer, str]], order: Callable[[tuple[Layer, str]], Any]
    ) -> None:
        self.members = list(masters)  # in the order given
        laid = sorted(self.members, key=order)
        parameters = [layer.tensors()[role] for layer, role in laid]
        self.value = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        self._values = self.value.detach()  # the same memory, one tensor for all who ask
        self._gradient: torch.Tensor | None = None
        self._views: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._copy: torch.Tensor | None = None
        self._copied_at = -1
        self._low_gradient: torch.Tensor | None = None
        self._is_open = False
        start = 0
        for (layer, role), parameter in zip(laid, parameters, strict=True):
            place = Slot(self, start, parameter.shape)
            layer.place(role, nn.Parameter(place.of(self.value.detach())), place)
            start += parameter.numel()

    @property
    def slots(self) -> list[Slot]:
        """Of each master, in the order given."""
        return [layer.slots[role] for layer, role in self.members]

    def working(self, dtype: torch.dtype) -> torch.Tensor:
        """The values in `dtype`, without gradient."""
        if dtype == self.value.dtype:
            return self._values
        if self._copy is None or self._copy.dtype != dtype:
            with torch.inference_mode(False):  # pictures may be the first to ask, and training the next
                self._copy, self._copied_at = (
                    torch.empty_like(self.value, dtype=dtype, requires_grad=False),
                    -1,
                )
        # A change in place of any view counts one up, `.data` left aside: see `changed`.
        if self._copied_at != self.value._version:
            self._copy.copy_(self.value.detach())
            self._copied_at = self.value._version
        return self._copy

    def mark_dirty(self) -> None:
        """To be told after a change through `.data`, as some optimizers make it."""
        self._copied_at = -1

    def gradient(self, dtype: torch.dtype) -> torch.Tensor:
        """Where a backward pass adds gradients of the values; it may be asked inside a backward pass only.

        Those of a base of lower precision are added in its dtype over one backward pass, and to fp32 at its end.
        """
        total = self._opened()
        if dtype == total.dtype:
            return total
        if self._low_gradient is None or self._low_gradient.dtype != dtype:
            self._low_gradient = torch.zeros_like(total, dtype=dtype)
        return self._low_gradient

    def _opened(self) -> torch.Tensor:
        if not self._is_open:
            self._is_open = True
            self._ensure_gradients()
            Variable._execution_engine.queue_callback(self._close)  # pyright: ignore
        assert self._gradient is not None
        return self._gradient

    def _ensure_gradients(self) -> None:
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.value, requires_grad=False)
            parameters = [layer.tensors()[role] for layer, role in self.members]
            self._views = [
                (parameter, place.of(self._gradient))
                for parameter, place in zip(parameters, self.slots, strict=True)
            ]
            for parameter, view in self._views:
                parameter.grad = view if parameter.grad is None else parameter.grad
        self.value.grad = self._gradient
        for parameter, view in self._views:
            if parameter.grad is None:
                parameter.grad = view.zero_()

    def _close(self) -> None:
        self._is_open = False
        if self._low_gradient is not None and self._gradient is not None:
            self._gradient.add_(self._low_gradient)
            self._low_gradient.zero_()

    def zero_grad(self) -> None:
        """Gradients are zeros in place from here on, never None: all passes add to the same memory."""
        if self._gradient is not None:
            self._gradient.zero_()
        if self._is_open and self._low_gradient is not None:  # a backward pass that did not come to its end
            self._low_gradient.zero_()
        self._is_open = False
        self._ensure_gradients()


def split_state(optimizer: torch.optim.Optimizer, flat_vectors: list[FlatVector]) -> dict[str, Any]:
    """An optimizer's state on the CPU, as it would be over the masters themselves, in the order of each `FlatVector.masters`.

    As it is where the optimizer is over the masters, or keeps entries of another length than its vector.
    """
    state, long = optimizer.state_dict(), _Long(flat_vectors)
    if not long.is_over(optimizer) or not all(
        long.can_split(number, state["state"].get(number, {})) for number in range(len(flat_vectors))
    ):
        return state
    whole: dict[str, Any] = {"state": {}, "param_groups": []}
    for number, (flat, group) in enumerate(zip(flat_vectors, state["param_groups"], strict=True)):
        first = sum(len(earlier.members) for earlier in flat_vectors[:number])
        entries = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in state["state"].get(number, {}).items()
        }
        for index, place in enumerate(flat.slots, start=first):
            parts = {name: _part(value, place, flat) for name, value in entries.items()}
            if parts:
                whole["state"][index] = parts
        whole["param_groups"].append({**group, "params": list(range(first, first + len(flat.members)))})
    return whole


def join_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, flat_vectors: list[FlatVector]
) -> dict[str, Any]:
    """The way back from `split_state`."""
    counts = [len(group["params"]) for group in state["param_groups"]]
    if not _Long(flat_vectors).is_over(optimizer) or counts != [len(flat.members) for flat in flat_vectors]:
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
class _Long:
    flat_vectors: list[FlatVector]

    def is_over(self, optimizer: torch.optim.Optimizer) -> bool:
        held = [group["params"] for group in optimizer.param_groups]
        return len(held) == len(self.flat_vectors) and all(
            len(ps) == 1 and ps[0] is flat.value for ps, flat in zip(held, self.flat_vectors, strict=True)
        )

    def can_split(self, number: int, entries: dict[str, Any]) -> bool:
        size = self.flat_vectors[number].value.numel()
        return all(
            value.numel() in (1, size) for value in entries.values() if isinstance(value, torch.Tensor)
        )


def _part(value: Any, place: Slot, flat: FlatVector) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (place.of(value.flatten()) if value.numel() == flat.value.numel() else value).clone()


def _joined(values: list[Any], flat: FlatVector) -> Any:
    if not any(isinstance(value, torch.Tensor) and value.numel() > 1 for value in values):
        return values[0]
    long = torch.zeros(flat.value.shape, dtype=values[0].dtype)
    for place, value in zip(flat.slots, values, strict=True):
        place.of(long).copy_(value.reshape(place.shape) if value.numel() > 1 else value)
    return long
