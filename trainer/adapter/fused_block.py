"""A transformer block of the UNet as three autograd nodes and two attentions, backward passes written out.

    node                forward
    _SelfAttentionIn    u = norm_1(x);                           q, k, v = u W_q^T, u W_k^T, u W_v^T
    (attention)         s = softmax(q k^T / sqrt(D)) v
    _CrossAttentionIn   a = x + s W_o1^T;  u = norm_2(a);  q = u W_q2^T;  k, v = text W_k2^T, text W_v2^T
    (attention)         c = softmax(q k^T / sqrt(D)) v
    _FeedForward        b = a + c W_o2^T;  u = norm_3(b);        value, gate = halves of u W_up^T
                        y = b + (value * gelu(gate)) W_down^T

Each W stands for a frozen layer with its bias and, where it is adapted, its LoRA: the products and their
gradients are those of a `LinearGroup` or `FrozenGroup` (`trainer.adapter.fused_linear`).

Why: diffusers' block is about sixty autograd nodes without LoRA and far more with it. Each node launches
    kernels, saves
tensors and returns gradients in tensors of its own, which autograd then adds. Written out, the block has five
nodes, saves of its feed-forward layer only the product with W_up (T, 8C) and recomputes gelu and gating, and
adds gradients of the residual stream in place (measured in benchmarks/NOTES.md). Without this file training
works in the same way, slower and with more memory: `trainer.adapter.patching` calls diffusers' block whenever
this one does not cover a call.

The blocks are split at the two attentions, so that PyTorch chooses the attention kernel and computes its
gradient.

Notation of the backward passes: dy is the gradient of y, and norm' is the backward pass of LayerNorm. A
*stream* is the gradient of the residual stream: of y, b, a and at last x. The residual connection hands it
through unchanged, and each branch adds its own part:

    _FeedForward        d(gated) = dy W_down                                     (T, 4C)
                        dvalue = d(gated) * gelu(gate)                           (T, 4C)
                        dgate  = d(gated) * value * gelu'(gate)                  (T, 4C)
                        du = [dvalue dgate] W_up                                 (T, C)
                        db = dy + norm_3'(du)                                    (T, C)
                        dc = db W_o2;  da = db
    _CrossAttentionIn   dtext = dk W_k2 + dv W_v2                                (rows of the text, its width)
                        da' = da + norm_2'(dq W_q2)                              (T, C)
                        ds = da' W_o1;  dx = da'
    _SelfAttentionIn    dx' = norm_1'(dq W_q + dk W_k + dv W_v)                  (T, C)

Autograd adds dx and dx', because x is an input of both the first and the second node. Gradients of A and B
are added to their slots inside these products.

Shapes: N images, T rows: the tokens of all images together, C channels, H heads, D channels of a head.
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
    """The layers of a transformer block, grouped by their input.

    Args:
        module: a `BasicTransformerBlock` of diffusers for which `is_standard` holds.
    """

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
        # A layer gets a new dictionary of slots when its master weights move to another vector.
        self._made_for = self.adapted[0].slots if self.adapted else None
        groups: Any = [_group_of(group) for group in layers]
        self.fits = all(groups)
        self.own, self.own_out, self.query, self.text, self.text_out, self.up, self.down = groups

    @staticmethod
    def is_standard(module: Any) -> bool:
        """Returns whether a block has the structure of SDXL's.

        Two attentions, GEGLU, layer norms, no dropout.
        """
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
        """Returns whether the present call can be computed here.

        No dropout, one strength for all rows, no compiler.
        """
        is_grouped = all(layer.can_run_grouped for layer in self.adapted[:1])
        return self.fits and is_grouped and not torch.compiler.is_compiling()

    @property
    def is_outdated(self) -> bool:
        """Returns whether master weights have moved to other vectors since this object was made."""
        return bool(self.adapted) and self.adapted[0].slots is not self._made_for

    def __call__(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Returns the block's output (N, tokens, C).

        Args:
            x: (N, tokens, C).
            text: (N, tokens of the text, its width).
        """
        strength = float(self.adapted[0].strength.value) if self.adapted else 0.0
        # Each node has a trained vector as an input, so that autograd runs its backward pass even where x and
        # text require no gradient (see `LinearGroup.trained_vector`).
        begin = _trained_vector(self.own)
        middle = _trained_vector(self.own_out, self.query, self.text)
        end = _trained_vector(self.text_out, self.up, self.down)
        first: Any = _SelfAttentionIn.apply(x, begin, self, strength)
        attended = F.scaled_dot_product_attention(*first)
        second: Any = _CrossAttentionIn.apply(attended, x, text, middle, self, strength)
        x, query, key, value = second
        attended = F.scaled_dot_product_attention(query, key, value)
        output: Any = _FeedForward.apply(attended, x, end, self, strength)
        return output


def _is_lora(layer: Any) -> bool:
    return getattr(layer, "network", None) == "lora"


def _group_of(layers: tuple[Any, ...]) -> LinearGroup | FrozenGroup | None:
    """Returns the group of layers with the same input; None if only some are adapted, or not by LoRA."""
    if all(type(layer) in PLAIN for layer in layers):
        return FrozenGroup(layers)
    return LinearGroup(layers) if all(map(_is_lora, layers)) and LinearGroup.fits(layers) else None


def _trained_vector(*groups: LinearGroup | FrozenGroup) -> torch.Tensor | None:
    return next((group.trained_vector for group in groups if isinstance(group, LinearGroup)), None)


class _SelfAttentionIn(torch.autograd.Function):
    """x -> q, k, v of the self-attention, each (N, H, tokens, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _: torch.Tensor | None, block: FusedBlock, strength: float
    ) -> tuple[torch.Tensor, ...]:
        x_TC = x.flatten(0, 1)
        normed_TC, *statistics = _norm(block.norms[0], x_TC)
        projections = block.own.outputs(normed_TC, strength, attention_dtype(x, x))
        # A frozen group does not read its input in the backward pass, and norm' reads x itself: nothing else
        # is saved.
        ctx.save_for_backward(x_TC, *statistics, normed_TC if block.own.reads_input else None)
        ctx.block, ctx.strength, ctx.shape = block, strength, x.shape
        return tuple(_by_head(tensor, len(x), block.heads[0]) for tensor in projections)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore
        x_TC, mean, rstd, normed_TC = ctx.saved_tensors
        # The first block's x comes from frozen layers that are not adapted, so its gradient is never used.
        dtype = x_TC.dtype if ctx.needs_input_grad[0] else None
        rows = [_rows(gradient) for gradient in grad_outputs]
        stream = ctx.block.own.backward(normed_TC, rows, ctx.strength, dtype=dtype)
        if stream is not None:
            stream = _norm_backward(ctx.block.norms[0], stream, x_TC, mean, rstd).view(ctx.shape)
        return stream, None, None, None


class _CrossAttentionIn(torch.autograd.Function):
    """Result of the self-attention, x, text -> a (N, tokens, C) and q, k, v of the cross-attention."""

    @staticmethod
    def forward(
        ctx: Any,
        attended: torch.Tensor,
        x: torch.Tensor,
        text: torch.Tensor,
        _: torch.Tensor | None,
        block: FusedBlock,
        strength: float,
    ) -> tuple[torch.Tensor, ...]:
        attended_TC, text_TC, dtype = _rows(attended), text.flatten(0, 1), attention_dtype(x, text)
        (a_TC,) = block.own_out.outputs(attended_TC, strength)
        a_TC.add_(x.reshape(a_TC.shape))  # the residual connection, in the memory of the product
        normed_TC, *statistics = _norm(block.norms[1], a_TC)
        query = block.query.outputs(normed_TC, strength, dtype)
        key_value = block.text.outputs(text_TC, strength, dtype)
        saved_attended = attended_TC if block.own_out.reads_input else None
        saved_normed = normed_TC if block.query.reads_input else None
        ctx.save_for_backward(a_TC, *statistics, saved_attended, saved_normed, text_TC)
        ctx.block, ctx.strength, ctx.attention_dtype = block, strength, attended.dtype
        ctx.shape, ctx.text_shape = x.shape, text.shape
        return a_TC.view(x.shape), *(
            _by_head(tensor, len(x), block.heads[1]) for tensor in (*query, *key_value)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore
        stream, *gradients = grad_outputs
        a_TC, mean, rstd, attended_TC, normed_TC, text_TC = ctx.saved_tensors
        block, strength, (to_attended, to_x, to_text, *_) = ctx.block, ctx.strength, ctx.needs_input_grad
        query, key, value = (_rows(gradient) for gradient in gradients)
        text_dtype = text_TC.dtype if to_text else None  # the text requires a gradient if an encoder trains
        text = block.text.backward(text_TC, [key, value], strength, dtype=text_dtype)
        normed_gradient = block.query.backward(normed_TC, [query], strength, dtype=a_TC.dtype)
        # da' = da + norm_2'(...), added in the memory that norm' returned. `stream` itself belongs to
        # autograd and may be shared with another node, so it is never changed in place.
        stream_TC = _norm_backward(block.norms[1], normed_gradient, a_TC, mean, rstd)
        stream_TC.add_(stream.reshape(a_TC.shape))
        attended_dtype = ctx.attention_dtype if to_attended else None
        attended = block.own_out.backward(attended_TC, [stream_TC], strength, dtype=attended_dtype)
        return (
            None if attended is None else _by_head(attended, ctx.shape[0], block.heads[0]),
            stream_TC.view(ctx.shape) if to_x else None,
            None if text is None else text.view(ctx.text_shape),
            None,
            None,
            None,
        )


class _FeedForward(torch.autograd.Function):
    """Result of the cross-attention, a -> y (N, tokens, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        attended: torch.Tensor,
        a: torch.Tensor,
        _: torch.Tensor | None,
        block: FusedBlock,
        strength: float,
    ) -> torch.Tensor:
        attended_TC = _rows(attended)
        (b_TC,) = block.text_out.outputs(attended_TC, strength)
        b_TC.add_(a.reshape(b_TC.shape))
        normed_TC, *statistics = _norm(block.norms[2], b_TC)
        (wide,) = block.up.outputs(normed_TC, strength)  # (T, 8C): value and gate side by side
        value, gate = wide.chunk(2, dim=1)
        (y_TC,) = block.down.outputs(F.gelu(gate).mul_(value), strength)
        saved_attended = attended_TC if block.text_out.reads_input else None
        saved_normed = normed_TC if block.up.reads_input else None
        # gelu(gate) and its product with value, (T, 4C) each, are recomputed in the backward pass.
        ctx.save_for_backward(b_TC, *statistics, saved_attended, saved_normed, wide)
        ctx.block, ctx.strength, ctx.shape, ctx.attention_dtype = block, strength, a.shape, attended.dtype
        return y_TC.add_(b_TC).view(a.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:  # pyright: ignore
        (stream,) = grad_outputs
        b_TC, mean, rstd, attended_TC, normed_TC, wide = ctx.saved_tensors
        block, strength, (to_attended, to_a, *_) = ctx.block, ctx.strength, ctx.needs_input_grad
        stream = stream.reshape(b_TC.shape)
        wide_gradient = _gated_backward(block, wide, stream, strength)
        normed_gradient = block.up.backward(normed_TC, [wide_gradient], strength, dtype=b_TC.dtype)
        stream_TC = _norm_backward(block.norms[2], normed_gradient, b_TC, mean, rstd).add_(stream)
        attended_dtype = ctx.attention_dtype if to_attended else None
        attended = block.text_out.backward(attended_TC, [stream_TC], strength, dtype=attended_dtype)
        attended = None if attended is None else _by_head(attended, ctx.shape[0], block.heads[1])
        return attended, stream_TC.view(ctx.shape) if to_a else None, None, None, None


def _gated_backward(
    block: FusedBlock, wide: torch.Tensor, stream: torch.Tensor, strength: float
) -> torch.Tensor:
    """Returns the gradient of value and gate, (T, 8C), for the branch (value * gelu(gate)) W_down^T.

    Both halves are written into one tensor, since W_up reads them side by side. `gated` is a temporary of
    this function, so its memory serves for d(gated) * value; `gelu_backward` multiplies this by gelu'(gate).
    """
    value, gate = wide.chunk(2, dim=1)
    activated = F.gelu(gate)
    hidden = activated * value if block.down.reads_input else None
    gated = block.down.backward(hidden, [stream], strength, dtype=wide.dtype)
    assert gated is not None
    result = torch.empty_like(wide)
    value_gradient, gate_gradient = result.chunk(2, dim=1)
    torch.mul(gated, activated, out=value_gradient)
    torch.ops.aten.gelu_backward.grad_input(gated.mul_(value), gate, grad_input=gate_gradient)
    return result


def _norm(layer: nn.LayerNorm, x_TC: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns (normed, mean, 1 / standard deviation); `F.layer_norm` does not return the statistics."""
    return torch.native_layer_norm(x_TC, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _norm_backward(
    layer: nn.LayerNorm, gradient: torch.Tensor, x_TC: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient of x, (T, C); those of the frozen weight and bias are not computed."""
    statistics = (layer.normalized_shape, mean, rstd, layer.weight, layer.bias)
    outputs = [True, False, False]  # x, weight, bias
    return torch.ops.aten.native_layer_norm_backward.default(gradient, x_TC, *statistics, outputs)[0]


def _by_head(x_TC: torch.Tensor, images: int, heads: int) -> torch.Tensor:
    """Returns rows as (N, H, tokens, D), a view."""
    return x_TC.view(images, -1, heads, x_TC.shape[-1] // heads).transpose(1, 2)


def _rows(x_NHTD: torch.Tensor) -> torch.Tensor:
    """Returns the result of an attention as rows (T, C), a view where its memory is ordered by token."""
    images, heads, tokens, channels = x_NHTD.shape
    return x_NHTD.transpose(1, 2).reshape(images * tokens, heads * channels)
