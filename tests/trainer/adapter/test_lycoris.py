"""LoCon, DoRA, LoHa and LoKr against LyCORIS, PEFT and diffusers, and through their files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from lycoris.functional import factorization
from lycoris.modules import make_module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from tests.conftest import MODELS
from tests.trainer.adapter.test_lora import predict
from tests.trainer.lora_file.lora_samples import changed_by_diffusers
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.adapter.lycoris import magnitude
from trainer.adapter.roles import split
from trainer.adapter.targets import conv_paths, layer_specs, linear_paths
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.lora_file.attach import attach_lora
from trainer.lora_file.compatibility.check import check_file
from trainer.lora_file.describe import describe
from trainer.lora_file.metadata import training_network
from trainer.lora_file.tensor_names import suffix_of
from trainer.lora_file.writer import kohya_tensors, save_lora
from trainer.sdxl.base import open_base

CPU = torch.device("cpu")
NETWORKS = ("lora", "dora", "loha", "lokr")
BASES = {
    "linear": lambda: nn.Linear(24, 40),
    "convolution": lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1),
    "pointwise": lambda: nn.Conv2d(12, 16, 1),
}
THEIRS = {"lora": LoConModule, "dora": LoConModule, "loha": LohaModule, "lokr": LokrModule}


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer


def randomised(adapter: Adapter) -> Adapter:
    """Adds noise to all matrices and magnitudes."""
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in adapter.master_weights():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return adapter


def alone(
    kind: str,
    network: str,
    *,
    rank: int = 4,
    alpha: float = 6.0,
    factor: int = 4,
    dtype: torch.dtype = torch.float32,
) -> tuple[Adapter, Any, torch.Tensor]:
    """Returns (adapter, its only layer, an input) for a base layer of a kind."""
    torch.manual_seed(1)
    holder, adapter = Holder(BASES[kind]().to(dtype)), Adapter()
    adapter.attach(
        "unet", holder, {"layer": LayerSpec(rank=rank, alpha=alpha, network=network, factor=factor)}
    )
    adapter.init_weights(seed=3)
    x = torch.randn(2, 5, 24) if kind == "linear" else torch.randn(2, 12, 8, 8)
    return randomised(adapter), holder.layer, x.to(dtype)


def lycoris_module(network: str, layer, **more) -> Any:
    expected = (
        {"weight_decompose": True, "wd_on_out": False}
        if network == "dora"
        else {"factor": 4}
        if network == "lokr"
        else {}
    )
    theirs = THEIRS[network]("m", copy.deepcopy(layer.base), 1.0, layer.rank, layer.alpha, **expected, **more)
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for role, parameter in layer.tensors().items():
            named[suffix_of(role).removeprefix(".")].copy_(parameter)
    return theirs


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_equal_those_of_lycoris(network: str, kind: str):
    _, layer, x = alone(kind, network)
    theirs = lycoris_module(network, layer)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)
    changed = copy.deepcopy(layer.base)
    with torch.no_grad():
        changed.weight.add_(layer.change())
    torch.testing.assert_close(layer(x), changed(x), rtol=1e-4, atol=1e-5)  # the weight plus `change()`


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("network", ["lora", "loha", "lokr"])
def test_gradients_equal_those_of_lycoris(network: str, kind: str):
    _, layer, x = alone(kind, network)
    theirs = lycoris_module(network, layer)
    layer(x).square().mean().backward()
    theirs(x).square().mean().backward()
    named = dict(theirs.named_parameters())
    for role, parameter in layer.tensors().items():
        torch.testing.assert_close(
            parameter.grad, named[suffix_of(role).removeprefix(".")].grad, rtol=1e-3, atol=1e-6
        )


def test_the_norm_is_a_constant_for_the_gradient_of_dora():
    _, layer, x = alone("linear", "dora")
    layer(x).square().mean().backward()
    down, up, scale = (
        layer.tensors()[role].detach().clone().requires_grad_() for role in ("down", "up", "dora_scale")
    )
    merged = layer.base.weight + layer.scale * up @ down
    norm = merged.detach().norm(dim=0, keepdim=True)
    torch.nn.functional.linear(x, merged * scale / norm, layer.base.bias).square().mean().backward()
    for role, expected in (("down", down), ("up", up), ("dora_scale", scale)):
        torch.testing.assert_close(layer.tensors()[role].grad, expected.grad, rtol=1e-3, atol=1e-6)


@given(st.integers(1, 3000), st.integers(0, 64))
def test_lokr_factors_a_size_as_lycoris_does(size: int, factor: int):
    assert split(size, factor) == tuple(factorization(size, factor or -1))


@pytest.mark.parametrize(("rank", "pair"), [(2, True), (100, False)])
def test_lokr_of_a_large_rank_has_full_matrices_and_no_scale(rank: int, pair: bool):
    _, layer, _ = alone("linear", "lokr", rank=rank, alpha=5.0)
    assert ("lokr_w2_a" in layer.tensors()) is pair
    assert layer.scale == (2.5 if pair else 1.0)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("network", NETWORKS)
def test_master_weights_and_gradients_of_a_bf16_base_are_fp32(network: str, kind: str):
    _, layer, x = alone(kind, network, dtype=torch.bfloat16)
    out = layer(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.base.weight.grad is None
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in layer.tensors().values())


@pytest.mark.parametrize("network", ["dora", "loha", "lokr"])
def test_no_full_matrix_is_saved_for_the_backward_pass(network: str):
    model, adapter, kept = Holder(nn.Linear(64, 64)), Adapter(), []
    adapter.attach("unet", model, {"layer": LayerSpec(rank=2, alpha=2.0, network=network, factor=8)})
    adapter.init_weights(1)
    frozen = model.layer.base.weight.data_ptr()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        model.layer(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert kept
    assert all(tensor.numel() < 64 * 64 or tensor.data_ptr() == frozen for tensor in kept)


def config_of(network: str, **more) -> TrainConfig:
    small = {"rank": 4, "alpha": 6.0, "conv_rank": 2, "conv_alpha": 2.0, "train_feed_forward": True}
    return TrainConfig(network=network, **{**small, **more})


def in_unet(base, config: TrainConfig, dtype: torch.dtype = torch.float32) -> tuple[Adapter, nn.Module]:
    unet, adapter = base.unet(CPU, dtype), Adapter()
    adapter.attach("unet", unet, layer_specs(config, {"unet": unet})["unet"])
    adapter.init_weights(1)
    return adapter, unet


@pytest.mark.parametrize("network", ["locon", "dora", "loha", "lokr"])
def test_each_row_has_its_strength_and_strength_zero_is_the_base(base, network: str):
    plain = predict(base.unet(CPU, torch.float32), rows=3)
    adapter, unet = in_unet(base, config_of(network))
    with torch.no_grad():
        assert torch.equal(predict(unet, rows=3), plain), "a new adapter changes nothing"
        randomised(adapter)
        adapter.strength.value = torch.tensor([0.0, 0.5, 1.0])
        rows = predict(unet, rows=3)
        assert torch.equal(rows[0], plain[0]), "bit for bit"
        for row, strength in ((1, 0.5), (2, 1.0)):
            adapter.strength.value = strength
            torch.testing.assert_close(predict(unet, rows=3)[row], rows[row], rtol=1e-3, atol=1e-4)
            assert not torch.allclose(rows[row], plain[row], atol=1e-3)


def test_locon_adapts_all_convolutions_of_residual_blocks_and_samplers(base):
    unet = base.unet(CPU, torch.float32)
    expected = [
        path
        for name, block in unet.named_modules()
        if type(block).__name__ in ("ResnetBlock2D", "Downsample2D", "Upsample2D")
        for path in [
            f"{name}.{child}" for child, module in block.named_children() if isinstance(module, nn.Conv2d)
        ]
    ]
    assert sorted(conv_paths("unet", unet)) == sorted(expected)
    assert expected
    adapter, _ = in_unet(base, config_of("locon"))
    convolutions = [layer for _, path, layer in adapter.walk() if path in expected]
    assert {(layer.rank, layer.alpha) for layer in convolutions} == {(2, 2.0)}
    assert len(convolutions) == len(expected)
    assert len(adapter.layers["unet"]) == len(expected) + len(
        linear_paths("unet", unet.__class__.from_config(unet.config), feed_forward=True)
    )


@pytest.mark.parametrize("network", ["locon", "dora", "loha", "lokr"])
def test_a_saved_file_makes_the_same_change(base, network: str, tmp_path: Path):
    adapter, _ = in_unet(base, config_of(network))
    save_lora(tmp_path / "a.safetensors", randomised(adapter), {})
    again = attach_lora(tmp_path / "a.safetensors", {"unet": base.unet(CPU, torch.float32)})
    pairs = list(zip(adapter.walk(), again.walk(), strict=True))
    assert len(pairs) > 50
    for (_, path, mine), (_, other, found) in pairs:
        assert path == other
        assert found.network == mine.network
        assert found.rank == mine.rank
        torch.testing.assert_close(found.change(), mine.change(), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["locon", "loha", "lokr"])
def test_lycoris_reads_the_file_with_the_same_effect(base, network: str):
    adapter, _ = in_unet(
        base, config_of(network, include_layers=("*mid_block*to_q", "*mid_block*conv1"), rank_stabilised=True)
    )
    tensors = {name: tensor.float() for name, tensor in kohya_tensors(randomised(adapter)).items()}
    assert len(adapter.layers["unet"]) > 3
    for _, path, layer in adapter.walk():
        name = next(n for n in {key.split(".")[0] for key in tensors} if n in _kohya(path))
        kind = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}[network]
        weights = kind.extract_state_dict(tensors, name)
        with torch.no_grad():
            theirs: Any = make_module(kind, weights, name, copy.deepcopy(layer.base))
            x = torch.randn(
                2,
                *(
                    [layer.base.in_channels, 6, 6]
                    if isinstance(layer.base, nn.Conv2d)
                    else [5, layer.base.in_features]
                ),
            )
            torch.testing.assert_close(theirs(x), layer(x), rtol=1e-2, atol=5e-3)


def _kohya(path: str) -> str:
    from trainer.lora_file.module_names import kohya_name

    return kohya_name("unet", path)


@pytest.mark.parametrize("network", ["lora", "loha", "lokr"])
def test_a_tucker_convolution_has_the_effect_that_it_has_in_lycoris(network: str, tmp_path: Path):
    torch.manual_seed(2)
    unet: Any = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    path = "mid_block.resnets.0.conv1"
    theirs = THEIRS[network]("m", copy.deepcopy(unet.get_submodule(path)), 1.0, 4, 2.0, use_tucker=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    tensors = {
        f"{_kohya(path)}.{key}": tensor.detach().contiguous()
        for key, tensor in theirs.custom_state_dict().items()
    }
    assert any(word in key for key in tensors for word in ("mid", "_t2"))
    save_file(tensors, tmp_path / "t.safetensors")
    adapter = attach_lora(tmp_path / "t.safetensors", {"unet": unet})
    x = torch.randn(1, theirs.org_module[0].in_channels, 6, 6)
    torch.testing.assert_close(adapter.layers["unet"][path](x), theirs(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("end", [".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".dora_scale"])
def test_a_dora_along_the_axis_of_peft_has_the_effect_that_it_has_in_peft(end: str, tmp_path: Path):
    unet: Any = open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)
    theirs, path = copy.deepcopy(unet), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=[path], use_dora=True), theirs)
    module: Any = theirs.get_submodule(path)
    with torch.no_grad():
        module.lora_B["default"].weight.normal_(std=0.3)
        module.lora_magnitude_vector["default"].weight.mul_(1.3)
    magnitudes = module.lora_magnitude_vector["default"].weight.detach()
    tensors = {
        f"unet.{path}.lora_A.weight": module.lora_A["default"].weight.detach(),
        f"unet.{path}.lora_B.weight": module.lora_B["default"].weight.detach(),
        f"unet.{path}{end}": magnitudes[:, None] if end == ".dora_scale" else magnitudes,
    }
    save_file(tensors, tmp_path / "d.safetensors")
    ours: Any = attach_lora(tmp_path / "d.safetensors", {"unet": unet}).layers["unet"][path]
    x = torch.randn(2, 7, ours.base.in_features)
    torch.testing.assert_close(ours(x), module(x), rtol=1e-4, atol=1e-5)


def test_magnitudes_of_dora_are_fp32_in_the_file_and_along_the_inputs(base):
    adapter, _ = in_unet(base, config_of("dora", include_layers=("*.to_q", "*.conv2")))
    tensors = kohya_tensors(adapter)
    for _, path, layer in adapter.walk():
        scale = tensors[f"{_kohya(path)}.dora_scale"]
        assert scale.dtype == torch.float32
        assert scale.shape[:2] == (1, layer.base.weight.shape[1])
        kept = [dim for dim in range(layer.base.weight.dim()) if dim != 1]
        torch.testing.assert_close(scale, torch.linalg.vector_norm(layer.base.weight, dim=kept, keepdim=True))
        assert torch.equal(magnitude(layer.base.weight, scale.shape), scale)


MIXED = ",".join(["0", *["2"] * 9, *["8"] * 3, *["4"] * 10])


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_convolutions_and_mixed_ranks_with_the_same_effect(base, format: str, tmp_path: Path):
    adapter, unet = in_unet(base, config_of("locon", block_ranks=MIXED))
    assert {layer.rank for _, _, layer in adapter.walk()} == {2, 4, 8}
    save_lora(
        tmp_path / "a.safetensors",
        randomised(adapter),
        {"ss_base_model_version": "sdxl_base_v1-0"},
        format=format,
    )
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(
        MODELS / "tiny-sdxl", torch_dtype=torch.float32, local_files_only=True
    )
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    assert len({n for n, _ in pipe.unet.named_modules() if n.endswith("lora_A.default_0")}) == len(
        adapter.layers["unet"]
    )
    for _, path, layer in adapter.walk():
        theirs = pipe.unet.get_submodule(path)
        x = (
            torch.randn(1, layer.base.in_channels, 6, 6)
            if isinstance(layer.base, nn.Conv2d)
            else torch.randn(1, 3, layer.base.in_features)
        )
        torch.testing.assert_close(theirs(x), layer(x), rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        torch.testing.assert_close(predict(pipe.unet), predict(unet), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("network", ["locon", "dora"])
def test_all_layers_of_a_part_are_written_with_one_alpha(base, network: str):
    adapter, _ = in_unet(base, config_of(network, block_ranks=MIXED, rank_stabilised=True))
    randomised(adapter)
    tensors = kohya_tensors(adapter)
    assert len({layer.alpha for _, _, layer in adapter.walk()}) > 2
    alphas = {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    assert len(alphas) == 1
    for _, path, layer in adapter.walk():
        down, up = (tensors[f"{_kohya(path)}.lora_{side}.weight"].float() for side in ("down", "up"))
        change = (
            (up.flatten(1) @ down.flatten(1)).reshape(layer.base.weight.shape)
            * alphas.copy().pop()
            / down.shape[0]
        )
        torch.testing.assert_close(change, layer.product(), rtol=5e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_makes_the_trained_change_although_alphas_and_ranks_differ(base, tmp_path: Path, caplog):
    adapter, _ = in_unet(
        base, config_of("locon", block_ranks=MIXED, rank_stabilised=True, conv_rank=4, conv_alpha=1.0)
    )
    randomised(adapter)
    save_lora(tmp_path / "a.safetensors", adapter, {"ss_base_model_version": "sdxl_base_v1-0"})
    changes = {(part, path): layer.change().detach() for part, path, layer in adapter.walk()}
    assert len({layer.scale for _, _, layer in adapter.walk()}) > 3
    found = changed_by_diffusers({tmp_path / "a.safetensors": 1.0}, changes, caplog)
    for place, change in changes.items():
        torch.testing.assert_close(found[place], change.flatten(1), rtol=0, atol=1e-4)


def test_a_dora_of_several_ranks_is_loaded_as_it_was_trained(base, tmp_path: Path):
    adapter, _ = in_unet(base, config_of("dora", block_ranks=MIXED, rank_stabilised=True))
    save_lora(tmp_path / "a.safetensors", randomised(adapter), {})
    again = attach_lora(
        tmp_path / "a.safetensors", {"unet": open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)}
    )
    for (_, _, mine), (_, _, found) in zip(adapter.walk(), again.walk(), strict=True):
        torch.testing.assert_close(found.change(), mine.change(), rtol=0, atol=1e-3)
    assert not [
        line for line in check_file(tmp_path / "a.safetensors", bases=MODELS).warnings if "alphas of" in line
    ]


@pytest.mark.parametrize("network", ["dora", "loha", "lokr"])
def test_the_diffusers_format_rejects_networks_that_it_can_not_store(base, network: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"can't store a {network}"):
        config_of(network, format="diffusers")
    adapter, _ = in_unet(base, config_of(network))
    with pytest.raises(ConfigError, match="kohya"):
        save_lora(tmp_path / "a.safetensors", adapter, {}, format="diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "label"),
    [("lora", "LoRA"), ("locon", "LoCon"), ("dora", "DoRA"), ("loha", "LoHa"), ("lokr", "LoKr")],
)
def test_inspect_names_the_network(base, network: str, label: str, tmp_path: Path):
    adapter, _ = in_unet(base, config_of(network))
    save_lora(tmp_path / "a.safetensors", randomised(adapter), {})
    described = dict(describe(tmp_path / "a.safetensors"))
    assert described["network"] == label
    assert f"{len(adapter.layers['unet'])} modules" in described["UNet"]


@pytest.mark.parametrize(
    ("network", "module", "arguments"),
    [
        ("lora", "networks.lora", "{}"),
        ("locon", "networks.lora", '{"conv_dim": "2", "conv_alpha": "2.0"}'),
        ("dora", "lycoris.kohya", '{"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}'),
        ("loha", "lycoris.kohya", '{"algo": "loha"}'),
        ("lokr", "lycoris.kohya", '{"algo": "lokr", "factor": "8"}'),
    ],
)
def test_metadata_names_the_network_as_kohya_does(network: str, module: str, arguments: str):
    facts = training_network(config_of(network))
    assert (facts["network_module"], facts["network_args"]) == (module, arguments)
