"""Replacement of `forward` in the modules of an adapted UNet.

    module                   forward                        used for
    Attention                `fused_attention.attend`       calls without a mask
    BasicTransformerBlock    `FusedBlock`                   training steps, if all layers of the block fit

`module.forward` is set as an attribute of the instance, which hides the method of its class:
`nn.Module.__call__` looks `forward` up on the instance, so hooks continue to work, and deleting the attribute
restores the module. Subclasses or `set_attn_processor` would not reach as far: a processor can neither
replace the block nor group the projections.

Three features set this attribute, and their order matters:

1. `patch_forwards`, when the adapter is attached;
2. `trainer.hardware.activation_checkpointing`, which wraps the `forward` of feed-forward layers. A fused
block never
   calls that `forward`, because it computes the feed-forward layer itself and keeps its wide activations. It
   therefore looks for the attribute in `vars(module.ff)`, where only an instance attribute is visible, and
   leaves the block to diffusers if it is there. Without this check, the level `feed-forward` would save no
   memory.
3. `trainer.hardware.compile`, which must call `restore_forwards` first. torch.compile compiles a block's code
once and
   reuses it for all blocks of the same class; an instance attribute is a different function for each, so that
   each of SDXL's 70 blocks would be compiled by itself.
"""

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
    """Replaces the forward methods of attention modules and transformer blocks.

    Call it after layers were replaced.
    """
    for module in model.modules():
        if isinstance(module, Attention) and is_standard(module):
            module.forward = partial(attend, module, Projections(module))
        if isinstance(module, BasicTransformerBlock) and FusedBlock.is_standard(module):
            module.forward = _BlockForward(module)


def restore_forwards(model: Module) -> None:
    """Gives attention modules and transformer blocks the forward methods of their classes again."""
    for module in model.modules():
        if isinstance(module, Attention | BasicTransformerBlock):
            module.__dict__.pop("forward", None)


class _BlockForward:
    """The forward of a transformer block, with the signature of diffusers.

    Calls the fused block where it can compute the call, and the method of diffusers otherwise: for masks,
    without gradients (samples and validation, where nothing is saved for a backward pass), with checkpointed
    feed-forward layers, with adapters other than LoRA, and under a compiler.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        # Made at the first use, since master weights move into vectors only after this object exists.
        self.block: FusedBlock | None = None

    def __call__(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: Any = None,
        *more: Any,
        **others: Any,
    ) -> torch.Tensor:
        """Returns the block's output (N, tokens, C)."""
        has_mask = attention_mask is not None or encoder_attention_mask is not None
        if (
            encoder_hidden_states is None
            or has_mask
            or not torch.is_grad_enabled()
            or not self._can_run_fused()
        ):
            positional = (hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask)
            return type(self.module).forward(self.module, *positional, *more, **others)
        assert self.block is not None
        return self.block(hidden_states, encoder_hidden_states)

    def _can_run_fused(self) -> bool:
        is_checkpointed = "forward" in vars(self.module.ff)  # see item 2 at the top of the file
        if is_checkpointed:
            return False
        if self.block is None or self.block.is_outdated:
            self.block = FusedBlock(self.module)
        return self.block.can_run
