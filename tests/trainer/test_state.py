"""What a checkpoint keeps is what a resumed run goes on from."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer import state
from trainer.adapter.lora import Adapter, Size
from trainer.run import Run


def adapted() -> tuple[torch.nn.Module, Adapter, torch.optim.Optimizer, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model, adapter = torch.nn.Sequential(torch.nn.Linear(4, 3)), Adapter()
    adapter.attach("unet", model, {"0": Size(rank=2, alpha=2.0)})
    adapter.start(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    return model, adapter, torch.optim.AdamW(adapter.vectors(), lr=0.1), scaler


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, steps: int) -> None:
    for _ in range(steps):
        scaler.scale(model(torch.ones(2, 4)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)


def test_a_resumed_fp16_run_scales_its_loss_as_the_run_that_was_never_stopped(tmp_path: Path):
    run = Run(tmp_path)
    model, adapter, optimizer, scaler = adapted()
    train(model, optimizer, scaler, 4)  # it grew once, and is one step on the way to growing again
    keeper = state.Keeper(run, keep=1)
    keeper.write(state.snapshot(4, adapter, optimizer, scaler=scaler))
    keeper.close()
    train(model, optimizer, scaler, 2)
    assert scaler.get_scale() == 2.0**12

    other_model, other, other_optimizer, other_scaler = adapted()
    assert state.load_newest(run, other, other_optimizer, scaler=other_scaler) == (4, [])
    assert other_scaler.get_scale() == 2.0**11
    train(other_model, other_optimizer, other_scaler, 2)
    assert other_scaler.state_dict() == scaler.state_dict()
    assert all(torch.equal(one, two) for one, two in zip(adapter.vectors(), other.vectors(), strict=True))


def test_a_checkpoint_of_a_run_without_fp16_opens_as_before(tmp_path: Path):
    run = Run(tmp_path)
    _, adapter, optimizer, scaler = adapted()
    keeper = state.Keeper(run, keep=1)
    keeper.write(state.snapshot(7, adapter, optimizer))
    keeper.close()
    assert state.load_newest(run, adapter, optimizer, scaler=scaler) == (7, [])
    assert scaler.get_scale() == 2.0**10
