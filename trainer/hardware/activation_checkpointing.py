"""Activation checkpointing: which activations are kept for the backward pass, and which are recomputed.

none           all are kept
feed-forward   the wide activations inside feed-forward layers are recomputed
deep           feed-forward layers, and all of each block of the widest level (1280 channels in SDXL)
all            every block is recomputed
"""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers.models.attention import FeedForward
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.sdxl.protocols import UNet

# By default, torch saves and restores the state of random generators for each checkpointed call. No layer of
# SDXL draws random numbers, and the adapter's dropout has a generator of its own, seeded by batch and layer:
# nothing must be restored.
_checkpointed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def enable_activation_checkpointing(unet: UNet, level: str) -> None:
    """Sets the level of a UNet, one of `config.RECOMPUTE`; call it once, after the adapter is attached.

    Feed-forward layers get a wrapped `forward` as an attribute of the instance, as `trainer.adapter.patching`
    does for attention and blocks. The order matters in one direction only: a fused block looks for this
    attribute at every call and then leaves the block to diffusers, since it would otherwise compute the
    feed-forward layer without calling the wrapper.
    """
    if level == "none":
        return
    if level in ("deep", "all"):
        unet.enable_gradient_checkpointing(_checkpointed)
        # diffusers recomputes in training mode only; SDXL has no dropout that this mode would activate.
        unet.train()
    if level == "deep":
        deep = [unet.down_blocks[-1], unet.mid_block, unet.up_blocks[0]]
        inside = {id(module) for block in deep for module in block.modules()}
        modules: list[Any] = list(unet.modules())
        for module in modules:
            if hasattr(module, "gradient_checkpointing") and id(module) not in inside:
                module.gradient_checkpointing = False
    if level in ("feed-forward", "deep"):
        for layer in _feed_forward_layers(unet):
            layer.forward = partial(_checkpointed, layer.forward)


def _feed_forward_layers(unet: UNet) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, FeedForward)]
