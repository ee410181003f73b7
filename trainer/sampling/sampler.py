"""Image generation for prompts x strengths at one seed: one batched pass with one strength for each row.

All rows of a prompt start from the same noise, so that the images of a strip differ by the strength alone. A
strip is split into several passes only where memory does not allow a single one.

Shapes: N rows of a pass, one for each pair of prompt and strength; C latent channels; H and W pixels.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from trainer.adapter.lora import Adapter
from trainer.errors import ConfigError
from trainer.runs.draw_protocol import OnStep
from trainer.sampling.deepcache import DeepCache
from trainer.sampling.images import GeneratedImage
from trainer.sampling_config import NO_LIMITS, SAMPLERS, SamplingConfig, SamplingLimits
from trainer.sdxl.base import Base
from trainer.sdxl.latents import decode_images
from trainer.sdxl.protocols import NoiseScheduler, Tokenizer, UNet, Vae
from trainer.sdxl.text import Conditioning, PromptEncoding, count_windows
from trainer.sdxl.unet import predict

MAX_PIXELS = 32 * 128 * 128  # of one pass over several prompts; one prompt's strip may be larger
MAX_CACHED = 256  # encoded prompts; SDXL's conditioning takes 0.6 MB for each 77 tokens

PromptEncoder = Callable[[str, float], Conditioning]  # prompt and strength to conditioning of one row
OnFrame = Callable[[torch.Tensor, int], None]  # predicted clean latents (N, C, H/8, W/8), images in a line
_Row = tuple[int, float]  # index of the prompt, strength


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Generates images with the models that it holds.

    Attributes:
        scheduler: an Euler scheduler with the noise levels and the prediction type of the UNet.
        adapter: the adapter of the UNet and the text encoders; one without layers leaves the base as it is.
        changes_text: True when the adapter also changes the text encoders, so that a prompt's conditioning
            depends on the strength.
    """

    base: Base
    unet: UNet
    vae: Vae
    scheduler: NoiseScheduler
    adapter: Adapter
    changes_text: bool = False
    limits: SamplingLimits = NO_LIMITS

    def generate(
        self,
        config: SamplingConfig,
        encode: PromptEncoder,
        on_step: OnStep | None = None,
        on_frame: OnFrame | None = None,
    ) -> list[GeneratedImage]:
        """Returns all images of `iterate`."""
        return list(self.iterate(config, encode, on_step, on_frame))

    def iterate(
        self,
        config: SamplingConfig,
        encode: PromptEncoder,
        on_step: OnStep | None = None,
        on_frame: OnFrame | None = None,
    ) -> Iterator[GeneratedImage]:
        """Yields images in order of prompt, then strength, those of a pass as soon as it is complete.

        Args:
            encode: returned by `prompt_encoder`.
            on_frame: called after each step with the clean latents that the UNet predicts for the rows of the
                pass.

        Raises:
            ConfigError: width or height is not a multiple of the UNet's stride.
        """
        size = image_size(config, self.base)
        rows = [(prompt, strength) for prompt in range(len(config.prompts)) for strength in config.strengths]
        per_pass = rows_per_pass(len(config.prompts), len(config.strengths), size, self.limits)
        passes = [rows[start : start + per_pass] for start in range(0, len(rows), per_pass)]
        for number, rows_of_pass in enumerate(passes):
            columns = min(len(rows_of_pass), len(config.strengths))

            def report(
                step: int, latents: torch.Tensor, done: int = number * config.steps, columns: int = columns
            ) -> None:
                if on_frame:
                    on_frame(latents, columns)
                if on_step:
                    on_step(done + step, len(passes) * config.steps)

            latents = self._denoise(config, rows_of_pass, encode, report)
            images = decode_images(self.vae, latents, self.limits.tile)
            for (prompt, strength), image in zip(rows_of_pass, images, strict=True):
                yield GeneratedImage(prompt_index=prompt, strength=strength, image=image)

    def prompt_encoder(
        self, cached: dict[str, Conditioning], encode_one: Callable[[str], Conditioning]
    ) -> PromptEncoder:
        """Returns a function that encodes a prompt at a strength of the adapter.

        Results are stored in `cached`, the MAX_CACHED last used ones, except where the adapter changes the
        text encoders. The empty prompt
        becomes zeros where the base model was trained so: SDXL 1.0 is guided away from zeros and not from the
        encoded empty prompt (`force_zeros_for_empty_prompt` of its pipeline).
        """

        def encode(prompt: str, strength: float) -> Conditioning:
            conditioning = None if self.changes_text else cached.pop(prompt, None)
            if conditioning is None:
                with self.adapter.at(strength), torch.inference_mode():
                    conditioning = encode_one(prompt)
            if not self.changes_text:
                cached[prompt] = conditioning  # at the end, since a dict keeps the order of insertion
                if len(cached) > MAX_CACHED:
                    cached.pop(next(iter(cached)))
            if prompt or not self.base.zeros_for_empty_prompt:
                return conditioning
            return Conditioning(
                torch.zeros_like(conditioning.text_NTD), torch.zeros_like(conditioning.pooled_NP)
            )

        return encode

    @torch.inference_mode()
    def _denoise(
        self,
        config: SamplingConfig,
        rows: list[_Row],
        encode: PromptEncoder,
        report: Callable[[int, torch.Tensor], None],
    ) -> torch.Tensor:
        """Returns scaled latents (N, C, H/8, W/8).

        Classifier-free guidance (Ho & Salimans 2022): e = e_empty + guidance * (e_prompt - e_empty). Both
        predictions come from one UNet call of 2 N rows, the negative prompts first. At guidance 1, e is e_prompt,
        so the UNet computes N rows.
        """
        device, dtype = self.unet.device, self.unet.dtype
        has_guidance = config.guidance != 1
        negative = [encode(config.negative, strength) for _, strength in rows if has_guidance]
        positive = [encode(config.prompts[prompt], strength) for prompt, strength in rows]
        conditioning = Conditioning.stack([*negative, *positive]).to(device, dtype)
        width, height = image_size(config, self.base)
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=dtype, device=device)
        time_ids = time_ids.repeat(len(negative) + len(positive), 1)
        strengths = torch.tensor([strength for _, strength in rows], device=device)
        doubled_strengths = strengths.repeat(2)

        # Each row has a generator of its own, so that all rows of a prompt get the same noise, also in later
        # steps.
        generators = [_generator(config.seed, prompt) for prompt, _ in rows]
        step_options = {"generator": generators} if SAMPLERS[config.sampler].draws_noise else {}
        scheduler = scheduler_for(config.sampler, self.scheduler)
        scheduler.set_timesteps(config.steps)
        factor = self.base.latent_factor
        shape = (1, self.unet.config["in_channels"], height // factor, width // factor)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        latents = noise.to(device) * scheduler.init_noise_sigma

        with DeepCache(self.unet, config.steps) if config.fast else contextlib.nullcontext() as deepcache:
            model = deepcache or functools.partial(predict, self.unet)
            for step, timestep in enumerate(scheduler.timesteps, start=1):
                is_guided = has_guidance and (deepcache is None or deepcache.is_guided(step))
                used = slice(0 if is_guided else len(negative), None)  # without guidance, the prompts alone
                inputs = torch.cat([latents, latents]) if is_guided else latents
                inputs = scheduler.scale_model_input(inputs, timestep).to(dtype)
                with self.adapter.at(doubled_strengths if is_guided else strengths):
                    prediction = model(inputs, timestep, conditioning.rows(used), time_ids[used]).float()
                if is_guided:
                    of_negative, of_positive = prediction.chunk(2)
                    prediction = of_negative + config.guidance * (of_positive - of_negative)
                result = scheduler.step(prediction, timestep, latents, **step_options)
                latents = result.prev_sample
                clean = result.get("pred_original_sample")  # some schedulers of diffusers do not return it
                report(step, latents if clean is None else clean)
        return latents


def image_size(config: SamplingConfig, base: Base) -> tuple[int, int]:
    """Returns (width, height) in px; the base's native size where the config has 0.

    Raises:
        ConfigError: a side is not a multiple of the UNet's stride, 4 latent cells.
    """
    size = (config.width or base.native_size, config.height or base.native_size)
    stride = 4 * base.latent_factor
    if any(side % stride for side in size):
        raise ConfigError([f"width and height must be multiples of {stride}, not {size[0]} x {size[1]}"])
    return size


def prompt_encoding(config: SamplingConfig, tokenizer: Tokenizer) -> PromptEncoding:
    """Returns the encoding that reads every prompt of a config to its end, with (word:1.2) as emphasis."""
    prompts = (*config.prompts, config.negative)
    windows = max(count_windows(prompt, tokenizer, weighted=True) for prompt in prompts)
    return PromptEncoding(windows=windows, clip_skip=config.clip_skip, weighted=True)


def rows_per_pass(
    prompts: int, strengths: int, size: tuple[int, int], limits: SamplingLimits = NO_LIMITS
) -> int:
    """Returns the number of images of one pass.

    A pass holds whole strips, of as many prompts as MAX_PIXELS allows; it holds less than a strip only where
    `limits` do not allow a whole one.
    """
    area = size[0] * size[1]
    rows = strengths * max(1, min(prompts, MAX_PIXELS // (area * strengths)))
    if limits.pixels and rows > limits.pixels // area:
        rows = max(1, limits.pixels // area)
        rows = rows // strengths * strengths or rows
    return rows


def scheduler_for(sampler: str, euler: NoiseScheduler) -> Any:
    """Returns a sampler's scheduler with the noise levels and prediction type of an Euler scheduler."""
    spec = SAMPLERS[sampler]
    if type(euler).__name__ == spec.scheduler and not spec.options:
        return euler
    return getattr(diffusers, spec.scheduler).from_config(euler.config, **spec.options)


def _generator(seed: int, prompt_index: int) -> torch.Generator:
    """Returns a generator on the CPU, so that a seed gives the same image on every device."""
    return torch.Generator().manual_seed(seed + prompt_index)
