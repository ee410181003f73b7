"""Trains the decoder of the bundled autoencoder further, on latents with a small error.

    torchrun --nproc-per-node 2 -m tools.train_decoder --work build/base

Latents from the UNet differ slightly from those of the encoder. Without this training the black of ink
becomes (9, 0, 5), which is invisible but has the highest saturation in every measurement. The encoder is
frozen, so that latents and UNet stay valid. The training is resumable and seeded by the number of the step,
as `tools.train_vae`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from tools import emoji_art
from tools.learner import Learner, build_parser
from tools.progress import join_processes, load_state
from tools.train_vae import build_vae, psnr, random_crops, squared_error

LATENT_ERROR = 0.2  # largest deviation of the error; that of the latents is about 1
OVERSHOOT = 1.3  # target for black and white, in place of 1: a small error of the latents leaves them pure


def train(images: torch.Tensor, options: argparse.Namespace, *, rank: int = 0, world: int = 1) -> Any:
    """Trains the decoder of the autoencoder in `options.work`, or resumes; returns the autoencoder.

    Args:
        images: (n, 128, 128, 3) uint8.
        options: of `build_parser`, and `batch`.
    """
    vae = build_vae()
    load_state(options.work / "vae.pt", average=vae)
    vae = vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    learner = Learner(vae, options.work / "decoder.pt", options)
    started = time.monotonic()
    for step in range(learner.first, options.steps):
        generator = torch.Generator().manual_seed(9_000_011 + step * world + rank)
        batch = random_crops(images, options.batch // world, emoji_art.SIZE, generator)
        batch = batch.to(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mean
            deviation = LATENT_ERROR * torch.rand(len(batch), 1, 1, 1, generator=generator)
            latents = latents + deviation * torch.randn(latents.shape, generator=generator)
        loss = squared_error(vae.decode(latents).sample, batch, OVERSHOOT)
        learner.step(step, loss)
        if rank != 0:
            continue
        if (step + 1) % 10 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
        learner.save_if_due(step + 1)
    return vae


def main() -> None:
    """Runs the command."""
    parser = build_parser(__doc__, steps=150, muon_rate=1.5e-3, adam_rate=3e-4, save_every=50)
    parser.add_argument("--batch", type=int, default=8, help="whole images in a step, over all processes")
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)
    art = emoji_art.load(options.work / "art")
    vae = train(torch.from_numpy(art.images[~art.held_out()]), options, rank=rank, world=world)
    if rank == 0:
        held_out = art.images[art.held_out()][:96]
        ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,)).images[::16]
        print(f"PSNR held out {psnr(vae, held_out):.2f} dB, ink {psnr(vae, ink):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
