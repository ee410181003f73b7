"""The work of a training step, counted and not timed, so that no fast or busy machine hides a regression."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counted import flops_of_step, launches_of_step
from tests.conftest import INK, MODELS
from trainer.config import TrainConfig, config_from
from trainer.config.presets import preset_values
from trainer.dataset.scan import scan
from trainer.planning.memory import WorkloadShape, trace_step
from trainer.runs import events, run
from trainer.sdxl.base import ORIGINAL
from trainer.train import train

GIB = 1 << 30
SDXL = WorkloadShape(configs=ORIGINAL, dtype=torch.bfloat16, width=1024, height=1024)
ONE = TrainConfig(batch=1, rank=16, alpha=16.0)


@pytest.fixture(scope="module")
def launched() -> Counter[str]:
    """Operations of a step of SDXL's UNet in bf16, rank 16 in every attention layer."""
    return launches_of_step(ONE, SDXL)[1]


def test_a_step_of_true_sdxl_is_few_operations(launched: Counter[str]):
    """PEFT with autocast launches 13,222, PEFT alone 9,022 (counted the same way)."""
    assert launched.total() <= 6100


def test_precision_costs_no_operation_a_layer(launched: Counter[str]):
    """Masters are fp32 and the base bf16: one copy of all masters, one sum of all gradients."""
    assert launched["_to_copy"] + launched["copy_"] + launched["zero_"] < 12


def test_nothing_is_divided_by_one(launched: Counter[str]):
    """diffusers divides by an output factor of 1 in every attention."""
    assert launched["div"] < 40


def test_learning_costs_little_more_than_two_forward_passes():
    """Against the frozen UNet's own forward pass; full fine-tuning would be 2.99."""
    forward, step = flops_of_step(ONE, SDXL)
    assert step <= 2.10 * forward


@pytest.mark.parametrize(("level", "most"), [("none", 4.5), ("all", 0.5)])
def test_true_sdxl_keeps_no_more_than_its_floor(level: str, most: float):
    """Peak activation bytes of a step at 1024 px, batch 1, bf16, with its backward pass."""
    assert trace_step(ONE, SDXL, level).passing <= most * GIB


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: numbers read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("shared_cache")
def test_the_loop_waits_for_the_device_only_to_tell_steps(tmp_path: Path, monkeypatch):
    """Steps are told together when told seldom; between, nothing is read."""
    values = {
        **preset_values("style", 24),
        "network": "lora",
        "name": "lora",
        "steps": 3,
        "batch": 1,
        "resolution": 64,
        "precision": "fp32",
        "rank": 2,
        "sample_prompts": ("a star --w 64 --h 64 --s 1",),
    }
    made = run.create(tmp_path / "run", config_from({**values, "checkpoint_every": 100}), scan(INK))
    monkeypatch.setattr("trainer.training.metrics.DeferredMetrics.is_due", property(lambda self: False))
    seen: list[int] = []
    waits = Waits()
    begin = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append(waits.count)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with waits:
        assert train(made, MODELS) == "finished"
    assert len(seen) == 3
    assert seen[0] == seen[2], seen
    told = [event["step"] for event in events.read(made.events)[0] if event["kind"] == "step"]
    assert told == [1, 2, 3]
