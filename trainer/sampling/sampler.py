"""Prompts x strengths at a fixed seed: one batched pass, one strength a row.

All rows of a prompt start from the same noise, so that only the strength differs between the pictures of a strip. A strip
is divided into several passes only where memory does not suffice for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from trainer.adapter.lora import Adapter
from trainer.sampling.deepcache import DeepCache
from trainer.sampling.images import GeneratedImage
from trainer.sampling_config import NO_LIMITS, SAMPLERS, SamplingConfig, SamplingLimits
from trainer.sdxl.latents import decode_images
from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict

MAX_PIXELS = 32 * 128 * 128  # of one pass over several prompts; one prompt's strip may be larger


def draw(
    request: SamplingConfig,
    *,
    unet: Any,
    vae: Any,
    scheduler: Any,
    adapter: Adapter | None,
    conditioning: Callable[[str, float], Conditioning],
    size: tuple[int, int],
    latent_factor: int,
    room: SamplingLimits = NO_LIMITS,
    on_step: Callable[[int, int], None] | None = None,
    on_frame: Callable[[torch.Tensor, int], None] | None = None,
) -> list[GeneratedImage]:
    """Pictures in order of prompt, then strength.

    Args:
        conditioning: of a prompt at a strength, for adapters that change the text encoders.
        on_step: called with steps done and steps in all.
        on_frame: called between steps with the picture that the rows of a pass head for, as scaled latents (N, C, H/8, W/8),
            and how many strengths a prompt has there.
    """
    cells = [(p, s) for p in range(len(request.prompts)) for s in request.strengths]
    per_pass = rows_per_pass(len(request.prompts), len(request.strengths), size, room)
    drawn: list[GeneratedImage] = []
    passes = [cells[start : start + per_pass] for start in range(0, len(cells), per_pass)]
    for number, rows in enumerate(passes):

        def report(
            step: int, latents: torch.Tensor, before: int = number * request.steps, size: int = len(rows)
        ) -> None:
            if on_frame:
                on_frame(latents, min(size, len(request.strengths)))
            if on_step:
                on_step(before + step, len(passes) * request.steps)

        latents = _denoise(request, rows, unet, scheduler, adapter, conditioning, size, latent_factor, report)
        for (prompt_index, strength), picture in zip(
            rows, decode_images(vae, latents, room.tile), strict=True
        ):
            drawn.append(GeneratedImage(prompt_index=prompt_index, strength=strength, picture=picture))
    return drawn


def rows_per_pass(
    prompts: int, strengths: int, size: tuple[int, int], room: SamplingLimits = NO_LIMITS
) -> int:
    """Pictures of one pass: whole strips, of as many prompts as MAX_PIXELS allows; less than a strip only for want of memory."""
    area = size[0] * size[1]
    rows = strengths * max(1, min(prompts, MAX_PIXELS // (area * strengths)))
    if room.pixels and rows > room.pixels // area:
        rows = max(1, room.pixels // area)
        rows = rows // strengths * strengths or rows
    return rows


def conditioner(
    known: dict[str, Conditioning],
    encode_one: Callable[[str], Conditioning],
    adapter: Adapter,
    *,
    changes_text: bool,
    zeros_for_empty: bool,
) -> Callable[[str, float], Conditioning]:
    """prompt, strength -> conditioning; remembered in `known` unless the adapter changes the text encoders.

    SDXL 1.0 is guided away from zeros, not from the empty prompt (`force_zeros_for_empty_prompt` of its pipeline).
    """

    def of(prompt: str, strength: float) -> Conditioning:
        if changes_text or prompt not in known:
            with adapter.at(strength), torch.inference_mode():
                found = encode_one(prompt)
            if changes_text:
                return _zeros_if(not prompt and zeros_for_empty, found)
            known[prompt] = found
        return _zeros_if(not prompt and zeros_for_empty, known[prompt])

    return of


def _zeros_if(wanted: bool, found: Conditioning) -> Conditioning:
    return (
        Conditioning(torch.zeros_like(found.text_NTD), torch.zeros_like(found.pooled_NP)) if wanted else found
    )


@torch.inference_mode()
def _denoise(
    request, rows, unet, scheduler, adapter, conditioning, size, latent_factor, report
) -> torch.Tensor:
    """Scaled latents (N, C, H/8, W/8), one row for each (prompt, strength), by classifier-free guidance
    (Ho & Salimans 2022): e = e_empty + guidance * (e_prompt - e_empty)."""
    device, dtype = unet.device, unet.dtype
    width, height = size
    wanted = [conditioning(request.prompts[p], strength) for p, strength in rows]
    unwanted = [conditioning(request.negative, strength) for _, strength in rows]
    text = Conditioning.stack([*unwanted, *wanted]).to(device, dtype)
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=dtype, device=device).repeat(
        2 * len(rows), 1
    )

    shape = (1, unet.config.in_channels, height // latent_factor, width // latent_factor)
    scheduler = scheduler_for(request.sampler, scheduler)
    draws = [
        _generator(request.seed, p) for p, _ in rows
    ]  # rows of a prompt draw the same noise, also in later steps
    noise = {"generator": draws} if SAMPLERS[request.sampler].draws_noise else {}
    scheduler.set_timesteps(request.steps)
    latents = (
        torch.cat([torch.randn(shape, generator=each) for each in draws]).to(device)
        * scheduler.init_noise_sigma
    )
    strengths = torch.tensor([strength for _, strength in rows], device=device)
    doubled = torch.cat([strengths, strengths])
    with (
        DeepCache(unet, request.steps) if request.fast else contextlib.nullcontext() as fast,
        adapter.at(doubled) if adapter else contextlib.nullcontext(),
    ):
        for step, timestep in enumerate(scheduler.timesteps, start=1):
            if fast and adapter and not fast.is_guided(step):
                adapter.strength.value = strengths
            answer = _answer(unet, fast, step, scheduler, latents, timestep, text, time_ids, request.guidance)
            stepped = scheduler.step(answer, timestep, latents, **noise)
            latents = stepped.prev_sample
            expected = stepped.get("pred_original_sample")
            report(step, latents if expected is None else expected)
    return latents


def scheduler_for(sampler: str, euler: Any) -> Any:
    """The scheduler of a sampler with the noise levels and the kind of prediction of a base's Euler."""
    solver = SAMPLERS[sampler]
    if type(euler).__name__ == solver.scheduler and not solver.options:
        return euler
    return getattr(diffusers, solver.scheduler).from_config(euler.config, **solver.options)


def _answer(unet, fast, step, scheduler, latents, timestep, text, time_ids, guidance) -> torch.Tensor:
    """The guided prediction for each row, fp32."""
    if fast and not fast.is_guided(step):
        alone, half = scheduler.scale_model_input(latents, timestep).to(text.text_NTD.dtype), len(latents)
        return fast(alone, timestep, text.rows(slice(half, None)), time_ids[half:]).float()
    doubled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep).to(text.text_NTD.dtype)
    if fast:
        answer = fast(doubled, timestep, text, time_ids)
    else:
        answer = predict(unet, doubled, timestep, text, time_ids)
    empty, prompted = answer.float().chunk(2)
    return empty + guidance * (prompted - empty)


def _generator(seed: int, prompt_index: int) -> torch.Generator:
    """On the CPU, so that a seed draws the same picture on every device."""
    return torch.Generator().manual_seed(seed + prompt_index)
