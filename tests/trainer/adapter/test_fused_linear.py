"""Layers computed together, their masters in vectors: the same numbers as the plain formula in each layer alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.conftest import MODELS
from tests.trainer.adapter.test_lora import CPU, adapted, ask, stir
from trainer.adapter.lora import Adapter, LayerSpec, LoraLinear
from trainer.adapter.targets import layer_specs, linear_paths, parameter_groups
from trainer.config import TrainConfig
from trainer.sdxl.base import open_base


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


def learned(base, dtype: torch.dtype = torch.float32, **settings) -> tuple[Adapter, nn.Module]:
    """An adapter as a training has it: chosen layers, stirred, in vectors."""
    config = TrainConfig(**{"rank": 4, "alpha": 6.0, **settings})
    unet, adapter = base.unet(CPU, dtype), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    adapter.init_weights(1)
    stir(adapter)
    parameter_groups(config, adapter)
    adapter.zero_grad()
    return adapter, unet


def plain_gradients(adapter: Adapter, unet: nn.Module) -> dict[str, torch.Tensor]:
    """By autograd, of W x + s B A x written out in each layer."""

    def formula(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        low = layer.up.to(x.dtype) @ layer.down.to(x.dtype) * layer.scale * layer.strength.value
        return layer.base(x) + torch.nn.functional.linear(x, low)

    masters = dict(adapter.master_weights())
    for _, _, layer in adapter.walk():
        layer.forward = partial(formula, layer)
        layer.network = "plain"  # attention leaves it to the layer
    try:
        gradients = torch.autograd.grad(ask(unet).square().mean(), list(masters.values()))
    finally:
        for _, _, layer in adapter.walk():
            del layer.forward, layer.network
    return dict(zip(masters, gradients, strict=True))


CHOICES = {
    "attention": {},
    "feed-forward too": {"train_feed_forward": True},
    "q and v": {"include_layers": ("*.to_q", "*.to_v")},
    "k left out": {"exclude_layers": ("*.attn1.to_k",)},
    "faster side": {"lora_plus_ratio": 16.0},
    "ranks of blocks": {
        "block_ranks": ",".join(["4"] * 11 + ["7"] * 12),
        "block_rates": ",".join(["1"] * 12 + ["0.5"] * 11),
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_of_layers_computed_together_are_the_plain_formulas(base, choice: str):
    adapter, unet = learned(base, **CHOICES[choice])
    adapter.strength.value = 0.8
    wanted = plain_gradients(adapter, unet)
    ask(unet).square().mean().backward()
    for name, parameter in adapter.master_weights():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max())
        )
    for flat in adapter.flat_vectors:  # what the optimizer sees is what the layers have
        assert flat.value.grad is not None
        assert all(
            p.grad.untyped_storage().data_ptr() == flat.value.grad.untyped_storage().data_ptr()
            for p in masters_of(flat)
        )


def masters_of(flat) -> list[nn.Parameter]:
    return [layer.tensors()[role] for layer, role in flat.members]


def test_gradients_add_up_over_batches_until_they_are_zeroed(base):
    adapter, unet = learned(base, include_layers=("*mid_block*",))
    ask(unet).square().mean().backward()
    once = [vector.grad.clone() for vector in adapter.vectors()]
    ask(unet).square().mean().backward()
    for vector, before in zip(adapter.vectors(), once, strict=True):
        torch.testing.assert_close(vector.grad, 2 * before)
    adapter.zero_grad()
    assert not any(bool(parameter.grad.any()) for parameter in adapter.parameters())


def test_layers_of_different_ranks_in_one_attention_are_computed_together(base):
    unet, adapter = base.unet(CPU, torch.float32), Adapter()
    ranks = {"to_q": 2, "to_k": 5, "to_v": 3}
    paths = linear_paths("unet", unet)
    adapter.attach(
        "unet",
        unet,
        {
            path: LayerSpec(rank=ranks.get(path.rpartition(".")[2], 4), alpha=len(path) % 7 + 1)
            for path in paths
        },
    )
    adapter.init_weights(1)
    stir(adapter)
    wanted = plain_gradients(adapter, unet)
    ask(unet).square().mean().backward()
    for name, parameter in adapter.master_weights():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max())
        )


def test_a_bf16_base_gives_vectors_their_gradients_in_fp32(base):
    adapter, unet = learned(base, torch.bfloat16, include_layers=("*mid_block*",))
    x = torch.randn(2, 5, 112, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    attention = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    attention(x).float().square().mean().backward()
    (vector,) = adapter.vectors()
    assert vector.grad.dtype == torch.float32 and bool(vector.grad.any())
    exact, plain = learned(base, include_layers=("*mid_block*",))
    plain.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")(
        x.float()
    ).square().mean().backward()
    assert float((vector.grad - exact.vectors()[0].grad).norm() / vector.grad.norm()) < 0.03


@pytest.mark.parametrize("through_data", [False, True])
def test_a_bf16_base_sees_every_change_of_the_masters(base, through_data: bool):
    adapter, _ = learned(base, torch.bfloat16, include_layers=("*mid_block*",))
    layer = next(layer for _, _, layer in adapter.walk())
    x = torch.randn(1, 2, layer.base.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = layer(x)
    with torch.no_grad():
        (layer.up.data if through_data else layer.up).add_(1.0)
    if through_data:  # as some optimizers write
        adapter.mark_dirty()
    assert not torch.equal(layer(x), before)


def test_an_adapter_that_is_taken_off_leaves_the_attention_as_it_was(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = ask(unet)
        adapter = adapted(unet)
        stir(adapter)
        changed = ask(unet)
        adapter.detach("unet", unet)
        assert torch.equal(ask(unet), before) and not torch.equal(changed, before)
    assert not any("forward" in vars(module) for module in unet.modules())
