"""Noise and targets against diffusers; weights of the loss against the paper."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.training import noise

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LATENTS, NOISE = torch.randn(4, 8, 16, 16), torch.randn(4, 8, 16, 16)
TIMESTEPS = torch.tensor([0, 10, 500, 999])


def test_noisy_latents_equal_those_of_diffusers():
    ours = noise.add_noise(LATENTS, NOISE, TIMESTEPS, SCHEDULER.alphas_cumprod)
    torch.testing.assert_close(ours, SCHEDULER.add_noise(LATENTS, NOISE, cast(torch.IntTensor, TIMESTEPS)))


def test_targets_equal_those_of_diffusers():
    assert noise.target("epsilon", LATENTS, NOISE, TIMESTEPS, SCHEDULER.alphas_cumprod) is NOISE
    v = noise.target("v_prediction", LATENTS, NOISE, TIMESTEPS, SCHEDULER.alphas_cumprod)
    torch.testing.assert_close(v, SCHEDULER.get_velocity(LATENTS, NOISE, cast(torch.IntTensor, TIMESTEPS)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_the_paper(kind: str):
    weights = noise.loss_weight(kind, TIMESTEPS, SCHEDULER.alphas_cumprod, 5.0)
    a = SCHEDULER.alphas_cumprod[TIMESTEPS]
    snr = a / (1 - a)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(weights, expected)
    assert torch.equal(noise.loss_weight(kind, TIMESTEPS, SCHEDULER.alphas_cumprod, 0), torch.ones(4))


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased"])
def test_v_prediction_with_zero_terminal_snr_learns_at_high_noise(weighting: str):
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    timesteps = torch.tensor([999, 950, 900, 500, 100])
    weights = noise.loss_weight(
        "v_prediction", timesteps, scheduler.alphas_cumprod, 5.0, weighting, zero_terminal_snr=True
    )
    a = scheduler.alphas_cumprod[timesteps]
    snr = a / (1 - a)
    expected = {
        "min_snr": (5 / (snr + 1)).clamp(max=1),
        "soft_min_snr": 5 / (snr + 6),
        "debiased": (snr + 1).rsqrt(),
    }
    torch.testing.assert_close(weights, expected[weighting])
    assert float(weights[:3].min()) > 0.8, "the levels that decide on brightness"
    epsilon = noise.loss_weight("epsilon", timesteps, scheduler.alphas_cumprod, 5.0, zero_terminal_snr=True)
    assert torch.equal(epsilon, noise.loss_weight("epsilon", timesteps, scheduler.alphas_cumprod, 5.0))


def test_noise_offset_shifts_whole_channels():
    shape = torch.Size((64, 4, 32, 32))
    still = noise.draw_noise(shape, 0.0, torch.Generator().manual_seed(0)).mean(dim=(2, 3)).std()
    moved = noise.draw_noise(shape, 0.5, torch.Generator().manual_seed(0)).mean(dim=(2, 3)).std()
    assert moved > 5 * still
