"""Quantised bases: close to the original, and trained like any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import MODELS
from trainer.config import TrainConfig
from trainer.planning.memory import attach_to_meta
from trainer.sdxl.base import open_base
from trainer.sdxl.quantised import BLOCK, NF4_LEVELS, QuantisedLinear, quantisable_paths

KINDS = ("int8", "fp8", "nf4")
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(kind: str, bias: bool = True) -> tuple[torch.Tensor, Any]:
    weight = drawn(48, 64) * torch.linspace(0.01, 3, 48)[:, None]
    return weight, QuantisedLinear(weight, kind=kind, dtype=torch.float32, bias=drawn(48) if bias else None)


def test_each_nf4_value_is_the_nearest_of_its_blocks_levels():
    weight, layer = layer_of("nf4")
    blocks = weight.double().reshape(-1, BLOCK)
    most = blocks.abs().amax(dim=1, keepdim=True)
    levels = most[..., None] * torch.tensor(NF4_LEVELS, dtype=torch.float64)
    nearest = levels.expand(-1, BLOCK, -1).gather(
        2, (blocks[..., None] - levels).abs().argmin(dim=2, keepdim=True)
    )
    torch.testing.assert_close(layer.weight.double(), nearest.reshape(48, 64), rtol=1e-6, atol=1e-7)
    assert layer.codes.numel() * 2 == weight.numel()  # two values a byte


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.5 / 127), ("fp8", 2**-4)])
def test_the_error_of_8_bits_is_at_most_half_a_step(kind, error):
    weight, layer = layer_of(kind)
    largest = weight.abs().amax(dim=1, keepdim=True)
    allowed = largest * error if kind == "int8" else weight.abs() * error + largest * 2**-9 / 448
    assert bool(((layer.weight - weight).abs() <= allowed * 1.001).all())
    assert layer.codes.element_size() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind):
    layer = QuantisedLinear(torch.zeros(4, 64), kind=kind, dtype=torch.float32)
    assert torch.equal(layer.weight, torch.zeros(4, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_input_is_that_of_the_dequantised_weight(kind):
    _, layer = layer_of(kind)
    x, upstream = drawn(2, 5, 64, seed=1).requires_grad_(), drawn(2, 5, 48, seed=2)
    layer(x).backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, upstream @ layer.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_weight_nor_input_is_saved_for_the_backward_pass(kind):
    _, layer = layer_of(kind)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        layer(drawn(2, 5, 64).requires_grad_())
    assert not saved


def test_attention_and_feed_forward_are_quantised_and_nothing_else():
    unet: Any = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32, "int8")
    plain: Any = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    changed = {path for path, module in unet.named_modules() if isinstance(module, QuantisedLinear)}
    assert changed == set(quantisable_paths(plain))
    assert all(".attentions." in path for path in changed)
    assert any(path.endswith("ff.net.2") for path in changed)
    assert any(path.endswith("attn2.to_k") for path in changed)
    others = plain.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_bit_for_bit_the_quantised_base(kind):
    unet = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32, kind)
    inputs = {
        "sample": drawn(2, 4, 16, 16),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": drawn(2, 77, 144),
        "added_cond_kwargs": {"text_embeds": drawn(2, 80), "time_ids": torch.full((2, 6), 128.0)},
    }
    with torch.no_grad():
        alone = unet(**inputs).sample
        adapter = attach_to_meta(TrainConfig(train_feed_forward=True), {"unet": unet})
        adapter.init_weights(0)
        for number, parameter in enumerate(adapter.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=number), alpha=0.05)
        adapter.strength.value = torch.tensor([0.0, 1.0])
        rows = unet(**inputs).sample
        adapter.strength.value = 0.0
        assert torch.equal(unet(**inputs).sample, alone)
    assert torch.equal(rows[0], alone[0])
    assert not torch.equal(rows[1], alone[1])
