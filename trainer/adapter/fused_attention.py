"""Attention of an adapted UNet: q, k and v as groups of linear layers, without steps that change nothing.

Compared with diffusers' `AttnProcessor2_0`: layers that read the same input are one group; the division by an
output factor of 1 and the inspection of the processor's signature at each call are omitted. Without a LoRA
the numbers are the same.

Shapes: N images, T tokens, S tokens of the source, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from trainer.adapter.fused_linear import LinearGroup

_SMALL_ATTENTION = 256 * 256  # T x S; below it, fp32 is faster than bf16 on a CPU (benchmarks/NOTES.md)


def is_standard(attention: Any) -> bool:
    """Returns whether an attention module is of the kind that SDXL's transformer blocks have."""
    extra = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_cross,
        attention.norm_q,
        attention.norm_k,
    )
    return not any(extra) and not attention.residual_connection and attention.rescale_output_factor == 1.0


class Projections:
    """The projections q, k and v of an attention module; adapted layers with the same input are one group."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        # By names of the layers; beside each group the slots of its first layer, which are replaced when
        # master weights move to another vector and then show that the group is outdated. None where the
        # layers don't fit a group.
        self.groups: dict[tuple[str, ...], tuple[Any, LinearGroup | None]] = {}

    def of(self, names: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the outputs (N, T, C) of the named layers, which read the same x."""
        layers = [getattr(self.attention, name) for name in names]
        adapted = [layer for layer in layers if getattr(layer, "network", None) == "lora"]
        if len(adapted) > 1 and adapted[0].can_run_grouped:
            group = self._group(names, adapted)
            if group is not None:
                outputs = iter(group(x))
                return [next(outputs) if layer in adapted else layer(x) for layer in layers]
        return [layer(x) for layer in layers]

    def _group(self, names: tuple[str, ...], adapted: list[Any]) -> LinearGroup | None:
        slots = adapted[0].slots
        known = self.groups.get(names)
        if known is None or known[0] is not slots:
            group = LinearGroup(tuple(adapted)) if LinearGroup.fits(adapted) else None
            known = self.groups[names] = slots, group
        return known[1]


def attend(
    attention: Any,
    projections: Projections,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """Returns the output (N, T, C) of an attention module, as `Attention.forward` of diffusers."""
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
    """Returns the precision of q, k and v.

    On a CPU, bf16 attention over few tokens takes twice as long as fp32, which is used there.

    Args:
        x: (N, T, C), from which queries are made.
        source: (N, S, C), from which keys and values are made.
    """
    is_small = x.shape[1] * source.shape[1] <= _SMALL_ATTENTION
    is_bf16_on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return torch.float32 if is_bf16_on_cpu and is_small else x.dtype
