"""Before a training starts: the memory of its peak and the size of its file, counted and not guessed.

The models are built on the meta device, which has shapes and no memory; the work is run through them, and all that is
alive at the same time is added up. What can't be counted so (libraries, a driver's context) is measured or stated.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_sizes
from trainer.config import TrainConfig
from trainer.hardware.activation_checkpointing import recompute
from trainer.lora_file.module_names import kohya_name
from trainer.lora_file.tensor_names import ending
from trainer.sdxl.latents import encoding_tile_of, set_tile, tile_of, vae_scale_factor
from trainer.sdxl.quantised import quantisable
from trainer.sdxl.weights import build

META = torch.device("meta")


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside it that live at the same time, and their peak; those of `models` do not count."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.calls = 0  # of operations that compute, not of views
        # Views of weights share their storage.
        kept = [
            tensor.untyped_storage() for model in models for tensor in (*model.parameters(), *model.buffers())
        ]
        self._seen: dict[int, Any] = {storage._cdata: storage for storage in kept}
        self._known: dict[Any, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += _kind_of(function) != "views"
        result = self._made(function, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _made(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives. The meta device works out shapes in Python, half a millisecond each: that is done once
        for operations that make new tensors only, or write into one that they are given."""
        given, form = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
        if function in _SHARING or not tensors or not all(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        kind, target = _kind_of(function), kwargs.get("out", args[0] if args else None)
        key = (function, form, *map(_shape_of, given))
        if kind == "views" or key not in self._known:
            result = function(*args, **kwargs)
            leaves, form = tree_flatten(result)
            makes = kind == "makes" and all(isinstance(leaf, torch.Tensor | None) for leaf in leaves)
            if makes or (kind == "writes" and result is target):
                self._known[key] = [leaf if leaf is None else _shape_of(leaf) for leaf in leaves], form
            return result
        if kind == "writes":
            return target
        leaves, form = self._known[key]
        made = [
            leaf if leaf is None else torch.empty_strided(leaf[0], leaf[1], dtype=leaf[2], device=META)
            for leaf in leaves
        ]
        return tree_unflatten(made, form)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size


# Declared as making new tensors, or as writing, and do otherwise.
_SHARING = {
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.resize_.default,
    torch.ops.aten.set_.source_Storage,
}


def _shape_of(given: Any) -> tuple[Any, ...]:
    return (
        (given.shape, given.stride(), given.dtype)
        if isinstance(given, torch.Tensor)
        else (type(given), given)
    )


@functools.cache
def _kind_of(operation: Any) -> str:
    """`makes` new tensors, `writes` into one that it gives back, or gives `views`."""
    given, back = operation._schema.arguments, operation._schema.returns
    if all(end.alias_info is None for end in (*given, *back)):
        return "makes"
    written = [end for end in (*given, *back) if end.alias_info is not None]
    return (
        "writes"
        if len(back) == 1 and len(written) == 2 and all(end.alias_info.is_write for end in written)
        else "views"
    )


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as fused kernels keep it: inputs, output and one number a query, never the T x T matrix.

    The meta device has no fused kernel and would count the matrices. Replaced by name, since a function mode of torch
    is not in force where a backward pass computes again.
    """
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        return _Fused.apply(query, key, value)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any, **_: Any) -> Any:
        query, key, value = inputs
        output = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides a step's memory, beside the settings of the adapter."""

    configs: Path  # the base's configuration
    dtype: torch.dtype
    width: int  # px
    height: int
    windows: int = 1  # of a caption
    reads_text: bool = False  # both text encoders stay beside the UNet, whether they learn or not
    drawn: tuple[int, int] = (0, 0)  # px, of the largest picture that is drawn; (0, 0) takes width and height
    drawn_rows: int = 5  # pictures of that size in one pass, when memory suffices

    @property
    def drawing(self) -> Shape:
        """Of the picture that is drawn, in place of the one that trains."""
        return replace(self, width=self.drawn[0] or self.width, height=self.drawn[1] or self.height)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a training holds at its peak, by what holds them."""

    base: int  # the frozen UNet, and text encoders that stay beside it
    cached: int  # what the frozen parts said of pictures and captions, where the device itself remembers it
    adapter: int  # masters, gradients, optimizer
    step: int  # activations, their gradients, and what they pass through
    before: int  # the peak of caching, before the UNet is there, with all that is cached
    drawing: int  # pictures beside the UNet, the VAE too

    @property
    def peak(self) -> int:
        return max(self.base + self.cached + self.adapter + max(self.step, self.drawing), self.before)


def meta_unet(configs: Path, dtype: torch.dtype, quantised: str = "none") -> Any:
    return build("unet", configs, dtype, quantised).requires_grad_(False).eval()


def attached(config: TrainConfig, models: dict[str, Any]) -> Adapter:
    adapter = Adapter()
    for part, sizes in layer_sizes(config, models).items():
        adapter.attach(part, models[part], sizes)
    return adapter


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weights_of(model: nn.Module) -> int:
    return size_of((*model.parameters(), *model.buffers()))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward and backward pass of a batch."""

    passing: int  # bytes at its peak, beside weights, masters and what stays
    staying: int  # bytes of the gradients, and of the masters in the base's precision
    calls: int  # of operations


def step_of(config: TrainConfig, shape: Shape, level: str) -> Step:
    unet, encoders = meta_unet(shape.configs, shape.dtype), _trained_encoders(config, shape)
    adapter = attached(config, {"unet": unet, **encoders})
    recompute(unet, level)
    with fused_attention(), Alive(unet, *encoders.values()) as alive:
        adapter.zero_grad()
        text = [_read(encoder, config.batch * shape.windows, shape.dtype) for encoder in encoders.values()]
        loss = _predicted(unet, shape, config.batch, text).float().square().mean()
        loss.backward()
        del loss, text
    return Step(passing=alive.peak - alive.now, staying=alive.now, calls=alive.calls)


def _trained_encoders(config: TrainConfig, shape: Shape) -> dict[str, Any]:
    trains = {"text_encoder": config.train_text_encoder_1, "text_encoder_2": config.train_text_encoder_2}
    return _encoders(shape, tuple(part for part, wanted in trains.items() if wanted))


def _encoders(shape: Shape, parts: tuple[str, ...] = ("text_encoder", "text_encoder_2")) -> dict[str, Any]:
    """In fp32, as they read."""
    return {part: build(part, shape.configs, torch.float32).requires_grad_(False).eval() for part in parts}


def _read(encoder: Any, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """States of the layer that is read, (rows, T, D of this encoder)."""
    tokens = torch.zeros(rows, 77, dtype=torch.long, device=META)
    return encoder(tokens, output_hidden_states=True).hidden_states[-2].to(dtype)


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
def layer_bytes(shape: Shape) -> int:
    """The largest weight that a quantised base makes at once."""
    unet = meta_unet(shape.configs, shape.dtype)
    return max((size_of([unet.get_submodule(path).weight]) for path in quantisable(unet)), default=0)


def _predicted(unet: Any, shape: Shape, rows: int, text: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The UNet's answer; `text` are states of encoders that train, the rest of the conditioning comes from the cache."""
    facts = unet.config
    pooled = facts.projection_class_embeddings_input_dim - 6 * facts.addition_time_embed_dim
    factor = vae_scale_factor(json.loads((shape.configs / "vae" / "config.json").read_text()))

    def empty(*sides: int) -> torch.Tensor:
        return torch.empty(*sides, device=META, dtype=shape.dtype)

    learnt = [states.reshape(rows, 77 * shape.windows, -1) for states in text or ()]
    frozen = facts.cross_attention_dim - sum(states.shape[-1] for states in learnt)
    return unet(
        empty(rows, facts.in_channels, shape.height // factor, shape.width // factor),
        torch.empty(rows, device=META, dtype=torch.long),
        torch.cat([*learnt, empty(rows, 77 * shape.windows, frozen)], dim=-1),
        added_cond_kwargs={"text_embeds": empty(rows, pooled), "time_ids": empty(rows, 6)},
    ).sample


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
@torch.no_grad()
def denoising_bytes(shape: Shape, rows: int) -> int:
    """What the guided UNet passes through for `rows` pictures at once."""
    unet = meta_unet(shape.configs, shape.dtype)
    with fused_attention(), Alive(unet) as alive:
        _predicted(unet, shape.drawing, 2 * rows)
    return alive.peak


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
@torch.no_grad()
def decoding_bytes(shape: Shape, *, in_tiles: bool) -> int:
    """What the VAE passes through for one picture in fp32."""
    vae, drawn = build("vae", shape.configs, torch.float32).eval(), shape.drawing
    factor = vae_scale_factor(vae.config)
    set_tile(vae, tile_of(vae) if in_tiles else 0)
    with fused_attention(), Alive(vae) as alive:
        vae.decode(
            torch.empty(
                1, vae.config.latent_channels, drawn.height // factor, drawn.width // factor, device=META
            )
        )
    return alive.peak


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
@torch.no_grad()
def encoding_bytes(shape: Shape, *, in_tiles: bool) -> int:
    """What the VAE passes through for one picture that is cached, in fp32."""
    vae = build("vae", shape.configs, torch.float32).eval()
    set_tile(vae, encoding_tile_of(vae) if in_tiles else 0)
    with fused_attention(), Alive(vae) as alive:
        vae.encode(torch.empty(1, 3, shape.height, shape.width, device=META))
    return alive.peak


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
@torch.no_grad()
def reading_bytes(shape: Shape) -> int:
    """Both text encoders, in fp32, and what one passes through for a caption that is cached."""
    encoders = _encoders(shape).values()
    with fused_attention(), Alive(*encoders) as alive:
        for encoder in encoders:
            _read(encoder, shape.windows, torch.float32)
    return sum(weights_of(encoder) for encoder in encoders) + alive.peak


# Numbers that each optimizer keeps for every number it trains (fp32: 4 bytes).
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
    """Masters and the optimizer's state (one that is named by its class is taken to keep two numbers)."""
    values = sum(parameter.numel() for parameter in adapter.parameters())
    average = 4 if config.ema_decay else 0
    return int(values * (4 + _STATES.get(optimizer, 8) + average))


def held(config: TrainConfig, shape: Shape, quantised: str = "none") -> tuple[int, Adapter]:
    """(bytes of the frozen models that stay, the adapter on them without memory)."""
    encoders = _encoders(shape) if shape.reads_text else {}
    models: dict[str, Any] = {"unet": meta_unet(shape.configs, shape.dtype, quantised), **encoders}
    frozen = sum(weights_of(model) for model in models.values())
    return frozen, attached(config, models)


def latent_bytes(shape: Shape) -> int:
    """What the VAE says of one picture: mean and log-variance, in fp32."""
    facts = json.loads((shape.configs / "vae" / "config.json").read_text())
    factor = vae_scale_factor(facts)
    return 2 * 4 * facts["latent_channels"] * (shape.width // factor) * (shape.height // factor)


def caption_bytes(shape: Shape) -> int:
    """What the text encoders say of one caption: states and pooled vector, in fp32."""
    first, second = (
        json.loads((shape.configs / part / "config.json").read_text())
        for part in ("text_encoder", "text_encoder_2")
    )
    return 4 * (
        77 * shape.windows * (first["hidden_size"] + second["hidden_size"]) + second["projection_dim"]
    )


@functools.lru_cache(maxsize=32)  # the same for every adapter: a warm planner counts it once
def step_flops(shape: Shape, rows: int) -> int:
    """Floating point operations of one forward and backward pass of a batch of `rows`.

    The backward pass of a frozen base computes the gradient of its inputs alone, as costly as the forward pass; what is
    computed again is not counted.
    """
    unet = meta_unet(shape.configs, shape.dtype)
    with torch.no_grad(), Alive(unet), FlopCounterMode(display=False) as counted:
        _predicted(unet, shape, rows)
    return 2 * counted.get_total_flops()


def file_bytes(adapter: Adapter) -> int:
    """Size of the LoRA file in kohya's form, but for its metadata and thumbnail."""
    header, at = {}, 0
    for part, path, layer in adapter.walk():
        shapes = {
            ending(role): (tuple(t.shape), "F32" if role == "dora_scale" else "F16")
            for role, t in layer.tensors().items()
        }
        for tail, (shape, dtype) in {**shapes, ending("alpha"): ((), "F16")}.items():
            size = math.prod(shape) * (4 if dtype == "F32" else 2)
            header[kohya_name(part, path) + tail] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [at, at + size],
            }
            at += size
    return 8 + len(json.dumps(header, separators=(",", ":"))) + at
