"""The UNet's attention as an adapted model computes it: q, k and v in groups, and no step that changes nothing.

Against diffusers' own (`AttnProcessor2_0`): layers that read the same input are one group; the division by an output
factor of 1 and the look at the processor's signature at each call are left out. Without a LoRA the numbers are the same.

Shapes: N pictures, T tokens, S tokens of the source, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from trainer.adapter.fused_linear import LinearGroup

_FEW = 256 * 256  # tokens times tokens of the source (benchmarks/NOTES.md)


def is_standard(attention: Any) -> bool:
    """Whether an attention module is of the kind that SDXL's transformer blocks have."""
    extra = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_cross,
        attention.norm_q,
        attention.norm_k,
    )
    return not any(extra) and not attention.residual_connection and attention.rescale_output_factor == 1.0


class Projections:
    """x, source -> q, k, v; the layers that read the same tensor together."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.groups: dict[
            tuple[str, ...], tuple[Any, LinearGroup | None]
        ] = {}  # with the slots that they were made for

    def of(self, names: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
        layers = [getattr(self.attention, name) for name in names]
        adapted = [layer for layer in layers if getattr(layer, "network", None) == "lora"]
        if len(adapted) > 1 and adapted[0].can_run_grouped:
            known = self.groups.get(names)
            if known is None or known[0] is not adapted[0].slots:
                known = self.groups[names] = (
                    adapted[0].slots,
                    LinearGroup(tuple(adapted)) if LinearGroup.fits(adapted) else None,
                )
            if known[1] is not None:
                answers = iter(known[1](x))
                return [next(answers) if layer in adapted else layer(x) for layer in layers]
        return [layer(x) for layer in layers]


def attend(
    attention: Any,
    projections: Projections,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """(N, T, C), as diffusers calls it."""
    if attention_mask is not None or hidden_states.dim() != 3:
        return type(attention).forward(
            attention, hidden_states, encoder_hidden_states, attention_mask, **more
        )
    if encoder_hidden_states is None:
        query, key, value = projections.of(("to_q", "to_k", "to_v"), hidden_states)
    else:
        (query,) = projections.of(("to_q",), hidden_states)
        key, value = projections.of(("to_k", "to_v"), encoder_hidden_states)
    rows, heads = len(query), attention.heads
    dtype = attention_dtype(query, key)
    query_NHTD, key_NHSD, value_NHSD = (
        tensor.to(dtype).view(rows, -1, heads, tensor.shape[-1] // heads).transpose(1, 2)
        for tensor in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query_NHTD, key_NHSD, value_NHSD).transpose(1, 2)
    mixed = attention.to_out[0](mixed.reshape(rows, query.shape[1], -1).to(query.dtype))
    return attention.to_out[1](mixed) if attention.to_out[1].p else mixed


def attention_dtype(x: torch.Tensor, source: torch.Tensor) -> torch.dtype:
    """Of q, k and v, made of x (N, T, ...) and source (N, S, ...): bf16 on a CPU takes twice as long as fp32 where tokens are few."""
    is_small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[1] * source.shape[1] <= _FEW
    return torch.float32 if is_small else x.dtype
