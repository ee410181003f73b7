"""The call of SDXL's UNet, and evaluation mode for the time of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from trainer.sdxl.protocols import Module, UNet
from trainer.sdxl.text import Conditioning


def predict(
    unet: UNet,
    latents_NCHW: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Conditioning,
    time_ids_N6: torch.Tensor,
) -> torch.Tensor:
    """Returns the UNet's prediction (N, C, H, W) for noisy latents: the noise or v, in the UNet's dtype.

    All tensors must be on the UNet's device; latents, conditioning and time ids in its dtype.

    Args:
        latents_NCHW: noisy latents, scaled.
        timesteps: one for each row (N,), or one number for all rows.
        time_ids_N6: original size, crop and target size of each row (Podell et al. 2023, section 2.2).
    """
    added = {"text_embeds": conditioning.pooled_NP, "time_ids": time_ids_N6}
    return unet(latents_NCHW, timesteps, conditioning.text_NTD, added_cond_kwargs=added).sample


@contextlib.contextmanager
def eval_mode(module: Module) -> Iterator[None]:
    """Puts a module in evaluation mode for a block, and afterwards back in the mode that it had."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
