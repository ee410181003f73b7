"""Memory of a training at its peak and the size of its LoRA file, counted on shapes before it starts.

The models are built on the meta device and a step is run through them (`trainer.planning.tracer`). Memory of
libraries and of a driver's context can't be counted in this way; `trainer.planning.budget` measures or states
it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs
from trainer.config import TrainConfig
from trainer.hardware.activation_checkpointing import enable_activation_checkpointing
from trainer.lora_file.module_names import kohya_name
from trainer.lora_file.tensor_names import suffix_of
from trainer.planning.tracer import META, MetaMemoryTracer, counting_fused_attention
from trainer.sdxl.latents import decoding_tile, encoding_tile, set_tile, vae_scale_factor
from trainer.sdxl.protocols import HasWeights, Module, TextEncoder, UNet
from trainer.sdxl.quantised import quantisable_paths
from trainer.sdxl.weights import build


@dataclass(frozen=True, kw_only=True)
class WorkloadShape:
    """The base model and the sizes that decide a training's memory, beside the settings of the adapter."""

    configs: Path  # folder of the base's configuration
    dtype: torch.dtype  # of the frozen base
    width: int  # px, of the largest training image
    height: int
    windows: int = 1  # of a caption, each 77 tokens
    reads_text: bool = False  # both text encoders stay in memory beside the UNet, trained or not
    drawn: tuple[int, int] = (0, 0)  # px, of the largest sample; (0, 0) for the size of the training images
    drawn_rows: int = 5  # samples of that size in one pass, when memory allows it

    @property
    def drawing(self) -> WorkloadShape:
        """The same workload with the size of the largest sample in place of the training images'."""
        return replace(self, width=self.drawn[0] or self.width, height=self.drawn[1] or self.height)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a training holds at its peak, by purpose."""

    base: int  # the frozen UNet, and text encoders that stay beside it
    cached: int  # latents and text embeddings that are kept in the device's memory
    adapter: int  # master weights, gradients, optimizer
    step: int  # activations and their gradients
    before: int  # the peak of caching, which happens before the UNet is loaded, with all that is cached
    drawing: int  # sampling beside the UNet, with the VAE

    @property
    def peak(self) -> int:
        """The larger of the peaks of training and of caching."""
        return max(self.base + self.cached + self.adapter + max(self.step, self.drawing), self.before)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Memory and operations of one forward and backward pass of a batch."""

    passing: int  # bytes at its peak, beside weights, master weights and what stays
    staying: int  # bytes of the gradients, and of the master weights in the base's precision
    calls: int  # operations


def meta_unet(configs: Path, dtype: torch.dtype, quantised: str = "none") -> UNet:
    """Returns the frozen UNet of a configuration on the meta device."""
    return build("unet", configs, dtype, quantised).requires_grad_(False).eval()


def attach_to_meta(config: TrainConfig, models: Mapping[str, Module]) -> Adapter:
    """Attaches the adapter of a configuration to models (part -> model) and returns it."""
    adapter = Adapter()
    for part, specs in layer_specs(config, models).items():
        adapter.attach(part, models[part], specs)
    return adapter


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Returns the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weight_bytes(model: HasWeights) -> int:
    """Returns the bytes of a model's weights and buffers."""
    return tensor_bytes((*model.parameters(), *model.buffers()))


def trace_step(config: TrainConfig, shape: WorkloadShape, level: str) -> Step:
    """Traces one training step.

    Args:
        level: of activation checkpointing, one of `config.RECOMPUTE`.
    """
    unet, encoders = meta_unet(shape.configs, shape.dtype), _trained_encoders(config, shape)
    adapter = attach_to_meta(config, {"unet": unet, **encoders})
    enable_activation_checkpointing(unet, level)
    with counting_fused_attention(), MetaMemoryTracer(unet, *encoders.values()) as tracer:
        adapter.zero_grad()
        rows = config.batch * shape.windows
        text = [_encode_text(encoder, rows, shape.dtype) for encoder in encoders.values()]
        loss = predict_on_meta(unet, shape, config.batch, text).float().square().mean()
        loss.backward()
        del loss, text
    return Step(passing=tracer.peak - tracer.now, staying=tracer.now, calls=tracer.calls)


def _trained_encoders(config: TrainConfig, shape: WorkloadShape) -> dict[str, TextEncoder]:
    trains = {"text_encoder": config.train_text_encoder_1, "text_encoder_2": config.train_text_encoder_2}
    return _encoders(shape, tuple(part for part, is_trained in trains.items() if is_trained))


def _encoders(
    shape: WorkloadShape, parts: tuple[str, ...] = ("text_encoder", "text_encoder_2")
) -> dict[str, TextEncoder]:
    """Text encoders on the meta device in fp32, the precision that they run in."""
    return {part: build(part, shape.configs, torch.float32).requires_grad_(False).eval() for part in parts}


def _encode_text(encoder: TextEncoder, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns the states of the penultimate layer, (rows, 77, width of this encoder)."""
    tokens = torch.zeros(rows, 77, dtype=torch.long, device=META)
    return encoder(tokens, output_hidden_states=True).hidden_states[-2].to(dtype)


def predict_on_meta(
    unet: UNet, shape: WorkloadShape, rows: int, text: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """Returns the UNet's prediction (rows, C, H, W) for empty inputs of a workload's shape.

    Args:
        text: states of the text encoders that train; the rest of the conditioning comes from the cache.
    """
    config = unet.config
    pooled_width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    factor = vae_scale_factor(_part_config(shape, "vae"))

    def empty(*sides: int) -> torch.Tensor:
        return torch.empty(*sides, device=META, dtype=shape.dtype)

    trained = [states.reshape(rows, 77 * shape.windows, -1) for states in text or ()]
    frozen_width = config["cross_attention_dim"] - sum(states.shape[-1] for states in trained)
    return unet(
        empty(rows, config["in_channels"], shape.height // factor, shape.width // factor),
        torch.empty(rows, device=META, dtype=torch.long),
        torch.cat([*trained, empty(rows, 77 * shape.windows, frozen_width)], dim=-1),
        added_cond_kwargs={"text_embeds": empty(rows, pooled_width), "time_ids": empty(rows, 6)},
    ).sample


def _part_config(shape: WorkloadShape, part: str) -> dict[str, Any]:
    return json.loads((shape.configs / part / "config.json").read_text())


# The numbers below don't depend on the adapter's settings, so the estimate worker, which stays alive while a
# user changes settings, traces each of them once.
_once_per_shape = functools.lru_cache(maxsize=32)


@_once_per_shape
def layer_bytes(shape: WorkloadShape) -> int:
    """Returns the bytes of the largest weight that a quantised base dequantises at once."""
    unet = meta_unet(shape.configs, shape.dtype)
    weights = (unet.get_submodule(path).weight for path in quantisable_paths(unet))
    return max((tensor_bytes([weight]) for weight in weights if isinstance(weight, torch.Tensor)), default=0)


@_once_per_shape
@torch.no_grad()
def denoising_bytes(shape: WorkloadShape, rows: int) -> int:
    """Returns the peak of the guided UNet's activations for `rows` samples at once."""
    unet = meta_unet(shape.configs, shape.dtype)
    with counting_fused_attention(), MetaMemoryTracer(unet) as tracer:
        predict_on_meta(unet, shape.drawing, 2 * rows)
    return tracer.peak


@_once_per_shape
@torch.no_grad()
def decoding_bytes(shape: WorkloadShape, *, in_tiles: bool) -> int:
    """Returns the peak of the VAE's activations for one decoded sample, in fp32."""
    vae, drawn = build("vae", shape.configs, torch.float32).eval(), shape.drawing
    factor, channels = vae_scale_factor(vae.config), vae.config["latent_channels"]
    set_tile(vae, decoding_tile(vae) if in_tiles else 0)
    with counting_fused_attention(), MetaMemoryTracer(vae) as tracer:
        vae.decode(torch.empty(1, channels, drawn.height // factor, drawn.width // factor, device=META))
    return tracer.peak


@_once_per_shape
@torch.no_grad()
def encoding_bytes(shape: WorkloadShape, *, in_tiles: bool) -> int:
    """Returns the peak of the VAE's activations for one image that is cached, in fp32."""
    vae = build("vae", shape.configs, torch.float32).eval()
    set_tile(vae, encoding_tile(vae) if in_tiles else 0)
    with counting_fused_attention(), MetaMemoryTracer(vae) as tracer:
        vae.encode(torch.empty(1, 3, shape.height, shape.width, device=META))
    return tracer.peak


@_once_per_shape
@torch.no_grad()
def text_encoding_bytes(shape: WorkloadShape) -> int:
    """Returns the bytes of both text encoders and of one's activations for a caption, in fp32."""
    encoders = _encoders(shape).values()
    with counting_fused_attention(), MetaMemoryTracer(*encoders) as tracer:
        for encoder in encoders:
            _encode_text(encoder, shape.windows, torch.float32)
    return sum(weight_bytes(encoder) for encoder in encoders) + tracer.peak


# Bytes of state that each optimizer keeps for every trained number.
_STATES = {
    "adamw": 8,
    "adamw8bit": 2,
    "prodigy": 16,
    "adafactor": 0.2,
    "lion": 4,
    "schedulefree": 8,
    "came": 8.2,
}


def adapter_bytes(config: TrainConfig, adapter: Adapter, optimizer: str) -> int:
    """Returns the bytes of fp32 master weights, the optimizer's state and the EMA.

    An optimizer that is given by its class counts as one that keeps two fp32 numbers for each weight.
    """
    values = sum(parameter.numel() for parameter in adapter.parameters())
    average = 4 if config.ema_decay else 0
    return int(values * (4 + _STATES.get(optimizer, 8) + average))


def build_frozen(config: TrainConfig, shape: WorkloadShape, quantised: str = "none") -> tuple[int, Adapter]:
    """Returns (bytes of the frozen models that stay in memory, the adapter on the meta device)."""
    encoders = _encoders(shape) if shape.reads_text else {}
    models: dict[str, Module] = {"unet": meta_unet(shape.configs, shape.dtype, quantised), **encoders}
    frozen = sum(weight_bytes(model) for model in models.values())
    return frozen, attach_to_meta(config, models)


def latent_bytes(shape: WorkloadShape) -> int:
    """Returns the bytes of one image in the cache: mean and log-variance of the VAE's posterior, in fp32."""
    config = _part_config(shape, "vae")
    factor = vae_scale_factor(config)
    return 2 * 4 * config["latent_channels"] * (shape.width // factor) * (shape.height // factor)


def caption_bytes(shape: WorkloadShape) -> int:
    """Returns the bytes of one caption in the cache: states and pooled vector, in fp32."""
    first, second = (_part_config(shape, part) for part in ("text_encoder", "text_encoder_2"))
    states = 77 * shape.windows * (first["hidden_size"] + second["hidden_size"])
    return 4 * (states + second["projection_dim"])


@_once_per_shape
def step_flops(shape: WorkloadShape, rows: int) -> int:
    """Returns the floating point operations of one forward and backward pass of a batch of `rows`.

    The backward pass of a frozen base computes only the gradient of its inputs, which costs as much as the
    forward pass. Recomputed activations are not counted.
    """
    unet = meta_unet(shape.configs, shape.dtype)
    with torch.no_grad(), MetaMemoryTracer(unet), FlopCounterMode(display=False) as counter:
        predict_on_meta(unet, shape, rows)
    return 2 * counter.get_total_flops()


def file_bytes(adapter: Adapter) -> int:
    """Returns the size of the LoRA file in kohya's format, without metadata and thumbnail."""
    header, position = {}, 0
    for part, path, layer in adapter.walk():
        tensors: dict[str, tuple[tuple[int, ...], str]] = {}
        for role, tensor in layer.tensors().items():
            tensors[suffix_of(role)] = tuple(tensor.shape), "F32" if role == "dora_scale" else "F16"
        tensors[suffix_of("alpha")] = (), "F16"
        for tail, (shape, dtype) in tensors.items():
            end = position + math.prod(shape) * (4 if dtype == "F32" else 2)
            key = kohya_name(part, path) + tail
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
            position = end
    return 8 + len(json.dumps(header, separators=(",", ":"))) + position
