"""A transformer block of the UNet as three nodes of autograd with attention between them, their backward passes written out.

    begin    q, k, v = of norm_1(x)
    middle   a = x + out_1(attended);  q = of norm_2(a);  k, v = of the text
    end      b = a + out_2(attended);  y = b + down(value * gelu(gate)),  value, gate = up(norm_3(b))

diffusers' own block is some sixty nodes without LoRA. Of its feed-forward layer only what `up` gave is kept here, and the rest computed
again; gradients of the stream x, a, b are added in place.

Shapes: N pictures, T rows: the tokens of all pictures together, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import nn

from trainer.adapter.fused_attention import attention_dtype
from trainer.adapter.fused_linear import PLAIN, FrozenGroup, LinearGroup


class FusedBlock:
    """The layers of a block, those that read the same input together."""

    def __init__(self, module: Any) -> None:
        own, text, (up, _, down) = module.attn1, module.attn2, module.ff.net
        self.norms: tuple[Any, Any, Any] = (module.norm1, module.norm2, module.norm3)
        self.heads = own.heads, text.heads
        layers = [
            (own.to_q, own.to_k, own.to_v),
            (own.to_out[0],),
            (text.to_q,),
            (text.to_k, text.to_v),
            (text.to_out[0],),
            (up.proj,),
            (down,),
        ]
        self.adapted = [layer for group in layers for layer in group if _is_lora(layer)]
        self._made_for = self.adapted[0].slots if self.adapted else None
        products: Any = [_together_in(group) for group in layers]
        self.fits = all(products)
        self.own, self.own_out, self.query, self.text, self.text_out, self.up, self.down = products

    @staticmethod
    def is_standard(module: Any) -> bool:
        """Whether a block is of the kind that SDXL is made of."""
        return (
            module.norm_type == "layer_norm"
            and module.attn2 is not None
            and not module.only_cross_attention
            and module.pos_embed is None
            and not hasattr(module, "fuser")
            and len(module.ff.net) == 3
            and isinstance(module.ff.net[0], GEGLU)
            and not any(drop.p for drop in module.modules() if isinstance(drop, nn.Dropout))
        )

    @property
    def can_run(self) -> bool:
        """Whether this call can be computed here."""
        runs = all(layer.can_run_grouped for layer in self.adapted[:1])
        return self.fits and runs and not torch.compiler.is_compiling()

    @property
    def is_outdated(self) -> bool:
        """Whether masters lie in other slots than when this was made."""
        return bool(self.adapted) and self.adapted[0].slots is not self._made_for

    def __call__(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, tokens, C)"""
        strength = float(self.adapted[0].strength.value) if self.adapted else 0.0
        learned = [
            _learned(self.own),
            _learned(self.own_out, self.query, self.text),
            _learned(self.text_out, self.up, self.down),
        ]
        query, key, value = _Begin.apply(x, learned[0], self, strength)  # pyright: ignore
        attended = F.scaled_dot_product_attention(query, key, value)
        x, query, key, value = _Middle.apply(attended, x, text, learned[1], self, strength)  # pyright: ignore
        attended = F.scaled_dot_product_attention(query, key, value)
        return _End.apply(attended, x, learned[2], self, strength)  # pyright: ignore


def _is_lora(layer: Any) -> bool:
    return getattr(layer, "network", None) == "lora"


def _together_in(layers: tuple[Any, ...]) -> LinearGroup | FrozenGroup | None:
    """None where only some of the layers learn, or in another way."""
    if all(type(layer) in PLAIN for layer in layers):
        return FrozenGroup(layers)
    return LinearGroup(layers) if all(map(_is_lora, layers)) and LinearGroup.fits(layers) else None


def _learned(*products: LinearGroup | FrozenGroup) -> torch.Tensor | None:
    return next((product.learned for product in products if isinstance(product, LinearGroup)), None)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _: Any, block: FusedBlock, strength: float
    ) -> tuple[torch.Tensor, ...]:  # pyright: ignore
        x_TC = x.flatten(0, 1)
        normed, *norm = _norm(block.norms[0], x_TC)
        made = block.own.outputs(normed, strength, attention_dtype(x, x))
        ctx.save_for_backward(x_TC, *norm, normed if block.own.reads_input else None)
        ctx.block, ctx.strength, ctx.shape = block, strength, x.shape
        return tuple(_by_head(tensor, len(x), block.heads[0]) for tensor in made)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:  # pyright: ignore
        x_TC, mean, rstd, normed = ctx.saved_tensors
        dtype = x_TC.dtype if ctx.needs_input_grad[0] else None
        stream = ctx.block.own.backward(
            normed, [_rows(gradient) for gradient in gradients], ctx.strength, dtype=dtype
        )
        if stream is not None:
            stream = _norm_backward(ctx.block.norms[0], stream, x_TC, mean, rstd).view(ctx.shape)
        return stream, None, None, None


class _Middle(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        attended: torch.Tensor,
        x: torch.Tensor,
        text: torch.Tensor,
        _: Any,
        block: FusedBlock,
        strength: float,
    ) -> Any:  # pyright: ignore
        attended_TC, text_TC, dtype = _rows(attended), text.flatten(0, 1), attention_dtype(x, text)
        (a_TC,) = block.own_out.outputs(attended_TC, strength)
        a_TC.add_(x.reshape(a_TC.shape))
        normed, *norm = _norm(block.norms[1], a_TC)
        made = [*block.query.outputs(normed, strength, dtype), *block.text.outputs(text_TC, strength, dtype)]
        kept = (
            attended_TC if block.own_out.reads_input else None,
            normed if block.query.reads_input else None,
        )
        ctx.save_for_backward(a_TC, *norm, *kept, text_TC)
        ctx.block, ctx.strength, ctx.shape, ctx.text_shape, ctx.attends_in = (
            block,
            strength,
            x.shape,
            text.shape,
            attended.dtype,
        )
        return a_TC.view(x.shape), *(_by_head(tensor, len(x), block.heads[1]) for tensor in made)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, stream: torch.Tensor, *gradients: torch.Tensor) -> Any:  # pyright: ignore
        a_TC, mean, rstd, attended_TC, normed, text_TC = ctx.saved_tensors
        block, strength, (to_attended, to_x, to_text, *_) = ctx.block, ctx.strength, ctx.needs_input_grad
        query, key, value = (_rows(gradient) for gradient in gradients)
        text = block.text.backward(text_TC, [key, value], strength, dtype=text_TC.dtype if to_text else None)
        normed_gradient = block.query.backward(normed, [query], strength, dtype=a_TC.dtype)
        stream_TC = _norm_backward(block.norms[1], normed_gradient, a_TC, mean, rstd).add_(
            stream.reshape(a_TC.shape)
        )
        attended = block.own_out.backward(
            attended_TC, [stream_TC], strength, dtype=ctx.attends_in if to_attended else None
        )
        return (
            None if attended is None else _by_head(attended, ctx.shape[0], block.heads[0]),
            stream_TC.view(ctx.shape) if to_x else None,
            None if text is None else text.view(ctx.text_shape),
            None,
            None,
            None,
        )


class _End(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attended: torch.Tensor, a: torch.Tensor, _: Any, block: FusedBlock, strength: float
    ) -> torch.Tensor:  # pyright: ignore
        attended_TC = _rows(attended)
        (b_TC,) = block.text_out.outputs(attended_TC, strength)
        b_TC.add_(a.reshape(b_TC.shape))
        normed, *norm = _norm(block.norms[2], b_TC)
        (wide,) = block.up.outputs(normed, strength)
        value, gate = wide.chunk(2, dim=1)
        (y_TC,) = block.down.outputs(F.gelu(gate).mul_(value), strength)
        kept = (attended_TC if block.text_out.reads_input else None, normed if block.up.reads_input else None)
        ctx.save_for_backward(b_TC, *norm, *kept, wide)
        ctx.block, ctx.strength, ctx.shape, ctx.attends_in = block, strength, a.shape, attended.dtype
        return y_TC.add_(b_TC).view(a.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, stream: torch.Tensor) -> Any:  # pyright: ignore
        b_TC, mean, rstd, attended_TC, normed, wide = ctx.saved_tensors
        block, strength, (to_attended, to_a, *_) = ctx.block, ctx.strength, ctx.needs_input_grad
        stream = stream.reshape(b_TC.shape)
        wide_gradient = _gated_backward(block, wide, stream, strength)
        normed_gradient = block.up.backward(normed, [wide_gradient], strength, dtype=b_TC.dtype)
        stream_TC = _norm_backward(block.norms[2], normed_gradient, b_TC, mean, rstd).add_(stream)
        attended = block.text_out.backward(
            attended_TC, [stream_TC], strength, dtype=ctx.attends_in if to_attended else None
        )
        attended = None if attended is None else _by_head(attended, ctx.shape[0], block.heads[1])
        return attended, stream_TC.view(ctx.shape) if to_a else None, None, None, None


def _gated_backward(
    block: FusedBlock, wide: torch.Tensor, stream: torch.Tensor, strength: float
) -> torch.Tensor:
    """The gradient of value and gate (T, 8C), of down(value * gelu(gate))."""
    value, gate = wide.chunk(2, dim=1)
    curved = F.gelu(gate)
    hidden = curved * value if block.down.reads_input else None
    gated = block.down.backward(hidden, [stream], strength, dtype=wide.dtype)
    assert gated is not None
    made = torch.empty_like(wide)
    value_gradient, gate_gradient = made.chunk(2, dim=1)
    torch.mul(gated, curved, out=value_gradient)
    torch.ops.aten.gelu_backward.grad_input(gated.mul_(value), gate, grad_input=gate_gradient)
    return made


def _norm(layer: nn.LayerNorm, x_TC: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(normed, mean, 1 / deviation)"""
    return torch.native_layer_norm(x_TC, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _norm_backward(
    layer: nn.LayerNorm, gradient: torch.Tensor, x_TC: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> torch.Tensor:
    facts = (layer.normalized_shape, mean, rstd, layer.weight, layer.bias)
    return torch.ops.aten.native_layer_norm_backward.default(gradient, x_TC, *facts, [True, False, False])[0]


def _by_head(x_TC: torch.Tensor, pictures: int, heads: int) -> torch.Tensor:
    """(N, H, tokens, D)"""
    return x_TC.view(pictures, -1, heads, x_TC.shape[-1] // heads).transpose(1, 2)


def _rows(x_NHTD: torch.Tensor) -> torch.Tensor:
    """(T, C); a view where attention gave it token by token."""
    pictures, heads, tokens, channels = x_NHTD.shape
    return x_NHTD.transpose(1, 2).reshape(pictures * tokens, heads * channels)
