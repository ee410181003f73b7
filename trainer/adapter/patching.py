"""Which modules of an adapted UNet run in this project's own forms: transformer blocks where they learn, attention elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from trainer.adapter.fused_attention import Projections, attend, is_standard
from trainer.adapter.fused_block import FusedBlock
from trainer.sdxl.protocols import Module


def patch_forwards(model: Module) -> None:
    """To be called after layers are replaced; `restore_forwards` undoes it."""
    for module in model.modules():
        if isinstance(module, Attention) and is_standard(module):
            module.forward = partial(attend, module, Projections(module))
        if isinstance(module, BasicTransformerBlock) and FusedBlock.is_standard(module):
            module.forward = _BlockForward(module)


def restore_forwards(model: Module) -> None:
    for module in model.modules():
        if isinstance(module, Attention | BasicTransformerBlock):
            module.__dict__.pop("forward", None)


class _BlockForward:
    """A block's forward, called as diffusers calls it: in our form where it can be, in its own otherwise."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.block: FusedBlock | None = (
            None  # made when first needed: masters move into vectors after layers are replaced
        )

    def __call__(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: Any = None,
        *more: Any,
        **others: Any,
    ) -> torch.Tensor:
        masked = attention_mask is not None or encoder_attention_mask is not None
        if encoder_hidden_states is None or masked or not torch.is_grad_enabled() or not self._can_run():
            given = (hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, *more)
            return type(self.module).forward(self.module, *given, **others)
        assert self.block is not None
        return self.block(hidden_states, encoder_hidden_states)

    def _can_run(self) -> bool:
        if "forward" in vars(
            self.module.ff
        ):  # what it keeps is computed again (`trainer.hardware.activation_checkpointing`)
            return False
        if self.block is None or self.block.is_outdated:
            self.block = FusedBlock(self.module)
        return self.block.can_run
