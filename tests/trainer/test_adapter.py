"""LoRA against its formula, against PEFT, and against the base without it."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter, Size
from trainer.adapter.targets import linear_paths
from trainer.sdxl.base import open_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


def ask(unet, rows: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, unet.config.in_channels, 16, 16, generator=draw)
    text = torch.randn(rows, 77, unet.config.cross_attention_dim, generator=draw)
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(rows, width, generator=draw), "time_ids": torch.full((rows, 6), 128.0)}
    return unet(latents, torch.tensor([500] * rows), text, added_cond_kwargs=added).sample


def adapted(unet, rank: int = 4, alpha: float = 8.0) -> Adapter:
    adapter = Adapter()
    adapter.attach("unet", unet, dict.fromkeys(linear_paths("unet", unet), Size(rank=rank, alpha=alpha)))
    adapter.start(seed=1)
    return adapter


def stir(adapter: Adapter) -> None:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, _, layer in adapter.walk():
            layer.up.copy_(0.05 * torch.randn(layer.up.shape, generator=draw))


def test_every_attention_layer_is_adapted(base):
    unet = base.unet(CPU, torch.float32)
    paths = linear_paths("unet", unet)
    attentions = [name for name, _ in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    assert len(paths) == 4 * len(attentions) > 0
    assert len(linear_paths("unet", unet, feed_forward=True)) > len(paths)
    for part, encoder in zip(("text_encoder", "text_encoder_2"), base.text_encoders(CPU, torch.float32), strict=True):
        assert len(linear_paths(part, encoder)) == 4 * encoder.config.num_hidden_layers


def test_a_new_adapter_changes_nothing(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = ask(unet)
        adapted(unet)
        assert torch.equal(ask(unet), before)


def test_strength_zero_is_the_base_bit_for_bit(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = ask(unet, rows=4)
        adapter = adapted(unet)
        stir(adapter)
        adapter.strength.value = torch.tensor([0.0, 1.0, 0.0, -0.5])
        after = ask(unet, rows=4)
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1]) and not torch.equal(after[3], before[3])


def test_each_row_has_its_own_strength(base):
    unet = base.unet(CPU, torch.float32)
    adapter = adapted(unet)
    stir(adapter)
    with torch.no_grad():
        adapter.strength.value = torch.tensor([0.25, 0.75])
        both = ask(unet)
        for row, strength in enumerate((0.25, 0.75)):
            adapter.strength.value = strength
            torch.testing.assert_close(ask(unet)[row], both[row], rtol=1e-4, atol=1e-5)


def test_outputs_and_gradients_equal_pefts(base):
    ours = base.unet(CPU, torch.float32)
    theirs = copy.deepcopy(ours)
    adapter = adapted(ours)
    stir(adapter)
    targets = linear_paths("unet", theirs)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), theirs)
    with torch.no_grad():
        for _, path, layer in adapter.walk():
            module = theirs.get_submodule(path)
            module.lora_A["default"].weight.copy_(layer.down)
            module.lora_B["default"].weight.copy_(layer.up)
    mine, other = ask(ours), ask(theirs)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    mine.square().mean().backward()
    other.square().mean().backward()
    for _, path, layer in adapter.walk():
        module = theirs.get_submodule(path)
        torch.testing.assert_close(layer.down.grad, module.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(layer.up.grad, module.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-6)


def test_learning_leaves_the_base_as_it_was(base):
    def digest(unet) -> str:
        told = hashlib.sha256()
        for name, tensor in sorted(unet.state_dict().items()):
            if not name.endswith((".down", ".up")):
                told.update(tensor.numpy().tobytes())
        return told.hexdigest()

    unet = base.unet(CPU, torch.float32)
    before = digest(unet)
    adapter = adapted(unet)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    ask(unet).square().mean().backward()
    optimizer.step()
    assert digest(unet) == before
    assert all(p.grad is None for n, p in unet.named_parameters() if not n.endswith((".down", ".up")))


def test_a_bf16_base_keeps_fp32_masters_and_gradients(base):
    unet = base.unet(CPU, torch.bfloat16)
    adapter = adapted(unet)
    linear = next(layer for _, _, layer in adapter.walk())
    linear(torch.randn(2, 3, linear.base.in_features, dtype=torch.bfloat16)).sum().backward()
    assert linear.up.dtype == torch.float32 and linear.up.grad.dtype == torch.float32


def test_detaching_gives_the_model_its_layers_back(base):
    unet = base.unet(CPU, torch.float32)
    names = [name for name, _ in unet.named_modules()]
    adapter = adapted(unet)
    adapter.detach("unet", unet)
    assert [name for name, _ in unet.named_modules()] == names
