"""Noise, noising, target and loss weight of a noise level.

Shapes: N rows of latents (C, H, W). a_t is `alphas_cumprod[t]`.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F


def add_noise(
    latents_NCHW: torch.Tensor,
    noise_NCHW: torch.Tensor,
    timestep_N: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """Returns latents at a noise level: sqrt(a_t) x_0 + sqrt(1 - a_t) e   (Ho et al. 2020, eq. 4).

    Args:
        latents_NCHW: VAE latents times vae.config.scaling_factor, fp32.
        timestep_N: integers in [0, 1000); 999 is almost pure noise.
    """
    a = alphas_cumprod[timestep_N].view(-1, 1, 1, 1)
    return a.sqrt() * latents_NCHW + (1 - a).sqrt() * noise_NCHW


def target(
    prediction_type: str,
    latents_NCHW: torch.Tensor,
    noise_NCHW: torch.Tensor,
    timestep_N: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """Returns the UNet's target.

    epsilon       e, the noise
    v_prediction  v = sqrt(a_t) e - sqrt(1 - a_t) x_0    Salimans & Ho 2022, appendix D
    """
    if prediction_type == "epsilon":
        return noise_NCHW
    a = alphas_cumprod[timestep_N].view(-1, 1, 1, 1)
    return a.sqrt() * noise_NCHW - (1 - a).sqrt() * latents_NCHW


def loss_weight(
    prediction_type: str,
    timestep_N: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    gamma: float,
    weighting: str = "min_snr",
    *,
    zero_terminal_snr: bool = False,
) -> torch.Tensor:
    """Returns the weight (N,) of each row's squared error.

    From the weight w of the error in x_0 it is w / snr for epsilon and w / (snr + 1) for v.

    min_snr       w = min(snr, gamma)                  Hang et al. 2023, section 3.4
    soft_min_snr  w = snr gamma / (snr + gamma)        Crowson et al. 2024, section 4.4
    debiased      w = sqrt(snr)                        Yu et al. 2023, section 4
    none, or gamma = 0 for the first two: all levels alike

    With zero terminal SNR, snr is replaced by snr + 1 in the w of a v-prediction model. There the error of v
    is the one of x_0 times snr + 1 (Salimans & Ho 2022, section 4), and the levels near snr 0, which decide on
    brightness, would have a weight near 0: after 60 steps on dark pictures the images were at 93 of 255 and
    at 4 without weighting (benchmarks/NOTES.md).

    Args:
        zero_terminal_snr: True if the schedule ends at snr 0.
    """
    if weighting == "none" or (gamma == 0 and weighting != "debiased"):
        return torch.ones_like(timestep_N, dtype=torch.float32)
    a = alphas_cumprod[timestep_N]
    snr = a / (1 - a)
    # With zero terminal SNR the last level has snr 0: the weight of epsilon would be 0 / 0, the one of v is
    # finite.
    floor = snr.clamp(min=1e-8)
    limited = snr + 1 if zero_terminal_snr and prediction_type == "v_prediction" else snr
    match weighting:
        case "min_snr":
            weight = limited.clamp(max=gamma)
        case "soft_min_snr":
            weight = limited * gamma / (limited + gamma)
        case _:
            weight = limited.sqrt()
    return weight / (floor if prediction_type == "epsilon" else snr + 1)


def draw_noise(
    shape: torch.Size, offset: float, generator: torch.Generator, *, random_offset: bool = False
) -> torch.Tensor:
    """Draws unit noise; `offset` shifts whole channels, so that very dark and bright images are learned.

    Args:
        random_offset: draws each row's offset from [0, offset).
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        shift = offset * torch.randn(shape[0], shape[1], 1, 1, generator=generator)
        noise += shift * torch.rand(shape[0], 1, 1, 1, generator=generator) if random_offset else shift
    return noise


def multires_noise(
    noise_NCHW: torch.Tensor, iterations: int, discount: float, generator: torch.Generator
) -> torch.Tensor:
    """Returns multi-resolution noise: each level is 2 to 4 times coarser and weighs `discount` times less.

    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training". Each row is scaled to unit deviation
    by itself.
    """
    height, width = noise_NCHW.shape[-2:]
    total, coarse_height, coarse_width = noise_NCHW.clone(), float(height), float(width)
    for level in range(1, iterations + 1):
        factor = 2 + 2 * float(torch.rand((), generator=generator))
        coarse_height, coarse_width = max(1.0, coarse_height / factor), max(1.0, coarse_width / factor)
        coarse = torch.randn(
            *noise_NCHW.shape[:2], int(coarse_height), int(coarse_width), generator=generator
        )
        total += discount**level * F.interpolate(
            coarse, size=(height, width), mode="bilinear", align_corners=False
        )
        if coarse_height == coarse_width == 1:
            break
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def draw_timesteps(
    count: int,
    generator: torch.Generator,
    *,
    low: int = 0,
    high: int = 999,
    distribution: str = "uniform",
    location: float = 0,
    scale: float = 1,
) -> torch.Tensor:
    """Draws `count` integers from `low` to `high`, both included.

    With u uniform in [0, 1) and n normal, the position between low and high is

    uniform        u
    logit_normal   1 / (1 + exp(-(location + scale n)))    Esser et al. 2024, section 3.1
    cubic_low      u^3
    cubic_high     1 - u^3
    """
    if distribution == "uniform":
        return torch.randint(low, high + 1, (count,), generator=generator)
    if distribution == "logit_normal":
        share = torch.sigmoid(location + scale * torch.randn(count, generator=generator))
    else:
        share = torch.rand(count, generator=generator) ** 3
        share = 1 - share if distribution == "cubic_high" else share
    return (low + (share * (high - low + 1)).long()).clamp(max=high)


def position_seed(seed: int, position: int) -> int:
    """Returns the seed of the batch at a position in the training.

    Seed and position are hashed together, since torch's CPU generator reads only 32 bits of its seed: `seed
    << 32` plus the position would lose the seed.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=4).digest(), "little")
