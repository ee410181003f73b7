"""Pictures to the VAE's posterior, latents to pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from trainer.headers.base_model import vae_scale_factor
from trainer.sdxl.protocols import Vae


def pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def posterior(vae: Vae, pixels: torch.Tensor, tile: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance (1, C, H/8, W/8) on the CPU: kept apart, so that each epoch draws its own latents.

    Args:
        tile: see `set_tile`.
    """
    set_tile(vae, tile)
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return distribution.mean.float().cpu(), distribution.logvar.float().cpu()


def tile_of(vae: Vae) -> int:
    """Side in px of the tiles that a picture is decoded in where memory is short: half the side the VAE was made for."""
    return vae.config["sample_size"] // 2


def encoding_tile_of(vae: Vae) -> int:
    """Side in px of the tiles that a picture is encoded in where memory is short: the side the VAE was made for.

    SDXL's text encoders take as much memory as one such tile, and latents of half the side lie twice as far from whole ones.
    """
    return vae.config["sample_size"]


def set_tile(vae: Vae, side: int) -> None:
    """Lets `vae` take larger pictures in overlapping tiles of `side` px, blended into each other; 0 takes them whole."""
    vae.use_tiling = bool(side)
    if side:
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // vae_scale_factor(vae.config)


@torch.inference_mode()
def pictures(vae: Vae, latents_NCHW: torch.Tensor, tile: int = 0) -> list[Image.Image]:
    """Pictures of scaled latents, decoded one at a time so that memory does not grow with the strip.

    Args:
        tile: see `set_tile`.
    """
    set_tile(vae, tile)
    drawn = []
    for row in latents_NCHW.to(vae.device, vae.dtype) / vae.config["scaling_factor"]:
        decoded = vae.decode(row[None]).sample[0]
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        drawn.append(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))
    return drawn
