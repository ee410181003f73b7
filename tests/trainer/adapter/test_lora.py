"""LoRA against its formula, PEFT and the base without it; selection of layers, learning rates, dropout."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.conftest import MODELS
from trainer.adapter.layer import Dropout, Strength
from trainer.adapter.lora import Adapter, LayerSpec, LoraLinear
from trainer.adapter.targets import _matches, block_of, layer_specs, linear_paths, parameter_groups
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.sdxl.weights import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


def predict(unet, rows: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, unet.config.in_channels, 16, 16, generator=draw)
    text = torch.randn(rows, 77, unet.config.cross_attention_dim, generator=draw)
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {
        "text_embeds": torch.randn(rows, width, generator=draw),
        "time_ids": torch.full((rows, 6), 128.0),
    }
    return unet(latents, torch.tensor([500] * rows), text, added_cond_kwargs=added).sample


def adapted(unet, rank: int = 4, alpha: float = 8.0) -> Adapter:
    adapter = Adapter()
    adapter.attach("unet", unet, dict.fromkeys(linear_paths("unet", unet), LayerSpec(rank=rank, alpha=alpha)))
    adapter.init_weights(seed=1)
    return adapter


def layers_of(adapter: Adapter) -> list[Any]:
    """Returns all layers, in order of name."""
    return [layer for _, _, layer in adapter.walk()]


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a parameter, which must have one."""
    assert parameter.grad is not None
    return parameter.grad


def randomise(adapter: Adapter) -> None:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in layers_of(adapter):
            layer.up.copy_(0.05 * torch.randn(layer.up.shape, generator=draw))


def test_every_attention_layer_is_adapted(base):
    unet = base.unet(CPU, torch.float32)
    paths = linear_paths("unet", unet)
    attentions = [name for name, _ in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    assert len(paths) == 4 * len(attentions) > 0
    assert len(linear_paths("unet", unet, feed_forward=True)) > len(paths)
    for part, encoder in zip(
        ("text_encoder", "text_encoder_2"), base.text_encoders(CPU, torch.float32), strict=True
    ):
        assert len(linear_paths(part, encoder)) == 4 * encoder.config.num_hidden_layers


def test_a_new_adapter_changes_nothing(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = predict(unet)
        adapted(unet)
        assert torch.equal(predict(unet), before)


def test_strength_zero_is_the_base_bit_for_bit(base):
    unet = base.unet(CPU, torch.float32)
    with torch.no_grad():
        before = predict(unet, rows=4)
        adapter = adapted(unet)
        randomise(adapter)
        adapter.strength.value = torch.tensor([0.0, 1.0, 0.0, -0.5])
        after = predict(unet, rows=4)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])
    assert not torch.equal(after[3], before[3])


def test_each_row_has_its_own_strength(base):
    unet = base.unet(CPU, torch.float32)
    adapter = adapted(unet)
    randomise(adapter)
    with torch.no_grad():
        adapter.strength.value = torch.tensor([0.25, 0.75])
        both = predict(unet)
        for row, strength in enumerate((0.25, 0.75)):
            adapter.strength.value = strength
            torch.testing.assert_close(predict(unet)[row], both[row], rtol=1e-4, atol=1e-5)


def test_outputs_and_gradients_equal_pefts(base):
    ours = base.unet(CPU, torch.float32)
    theirs = copy.deepcopy(ours)
    adapter = adapted(ours)
    randomise(adapter)
    targets = linear_paths("unet", theirs)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), theirs)
    with torch.no_grad():
        for _, path, layer in adapter.walk():
            module = theirs.get_submodule(path)
            module.lora_A["default"].weight.copy_(layer.down)
            module.lora_B["default"].weight.copy_(layer.up)
    mine, other = predict(ours), predict(theirs)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    mine.square().mean().backward()
    other.square().mean().backward()
    for _, path, layer in adapter.walk():
        module = theirs.get_submodule(path)
        torch.testing.assert_close(
            layer.down.grad, module.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(layer.up.grad, module.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-6)


def test_training_does_not_change_the_base(base):
    def digest(unet) -> str:
        described = hashlib.sha256()
        for name, tensor in sorted(unet.state_dict().items()):
            if not name.endswith((".down", ".up")):
                described.update(tensor.numpy().tobytes())
        return described.hexdigest()

    unet = base.unet(CPU, torch.float32)
    before = digest(unet)
    adapter = adapted(unet)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    predict(unet).square().mean().backward()
    optimizer.step()
    assert digest(unet) == before
    assert all(p.grad is None for n, p in unet.named_parameters() if not n.endswith((".down", ".up")))


def test_a_bf16_base_has_fp32_master_weights_and_gradients(base):
    unet = base.unet(CPU, torch.bfloat16)
    adapter = adapted(unet)
    linear = layers_of(adapter)[0]
    linear(torch.randn(2, 3, linear.base.in_features, dtype=torch.bfloat16)).sum().backward()
    assert linear.up.dtype == torch.float32
    assert linear.up.grad.dtype == torch.float32


def test_detaching_restores_the_layers_of_the_model(base):
    unet = base.unet(CPU, torch.float32)
    names = [name for name, _ in unet.named_modules()]
    adapter = adapted(unet)
    adapter.detach("unet", unet)
    assert [name for name, _ in unet.named_modules()] == names


def sizes_of(unet, **settings) -> dict[str, LayerSpec]:
    return layer_specs(TrainConfig(**settings), {"unet": unet})["unet"]


@pytest.fixture(scope="module")
def true_unet() -> UNet2DConditionModel:
    """The UNet of SDXL 1.0 without weights."""
    return build("unet", ORIGINAL)


def test_block_numbers_are_those_of_kohya(true_unet):
    numbers = {
        path: block_of(path)
        for path, module in true_unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert set(numbers.values()) == set(range(23))
    assert {path.split(".")[0] for path, number in numbers.items() if number == 0} == {
        "time_embedding",
        "add_embedding",
    }
    assert [path for path, number in numbers.items() if number in (1, 22)] == ["conv_in", "conv_out"]
    assert numbers["down_blocks.0.resnets.0.conv1"] == 2
    assert numbers["down_blocks.0.downsamplers.0.conv"] == 4
    assert numbers["down_blocks.2.attentions.1.proj_in"] == 9
    assert numbers["mid_block.attentions.0.proj_in"] == 11
    assert numbers["up_blocks.0.attentions.0.proj_in"] == 13
    assert numbers["up_blocks.2.resnets.2.conv1"] == 21


def test_each_block_has_its_rank_and_all_have_the_same_scale(true_unet):
    ranks = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]
    sizes = sizes_of(true_unet, rank=8, alpha=4.0, block_ranks=",".join(map(str, ranks)))
    assert {size.rank for size in sizes.values()} == {
        ranks[block_of(path)] for path in linear_paths("unet", true_unet)
    }
    assert all(
        size.rank == ranks[block_of(path)] and size.alpha / size.rank == pytest.approx(0.5)
        for path, size in sizes.items()
    )
    without = ["8"] * 23
    without[11] = "0"
    left = sizes_of(true_unet, block_ranks=",".join(without))
    assert 0 < len(left) < 560
    assert not any(path.startswith("mid_block") for path in left)


def test_three_patterns_select_the_default_layers_of_kohya(true_unet):
    patterns = ("*.attentions.*.to_*", "*.attentions.*.proj_*", "*.attentions.*.ff.net.*")
    assert set(sizes_of(true_unet, include_layers=patterns)) == set(
        linear_paths("unet", true_unet, feed_forward=True)
    )


def test_include_and_exclude_select_layers_by_path(true_unet):
    chosen = sizes_of(
        true_unet, include_layers=("unet.up_blocks.*", "*time_emb_proj"), exclude_layers=("*.attn1.*",)
    )
    assert all(path.startswith("up_blocks.") or path.endswith("time_emb_proj") for path in chosen)
    assert len(chosen) > 50
    assert any(path.endswith("time_emb_proj") for path in chosen)
    assert not any(".attn1." in path for path in chosen)
    # A network that adapts convolutions accepts patterns of convolutions.
    locon = sizes_of(true_unet, network="locon", include_layers=("conv_out", "*mid_block*to_q"), conv_rank=3)
    assert locon["conv_out"].rank == 3
    assert len(locon) == 21


@pytest.mark.parametrize("spelling", ["encoder.layers.*", "text_model.encoder.layers.*"])
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_pattern_matches_in_text_encoders_with_and_without_text_model(part: str, spelling: str):
    for path in ("encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"):
        assert _matches(spelling, part, path)
        assert _matches(f"{part}.{spelling}", part, path)
        assert not _matches(f"unet.{spelling}", part, path)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"include_layers": ("attn2",)}, "'attn2' matches no linear layer"),
        ({"exclude_layers": ("*.attn3.*",)}, r"'\*.attn3.\*' matches no"),
        ({"include_layers": ("conv_out",)}, "'conv_out' matches no linear layer"),
        ({"exclude_layers": ("*",)}, "leave no layer"),
        ({"block_ranks": ",".join(["0"] * 23)}, "leave no layer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_patterns_that_select_no_layer_are_rejected(true_unet, settings, word: str):
    with pytest.raises(ConfigError, match=word):
        sizes_of(true_unet, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"block_ranks": "8,8"},
        {"block_ranks": ",".join(["1.5"] * 23)},
        {"block_ranks": "a"},
        {"block_rates": ",".join(["-1"] * 23)},
        {"block_rates": ",".join(["nan"] * 23)},
        {"format": "diffusers", "network": "lokr"},
        {"optimizer": "prodigy", "lora_plus_ratio": 16.0},
    ],
    ids=str,
)
def test_contradictory_settings_are_rejected(settings):
    with pytest.raises(ConfigError):
        TrainConfig(**settings)


def test_a_text_encoders_attention_can_not_be_adapted_in_part(base):
    encoders = base.text_encoders(CPU, torch.float32)
    models = {"unet": base.unet(CPU, torch.float32), "text_encoder": encoders[0]}
    with pytest.raises(ConfigError, match="q, k, v and out_proj together"):
        layer_specs(TrainConfig(train_text_encoder_1=True, exclude_layers=("text_encoder.*.q_proj",)), models)


def test_layer_specs_of_a_single_part(base):
    config = TrainConfig(train_text_encoder_1=True, include_layers=("text_encoder.*self_attn.*",))
    unet, encoder = base.unet(CPU, torch.float32), base.text_encoders(CPU, torch.float32)[0]
    assert layer_specs(config, {"unet": unet}) == {"unet": {}}
    assert (
        len(layer_specs(config, {"unet": unet, "text_encoder": encoder})["text_encoder"])
        == 4 * encoder.config.num_hidden_layers
    )


def test_a_rank_stabilised_scale_is_alpha_by_the_root_of_the_rank(base):
    unet = base.unet(CPU, torch.float32)
    adapter = Adapter()
    adapter.attach("unet", unet, sizes_of(unet, rank=16, alpha=8.0, rank_stabilised=True))
    assert {layer.scale for _, _, layer in adapter.walk()} == {8.0 / 4}


def test_learning_rates_depend_on_part_block_and_side(base):
    rates = ["1"] * 23
    rates[11], rates[13] = "0.5", "0"
    # Adafactor factors matrices, so each matrix is a parameter of its own.
    config = TrainConfig(
        learning_rate=1e-3, lora_plus_ratio=16.0, block_rates=",".join(rates), optimizer="adafactor"
    )
    unet, adapter = base.unet(CPU, torch.float32), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    groups = parameter_groups(config, adapter)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate_of) == len(adapter.parameters())
    assert not any(path.startswith("up_blocks.0.attentions.0") for _, path, _ in adapter.walk())
    for _, path, layer in adapter.walk():
        block = 0.5 if path.startswith("mid_block") else 1.0
        assert rate_of[id(layer.down)] == pytest.approx(1e-3 * block)
        assert rate_of[id(layer.up)] == pytest.approx(16e-3 * block)


def test_without_block_rates_all_matrices_of_a_part_are_in_one_vector(base):
    adapter = adapted(base.unet(CPU, torch.float32))
    randomise(adapter)
    kept = adapter.tensors()
    groups = parameter_groups(TrainConfig(), adapter)
    assert [group["lr"] for group in groups] == [1e-3]
    (vector,) = groups[0]["params"]
    assert vector.numel() == sum(parameter.numel() for parameter in adapter.parameters())
    assert all(
        parameter.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
        for parameter in adapter.parameters()
    )
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter.tensors().items())


def test_norms_are_limited_as_in_kohya(base):
    adapter = adapted(base.unet(CPU, torch.float32), alpha=3.0)
    randomise(adapter)
    before = {
        path: (layer.product().detach().clone(), layer.tensors()["down"].detach().clone())
        for _, path, layer in adapter.walk()
    }
    limit = sorted(float(product.norm()) for product, _ in before.values())[len(before) // 2]
    adapter.limit_norms(limit)
    for _, path, layer in adapter.walk():
        product, down = before[path]
        ratio = min(1.0, limit / float(product.norm()))
        torch.testing.assert_close(layer.product(), product * ratio, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(layer.down, down * ratio**0.5)  # both matrices are scaled alike
    kept = adapter.tensors()
    adapter.limit_norms(limit * 1.001)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter.tensors().items())


@pytest.mark.parametrize("network", ["dora", "loha", "lokr"])
def test_norms_of_every_network_are_limited(base, network: str):
    unet, adapter = base.unet(CPU, torch.float32), Adapter()
    adapter.attach("unet", unet, sizes_of(unet, network=network, rank=4, include_layers=("*.attn2.to_q",)))
    adapter.init_weights(1)
    with torch.no_grad():
        for _, parameter in adapter.master_weights():
            parameter.add_(0.3)
    adapter.limit_norms(0.5)
    assert all(
        float(layer.product().detach().norm()) == pytest.approx(0.5, rel=1e-4)
        for _, _, layer in adapter.walk()
    )


def dropped(base, kind: str = "lora", **shares) -> tuple[Adapter, Any]:
    unet, adapter = base.unet(CPU, torch.float32), Adapter(Dropout(**shares))
    adapter.attach("unet", unet, sizes_of(unet, network=kind, rank=4, alpha=8.0))
    adapter.init_weights(1)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        for _, parameter in adapter.master_weights():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return adapter, unet


@pytest.mark.parametrize("share", ["network", "rank", "module"])
@pytest.mark.parametrize("network", ["lora", "locon", "dora", "lokr"])
def test_dropout_is_the_same_for_the_same_batch_and_absent_in_samples(base, network: str, share: str):
    adapter, unet = dropped(base, network, **{share: 0.5})
    plain = predict(unet).detach()
    adapter.dropout.batch_seed = 7
    first, again = predict(unet).detach(), predict(unet).detach()
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    with torch.no_grad():
        torch.testing.assert_close(predict(unet), plain)
    adapter.dropout.batch_seed = 8
    assert not torch.equal(predict(unet).detach(), first)


@pytest.mark.parametrize("network", ["lora", "dora", "lokr"])
def test_recomputed_activations_have_the_same_dropout(base, network: str):
    gradients = []
    for checkpointing in (False, True):
        adapter, unet = dropped(base, network, network=0.3, rank=0.3, module=0.3)
        adapter.dropout.batch_seed = 7
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        predict(unet).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in adapter.master_weights()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


def layer_with(**shares) -> LoraLinear:
    torch.manual_seed(0)
    layer = LoraLinear(
        nn.Linear(6, 3),
        LayerSpec(rank=4000, alpha=4000.0),
        strength=Strength(),
        dropout=Dropout(batch_seed=1, **shares),
        name="a",
    )
    layer.init_weights(torch.Generator().manual_seed(1))
    return layer


def test_rank_dropout_drops_whole_ranks_of_an_image_and_preserves_the_mean():
    layer = layer_with(rank=0.25)
    hidden = layer._dropped(torch.ones(2, 5, 4000))
    assert set(hidden.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert all(torch.equal(hidden[:, token], hidden[:, 0]) for token in range(5))
    assert not torch.equal(hidden[0], hidden[1])
    assert float((hidden == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_network_dropout_drops_single_values_and_preserves_the_mean():
    hidden = layer_with(network=0.25)._dropped(torch.ones(2, 5, 4000))
    assert not torch.equal(hidden[:, 0], hidden[:, 1])
    assert float(hidden.mean()) == pytest.approx(1, abs=0.02)


def test_module_dropout_drops_about_its_share_of_the_layers(base):
    adapter, _ = dropped(base, module=0.3)
    adapter.dropout.batch_seed = 3
    silent = 0
    for layer in layers_of(adapter):
        x = torch.ones(1, 2, layer.base.in_features)
        silent += torch.equal(layer(x), layer.base(x))
    assert 0.15 < silent / len(adapter.layers["unet"]) < 0.45


@pytest.mark.parametrize("network", ["lora", "locon", "dora", "loha", "lokr"])
def test_saved_tensors_are_loaded_again(base, network: str):
    adapter, _ = dropped(base, network)
    kept = adapter.tensors()
    fresh, _ = dropped(base, network)
    with torch.no_grad():
        for _, parameter in fresh.master_weights():
            parameter.zero_()
    fresh.load(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in fresh.tensors().items())
    with pytest.raises(KeyError):
        fresh.load(dict(list(kept.items())[1:]))
