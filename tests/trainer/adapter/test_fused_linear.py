"""Grouped layers with master weights in vectors: the numbers of the plain formula in each layer."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.conftest import MODELS
from tests.trainer.adapter.test_lora import CPU, adapted, gradient_of, layers_of, predict, randomise
from trainer.adapter.lora import Adapter, LayerSpec, LoraLinear
from trainer.adapter.targets import layer_specs, linear_paths, parameter_groups
from trainer.config import TrainConfig
from trainer.sdxl.base import open_base


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


def learned(base, dtype: torch.dtype = torch.float32, **settings) -> tuple[Adapter, nn.Module]:
    """Returns an adapter as a training has it, with random weights in vectors, and its UNet."""
    config = TrainConfig(**{"rank": 4, "alpha": 6.0, **settings})
    unet, adapter = base.unet(CPU, dtype), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    adapter.init_weights(1)
    randomise(adapter)
    parameter_groups(config, adapter)
    adapter.zero_grad()
    return adapter, unet


def plain_gradients(adapter: Adapter, unet: nn.Module) -> dict[str, torch.Tensor]:
    """Returns autograd's gradients of W x + s B A x written out in each layer."""

    def formula(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        low = layer.up.to(x.dtype) @ layer.down.to(x.dtype) * layer.scale * layer.strength.value
        return layer.base(x) + torch.nn.functional.linear(x, low)

    weights = dict(adapter.master_weights())
    for layer in layers_of(adapter):
        layer.forward = partial(formula, layer)
        layer.network = "plain"  # so that attention calls the layer itself
    try:
        gradients = torch.autograd.grad(predict(unet).square().mean(), list(weights.values()))
    finally:
        for _, _, layer in adapter.walk():
            del layer.forward, layer.network
    return dict(zip(weights, gradients, strict=True))


CHOICES = {
    "attention": {},
    "feed-forward too": {"train_feed_forward": True},
    "q and v": {"include_layers": ("*.to_q", "*.to_v")},
    "without k": {"exclude_layers": ("*.attn1.to_k",)},
    "LoRA+": {"lora_plus_ratio": 16.0},
    "ranks of blocks": {
        "block_ranks": ",".join(["4"] * 11 + ["7"] * 12),
        "block_rates": ",".join(["1"] * 12 + ["0.5"] * 11),
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_of_grouped_layers_equal_the_plain_formula(base, choice: str):
    adapter, unet = learned(base, **CHOICES[choice])
    adapter.strength.value = 0.8
    expected = plain_gradients(adapter, unet)
    predict(unet).square().mean().backward()
    for name, parameter in adapter.master_weights():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )
    for flat in adapter.flat_vectors:  # the optimizer and the layers share the gradients
        assert flat.value.grad is not None
        assert all(
            gradient_of(p).untyped_storage().data_ptr() == flat.value.grad.untyped_storage().data_ptr()
            for p in members_of(flat)
        )


def members_of(flat) -> list[nn.Parameter]:
    return [layer.tensors()[role] for layer, role in flat.members]


def test_gradients_accumulate_over_batches_until_they_are_zeroed(base):
    adapter, unet = learned(base, include_layers=("*mid_block*",))
    predict(unet).square().mean().backward()
    once = [gradient_of(vector).clone() for vector in adapter.vectors()]
    predict(unet).square().mean().backward()
    for vector, before in zip(adapter.vectors(), once, strict=True):
        torch.testing.assert_close(vector.grad, 2 * before)
    adapter.zero_grad()
    assert not any(bool(gradient_of(parameter).any()) for parameter in adapter.parameters())


def test_layers_of_different_ranks_in_one_attention_are_one_group(base):
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
    randomise(adapter)
    expected = plain_gradients(adapter, unet)
    predict(unet).square().mean().backward()
    for name, parameter in adapter.master_weights():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )


def test_gradients_of_a_bf16_base_are_fp32(base):
    adapter, unet = learned(base, torch.bfloat16, include_layers=("*mid_block*",))
    x = torch.randn(2, 5, 112, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    attention = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    attention(x).float().square().mean().backward()
    (vector,) = adapter.vectors()
    gradient = gradient_of(vector)
    assert gradient.dtype == torch.float32
    assert bool(gradient.any())
    exact, plain = learned(base, include_layers=("*mid_block*",))
    plain.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")(
        x.float()
    ).square().mean().backward()
    difference = gradient - gradient_of(exact.vectors()[0])
    assert float(difference.norm() / gradient.norm()) < 0.03


@pytest.mark.parametrize("through_data", [False, True])
def test_a_bf16_base_uses_changed_master_weights(base, through_data: bool):
    adapter, _ = learned(base, torch.bfloat16, include_layers=("*mid_block*",))
    layer = layers_of(adapter)[0]
    x = torch.randn(1, 2, layer.base.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = layer(x)
    with torch.no_grad():
        (layer.up.data if through_data else layer.up).add_(1.0)
    if through_data:  # as some optimizers do
        adapter.mark_dirty()
    assert not torch.equal(layer(x), before)


def test_a_detached_adapter_restores_the_attention(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = predict(unet)
        adapter = adapted(unet)
        randomise(adapter)
        changed = predict(unet)
        adapter.detach("unet", unet)
        assert torch.equal(predict(unet), before)
        assert not torch.equal(changed, before)
    assert not any("forward" in vars(module) for module in unet.modules())
