"""Traced memory, operations and file sizes against measured ones."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter
from trainer.config import RECOMPUTE, TrainConfig
from trainer.hardware.activation_checkpointing import enable_activation_checkpointing
from trainer.lora_file.metadata import with_hashes
from trainer.lora_file.writer import kohya_tensors, save_lora
from trainer.planning.memory import (
    Step,
    WorkloadShape,
    attach_to_meta,
    build_frozen,
    decoding_bytes,
    denoising_bytes,
    encoding_bytes,
    file_bytes,
    layer_bytes,
    step_flops,
    text_encoding_bytes,
    trace_step,
    weight_bytes,
)
from trainer.planning.tracer import META, MetaMemoryTracer, counting_fused_attention
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.sdxl.latents import decoding_tile, encoding_tile, set_tile

CPU = torch.device("cpu")
TINY = MODELS / "tiny-sdxl"
SMALL = WorkloadShape(configs=TINY, dtype=torch.float32, width=128, height=128)
LARGE = dataclasses.replace(SMALL, width=256, height=256)
SDXL = WorkloadShape(configs=ORIGINAL, dtype=torch.bfloat16, width=1024, height=1024)
ROWS = 2


@functools.cache
def counted(level: str) -> Step:
    return trace_step(TrainConfig(batch=ROWS), SMALL, level)


@functools.cache
def trained(level: str, quantised: str = "none") -> tuple[Step, Adapter, float]:
    """Returns (memory of one step of the bundled base on the CPU, the adapter with gradients, the loss)."""
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32, quantised)
    adapter = attach_to_meta(TrainConfig(), {"unet": unet})
    adapter.init_weights(0)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)), alpha=0.01
            )
    enable_activation_checkpointing(unet, level)
    draw = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(ROWS, 4, 16, 16, generator=draw),
        "timestep": torch.randint(1000, (ROWS,), generator=draw),
        "encoder_hidden_states": torch.randn(ROWS, 77, 144, generator=draw),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(ROWS, 80, generator=draw),
            "time_ids": torch.full((ROWS, 6), 128.0),
        },
    }
    with MetaMemoryTracer(unet) as alive:
        adapter.zero_grad()
        loss = unet(**inputs).sample.square().mean()
        loss.backward()
        value = float(loss.detach())
        del loss
    return Step(passing=alive.peak - alive.now, staying=alive.now, calls=alive.calls), adapter, value


@pytest.mark.parametrize("level", ["none", "deep", "all"])
def test_the_memory_of_a_step_is_predicted_within_a_tenth(level):
    """Traced on the meta device, and measured with the CPU's kernels."""
    predicted, (measured, _, _) = counted(level), trained(level)
    assert (predicted.passing, predicted.staying) == pytest.approx(
        (measured.passing, measured.staying), rel=0.1
    )
    assert predicted.calls == pytest.approx(measured.calls, rel=0.1)


def test_a_quantised_base_adds_the_weight_of_one_layer_to_a_step():
    predicted = counted("none").passing + layer_bytes(SMALL)
    assert 0.9 * predicted < trained("none", "nf4")[0].passing < 1.02 * predicted


@pytest.mark.parametrize("quantised", ["none", "int8", "nf4"])
def test_the_size_of_the_frozen_base_is_predicted_to_the_byte(quantised):
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32, quantised)
    assert build_frozen(TrainConfig(), SMALL, quantised)[0] == weight_bytes(unet)


@pytest.mark.parametrize("level", RECOMPUTE[1:])
def test_recomputation_changes_no_gradient(level):
    (_, plain, loss), (_, other, other_loss) = trained("none"), trained(level)
    assert other_loss == loss
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-7)


def test_activations_of_trained_text_encoders_are_counted():
    more = trace_step(
        TrainConfig(batch=ROWS, train_text_encoder_1=True, train_text_encoder_2=True), SMALL, "none"
    )
    assert more.passing > counted("none").passing
    assert more.staying > counted("none").staying


def test_cached_shapes_are_those_of_the_meta_device(monkeypatch):
    """For all kinds of results: one or several new tensors, views, and writes into an existing tensor."""

    def work() -> None:
        x = torch.empty(4, 6, device=META, requires_grad=True)
        for _ in range(3):
            y = torch.nn.functional.layer_norm(x @ x.t() @ x, (6,))
            y.add_(1).view(2, 12).mul_(2)
            torch.mm(
                y.t(), y, out=torch.empty(6, 6, device=META, requires_grad=False)
            ) if not y.requires_grad else None
            y.square().mean().backward()

    with MetaMemoryTracer() as quick:
        work()
    monkeypatch.setattr(
        MetaMemoryTracer, "_run", lambda self, function, args, kwargs: function(*args, **kwargs)
    )
    with MetaMemoryTracer() as plain:
        work()
    assert (quick.peak, quick.now) == (plain.peak, plain.now)
    assert quick.peak > 0


def test_the_size_of_the_file_is_predicted(tmp_path: Path):
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    config = TrainConfig(train_feed_forward=True)
    adapter = attach_to_meta(config, {"unet": unet})
    adapter.init_weights(0)
    save_lora(tmp_path / "x.safetensors", adapter, {})
    facts = sum(
        len(key) + len(value) + 6
        for key, value in with_hashes(kohya_tensors(adapter), {"format": "pt"}).items()
    )
    predicted = file_bytes(build_frozen(config, SMALL)[1])
    assert abs((tmp_path / "x.safetensors").stat().st_size - facts - predicted) < 64


@pytest.mark.parametrize(("rank", "more", "size"), [(16, False, 46_686_543), (32, True, 170_537_271)])
def test_files_of_sdxl_have_the_size_of_those_of_other_trainers(rank, more, size):
    config = TrainConfig(rank=rank, alpha=float(rank), train_feed_forward=more)
    assert abs(file_bytes(build_frozen(config, SDXL)[1]) - size) < 64


def test_the_operations_of_a_step_grow_with_its_batch():
    one, four = (step_flops(SMALL, rows) for rows in (1, 4))
    assert one > 1e8
    assert four == pytest.approx(4 * one, rel=0.02)


def test_memory_of_caching_and_sampling_grows_with_the_image():
    assert encoding_bytes(LARGE, in_tiles=False) > 3 * encoding_bytes(SMALL, in_tiles=False)
    assert (
        text_encoding_bytes(dataclasses.replace(SMALL, windows=3))
        > text_encoding_bytes(SMALL)
        == text_encoding_bytes(LARGE)
    )
    drawn_larger = dataclasses.replace(SMALL, drawn=(256, 256))
    assert denoising_bytes(drawn_larger, rows=2) > 2 * denoising_bytes(SMALL, rows=2)
    assert decoding_bytes(drawn_larger, in_tiles=False) == decoding_bytes(LARGE, in_tiles=False)


def test_the_memory_of_decoding_in_tiles_is_predicted():
    vae = open_base("tiny-sdxl", MODELS).vae(CPU)
    set_tile(vae, decoding_tile(vae))
    with torch.no_grad(), counting_fused_attention(), MetaMemoryTracer(vae) as alive:
        vae.decode(torch.randn(1, 4, 32, 32))
    predicted = decoding_bytes(LARGE, in_tiles=True)
    assert predicted == pytest.approx(alive.peak, rel=0.1)
    assert predicted < decoding_bytes(LARGE, in_tiles=False) / 3


@pytest.mark.parametrize("in_tiles", [False, True])
def test_the_memory_of_encoding_an_image_is_predicted(in_tiles: bool):
    vae = open_base("tiny-sdxl", MODELS).vae(CPU)
    set_tile(vae, encoding_tile(vae) if in_tiles else 0)
    with torch.no_grad(), counting_fused_attention(), MetaMemoryTracer(vae) as alive:
        vae.encode(torch.randn(1, 3, 256, 256))
    predicted = encoding_bytes(LARGE, in_tiles=in_tiles)
    assert predicted == pytest.approx(alive.peak, rel=0.1)
    assert (predicted < encoding_bytes(LARGE, in_tiles=False) / 3) == in_tiles


def test_the_memory_of_encoding_captions_is_predicted():
    encoders = open_base("tiny-sdxl", MODELS).text_encoders(CPU, torch.float32)
    with torch.no_grad(), MetaMemoryTracer(*encoders) as alive:
        for encoder in encoders:
            encoder(torch.zeros(1, 77, dtype=torch.long), output_hidden_states=True)
    assert text_encoding_bytes(SMALL) == pytest.approx(
        sum(weight_bytes(encoder) for encoder in encoders) + alive.peak, rel=0.02
    )
