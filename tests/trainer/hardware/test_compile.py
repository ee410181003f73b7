"""torch.compile: same results, and a decision when to use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs, parameter_groups
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.hardware import compile as compiled
from trainer.hardware.compile import compile_blocks, has_compiler, should_compile

CPU = torch.device("cpu")
# Compilation for a CPU takes half a minute; tracing, which decides the operations, two seconds.
needs_compiler = pytest.mark.skipif(
    not (os.environ.get("IMPASTO_TEST_COMPILER") and has_compiler(CPU)),
    reason="needs IMPASTO_TEST_COMPILER=1 and g++",
)


def small() -> tuple[UNet2DConditionModel, Adapter]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        transformer_layers_per_block=4,
        use_linear_projection=True,
    )
    adapter = Adapter()
    adapter.attach("unet", unet, layer_specs(TrainConfig(rank=2), {"unet": unet})["unet"])
    adapter.init_weights(1)
    parameter_groups(TrainConfig(), adapter)
    adapter.zero_grad()
    with torch.no_grad():
        for vector in adapter.vectors():
            vector.add_(torch.randn(vector.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    return unet, adapter


def loss_of(unet: UNet2DConditionModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    noisy, text = torch.randn(1, 4, 4, 4, generator=draw), torch.randn(1, 3, 8, generator=draw)
    return unet(noisy, torch.tensor([500]), text).sample.square().mean()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_compiled_blocks_have_the_same_loss_and_gradients_and_share_their_code(
    backend: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for is_compiled in (False, True):
        unet, adapter = small()
        if is_compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compile_blocks(unet, backend=backend)
        loss = loss_of(unet)
        loss.backward()
        found.append((loss.detach(), adapter.vectors()[0].grad))
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    )  # for four blocks; the input of the first requires no gradient
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_the_error_for_a_missing_compiler_names_what_to_install(monkeypatch):
    unet, _ = small()
    monkeypatch.setattr(compiled, "has_compiler", lambda device: False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler such as g\+\+; install it"):
        should_compile(TrainConfig(compile="on"), unet)
    assert not should_compile(TrainConfig(compile="auto"), unet)


def test_auto_does_not_compile_for_a_cpu(monkeypatch):
    unet, _ = small()
    monkeypatch.setattr(compiled, "has_compiler", lambda device: True)
    assert not should_compile(TrainConfig(steps=10_000), unet)
    assert not should_compile(TrainConfig(compile="off"), unet)
    assert should_compile(TrainConfig(compile="on", gradient_checkpointing="none"), unet)
    with pytest.raises(ConfigError, match="none or all, not deep"):
        should_compile(TrainConfig(compile="on", gradient_checkpointing="deep"), unet)
