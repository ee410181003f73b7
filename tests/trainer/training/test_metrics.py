"""Deferred metrics: each step is reported with its own numbers, however many are read together."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import NotFiniteError
from trainer.training.metrics import DeferredMetrics, to_device, zero_grads_unless_finite

CPU = torch.device("cpu")


def pending(losses: list[float], norms: list[float]) -> DeferredMetrics:
    """Unread steps from step 11 of 100 on."""
    deferred = DeferredMetrics(CPU, 10, 100)
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=11):
        deferred.add(number, torch.tensor(loss), torch.tensor(norm), number / 1000, [f"{number}.png"])
    return deferred


def test_steps_read_together_keep_their_own_numbers():
    deferred = pending([0.5, 0.25], [1.0, 2.0])
    fields = [step.fields for step in deferred.read()]
    assert [(f["step"], f["loss"], f["learning_rate"], f["steps"]) for f in fields] == [
        (11, 0.5, 0.011, 100),
        (12, 0.25, 0.012, 100),
    ]
    assert fields[0]["seconds_left"] >= fields[1]["seconds_left"] >= 0
    assert deferred.read() == []


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_the_error_names_the_first_step_that_is_not_finite(which: str):
    finite, diverged = [0.5, 0.5, 0.5], [0.5, float("nan"), float("inf")]
    deferred = pending(*((diverged, finite) if which == "loss" else (finite, diverged)))
    with pytest.raises(NotFiniteError) as error:
        deferred.read()
    assert error.value.step == 12
    assert error.value.pictures == ["12.png"]


@pytest.mark.parametrize("norm", [1.0, float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_becomes_zero_in_place(norm: float):
    vector = torch.nn.Parameter(torch.ones(3))
    vector.grad = torch.full((3,), norm)
    address = vector.grad.data_ptr()
    zero_grads_unless_finite([vector], torch.tensor(norm))
    assert vector.grad.tolist() == ([1.0] * 3 if norm == 1.0 else [0.0] * 3)
    assert vector.grad.data_ptr() == address


def test_to_device_changes_the_precision_only_where_one_is_given():
    assert to_device(torch.ones(2), CPU, torch.bfloat16).dtype == torch.bfloat16
    assert to_device(torch.ones(2), CPU).dtype == torch.float32
