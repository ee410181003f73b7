"""The training objective of a config: timesteps, noise, target, loss and loss weight.

Shapes: N rows of latents (C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trainer.config import TrainConfig
from trainer.sdxl.base import Base
from trainer.sdxl.schedulers import training_scheduler
from trainer.training import noise


@dataclass(frozen=True)
class Objective:
    """A noise schedule, the prediction type and the config; the given generators are the only randomness."""

    config: TrainConfig
    prediction_type: str
    zero_terminal_snr: bool
    alphas_cumprod: torch.Tensor  # (1000,) on the CPU

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draws `count` timesteps (N,), integers in [0, 1000)."""
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
        """Draws the noise that the UNet learns to predict, of the given shape (N, C, H, W)."""
        config = self.config
        noise_NCHW = noise.draw_noise(
            shape, config.noise_offset, generator, random_offset=config.noise_offset_random
        )
        iterations, discount = config.multires_noise_iterations, config.multires_noise_discount
        return noise.multires_noise(noise_NCHW, iterations, discount, generator) if iterations else noise_NCHW

    def noisy(
        self,
        latents_NCHW: torch.Tensor,
        noise_NCHW: torch.Tensor,
        timestep_N: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Returns the noisy latents (N, C, H, W) that are the UNet's input.

        Input perturbation adds noise here that the target does not contain (Ning et al. 2023, section 4).
        """
        perturbation = self.config.input_perturbation
        if perturbation:
            noise_NCHW = noise_NCHW + perturbation * torch.randn(noise_NCHW.shape, generator=generator)
        return noise.add_noise(latents_NCHW, noise_NCHW, timestep_N, self.alphas_cumprod)

    def target(
        self, latents_NCHW: torch.Tensor, noise_NCHW: torch.Tensor, timestep_N: torch.Tensor
    ) -> torch.Tensor:
        """Returns the UNet's target (N, C, H, W)."""
        return noise.target(self.prediction_type, latents_NCHW, noise_NCHW, timestep_N, self.alphas_cumprod)

    def weight(self, timestep_N: torch.Tensor) -> torch.Tensor:
        """Returns the weight (N,) of each row's loss by its timestep."""
        config = self.config
        return noise.loss_weight(
            self.prediction_type,
            timestep_N,
            self.alphas_cumprod,
            config.min_snr_gamma,
            config.snr_weighting,
            zero_terminal_snr=self.zero_terminal_snr,
        )

    def error(
        self,
        predicted_NCHW: torch.Tensor,
        target_NCHW: torch.Tensor,
        timestep_N: torch.Tensor,
        mask_N1HW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss (N,) of each row; `mask_N1HW` in [0, 1] is the weight of each latent cell.

        A masked loss is the mean over the mask's area, weighted by the mask: a picture with a small mask counts
        as much as others. With `mask_normalisation` "none" it is the mean over the whole picture, in which the
        area outside counts as an error of 0.

        With c = delta at the row's noise level: mse d^2; huber 2 c (sqrt(d^2 + c^2) - c), which is d^2 for
        small d; smooth_l1 2 (sqrt(d^2 + c^2) - c), which is 2 |d| for large d (Khrapov et al. 2024, section
        4).
        """
        squared = (predicted_NCHW - target_NCHW).square()
        if self.config.loss != "mse":
            delta = self.delta(timestep_N).view(-1, 1, 1, 1).to(squared)
            # Written as a quotient: sqrt(x + c^2) - c loses all digits for small x.
            squared = 2 * squared / ((squared + delta.square()).sqrt() + delta)
            if self.config.loss == "huber":
                squared = squared * delta
        if mask_N1HW is None:
            return squared.mean(dim=(1, 2, 3))
        means = (squared * mask_N1HW).mean(dim=(1, 2, 3))
        if self.config.mask_normalisation == "none":
            return means
        # At least one cell: a mask that is black everywhere gives 0, and a nearly black one no huge gradient.
        cells = mask_N1HW[0].numel()
        return means * (cells / mask_N1HW.sum(dim=(1, 2, 3)).clamp(min=1))

    def delta(self, timestep_N: torch.Tensor) -> torch.Tensor:
        """Returns the error (N,) above which the loss grows linearly (Khrapov et al. 2024, section 4.2).

        With d = `huber_delta`:

        constant      d
        exponential   1 at t = 0, d at t = 1000
        snr           (1 - d) / (1 + s)^2 + d with s = sqrt((1 - a_t) / a_t)
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
    """Returns the objective of a config. Raises ConfigError when the base's prediction type does not fit."""
    scheduler = training_scheduler(config, base)
    prediction_type = scheduler.config["prediction_type"]
    zero_terminal_snr = bool(scheduler.config["rescale_betas_zero_snr"])
    return Objective(config, prediction_type, zero_terminal_snr, scheduler.alphas_cumprod)
