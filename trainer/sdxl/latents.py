"""Images to the VAE's posterior, latents to images.

Shapes: N batch, C latent channels, H and W latent cells; an image is height x width px.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from trainer.headers.base_model import vae_scale_factor
from trainer.sdxl.protocols import Vae

__all__ = [
    "decode_images",
    "decoding_tile",
    "encode_image",
    "encoding_tile",
    "set_tile",
    "to_pixels",
    "vae_scale_factor",
]


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Returns an RGB image as (1, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def encode_image(vae: Vae, pixels: torch.Tensor, tile: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and log-variance of the posterior, (1, C, H, W) in fp32 on the CPU, not scaled.

    Both are returned rather than a sample, so that each epoch can draw other latents from the posterior.

    Args:
        pixels: (1, 3, height, width) in [-1, 1].
        tile: side of the tiles in px; see `set_tile`.
    """
    set_tile(vae, tile)
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return distribution.mean.float().cpu(), distribution.logvar.float().cpu()


def decoding_tile(vae: Vae) -> int:
    """Returns the side in px of tiles for decoding in little memory: half of the VAE's native size."""
    return vae.config["sample_size"] // 2


def encoding_tile(vae: Vae) -> int:
    """Returns the side in px of tiles for encoding in little memory: the VAE's native size.

    Smaller tiles would not lower the peak, since SDXL's text encoders take as much memory as one of these.
    Latents from tiles of half the side differ twice as much from those of the whole image.
    """
    return vae.config["sample_size"]


def set_tile(vae: Vae, side: int) -> None:
    """Sets the VAE to process images in overlapping tiles of `side` px with blended seams.

    0 processes them whole.
    """
    vae.use_tiling = bool(side)
    if side:
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // vae_scale_factor(vae.config)


@torch.inference_mode()
def decode_images(vae: Vae, latents_NCHW: torch.Tensor, tile: int = 0) -> list[Image.Image]:
    """Decodes scaled latents, one image at a time, so that memory does not grow with their number.

    Args:
        tile: side of the tiles in px; see `set_tile`.
    """
    set_tile(vae, tile)
    images = []
    for latents_CHW in latents_NCHW.to(vae.device, vae.dtype) / vae.config["scaling_factor"]:
        decoded = vae.decode(latents_CHW[None]).sample[0]
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        images.append(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))
    return images
