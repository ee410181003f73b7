"""Pictures to the VAE's posterior, latents to pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


def pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def posterior(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance (1, C, H/8, W/8) on the CPU: kept apart, so that each epoch draws its own latents."""
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return distribution.mean.float().cpu(), distribution.logvar.float().cpu()


@torch.inference_mode()
def pictures(vae: Any, latents_NCHW: torch.Tensor) -> list[Image.Image]:
    """Pictures of scaled latents, decoded one at a time so that memory does not grow with the strip."""
    drawn = []
    for row in latents_NCHW.to(vae.device, vae.dtype) / vae.config["scaling_factor"]:
        decoded = vae.decode(row[None]).sample[0]
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        drawn.append(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))
    return drawn
