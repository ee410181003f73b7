"""Which layers are adapted, at what rank and learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trainer.adapter.layer import Dropout, Layer
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.config import TrainConfig, block_values
from trainer.errors import ConfigError
from trainer.sdxl.protocols import Module
from trainer.sdxl.unet_names import sgm_path

_UNET_ATTENTION = re.compile(r".*\.attn[12]\.to_(q|k|v|out\.0)")
_UNET_MORE = re.compile(r".*\.ff\.net\.(0\.proj|2)|.*\.attentions\.\d+\.proj_(in|out)")
_UNET_CONVOLUTIONS = re.compile(r".*\.(resnets\.\d+\.conv\w+|(down|up)samplers\.0\.conv)")
_TEXT_ATTENTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")


def linear_paths(part: str, model: Module, *, feed_forward: bool = False) -> list[str]:
    """Module paths of the linear layers to adapt in `unet`, `text_encoder` or `text_encoder_2`."""
    patterns = (
        [_UNET_ATTENTION, *([_UNET_MORE] if feed_forward else [])] if part == "unet" else [_TEXT_ATTENTION]
    )
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [path for path in linears if any(pattern.fullmatch(path) for pattern in patterns)]


def conv_paths(part: str, model: Module) -> list[str]:
    """Module paths of the convolutions that LoCon adapts: in the UNet's residual blocks, down- and upsamplers."""
    if part != "unet":
        return []
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and _UNET_CONVOLUTIONS.fullmatch(path)
    ]


def part_specs(config: TrainConfig) -> dict[str, LayerSpec]:
    """Rank and alpha of each part that trains, as set."""
    sizes = {"unet": LayerSpec(rank=config.rank, alpha=config.alpha)}
    if config.train_text_encoder_1:
        sizes["text_encoder"] = LayerSpec(rank=config.text_encoder_1_rank, alpha=config.text_encoder_1_alpha)
    if config.train_text_encoder_2:
        sizes["text_encoder_2"] = LayerSpec(
            rank=config.text_encoder_2_rank, alpha=config.text_encoder_2_alpha
        )
    return sizes


def layer_specs(config: TrainConfig, models: Mapping[str, Module]) -> dict[str, dict[str, LayerSpec]]:
    """What each adapted layer is made of (part -> path -> size), in the parts that train and are in `models`.

    Raises ConfigError when a pattern matches nothing, no layer is left (both only known when all parts that train are
    there), or a text encoder's attention is only half chosen.
    """
    parts, unmatched = part_specs(config), [*config.include_layers, *config.exclude_layers]
    sizes: dict[str, dict[str, LayerSpec]] = {}
    for part in [part for part in parts if part in models]:
        paths, matched = _chosen_paths(config, part, models[part])
        unmatched = [pattern for pattern in unmatched if pattern not in matched]
        made = {
            path: _size(config, part, path, models[part].get_submodule(path), parts[part]) for path in paths
        }
        sizes[part] = {path: size for path, size in made.items() if size}
    if set(sizes) == set(parts):
        _check_choice(config, sizes, unmatched)
    _check_attention_is_whole(sizes)
    return sizes


def _check_choice(config: TrainConfig, sizes: dict[str, dict[str, LayerSpec]], unmatched: list[str]) -> None:
    if unmatched:
        kinds = "linear layer" if config.network == "lora" else "linear layer or convolution"
        raise ConfigError(
            [
                f"{pattern!r} matches no {kinds} of the parts that train; write it like *.attn2.*"
                for pattern in unmatched
            ]
        )
    if not any(sizes.values()):
        raise ConfigError(
            ["include_layers, exclude_layers and block_ranks leave no layer to adapt; widen them"]
        )


def _chosen_paths(config: TrainConfig, part: str, model: Module) -> tuple[list[str], set[str]]:
    """Paths to adapt, and the patterns that matched something here."""
    kinds = nn.Linear if config.network == "lora" else (nn.Linear, nn.Conv2d)
    # Not every tool reads a changed text_projection.
    eligible = [
        path
        for path, module in model.named_modules()
        if isinstance(module, kinds) and path != "text_projection"
    ]
    paths = linear_paths(part, model, feed_forward=config.train_feed_forward)
    if config.network == "locon":
        paths += conv_paths(part, model)
    matched: set[str] = set()

    def matching(patterns: tuple[str, ...]) -> set[str]:
        found = {
            p: {path for path in eligible if fnmatchcase(path, p) or fnmatchcase(f"{part}.{path}", p)}
            for p in patterns
        }
        matched.update(pattern for pattern, hits in found.items() if hits)
        return set().union(*found.values())

    included, excluded = matching(config.include_layers), matching(config.exclude_layers)
    chosen = included if config.include_layers else set(paths)
    return [path for path in eligible if path in chosen - excluded], matched


def _size(config: TrainConfig, part: str, path: str, module: nn.Module, size: LayerSpec) -> LayerSpec | None:
    """Of one layer; None where its block is left out."""
    if isinstance(module, nn.Conv2d):
        size = LayerSpec(rank=config.conv_rank, alpha=config.conv_alpha)
    if part == "unet" and config.block_ranks:
        rank = int(block_values(config.block_ranks)[block_of(path)])
        if rank == 0:
            return None
        if not isinstance(module, nn.Conv2d):
            size = LayerSpec(
                rank=rank, alpha=size.alpha * rank / size.rank if not config.rank_stabilised else size.alpha
            )
    if part == "unet" and config.block_rates and block_values(config.block_rates)[block_of(path)] == 0:
        return None
    if (
        config.rank_stabilised
    ):  # alpha / sqrt(rank), written so that alpha / rank gives it (Kalajdzievski 2023)
        size = replace(size, alpha=size.alpha * math.sqrt(size.rank))
    return replace(
        size, network="lora" if config.network == "locon" else config.network, factor=config.lokr_factor
    )


def _check_attention_is_whole(sizes: dict[str, dict[str, LayerSpec]]) -> None:
    """Other tools read a text encoder's q, k, v and out only together."""
    for part in set(sizes) - {"unet"}:
        found: dict[str, set[str]] = {}
        for path in sizes[part]:
            if match := _TEXT_ATTENTION.fullmatch(path):
                found.setdefault(match[1], set()).add(match[2])
        broken = [path for path, kinds in found.items() if kinds != {"q", "k", "v", "out"}]
        if broken:
            raise ConfigError(
                [f"{part}.{broken[0]}: adapt q, k, v and out_proj together, since other tools read no less"]
            )


def block_of(path: str) -> int:
    """Kohya's number of the UNet block that a layer is in, 0 to 22.

    0 time and label embedding, 1-9 input (down), 10-12 middle, 13-21 output (up), 22 the last convolution.
    """
    name, number, *_ = [*sgm_path(path).split("."), "0"]
    first = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13, "out": 22}.get(name)
    return 0 if first is None else 22 if name == "out" else first + int(number)


def part_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rate of each part."""
    return {
        "unet": config.learning_rate,
        "text_encoder": config.text_encoder_1_learning_rate,
        "text_encoder_2": config.text_encoder_2_learning_rate,
    }


# Optimizers that treat every number alike or all together, whatever matrix it is of.
_ELEMENTWISE = ("adamw", "lion", "prodigy", "schedulefree")


def parameter_groups(config: TrainConfig, adapter: Adapter) -> list[dict[str, Any]]:
    """Groups of `params` and `lr` for the optimizer: one for each part, block rate and, with LoRA+, side of the product.

    LoRA+: the matrix that starts at zero learns faster than the others (Hayou et al. 2024, section 4). The adapter's
    masters of a group become one vector, which is the group's only parameter where the optimizer does not look at matrices.
    """
    rates, blocks = part_rates(config), block_values(config.block_rates)
    groups: dict[tuple[str, float], list[tuple[Layer, str]]] = {}
    for part, path, layer in adapter.walk():
        rate = rates[part] * (blocks[block_of(path)] if blocks and part == "unet" else 1.0)
        for role in layer.tensors():
            faster = config.lora_plus_ratio if role == layer.zero_init_role else 1.0
            groups.setdefault((part, rate * faster), []).append((layer, role))
    adapter.flatten(list(groups.values()))
    vectors = config.optimizer in _ELEMENTWISE
    return [
        {
            "params": [flat.value] if vectors else [layer.tensors()[role] for layer, role in flat.members],
            "lr": rate,
        }
        for (_, rate), flat in zip(groups, adapter.flat_vectors, strict=True)
    ]


def text_parameters(adapter: Adapter, groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    """Those parameters of an optimizer's groups that belong to text encoders."""
    masters = [
        master
        for part in ("text_encoder", "text_encoder_2")
        if part in adapter.layers
        for master in adapter.parameters(part)
    ]
    vectors = [
        flat.value for flat in adapter.flat_vectors if flat.members[0][0].name.startswith("text_encoder")
    ]
    own = {id(parameter) for parameter in (*masters, *vectors)}
    return [parameter for group in groups for parameter in group["params"] if id(parameter) in own]


def dropout_settings(config: TrainConfig) -> Dropout:
    return Dropout(network=config.network_dropout, rank=config.rank_dropout, module=config.module_dropout)
