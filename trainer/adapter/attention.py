"""The UNet's attention as an adapted model computes it: q, k and v in groups, and no step that changes nothing.

Against diffusers' own (`AttnProcessor2_0`): layers that read the same input are one group; the division by an output
factor of 1 and the look at the processor's signature at each call are left out. Without a LoRA the numbers are the same.

Shapes: N pictures, T tokens, S tokens of the source, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn

from trainer.adapter.grouped import Group

_FEW = 256 * 256  # tokens times tokens of the source (benchmarks/NOTES.md)


def take_over(model: nn.Module) -> None:
    """Lets the attention modules of a model run in groups; `give_back` undoes it."""
    for module in model.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.forward = partial(_attend, module, _Projections(module))


def give_back(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.__dict__.pop("forward", None)


def _is_plain(attention: Any) -> bool:
    extra = (attention.spatial_norm, attention.group_norm, attention.norm_cross, attention.norm_q, attention.norm_k)
    return not any(extra) and not attention.residual_connection and attention.rescale_output_factor == 1.0


class _Projections:
    """x, source -> q, k, v; the layers that read the same tensor together."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.groups: dict[tuple[str, ...], tuple[Any, Group | None]] = {}  # with the places that they were made for

    def of(self, names: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
        layers = [getattr(self.attention, name) for name in names]
        adapted = [layer for layer in layers if getattr(layer, "network", None) == "lora"]
        if len(adapted) > 1 and adapted[0].runs_in_groups:
            known = self.groups.get(names)
            if known is None or known[0] is not adapted[0].places:
                known = self.groups[names] = (adapted[0].places, Group(tuple(adapted)) if Group.fits(adapted) else None)
            if known[1] is not None:
                answers = iter(known[1](x))
                return [next(answers) if layer in adapted else layer(x) for layer in layers]
        return [layer(x) for layer in layers]


def _attend(
    attention: Any, projections: _Projections, hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **more: Any,
) -> torch.Tensor:  # fmt: skip
    """(N, T, C), as diffusers calls it."""
    if attention_mask is not None or hidden_states.dim() != 3:
        return type(attention).forward(attention, hidden_states, encoder_hidden_states, attention_mask, **more)
    if encoder_hidden_states is None:
        query, key, value = projections.of(("to_q", "to_k", "to_v"), hidden_states)
    else:
        (query,) = projections.of(("to_q",), hidden_states)
        key, value = projections.of(("to_k", "to_v"), encoder_hidden_states)
    rows, heads = len(query), attention.heads
    query_NHTD, key_NHSD, value_NHSD = (
        tensor.view(rows, -1, heads, tensor.shape[-1] // heads).transpose(1, 2) for tensor in (query, key, value)
    )
    mixed = _mixed(query_NHTD, key_NHSD, value_NHSD)
    mixed = attention.to_out[0](mixed.transpose(1, 2).reshape(rows, query.shape[1], -1))
    return attention.to_out[1](mixed) if attention.to_out[1].p else mixed


def _mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Values weighted by attention. torch's kernel for bf16 on a CPU takes twice as long as that for fp32 where tokens are few."""
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] * key.shape[2] <= _FEW:
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value)
