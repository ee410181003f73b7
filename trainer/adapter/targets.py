"""The layers that are adapted, their ranks and learning rates."""

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
    """Returns the paths of the linear layers to adapt.

    Args:
        part: `unet`, `text_encoder` or `text_encoder_2`.
        feed_forward: adds the UNet's feed-forward layers and the projections around its transformers.
    """
    patterns = (
        [_UNET_ATTENTION, *([_UNET_MORE] if feed_forward else [])] if part == "unet" else [_TEXT_ATTENTION]
    )
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [path for path in linears if any(pattern.fullmatch(path) for pattern in patterns)]


def conv_paths(part: str, model: Module) -> list[str]:
    """Returns the paths of the convolutions that LoCon adapts, in the UNet's residual blocks and samplers."""
    if part != "unet":
        return []
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and _UNET_CONVOLUTIONS.fullmatch(path)
    ]


def part_specs(config: TrainConfig) -> dict[str, LayerSpec]:
    """Returns rank and alpha of each part that trains, from the settings."""
    specs = {"unet": LayerSpec(rank=config.rank, alpha=config.alpha)}
    if config.train_text_encoder_1:
        specs["text_encoder"] = LayerSpec(rank=config.text_encoder_1_rank, alpha=config.text_encoder_1_alpha)
    if config.train_text_encoder_2:
        specs["text_encoder_2"] = LayerSpec(
            rank=config.text_encoder_2_rank, alpha=config.text_encoder_2_alpha
        )
    return specs


def layer_specs(config: TrainConfig, models: Mapping[str, Module]) -> dict[str, dict[str, LayerSpec]]:
    """Returns the spec of each adapted layer (part -> path -> spec) of the parts that train in `models`.

    Raises:
        ConfigError: if a pattern matches no layer or all layers are excluded (checked only if `models` has
            all parts that train), or if only some projections of a text encoder's attention are adapted.
    """
    parts, unmatched = part_specs(config), [*config.include_layers, *config.exclude_layers]
    specs: dict[str, dict[str, LayerSpec]] = {}
    for part in [part for part in parts if part in models]:
        paths, matched = _chosen_paths(config, part, models[part])
        unmatched = [pattern for pattern in unmatched if pattern not in matched]
        made = {
            path: _layer_spec(config, part, path, models[part].get_submodule(path), parts[part])
            for path in paths
        }
        specs[part] = {path: spec for path, spec in made.items() if spec}
    if set(specs) == set(parts):
        _check_choice(config, specs, unmatched)
    _check_attention_is_whole(specs)
    return specs


def _check_choice(config: TrainConfig, specs: dict[str, dict[str, LayerSpec]], unmatched: list[str]) -> None:
    if unmatched:
        kinds = "linear layer" if config.network == "lora" else "linear layer or convolution"
        raise ConfigError(
            [
                f"{pattern!r} matches no {kinds} of the parts that train; write it like *.attn2.*"
                for pattern in unmatched
            ]
        )
    if not any(specs.values()):
        raise ConfigError(
            ["include_layers, exclude_layers and block_ranks leave no layer to adapt; widen them"]
        )


def _chosen_paths(config: TrainConfig, part: str, model: Module) -> tuple[list[str], set[str]]:
    """Returns (paths to adapt, patterns that matched a layer of this part)."""
    kinds = nn.Linear if config.network == "lora" else (nn.Linear, nn.Conv2d)
    # text_projection is excluded, since not all tools read a LoRA of it.
    eligible = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    eligible = [path for path in eligible if path != "text_projection"]
    paths = linear_paths(part, model, feed_forward=config.train_feed_forward)
    if config.network == "locon":
        paths += conv_paths(part, model)
    matched: set[str] = set()

    def matching(patterns: tuple[str, ...]) -> set[str]:
        hits_of = {p: {path for path in eligible if _matches(p, part, path)} for p in patterns}
        matched.update(pattern for pattern, hits in hits_of.items() if hits)
        return set().union(*hits_of.values())

    included, excluded = matching(config.include_layers), matching(config.exclude_layers)
    chosen = included if config.include_layers else set(paths)
    return [path for path in eligible if path in chosen - excluded], matched


def _matches(pattern: str, part: str, path: str) -> bool:
    """True if a pattern matches a layer's path, with or without the part, and with or without `text_model.`.

    transformers 5 has `text_model.` in the paths of text encoder 2 and not in those of text encoder 1.
    """
    spellings = [path]
    if part != "unet":
        plain = path.removeprefix("text_model.")
        spellings = [plain, f"text_model.{plain}"]
    names = [name for spelled in spellings for name in (spelled, f"{part}.{spelled}")]
    return any(fnmatchcase(name, pattern) for name in names)


def _layer_spec(
    config: TrainConfig, part: str, path: str, module: nn.Module, spec: LayerSpec
) -> LayerSpec | None:
    """Returns the spec of one layer, or None if its block is excluded by rank or rate 0."""
    if isinstance(module, nn.Conv2d):
        spec = LayerSpec(rank=config.conv_rank, alpha=config.conv_alpha)
    if part == "unet" and config.block_ranks:
        rank = int(block_values(config.block_ranks)[block_of(path)])
        if rank == 0:
            return None
        if not isinstance(module, nn.Conv2d):
            alpha = spec.alpha if config.rank_stabilised else spec.alpha * rank / spec.rank
            spec = LayerSpec(rank=rank, alpha=alpha)
    if part == "unet" and config.block_rates and block_values(config.block_rates)[block_of(path)] == 0:
        return None
    # rsLoRA scales by alpha / sqrt(rank) (Kalajdzievski 2023); files store an alpha for alpha / rank.
    if config.rank_stabilised:
        spec = replace(spec, alpha=spec.alpha * math.sqrt(spec.rank))
    network = "lora" if config.network == "locon" else config.network
    return replace(spec, network=network, factor=config.lokr_factor)


def _check_attention_is_whole(specs: dict[str, dict[str, LayerSpec]]) -> None:
    """Raises ConfigError unless q, k, v and out of a text encoder are adapted together."""
    for part in set(specs) - {"unet"}:
        projections: dict[str, set[str]] = {}
        for path in specs[part]:
            if match := _TEXT_ATTENTION.fullmatch(path):
                projections.setdefault(match[1], set()).add(match[2])
        broken = [path for path, kinds in projections.items() if kinds != {"q", "k", "v", "out"}]
        if broken:
            advice = "adapt q, k, v and out_proj together, since other tools can't read some of them"
            raise ConfigError([f"{part}.{broken[0]}: {advice}"])


def block_of(path: str) -> int:
    """Returns kohya's number of the UNet block that contains a layer, 0 to 22.

    0 time and label embedding, 1-9 input (down), 10-12 middle, 13-21 output (up), 22 the last convolution.
    """
    name, number, *_ = [*sgm_path(path).split("."), "0"]
    first = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13, "out": 22}.get(name)
    return 0 if first is None else 22 if name == "out" else first + int(number)


def part_rates(config: TrainConfig) -> dict[str, float]:
    """Returns the learning rate of each part."""
    return {
        "unet": config.learning_rate,
        "text_encoder": config.text_encoder_1_learning_rate,
        "text_encoder_2": config.text_encoder_2_learning_rate,
    }


# Optimizers whose update of a number does not depend on the matrix that contains it.
_ELEMENTWISE = ("adamw", "lion", "prodigy", "schedulefree")


def parameter_groups(config: TrainConfig, adapter: Adapter) -> list[dict[str, Any]]:
    """Returns the optimizer's groups of `params` and `lr`, one for each part, block rate and side (LoRA+).

    LoRA+ trains the matrix that is initialised to zero at a higher rate than the others (Hayou et al. 2024,
    section 4). The master weights of a group become one vector, which is the group's only parameter if the
    optimizer's updates are elementwise; optimizers that factor or orthogonalise matrices get the matrices.
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
    """Returns the parameters of an optimizer's groups that belong to text encoders."""
    weights = [
        parameter
        for part in ("text_encoder", "text_encoder_2")
        if part in adapter.layers
        for parameter in adapter.parameters(part)
    ]
    vectors = [
        flat.value for flat in adapter.flat_vectors if flat.members[0][0].name.startswith("text_encoder")
    ]
    own = {id(parameter) for parameter in (*weights, *vectors)}
    return [parameter for group in groups for parameter in group["params"] if id(parameter) in own]


def dropout_settings(config: TrainConfig) -> Dropout:
    """Returns the adapter's dropout from the settings."""
    return Dropout(network=config.network_dropout, rank=config.rank_dropout, module=config.module_dropout)
