"""Rough pictures of latents while they are denoised: each latent point's colour by a linear map, without the VAE's decoder.

The map is fitted to what the base's own VAE makes of patches of known colour, so that it serves any base.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainer.atomic_files import replacing
from trainer.runs.draw_protocol import FRAME
from trainer.sdxl.latents import encode_image

_SIDE, _PATCHES = 256, 8  # px of the picture that the map is fitted on, and its patches along a side
_SECONDS = 0.5  # between two frames


@dataclass(frozen=True)
class LatentToRgb:
    """Scaled latents to RGB in [-1, 1]."""

    weights_C3: torch.Tensor
    offset_3: torch.Tensor

    def picture(self, latents_CHW: torch.Tensor, side: int) -> Image.Image:
        """With its longer side `side` px, if that is larger than the latents."""
        rgb_HW3 = torch.einsum("chw,cr->hwr", latents_CHW.float().cpu(), self.weights_C3) + self.offset_3
        shown = Image.fromarray(((rgb_HW3.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
        grown = max(1, side // max(shown.size))
        return shown.resize((shown.width * grown, shown.height * grown), Image.Resampling.BICUBIC)


@torch.inference_mode()
def fit_latent_to_rgb(vae: Any) -> LatentToRgb:
    """By least squares over the points of one encoded picture."""
    draws = np.random.default_rng(0).integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8)
    picture = Image.fromarray(draws).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = encode_image(vae, pixels)[0][0] * vae.config["scaling_factor"]
    colours = torch.nn.functional.adaptive_avg_pool2d(pixels, latents.shape[-2:])[0]
    known = torch.cat([latents.flatten(1).T, torch.ones(latents[0].numel(), 1)], dim=1)
    found = torch.linalg.lstsq(known, colours.flatten(1).T).solution
    return LatentToRgb(found[:-1].clone(), found[-1].clone())


def frame_writer(
    colours: LatentToRgb, folder: Path, now: Callable[[], float] = time.monotonic
) -> Callable[[torch.Tensor, int], None]:
    """What shows a pass's rows (N, C, H, W), `columns` to a line, as `frame.png`; now and then only."""
    last = -1e9

    def show(latents_NCHW: torch.Tensor, columns: int) -> None:
        nonlocal last
        if now() - last < _SECONDS:
            return
        last = now()
        shown = [colours.picture(row, 128) for row in latents_NCHW]
        width, height = shown[0].size
        sheet = Image.new("RGB", (width * columns, height * -(-len(shown) // columns)), "white")
        for number, picture in enumerate(shown):
            sheet.paste(picture, (number % columns * width, number // columns * height))
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FRAME, sync=False) as temporary:
            sheet.save(temporary, format="PNG")

    return show
