"""Previews during denoising: a linear map from latents to RGB instead of the VAE's decoder.

The map is fitted to the latents that the base's own VAE gives for patches of known colours, so it works for
any base.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.atomic_files import replacing
from trainer.runs.draw_protocol import FRAME
from trainer.sdxl.latents import encode_image
from trainer.sdxl.protocols import Vae

_SIDE, _PATCHES = 256, 8  # px of the image that the map is fitted on, and its patches along a side
_FRAME_SIDE = 128  # px
_SECONDS = 0.5  # between two frames


@dataclass(frozen=True)
class LatentToRgb:
    """A linear map from scaled latents to RGB in [-1, 1]."""

    weights_C3: torch.Tensor
    offset_3: torch.Tensor

    def image(self, latents_CHW: torch.Tensor, side: int) -> Image.Image:
        """Returns an image one pixel a latent cell, enlarged by a whole factor to at most `side` px."""
        rgb_HW3 = torch.einsum("chw,cr->hwr", latents_CHW.float().cpu(), self.weights_C3) + self.offset_3
        image = Image.fromarray(((rgb_HW3.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
        factor = max(1, side // max(image.size))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


@torch.inference_mode()
def fit_latent_to_rgb(vae: Vae) -> LatentToRgb:
    """Fits the map by least squares over the latent cells of one encoded image of random colours."""
    colours = np.random.default_rng(0).integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = encode_image(vae, pixels)[0][0] * vae.config["scaling_factor"]
    rgb = torch.nn.functional.adaptive_avg_pool2d(pixels, latents.shape[-2:])[0]
    inputs = torch.cat([latents.flatten(1).T, torch.ones(latents[0].numel(), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, rgb.flatten(1).T).solution
    return LatentToRgb(solution[:-1].clone(), solution[-1].clone())


def frame_writer(
    latent_to_rgb: LatentToRgb, folder: Path, now: Callable[[], float] = time.monotonic
) -> Callable[[torch.Tensor, int], None]:
    """Returns a function that writes the rows of a pass (N, C, H, W) as `frame.png`, `columns` in a line.

    Calls within half a second of the last frame write nothing. The file appears complete or not at all.
    """
    last = -1e9

    def write(latents_NCHW: torch.Tensor, columns: int) -> None:
        nonlocal last
        if now() - last < _SECONDS:
            return
        last = now()
        images = [latent_to_rgb.image(row, _FRAME_SIDE) for row in latents_NCHW]
        width, height = images[0].size
        sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)), "white")
        for number, image in enumerate(images):
            sheet.paste(image, (number % columns * width, number // columns * height))
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FRAME, sync=False) as temporary:
            sheet.save(temporary, format="PNG")

    return write
