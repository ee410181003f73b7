"""Trains the autoencoder of the bundled base on emoji art.

    python -m tools.train_vae --work build/base --steps 900
    torchrun --nproc-per-node 2 -m tools.train_vae --work build/base --steps 900    # one process a core

Most steps are on crops, which have more detail for the same number of pixels. The last fifth is on whole
images, so that the group norms fit the sizes at which the model is used.

Every `--save-every` steps the state is written; the same command resumes from it. Each step draws its batch
from a generator seeded by the number of the step, so that a resumed training has the same result as one
without a break.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tools import emoji_art
from tools.learner import Learner, build_parser
from tools.progress import join_processes

CROP = 64  # px
OVERSHOOT = 1.05  # target for black and white, in place of 1
WHOLE_SHARE = 0.2  # of the steps, at the end
KL_WEIGHT = 2e-5  # keeps the latents near a unit Gaussian without a loss of detail
LATENT_CHANNELS = 4  # as in SDXL


def build_vae() -> Any:
    """Returns an untrained AutoencoderKL of factor 8."""
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
    # The posterior starts with little noise: with a deviation of 1 the decoder learns to ignore the latents.
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -5.0)
    return vae


def random_crops(images: torch.Tensor, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Returns random crops (count, 3, side, side) in [-1, 1] with random changes of colours and lines.

    Args:
        images: (n, 128, 128, 3) uint8.
    """
    index = torch.randint(len(images), (count,), generator=generator)
    # Borders are mostly white, so crops are at least 8 px away from every edge.
    margin = 8 if side < emoji_art.SIZE else 0
    corner = torch.randint(margin, emoji_art.SIZE - side - margin + 1, (count, 2), generator=generator)
    crops = [images[i, y : y + side, x : x + side] for i, (y, x) in zip(index, corner, strict=True)]
    batch = torch.stack(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    kinds = torch.rand(count, generator=generator)
    gains = 0.6 + 0.8 * torch.rand(count, generator=generator)
    thresholds = 1.2 * torch.rand(count, generator=generator) - 0.4
    for row in range(count):
        batch[row] = _augmented(
            batch[row], float(kinds[row]), float(gains[row]), float(thresholds[row]), generator
        )
    return batch


def _augmented(
    image: torch.Tensor, kind: float, gain: float, threshold: float, generator: torch.Generator
) -> torch.Tensor:
    if kind < 0.5:
        return image
    if kind < 0.65:  # other colours
        return image[torch.randperm(3, generator=generator)] * gain
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    if kind < 0.72:
        return (grey * gain).clamp(-1, 1)
    if kind < 0.75:
        return -image
    if kind < 0.92:  # two tones, with the soft edges of an antialiased image
        return ((grey - threshold) * 12).clamp(-1, 1)
    blurred = F.avg_pool2d(grey[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    return (1 - (grey - blurred).abs() * 12).clamp(-1, 1)  # outlines


def squared_error(decoded: torch.Tensor, image: torch.Tensor, overshoot: float = OVERSHOOT) -> torch.Tensor:
    """Returns the mean squared error with a target beyond [-1, 1] for black and white.

    Decoded values are clamped to [-1, 1] afterwards. Channels at either end have the target `overshoot` and
    no error beyond it, so that they become pure: -0.98 in place of -1 in one channel of black would be a dark
    saturated colour.
    """
    is_extreme = image.abs() > 0.98
    target = torch.where(is_extreme, image.sign() * overshoot, image)
    is_beyond = is_extreme & (decoded * image.sign() > overshoot)
    return torch.where(is_beyond, 0.0, decoded - target).square().mean()


@torch.inference_mode()
def psnr(vae: Any, images: np.ndarray) -> float:
    """Returns the mean over images of 10 log10(1 / MSE), pixels in [0, 1] and rounded to 8 bits.

    Args:
        images: (n, height, width, 3) uint8.
    """
    values = []
    for start in range(0, len(images), 16):
        batch = torch.from_numpy(images[start : start + 16]).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample
        decoded = ((decoded.clamp(-1, 1) + 1) * 127.5).round() / 255
        error = (decoded - (batch + 1) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def train(
    images: torch.Tensor,
    options: argparse.Namespace,
    *,
    rank: int = 0,
    world: int = 1,
    validate: Callable[[Any], None] = lambda average: None,
) -> Any:
    """Trains an autoencoder, or resumes the training in `options.work`; returns the average of its weights.

    Args:
        images: (n, 128, 128, 3) uint8.
        options: of `build_parser`, and `batch`.
        validate: called with the average after every second saved state and the last step.
    """
    torch.manual_seed(0)
    vae = build_vae().to(memory_format=torch.channels_last)
    average = build_vae()
    learner = Learner(vae, options.work / "vae.pt", options, average)
    batch_size = options.batch // world
    started = time.monotonic()
    for step in range(learner.first, options.steps):
        generator = torch.Generator().manual_seed(1_000_003 + step * world + rank)
        side, count = CROP, batch_size
        if step >= options.steps * (1 - WHOLE_SHARE):
            side, count = emoji_art.SIZE, max(1, batch_size // 4)  # the same number of pixels
        batch = random_crops(images, count, side, generator).to(memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = squared_error(decoded, batch) + KL_WEIGHT * kl
        learner.step(step, loss, decay=min(0.99, (step + 1) / (step + 10)))
        if rank != 0:
            continue
        if (step + 1) % 50 == 0:
            rate = (step + 1 - learner.first) * options.batch / (time.monotonic() - started)
            losses = f"loss {loss.item():.4f}  kl {kl.item():.2f}"
            print(f"step {step + 1}/{options.steps}  {losses}  {rate:.1f} crops/s", flush=True)
        learner.save_if_due(step + 1)
        if (step + 1) % (2 * options.save_every) == 0 or step + 1 == options.steps:
            validate(average)
    return average


def main() -> None:
    """Runs the command."""
    parser = build_parser(__doc__, steps=900, muon_rate=5e-3, adam_rate=1e-3, save_every=200)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    rank, world = join_processes()
    torch.set_flush_denormal(True)
    art = emoji_art.load(options.work / "art")
    held_out = art.held_out()
    validation = art.images[held_out][:96]
    ink = emoji_art.load(options.work / "art", (emoji_art.SAMPLE_SET,)).images[::16]

    def validate(average: Any) -> None:
        print(
            f"  PSNR held out {psnr(average, validation):.2f} dB, ink {psnr(average, ink):.2f} dB", flush=True
        )

    images = torch.from_numpy(art.images[~held_out])
    train(images, options, rank=rank, world=world, validate=validate)


if __name__ == "__main__":
    main()
