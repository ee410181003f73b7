"""Teaches the bundled base's autoencoder to draw emoji art, and pictures in ink that it never sees.

    python -m tools.train_vae --work build/base --steps 900
    torchrun --nproc-per-node 2 -m tools.train_vae --work build/base --steps 900    # a process a core

Most steps see crops, which hold more drawing in fewer pixels; the last fifth sees whole pictures, so that the group norms
end on what they will meet in use. Every `--save-every` steps the state is written, whole or not at all; the same command
goes on from there. Batches are drawn from a generator seeded by the step's number, so an interrupted run trains on the
same crops as an unbroken one.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tools import emoji_art
from tools.learner import Learner, parser_of
from tools.progress import join_processes

CROP = 64
BEYOND = 1.05  # what black and white aim at
WHOLE_SHARE = 0.2  # of the steps, at the end
KL_WEIGHT = 2e-5  # keeps the latents near a unit Gaussian without costing detail
LATENT_CHANNELS = 4  # as in SDXL


def build_vae() -> Any:
    """An AutoencoderKL with factor 8."""
    shape: dict[str, Any] = dict(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=emoji_art.SIZE,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    vae: Any = AutoencoderKL(**shape)
    # Start with little noise on the latents: with a deviation of 1 the decoder learns to ignore them.
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -5.0)
    return vae


def crops(pictures: torch.Tensor, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 3, side, side) in [-1, 1]: random crops with their colours, contrast and lines changed.

    pictures: (n, 128, 128, 3) uint8.
    """
    index = torch.randint(len(pictures), (count,), generator=generator)
    # Corners are mostly white paper: crops keep 8 px away from every edge.
    margin = 8 if side < emoji_art.SIZE else 0
    corner = torch.randint(margin, emoji_art.SIZE - side - margin + 1, (count, 2), generator=generator)
    chosen = torch.stack(
        [pictures[i, y : y + side, x : x + side] for i, (y, x) in zip(index, corner, strict=True)]
    )
    batch = chosen.permute(0, 3, 1, 2).float() / 127.5 - 1
    kinds = torch.rand(count, generator=generator)
    gains = 0.6 + 0.8 * torch.rand(count, generator=generator)
    thresholds = 1.2 * torch.rand(count, generator=generator) - 0.4
    for row in range(count):
        batch[row] = _varied(
            batch[row], float(kinds[row]), float(gains[row]), float(thresholds[row]), generator
        )
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


def squared_error(drawn: torch.Tensor, picture: torch.Tensor, beyond: float = BEYOND) -> torch.Tensor:
    """Mean squared error that leaves black and white pure once a decoder's answer is cut to [-1, 1].

    Channels at either end are asked for a little beyond it and are free further out: an answer of -0.98 for ink's black
    would be a dark colour of full saturation.
    """
    extreme = picture.abs() > 0.98
    aim = torch.where(extreme, picture.sign() * beyond, picture)
    return torch.where(extreme & (drawn * picture.sign() > beyond), 0.0, drawn - aim).square().mean()


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


def main() -> None:
    parser = parser_of(__doc__, steps=900, muon_rate=5e-3, adam_rate=1e-3, save_every=200)
    parser.add_argument("--batch", type=int, default=16)
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
    learner = Learner(vae, options.work / "vae.pt", options, average)

    mine = options.batch // world
    started = time.monotonic()
    for step in range(learner.first, options.steps):
        generator = torch.Generator().manual_seed(1_000_003 + step * world + rank)
        whole = step >= options.steps * (1 - WHOLE_SHARE)
        side, count = (
            (emoji_art.SIZE, max(1, mine // 4)) if whole else (CROP, mine)
        )  # the same number of pixels
        batch = crops(pictures, count, side, generator).to(memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        drawn = vae.decode(posterior.sample(generator)).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = squared_error(drawn, batch) + KL_WEIGHT * kl
        learner.step(step, loss, decay=min(0.99, (step + 1) / (step + 10)))
        if rank == 0 and (step + 1) % 50 == 0:
            rate = (step + 1 - learner.first) * options.batch / (time.monotonic() - started)
            print(
                f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  kl {kl.item():.2f}  {rate:.1f} crops/s",
                flush=True,
            )
        if rank == 0:
            learner.keep(step + 1)
        if rank == 0 and ((step + 1) % (2 * options.save_every) == 0 or step + 1 == options.steps):
            print(
                f"  PSNR held out {psnr(average, check):.2f} dB, ink {psnr(average, ink):.2f} dB", flush=True
            )


if __name__ == "__main__":
    main()
