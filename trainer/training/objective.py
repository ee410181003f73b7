"""The objective that a config asks for: which noise levels, which noise, what the UNet should say and how an error counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.sdxl.base import Base
from trainer.sdxl.schedulers import training_scheduler
from trainer.training import noise


@dataclass(frozen=True)
class Objective:
    """A noise schedule, the kind of prediction, and the config's choices. Everything random comes from the generators given."""

    config: TrainConfig
    prediction_type: str
    zero_terminal_snr: bool
    alphas_cumprod: torch.Tensor  # (1000,) on the CPU

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        config = self.config
        return noise.draw_timesteps(
            count,
            generator,
            low=config.timestep_min,
            high=config.timestep_max,
            distribution=config.timestep_distribution,
            location=config.timestep_location,
            scale=config.timestep_scale,
        )

    def noise(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        config = self.config
        drawn = noise.draw_noise(
            shape, config.noise_offset, generator, random_offset=config.noise_offset_random
        )
        if config.multires_noise_iterations:
            drawn = noise.multires_noise(
                drawn, config.multires_noise_iterations, config.multires_noise_discount, generator
            )
        return drawn

    def noisy(
        self,
        latents_NCHW: torch.Tensor,
        noise_NCHW: torch.Tensor,
        timestep_N: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """What the UNet sees; with input perturbation by more noise than the target knows of (Ning et al. 2023, section 4)."""
        if self.config.input_perturbation:
            noise_NCHW = noise_NCHW + self.config.input_perturbation * torch.randn(
                noise_NCHW.shape, generator=generator
            )
        return noise.add_noise(latents_NCHW, noise_NCHW, timestep_N, self.alphas_cumprod)

    def target(
        self, latents_NCHW: torch.Tensor, noise_NCHW: torch.Tensor, timestep_N: torch.Tensor
    ) -> torch.Tensor:
        return noise.target(self.prediction_type, latents_NCHW, noise_NCHW, timestep_N, self.alphas_cumprod)

    def weight(self, timestep_N: torch.Tensor) -> torch.Tensor:
        """Weight (N,) of each row's loss by its noise level."""
        config = self.config
        return noise.loss_weight(
            self.prediction_type, timestep_N, self.alphas_cumprod, config.min_snr_gamma, config.snr_weighting
        )

    def error(
        self,
        predicted_NCHW: torch.Tensor,
        answer_NCHW: torch.Tensor,
        timestep_N: torch.Tensor,
        mask_N1HW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss (N,) of each row; `mask_N1HW` in [0, 1] says how much each place counts.

        With c = delta at the row's noise level: mse d^2; huber 2 c (sqrt(d^2 + c^2) - c), which is d^2 for small d;
        smooth_l1 2 (sqrt(d^2 + c^2) - c), which is 2 |d| for large d (Khrapov et al. 2024, section 4).
        """
        squared = (predicted_NCHW - answer_NCHW).square()
        if self.config.loss != "mse":
            delta = self.delta(timestep_N).view(-1, 1, 1, 1).to(squared)
            # sqrt(x + c^2) - c loses all digits for small x
            squared = 2 * squared / ((squared + delta.square()).sqrt() + delta)
            if self.config.loss == "huber":
                squared = squared * delta
        if mask_N1HW is not None:
            squared = squared * mask_N1HW
        return squared.mean(dim=(1, 2, 3))

    def delta(self, timestep_N: torch.Tensor) -> torch.Tensor:
        """Size (N,) of an error from which the loss grows linearly (Khrapov et al. 2024, section 4.2).

        exponential: 1 at t = 0, `huber_delta` at t = 1000. snr: (1 - d) / (1 + s)^2 + d with s = sqrt((1 - a_t) / a_t).
        """
        least = self.config.huber_delta
        match self.config.huber_schedule:
            case "exponential":
                return torch.exp(math.log(least) * timestep_N.float() / len(self.alphas_cumprod))
            case "snr":
                a = self.alphas_cumprod[timestep_N]
                return (1 - least) / (1 + ((1 - a) / a.clamp(min=1e-12)).sqrt()).square() + least
            case _:
                return torch.full(timestep_N.shape, least)


def objective_of(config: TrainConfig, base: Base) -> Objective:
    """Raises ConfigError when the base's prediction does not go with the settings."""
    scheduler: Any = training_scheduler(config, base)
    chosen = scheduler.config
    return Objective(
        config, chosen.prediction_type, bool(chosen.rescale_betas_zero_snr), scheduler.alphas_cumprod
    )
