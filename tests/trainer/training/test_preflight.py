"""Settings that are valid and have another effect than their values suggest are named before the training."""

from __future__ import annotations

import pytest
import torch

from trainer.config import TrainConfig
from trainer.training import preflight
from trainer.training.preflight import setting_notices

CPU = torch.device("cpu")


@pytest.mark.parametrize(("bf16_rate", "is_slow"), [(1.0, True), (60.0, False), (200.0, False)])
def test_bf16_on_a_cpu_that_emulates_it_is_named(monkeypatch, bf16_rate: float, is_slow: bool):
    rates = {torch.float32: 72.0, torch.bfloat16: bf16_rate}
    monkeypatch.setattr(preflight, "matmul_rate", lambda device, dtype, side: rates[dtype])
    notices = setting_notices(TrainConfig(precision="bf16"), CPU)
    assert [("72 times slower" in notice and "set precision to fp32" in notice) for notice in notices] == (
        [True] if is_slow else []
    )


def test_the_rates_are_measured_only_where_bf16_is_set(monkeypatch):
    monkeypatch.setattr(preflight, "matmul_rate", lambda *arguments: pytest.fail("measured"))
    assert setting_notices(TrainConfig(precision="fp32"), CPU) == []
    assert setting_notices(TrainConfig(precision="bf16"), torch.device("cuda")) == []


def test_a_base_of_few_steps_is_named():
    (notice,) = setting_notices(TrainConfig(base="dreamshaperXL_turbo.safetensors"), CPU)
    assert "looks like a Turbo model" in notice
    assert "--s 4 --l 1" in notice


def test_a_warm_up_as_long_as_the_training_is_named():
    (notice,) = setting_notices(TrainConfig(steps=40, warmup_steps=40), CPU)
    assert "lower warmup_steps, for example to 2" in notice
    assert setting_notices(TrainConfig(steps=40, warmup_steps=39), CPU) == []
