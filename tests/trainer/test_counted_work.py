"""Work of a training step, counted rather than timed, so that the speed of the machine has no influence."""

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


def test_a_step_of_sdxl_launches_few_operations(launched: Counter[str]):
    """PEFT with autocast launches 13,222, PEFT alone 9,022 (counted the same way)."""
    assert launched.total() <= 6100


def test_casts_between_precisions_are_shared_by_all_layers(launched: Counter[str]):
    """Master weights are fp32 and the base bf16: one cast of all weights, one of all gradients."""
    assert launched["_to_copy"] + launched["copy_"] + launched["zero_"] < 12


def test_divisions_by_one_are_left_out(launched: Counter[str]):
    """diffusers divides by an output factor of 1 in every attention."""
    assert launched["div"] < 40


def test_a_step_costs_little_more_than_two_forward_passes():
    """The unit is the forward pass of the frozen UNet; full fine-tuning would cost 2.99."""
    forward, step = flops_of_step(ONE, SDXL)
    assert step <= 2.10 * forward


@pytest.mark.parametrize(("level", "most"), [("none", 4.5), ("all", 0.5)])
def test_activations_of_sdxl_stay_below_their_limit(level: str, most: float):
    """Peak activation bytes of a step at 1024 px, batch 1, bf16, with its backward pass."""
    assert trace_step(ONE, SDXL, level).passing <= most * GIB


class SynchronizationCounter(TorchDispatchMode):
    """Counts numbers that are read from tensors: each read makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("shared_cache")
def test_the_loop_waits_for_the_device_only_to_report_steps(tmp_path: Path, monkeypatch):
    """The metrics of several steps are read together, and nothing is read in between."""
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
    new_run = run.create(tmp_path / "run", config_from({**values, "checkpoint_every": 100}), scan(INK))
    monkeypatch.setattr("trainer.training.metrics.DeferredMetrics.is_due", property(lambda self: False))
    counts: list[int] = []
    reads = SynchronizationCounter()
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        counts.append(reads.count)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with reads:
        assert train(new_run, MODELS) == "finished"
    assert len(counts) == 3
    assert counts[0] == counts[2], counts
    reported = [event["step"] for event in events.read(new_run.events)[0] if event["kind"] == "step"]
    assert reported == [1, 2, 3]
