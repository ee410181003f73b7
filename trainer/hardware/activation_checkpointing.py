"""Which activations are kept for the backward pass, and which are computed again: less memory for more time.

none           all are kept
feed-forward   the wide ones inside feed-forward layers are computed again
deep           feed-forward layers, and every block of the widest level (1280 channels in SDXL) whole
all            every block
"""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers.models.attention import FeedForward
from torch import nn
from torch.utils.checkpoint import checkpoint

# No layer of SDXL draws random numbers, and an adapter's dropout draws from its own seed: nothing needs putting back.
_AGAIN = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def enable_activation_checkpointing(unet: Any, level: str) -> None:
    """Sets a UNet to one of `config.RECOMPUTE`; call it once, after the adapter is attached."""
    if level == "none":
        return
    if level in ("deep", "all"):
        unet.enable_gradient_checkpointing(_AGAIN)
        unet.train()  # SDXL has no dropout; diffusers recomputes only in this mode
    if level == "deep":
        deep = [unet.down_blocks[-1], unet.mid_block, unet.up_blocks[0]]
        inside = {id(module) for block in deep for module in block.modules()}
        for module in unet.modules():
            if hasattr(module, "gradient_checkpointing") and id(module) not in inside:
                module.gradient_checkpointing = False
    if level in ("feed-forward", "deep"):
        for layer in _feed_forward_layers(unet):
            layer.forward = partial(_AGAIN, layer.forward)


def _feed_forward_layers(unet: nn.Module) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, FeedForward)]
