"""Prior preservation without class images: some rows have the base's own prediction as target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.adapter.lora import Adapter
from trainer.sdxl.protocols import UNet
from trainer.sdxl.unet import predict
from trainer.training.text_conditioning import TextConditioner


@dataclass(frozen=True)
class NoisyBatch:
    """Inputs of one UNet call, with the prompts in place of their encoding; on the UNet's device."""

    noisy_latents_NCHW: torch.Tensor
    timesteps_N: torch.Tensor
    time_ids_N6: torch.Tensor
    prompts: list[str]


@torch.no_grad()
def replace_targets_with_base(
    target_NCHW: torch.Tensor,
    is_base_prior: list[bool],
    batch: NoisyBatch,
    unet: UNet,
    adapter: Adapter,
    conditioner: TextConditioner,
) -> torch.Tensor:
    """Replaces the target of the selected rows by the frozen base's own prediction (adapter strength 0).

    The prior term of Ruiz et al. 2023 (DreamBooth, section 3.3), with the base's prediction instead of images
    that it generated. The prompts are encoded again, since the adapter may also change the text encoders.
    """
    rows = [row for row, is_selected in enumerate(is_base_prior) if is_selected]
    if not rows:
        return target_NCHW
    latents = batch.noisy_latents_NCHW[rows]
    with adapter.at(0.0):
        conditioning = conditioner.encode([batch.prompts[row] for row in rows])
        conditioning = conditioning.to(latents.device, latents.dtype)
        prediction = predict(unet, latents, batch.timesteps_N[rows], conditioning, batch.time_ids_N6[rows])
    target = target_NCHW.clone()
    target[rows] = prediction.to(target.dtype)
    return target
