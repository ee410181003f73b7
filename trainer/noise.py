"""The diffusion objective: noise levels, noising, target and loss weight. N rows of latents (C, H, W)."""

from __future__ import annotations

import torch


def add_noise(latents_NCHW: torch.Tensor, noise_NCHW: torch.Tensor, timestep_N: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Latents at a noise level: sqrt(a_t) x_0 + sqrt(1 - a_t) e   (Ho et al. 2020, eq. 4).

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
    """What the UNet should say: the noise, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, appendix D)."""
    if prediction_type == "epsilon":
        return noise_NCHW
    a = alphas_cumprod[timestep_N].view(-1, 1, 1, 1)
    return a.sqrt() * noise_NCHW - (1 - a).sqrt() * latents_NCHW


def loss_weight(prediction_type: str, timestep_N: torch.Tensor, alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR-gamma weight (N,): min(snr, gamma) / snr for epsilon, / (snr + 1) for v (Hang et al. 2023, section 3.4).

    gamma = 0 weighs all levels alike.
    """
    if gamma == 0:
        return torch.ones_like(timestep_N, dtype=torch.float32)
    a = alphas_cumprod[timestep_N]
    snr = a / (1 - a)
    # With zero terminal SNR the last level has none: epsilon can't be learned there, v can.
    floor = snr.clamp(min=1e-8)
    return snr.clamp(max=gamma) / (floor if prediction_type == "epsilon" else snr + 1)


def draw_noise(shape: torch.Size, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Unit noise; `offset` shifts each channel as a whole, so that very dark and bright pictures can be learned."""
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn(shape[0], shape[1], 1, 1, generator=generator)
    return noise
