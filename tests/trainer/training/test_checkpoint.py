"""A checkpoint holds all that the next step depends on."""

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
from trainer.training import checkpoint as state


class Training:
    """One layer that learns in fp16's way: the loss is scaled, and a step that overflows is left out."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.adapter = nn.Sequential(nn.Linear(6, 4)), Adapter()
        self.adapter.attach("unet", self.model, {"0": LayerSpec(rank=2, alpha=2.0)})
        self.adapter.init_weights(3)
        self.optimizer = torch.optim.AdamW(self.adapter.vectors(), lr=0.05)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    def step(self, number: int) -> None:
        self.adapter.zero_grad()
        loss = self.model(torch.randn(5, 6, generator=torch.Generator().manual_seed(number))).square().mean()
        loss = loss * torch.inf if number == 4 else loss
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.adapter.mark_dirty()

    def weights(self) -> torch.Tensor:
        return torch.cat([vector.detach().flatten() for vector in self.adapter.vectors()])


@pytest.fixture
def made(tmp_path: Path) -> run.Run:
    return run.create(tmp_path / "run", config_from({}), Manifest(folder="", items=()))


@pytest.mark.parametrize("last", [2, 3, 5])
def test_a_continued_fp16_run_goes_on_with_the_scale_that_it_had(made: run.Run, last: int):
    """Before the scale first grew, after it, and after an overflow has halved it."""
    unbroken, continued = Training(), Training()
    keeper = state.CheckpointWriter(made, 2)
    for number in range(1, 11):
        unbroken.step(number)
        if number == last:
            keeper.write(state.snapshot(last, unbroken.adapter, unbroken.optimizer, None, unbroken.scaler))
            keeper.close()
            scale = unbroken.scaler.get_scale()
    assert state.load_newest(made, continued.adapter, continued.optimizer, None, continued.scaler) == (
        last,
        [],
    )
    assert continued.scaler.get_scale() == scale
    for number in range(last + 1, 11):
        continued.step(number)
    assert continued.scaler.state_dict() == unbroken.scaler.state_dict()
    assert torch.equal(continued.weights(), unbroken.weights())


def test_a_checkpoint_of_a_version_that_kept_no_scale_still_loads(made: run.Run):
    before, after = Training(), Training()
    before.step(1)
    keeper = state.CheckpointWriter(made, 2)
    keeper.write(state.snapshot(1, before.adapter, before.optimizer))
    keeper.close()
    facts = json.loads((made.checkpoints / "step-1" / "state.json").read_text())
    del facts["scaler"]
    (made.checkpoints / "step-1" / "state.json").write_text(json.dumps(facts))
    assert state.load_newest(made, after.adapter, after.optimizer, None, after.scaler) == (1, [])
    assert torch.equal(after.weights(), before.weights()) and after.scaler.get_scale() == 2.0**10
