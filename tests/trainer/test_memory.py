"""What a training will take is told before it starts, and is true."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter
from trainer.config import RECOMPUTE, TrainConfig, config_from
from trainer.errors import ConfigError
from trainer.lora_file.metadata import with_hashes
from trainer.lora_file.save import kohya_tensors, save_lora
from trainer.memory import Alive, Shape, attached, caching_bytes, drawing_bytes, file_bytes, held, size_of, step_bytes, step_flops
from trainer.plan import GB, Plan, SpillWatch, plan
from trainer.recompute import recompute
from trainer.sdxl.base import ORIGINAL, open_base

CPU = torch.device("cpu")
TINY = MODELS / "tiny-sdxl"
SMALL = Shape(configs=TINY, dtype=torch.float32, width=128, height=128)
SDXL = Shape(configs=ORIGINAL, dtype=torch.bfloat16, width=1024, height=1024)
GIB = 1 << 30


def batch(unet, rows: int) -> dict:
    draw = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=draw), "timestep": torch.randint(1000, (rows,), generator=draw),
        "encoder_hidden_states": torch.randn(rows, 77, 144, generator=draw),
        "added_cond_kwargs": {"text_embeds": torch.randn(rows, 80, generator=draw), "time_ids": torch.full((rows, 6), 128.0)},
    }  # fmt: skip


def trained(level: str, rows: int) -> tuple[Alive, Adapter, float]:
    """One step of the bundled base on the CPU: its live memory, the adapter with gradients, the loss."""
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    adapter = attached(TrainConfig(), {"unet": unet})
    adapter.start(0)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)), alpha=0.01)
    recompute(unet, level)
    inputs = batch(unet, rows)
    with Alive(unet) as alive:
        loss = unet(**inputs).sample.square().mean()
        loss.backward()
    return alive, adapter, float(loss.detach())


@pytest.mark.parametrize(("level", "rows"), [("none", 1), ("none", 4), ("deep", 4), ("all", 4)])
def test_the_memory_of_a_step_is_predicted_within_a_tenth(level, rows):
    """Counted without memory, and measured on the CPU's own kernels."""
    alive, adapter, _ = trained(level, rows)
    measured = alive.peak - size_of(adapter.parameters())
    assert step_bytes(TrainConfig(batch=rows), SMALL, level) == pytest.approx(measured, rel=0.1)


def test_computing_again_changes_no_gradient():
    _, plain, loss = trained("none", 2)
    for level in RECOMPUTE[1:]:
        _, other, other_loss = trained(level, 2)
        assert other_loss == loss
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-7)  # pyright: ignore


def test_true_sdxl_keeps_no_more_than_its_floor():
    """Bytes alive in a step at 1024 px, batch 1, bf16: 5.3 GiB when all is kept, half a GiB when blocks are computed again."""
    needed = [step_bytes(TrainConfig(batch=1), SDXL, level) / GIB for level in ("none", "all")]
    assert needed[0] <= 5.3 and needed[1] <= 0.5


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Plans of the bundled base; what is counted once is kept, as between trainings."""
    kept = tmp_path_factory.mktemp("cache")

    def of(**settings) -> Plan:
        return plan(config_from({"steps": 100, **settings}), SMALL, CPU, kept)

    return of


def test_the_cheapest_way_to_fit_is_taken(planned):
    free = planned()
    assert free.level == "none" and free.peak < free.budget
    kept = free.own + free.need.base + free.need.adapter
    tight = planned(memory_budget=(kept + free.need.step - 1e6) / GB)
    assert tight.level == "feed-forward" and tight.peak <= tight.budget and "feed-forward layers again to fit" in tight.line()


def test_a_training_that_cannot_fit_says_what_to_change(planned):
    with pytest.raises(ConfigError, match=r"needs \d\.\d GB .* and 0\.1 are there; try .*a smaller resolution"):
        planned(memory_budget=0.1)
    with pytest.raises(ConfigError, match=r"batch 2 with accumulation 2, or gradient_checkpointing auto"):
        planned(memory_budget=0.1, gradient_checkpointing="none")


def test_a_chosen_level_is_kept(planned):
    assert planned(gradient_checkpointing="deep").level == "deep"
    assert config_from({"gradient_checkpointing": True}).gradient_checkpointing == "all"  # as runs of version 0.1 wrote it


def test_the_size_of_the_file_is_told_before(tmp_path: Path):
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    config = TrainConfig(train_feed_forward=True)
    adapter = attached(config, {"unet": unet})
    adapter.start(0)
    save_lora(tmp_path / "x.safetensors", adapter, {})
    facts = sum(len(key) + len(value) + 6 for key, value in with_hashes(kohya_tensors(adapter), {"format": "pt"}).items())
    predicted = file_bytes(held(config, SMALL)[1])
    assert abs((tmp_path / "x.safetensors").stat().st_size - facts - predicted) < 64


@pytest.mark.parametrize(("rank", "more", "size"), [(16, False, 46_686_543), (32, True, 170_537_271)])
def test_files_of_true_sdxl_are_as_large_as_other_trainers_files(rank, more, size):
    config = TrainConfig(rank=rank, alpha=float(rank), train_feed_forward=more)
    assert abs(file_bytes(held(config, SDXL)[1]) - size) < 64


def test_the_work_of_a_step_grows_with_its_pictures():
    one, four = (step_flops(TrainConfig(batch=rows), SMALL) for rows in (1, 4))
    assert one > 1e8 and four == pytest.approx(4 * one, rel=0.02)


def test_caching_and_drawing_are_counted_too():
    larger = dataclasses.replace(SMALL, width=256, height=256)
    assert caching_bytes(larger) > caching_bytes(SMALL) and drawing_bytes(larger, rows=5) > drawing_bytes(SMALL, rows=5)


def test_slow_steps_on_full_memory_are_told_once(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.plan.memory_is_full", lambda device: True)
    said = [watch.look(seconds) for seconds in (1, 1, 1.2, 1, 1, 1, 30, 1, 30, 30, 30, 30)]
    assert [bool(words) for words in said] == [False] * 10 + [True, False]
    assert "30 times slower because memory is full" in (said[10] or "")


def test_slow_steps_with_memory_to_spare_are_no_fault(monkeypatch):
    watch = SpillWatch(CPU)
    monkeypatch.setattr("trainer.plan.memory_is_full", lambda device: False)
    assert not any(watch.look(seconds) for seconds in [1.0] * 5 + [60.0] * 10)
