"""Before a training starts: the memory of its peak and the size of its file, counted and not guessed.

The models are built on the meta device, which has shapes and no memory; the work is run through them, and all that is
alive at the same time is added up. What can't be counted so (libraries, a driver's context) is measured or stated.
"""

from __future__ import annotations

import contextlib
import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_sizes
from trainer.config import TrainConfig
from trainer.lora_file.forms import ending
from trainer.lora_file.names import kohya_name
from trainer.recompute import recompute
from trainer.sdxl.weights import build

META = torch.device("meta")


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside it that live at the same time, and their peak; those of `models` do not count."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # Views of weights share their storage.
        kept = [tensor.untyped_storage() for model in models for tensor in (*model.parameters(), *model.buffers())]
        self._seen: dict[int, Any] = {storage._cdata: storage for storage in kept}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

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
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
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


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a training holds at its peak, by what holds them."""

    base: int  # the frozen UNet
    adapter: int  # masters, gradients, optimizer
    step: int  # activations, their gradients, and what they pass through
    before: int  # the peak of caching, before the UNet is there
    drawing: int  # a strip of pictures beside the UNet

    @property
    def peak(self) -> int:
        return max(self.base + self.adapter + max(self.step, self.drawing), self.before)


def meta_unet(configs: Path, dtype: torch.dtype) -> Any:
    return build("unet", configs, dtype).requires_grad_(False).eval()


def attached(config: TrainConfig, models: dict[str, Any]) -> Adapter:
    adapter = Adapter()
    for part, sizes in layer_sizes(config, models).items():
        adapter.attach(part, models[part], sizes)
    return adapter


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_bytes(config: TrainConfig, shape: Shape, level: str) -> int:
    """Peak of one forward and backward pass of a batch, without weights, masters and their gradients."""
    unet = meta_unet(shape.configs, shape.dtype)
    adapter = attached(config, {"unet": unet})
    recompute(unet, level)
    with fused_attention(), Alive(unet) as alive:
        loss = _predicted(unet, shape, config.batch).float().square().mean()
        loss.backward()
    # The gradients of the masters are still there; they are counted with the adapter.
    return alive.peak - size_of(adapter.parameters())


def _predicted(unet: Any, shape: Shape, rows: int) -> torch.Tensor:
    facts = unet.config
    pooled = facts.projection_class_embeddings_input_dim - 6 * facts.addition_time_embed_dim
    factor = 2 ** (len(json.loads((shape.configs / "vae" / "config.json").read_text())["block_out_channels"]) - 1)

    def empty(*sides: int) -> torch.Tensor:
        return torch.empty(*sides, device=META, dtype=shape.dtype)

    return unet(
        empty(rows, facts.in_channels, shape.height // factor, shape.width // factor),
        torch.empty(rows, device=META, dtype=torch.long),
        empty(rows, 77 * shape.windows, facts.cross_attention_dim),
        added_cond_kwargs={"text_embeds": empty(rows, pooled), "time_ids": empty(rows, 6)},
    ).sample


def drawing_bytes(shape: Shape, rows: int) -> int:
    """Peak of drawing `rows` pictures at once: the guided UNet, or one picture's decoding beside the VAE, whichever is more."""
    unet, vae = meta_unet(shape.configs, shape.dtype), build("vae", shape.configs, torch.float32).eval()
    with torch.no_grad(), fused_attention():
        with Alive(unet) as denoising:
            _predicted(unet, shape, 2 * rows)
        with Alive(vae) as decoding:
            factor = 2 ** (len(vae.config.block_out_channels) - 1)
            vae.decode(torch.empty(1, vae.config.latent_channels, shape.height // factor, shape.width // factor, device=META))
    return size_of(vae.parameters()) + max(denoising.peak, decoding.peak)


def caching_bytes(shape: Shape) -> int:
    """Peak of caching: one picture's encoding beside the VAE, or a caption's beside both text encoders, all in fp32."""
    vae = build("vae", shape.configs, torch.float32).eval()
    encoders = [build(part, shape.configs, torch.float32) for part in ("text_encoder", "text_encoder_2")]
    with torch.no_grad(), fused_attention(), Alive(vae) as encoding:
        vae.encode(torch.empty(1, 3, shape.height, shape.width, device=META))
    text = sum(size_of(encoder.parameters()) for encoder in encoders)
    return max(size_of(vae.parameters()) + encoding.peak, text)


# Numbers that each optimizer keeps for every number it trains (fp32: 4 bytes).
_STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 0.2, "lion": 4, "schedulefree": 8, "came": 8.2}


def adapter_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """Masters, gradients and the optimizer's state (one that is named by its class is taken to keep two numbers)."""
    values = sum(parameter.numel() for parameter in adapter.parameters())
    average = 4 if config.ema_decay else 0
    return int(values * (4 + 4 + _STATES.get(config.optimizer, 8) + average))


def held(config: TrainConfig, shape: Shape) -> tuple[int, Adapter]:
    """(bytes of the frozen models that train, the adapter on them without memory)."""
    models: dict[str, Any] = {"unet": meta_unet(shape.configs, shape.dtype)}
    for part, trains in (("text_encoder", config.train_text_encoder_1), ("text_encoder_2", config.train_text_encoder_2)):
        if trains:
            models[part] = build(part, shape.configs, torch.float32)
    frozen = sum(size_of(model.parameters()) for model in models.values())
    return frozen, attached(config, models)


def step_flops(config: TrainConfig, shape: Shape) -> int:
    """Floating point operations of one forward and backward pass of a batch.

    The backward pass of a frozen base computes the gradient of its inputs alone, as costly as the forward pass; what is
    computed again is not counted.
    """
    unet = meta_unet(shape.configs, shape.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        _predicted(unet, shape, config.batch)
    return 2 * counted.get_total_flops()


def file_bytes(adapter: Adapter) -> int:
    """Size of the LoRA file in kohya's form, but for its metadata and thumbnail."""
    header, at = {}, 0
    for part, path, layer in adapter.walk():
        shapes = {ending(role): (tuple(t.shape), "F32" if role == "dora_scale" else "F16") for role, t in layer.tensors().items()}
        for tail, (shape, dtype) in {**shapes, ending("alpha"): ((), "F16")}.items():
            size = math.prod(shape) * (4 if dtype == "F32" else 2)
            header[kohya_name(part, path) + tail] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    return 8 + len(json.dumps(header, separators=(",", ":"))) + at
