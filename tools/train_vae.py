"""Teaches the bundled base's autoencoder to draw emoji art, and pictures in ink that it never sees.

    python -m tools.train_vae --work build/base --steps 3000

Every `--save-every` steps the state is written, whole or not at all; the same command goes on from there. Batches are
drawn from a generator seeded by the step's number, so an interrupted run trains on the same crops as an unbroken one.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tools import emoji_art
from tools.progress import average_gradients, join_processes, load_state, save_state

CROP = 64
KL_WEIGHT = 2e-5  # keeps the latents near a unit Gaussian without costing detail
LATENT_CHANNELS = 8  # at 128 px one latent cell holds 8x8 pixels of dense drawing; 4 channels blur it


def build_vae() -> Any:
    """An AutoencoderKL with factor 8, narrow where pictures are large."""
    shape: dict[str, Any] = dict(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=emoji_art.SIZE,
        block_out_channels=(16, 32, 64, 128), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    vae: Any = AutoencoderKL(**shape)
    # Start with little noise on the latents: with a deviation of 1 the decoder learns to ignore them.
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -5.0)
    return vae


def crops(pictures: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, 64, 64) in [-1, 1]: random crops with their colours, contrast and lines changed.

    pictures: (n, 128, 128, 3) uint8.
    """
    index = torch.randint(len(pictures), (count,), generator=generator)
    # Corners are mostly white paper: crops start at least 16 px in from the far edge.
    corner = torch.randint(8, emoji_art.SIZE - CROP - 7, (count, 2), generator=generator)
    chosen = torch.stack([pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corner, strict=True)])
    batch = chosen.permute(0, 3, 1, 2).float() / 127.5 - 1
    kinds = torch.rand(count, generator=generator)
    gains = 0.6 + 0.8 * torch.rand(count, generator=generator)
    thresholds = 1.2 * torch.rand(count, generator=generator) - 0.4
    for row in range(count):
        batch[row] = _varied(batch[row], float(kinds[row]), float(gains[row]), float(thresholds[row]), generator)
    return batch


def _varied(picture: torch.Tensor, kind: float, gain: float, threshold: float, generator: torch.Generator):
    if kind < 0.5:
        return picture
    if kind < 0.65:  # other colours
        return picture[torch.randperm(3, generator=generator)] * gain
    grey = picture.mean(0, keepdim=True).expand(3, -1, -1)
    if kind < 0.72:
        return (grey * gain).clamp(-1, 1)
    if kind < 0.75:
        return -picture
    if kind < 0.92:  # two tones, with the soft edge that a renderer leaves
        return ((grey - threshold) * 12).clamp(-1, 1)
    blurred = F.avg_pool2d(grey[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    return (1 - (grey - blurred).abs() * 12).clamp(-1, 1)  # outlines


@torch.inference_mode()
def psnr(vae: Any, pictures: np.ndarray) -> float:
    """Mean over pictures of 10 log10(1 / MSE), pixels in [0, 1], rounded to 8 bits as a saved picture is."""
    figures = []
    for start in range(0, len(pictures), 16):
        batch = torch.from_numpy(pictures[start : start + 16]).permute(0, 3, 1, 2).float() / 127.5 - 1
        drawn = vae.decode(vae.encode(batch).latent_dist.mode()).sample
        drawn = ((drawn.clamp(-1, 1) + 1) * 127.5).round() / 255
        error = (drawn - (batch + 1) / 2).square().mean(dim=(1, 2, 3))
        figures.append(-10 * error.log10())
    return float(torch.cat(figures).mean())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then a cosine to nearly nothing."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak-rate", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--decoder-only", action="store_true", help="go on without moving the latents")
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)

    art = emoji_art.load(options.work / "art")
    held_out = art.held_out()
    pictures = torch.from_numpy(art.pictures[~held_out])
    check = art.pictures[held_out][:96]
    ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,)).pictures[::16]

    torch.manual_seed(0)
    vae = build_vae().to(memory_format=torch.channels_last)
    average = build_vae()
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.peak_rate, betas=(0.9, 0.999), weight_decay=1e-4, fused=True)
    name = "decoder" if options.decoder_only else "vae"
    store = options.work / f"{name}.pt"
    first = load_state(store, model=vae, average=average, optimizer=optimizer)
    if first == 0 and options.decoder_only:
        load_state(options.work / "vae.pt", model=average)
        load_state(options.work / "vae.pt", average=average)
        vae.load_state_dict(average.state_dict())
    if options.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    parameters = [p for p in vae.parameters() if p.requires_grad]
    mine = options.batch // world
    started = time.monotonic()
    for step in range(first, options.steps):
        generator = torch.Generator().manual_seed(1_000_003 * (1 + options.decoder_only) + step * world + rank)
        batch = crops(pictures, mine, generator).to(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.peak_rate)
        posterior = vae.encode(batch).latent_dist
        drawn = vae.decode(posterior.sample(generator)).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = (drawn - batch).square().mean() + KL_WEIGHT * kl
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), vae.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if rank == 0 and (step + 1) % 50 == 0:
            rate = (step + 1 - first) * options.batch / (time.monotonic() - started)
            print(f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  kl {kl.item():.2f}  {rate:.1f} crops/s", flush=True)
        if rank == 0 and ((step + 1) % options.save_every == 0 or step + 1 == options.steps):
            save_state(store, step + 1, model=vae, average=average, optimizer=optimizer)
        if rank == 0 and ((step + 1) % (2 * options.save_every) == 0 or step + 1 == options.steps):
            print(f"  PSNR held out {psnr(average, check):.2f} dB, ink {psnr(average, ink):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
