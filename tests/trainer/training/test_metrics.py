"""Steps are told as they were, however many are read together."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import NotFiniteError
from trainer.training.metrics import DeferredMetrics, to_device, zero_grads_unless_finite

CPU = torch.device("cpu")


def waiting(losses: list[float], norms: list[float]) -> DeferredMetrics:
    progress = DeferredMetrics(CPU, 10, 100)
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=11):
        progress.add(
            number,
            loss=torch.tensor(loss),
            norm=torch.tensor(norm),
            rate=number / 1000,
            names=[f"{number}.png"],
        )
    return progress


def test_steps_read_together_keep_their_own_numbers():
    progress = waiting([0.5, 0.25], [1.0, 2.0])
    told = [facts for facts, _ in progress.read()]
    assert [(f["step"], f["loss"], f["learning_rate"], f["steps"]) for f in told] == [
        (11, 0.5, 0.011, 100),
        (12, 0.25, 0.012, 100),
    ]
    assert told[0]["seconds_left"] >= told[1]["seconds_left"] >= 0 and progress.read() == []


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_the_first_step_that_is_no_number_is_named(what: str):
    fine, broken = [0.5, 0.5, 0.5], [0.5, float("nan"), float("inf")]
    progress = waiting(*((broken, fine) if what == "loss" else (fine, broken)))
    with pytest.raises(NotFiniteError) as told:
        progress.read()
    assert told.value.step == 12 and told.value.pictures == ["12.png"]


@pytest.mark.parametrize("norm", [1.0, float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_does_not_reach_the_weights(norm: float):
    vector = torch.nn.Parameter(torch.ones(3))
    vector.grad = torch.full((3,), norm)
    held = vector.grad.data_ptr()
    zero_grads_unless_finite([vector], torch.tensor(norm))
    assert (
        vector.grad.tolist() == ([1.0] * 3 if norm == 1.0 else [0.0] * 3) and vector.grad.data_ptr() == held
    )


def test_what_is_sent_has_the_precision_asked_for():
    assert (
        to_device(torch.ones(2), CPU, torch.bfloat16).dtype == torch.bfloat16
        and to_device(torch.ones(2), CPU).dtype == torch.float32
    )
