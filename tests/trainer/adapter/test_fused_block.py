"""Fused transformer blocks: the numbers of diffusers' block and of the plain formula, with less memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.trainer.adapter.test_lora import gradient_of, randomise
from trainer.adapter.fused_block import FusedBlock
from trainer.adapter.layer import Dropout
from trainer.adapter.lora import Adapter, LayerSpec, LoraLinear
from trainer.sdxl.quantised import QuantisedLinear

ATTENTION = tuple(
    f"attn{number}.{leaf}" for number in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")
)
CHOICES = {
    "attention": ATTENTION,
    "attention and feed-forward": (*ATTENTION, "ff.net.0.proj", "ff.net.2"),
    "keys and values of the text": ("attn2.to_k", "attn2.to_v"),
    "the last layer": ("ff.net.2",),
    "nothing": (),
}


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = BasicTransformerBlock(32, 2, 16, cross_attention_dim=24).to(dtype)


def build(
    leaves: tuple[str, ...], dtype: torch.dtype = torch.float64, network: str = "lora", **more: Any
) -> tuple[Adapter, Any]:
    """Returns (adapter, block) with random master weights in vectors, at strength 0.7."""
    model, adapter = Model(dtype), Adapter(**more)
    sizes = {
        f"block.{leaf}": LayerSpec(rank=3 + number % 2, alpha=5.0, network=network)
        for number, leaf in enumerate(leaves)
    }
    adapter.attach("unet", model, sizes)
    adapter.init_weights(1)
    if network == "lora":
        randomise(adapter)
    adapter.strength.value = 0.7
    adapter.zero_grad()
    return adapter, model.block


def inputs(dtype: torch.dtype = torch.float64, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    x, text = torch.randn(2, tokens, 32, generator=draw), torch.randn(2, 5, 24, generator=draw)
    return x.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()


def diffusers_own(block: Any, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Returns the output of diffusers' block with W x + s B A x written out in each layer."""

    def formula(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        low = layer.up.to(x.dtype) @ layer.down.to(x.dtype) * layer.scale * layer.strength.value
        return layer.base(x) + torch.nn.functional.linear(x, low)

    kept = {}
    for module in block.modules():
        kept[module] = vars(module).pop("forward", None)
        if isinstance(module, LoraLinear):
            module.forward = partial(formula, module)
    try:
        return block(x, encoder_hidden_states=text)
    finally:
        for module, forward in kept.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


@pytest.fixture
def fused_calls(monkeypatch) -> list[FusedBlock]:
    """The fused blocks that were called."""
    seen: list[FusedBlock] = []
    call = FusedBlock.__call__
    monkeypatch.setattr(
        FusedBlock, "__call__", lambda block, *given: seen.append(block) or call(block, *given)
    )
    return seen


@pytest.mark.parametrize("choice", CHOICES)
def test_output_and_gradients_equal_those_of_diffusers(fused_calls: list[FusedBlock], choice: str):
    adapter, block = build(CHOICES[choice])
    x, text = inputs()
    expected = diffusers_own(block, x, text)
    learned = dict(adapter.master_weights())
    gradients = torch.autograd.grad(expected.square().sum(), [x, text, *learned.values()])
    output = block(x, encoder_hidden_states=text)
    output.square().sum().backward()
    assert len(fused_calls) == 1
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    for given, gradient in zip((x, text), gradients[:2], strict=True):
        torch.testing.assert_close(given.grad, gradient, rtol=1e-9, atol=1e-9)
    for (name, parameter), gradient in zip(
        learned.items(), gradients[2:], strict=True
    ):  # master weights are fp32
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name
        )


def test_inputs_that_require_no_gradient_get_none(fused_calls: list[FusedBlock]):
    adapter, block = build(ATTENTION)
    x, text = (given.detach() for given in inputs())
    block(x, encoder_hidden_states=text).square().sum().backward()
    assert len(fused_calls) == 1
    assert x.grad is None
    assert text.grad is None
    assert all(bool(gradient_of(parameter).any()) for parameter in adapter.parameters())


def test_a_block_saves_less_memory_and_has_fewer_nodes_than_that_of_diffusers(fused_calls: list[FusedBlock]):
    """Most of a step's memory are the wide activations of feed-forward layers."""
    _, block = build(ATTENTION)

    def kept(forward: Any) -> tuple[int, int]:
        x, text = inputs(tokens=64)
        storages: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage()
            if place.data_ptr() not in weights:
                storages[place.data_ptr()] = place.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward(x, text)
        return sum(storages.values()), nodes(output)

    (ours, ours_nodes), (theirs, theirs_nodes) = (
        kept(lambda x, text: block(x, encoder_hidden_states=text)),
        kept(partial(diffusers_own, block)),
    )
    assert len(fused_calls) == 1
    assert ours < 0.8 * theirs
    assert ours_nodes < theirs_nodes / 4


def nodes(output: torch.Tensor) -> int:
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def test_a_block_trains_after_its_master_weights_have_moved_to_other_vectors(fused_calls: list[FusedBlock]):
    """Parameter groups may move master weights to other vectors after the adapter is attached."""
    adapter, block = build(ATTENTION)
    x, text = inputs()
    block(x, encoder_hidden_states=text).square().sum().backward()
    before = {name: gradient_of(parameter).clone() for name, parameter in adapter.master_weights()}
    layers = [layer for _, _, layer in adapter.walk()]
    adapter.flatten([[(layer, "up") for layer in layers], [(layer, "down") for layer in layers]])
    adapter.zero_grad()
    block(x, encoder_hidden_states=text).square().sum().backward()
    assert len(fused_calls) == 2
    assert fused_calls[0] is not fused_calls[1]
    for name, parameter in adapter.master_weights():
        torch.testing.assert_close(parameter.grad, before[name])


def recomputed(block: Any) -> None:
    feed_forward = block.ff
    assert isinstance(feed_forward, FeedForward)
    feed_forward.forward = partial(checkpoint, feed_forward.forward, use_reentrant=False)


UNUSUAL = {
    "another network": {"network": "loha"},
    "dropout": {"dropout": Dropout(rank=0.3, batch_seed=1)},
    "some projections of an attention": {"leaves": ("attn1.to_q", "attn2.to_v")},
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unsupported_adapters_use_the_block_of_diffusers(fused_calls: list[FusedBlock], case: str):
    given = {"leaves": ATTENTION, **UNUSUAL[case]}
    adapter, block = build(**given)
    x, text = inputs()
    block(x, encoder_hidden_states=text).square().sum().backward()
    assert not fused_calls
    assert x.grad is not None
    assert any(bool(gradient_of(parameter).any()) for parameter in adapter.parameters())


def test_a_checkpointed_feed_forward_layer_uses_the_block_of_diffusers(fused_calls: list[FusedBlock]):
    _, block = build(ATTENTION)
    recomputed(block)
    x, text = inputs()
    block(x, encoder_hidden_states=text).square().sum().backward()
    assert not fused_calls
    assert x.grad is not None


def test_masks_and_inference_use_the_block_of_diffusers(fused_calls: list[FusedBlock]):
    _, block = build(ATTENTION)
    x, text = inputs()
    mask = torch.zeros(2, 1, 5, dtype=torch.float64)
    masked = block(x, None, text, mask)
    plain = block(x, encoder_hidden_states=text)
    torch.testing.assert_close(masked, plain)
    with torch.no_grad():
        drawn = block(x, encoder_hidden_states=text)
    torch.testing.assert_close(drawn, plain.detach())
    assert len(fused_calls) == 1


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_trains_in_a_fused_block(fused_calls: list[FusedBlock], kind: str):
    model, adapter = Model(torch.float32), Adapter()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.weight.numel() % 64 == 0:
            model.set_submodule(
                path, QuantisedLinear(layer.weight.detach(), kind=kind, dtype=torch.float32, bias=layer.bias)
            )
    adapter.attach("unet", model, {f"block.{leaf}": LayerSpec(rank=4, alpha=4.0) for leaf in ATTENTION})
    adapter.init_weights(1)
    randomise(adapter)
    adapter.zero_grad()
    x, text = inputs(torch.float32)
    expected = diffusers_own(model.block, x, text)
    (gradient,) = torch.autograd.grad(expected.square().sum(), [x])
    output = model.block(x, encoder_hidden_states=text)
    output.square().sum().backward()
    assert len(fused_calls) == 1
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, gradient, rtol=1e-3, atol=1e-3)


def test_on_a_cpu_a_bf16_base_multiplies_with_fp32_master_weights_without_copies(
    fused_calls: list[FusedBlock],
):
    adapter, block = build(ATTENTION, torch.bfloat16)
    exact, exact_block = build(ATTENTION, torch.float32)
    for one, model in ((adapter, block), (exact, exact_block)):
        dtype = model.norm1.weight.dtype
        x, text = inputs(dtype)
        output = model(x, encoder_hidden_states=text)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert all(vector.grad is not None and vector.grad.dtype == torch.float32 for vector in one.vectors())
    assert len(fused_calls) == 2
    assert all(flat._copy is None and flat._low_gradient is None for flat in adapter.flat_vectors)
    for (name, low), (_, high) in zip(adapter.master_weights(), exact.master_weights(), strict=True):
        expected = gradient_of(high)
        assert float((gradient_of(low) - expected).norm() / expected.norm()) < 0.03, name
