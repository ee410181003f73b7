"""A checkpoint holds everything that the next step depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.adapter.lora import Adapter, LayerSpec
from trainer.config import config_from
from trainer.dataset.manifest import Manifest
from trainer.runs import run
from trainer.training.checkpoint import CheckpointWriter, TrainingState


class Fp16Training:
    """One adapted layer trained with a scaled loss; the scaler skips a step whose gradients overflow."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.adapter = nn.Sequential(nn.Linear(6, 4)), Adapter()
        self.adapter.attach("unet", self.model, {"0": LayerSpec(rank=2, alpha=2.0)})
        self.adapter.init_weights(3)
        self.optimizer = torch.optim.AdamW(self.adapter.vectors(), lr=0.05)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.state = TrainingState(self.adapter, self.optimizer, None, self.scaler)

    def step(self, number: int) -> None:
        """Trains one step; the loss of step 4 is infinite."""
        self.adapter.zero_grad()
        loss = self.model(torch.randn(5, 6, generator=torch.Generator().manual_seed(number))).square().mean()
        loss = loss * torch.inf if number == 4 else loss
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.adapter.mark_dirty()

    def weights(self) -> torch.Tensor:
        """All trained weights in one vector."""
        return torch.cat([vector.detach().flatten() for vector in self.adapter.vectors()])


@pytest.fixture
def training_run(tmp_path: Path) -> run.Run:
    return run.create(tmp_path / "run", config_from({}), Manifest(folder="", items=()))


def save(training_run: run.Run, state: TrainingState, step: int) -> None:
    writer = CheckpointWriter(training_run, state, keep=2)
    writer.write(step)
    writer.close()


@pytest.mark.parametrize("last", [2, 3, 5])
def test_a_resumed_fp16_run_continues_with_its_loss_scale(training_run: run.Run, last: int):
    """Stops before the scale first grows, after it has grown, and after an overflow has halved it."""
    unbroken, resumed = Fp16Training(), Fp16Training()
    scale = 0.0
    for number in range(1, 11):
        unbroken.step(number)
        if number == last:
            save(training_run, unbroken.state, last)
            scale = unbroken.scaler.get_scale()
    assert resumed.state.load_newest(training_run) == (last, [])
    assert resumed.scaler.get_scale() == scale
    for number in range(last + 1, 11):
        resumed.step(number)
    assert resumed.scaler.state_dict() == unbroken.scaler.state_dict()
    assert torch.equal(resumed.weights(), unbroken.weights())


def test_a_checkpoint_of_version_01_without_a_loss_scale_still_loads(training_run: run.Run):
    before, after = Fp16Training(), Fp16Training()
    before.step(1)
    save(training_run, TrainingState(before.adapter, before.optimizer), 1)
    file = training_run.checkpoints / "step-1" / "state.json"
    fields = json.loads(file.read_text())
    del fields["scaler"]
    file.write_text(json.dumps(fields))
    assert after.state.load_newest(training_run) == (1, [])
    assert torch.equal(after.weights(), before.weights())
    assert after.scaler.get_scale() == 2.0**10
