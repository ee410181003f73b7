"""The recipe: a run directory becomes a LoRA file. Read it from top to bottom."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainer import noise, state
from trainer.adapter.lora import Adapter
from trainer.adapter.targets import linear_paths, part_rates, part_sizes
from trainer.batches import Batches
from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest
from trainer.dataset.pictures import open_picture
from trainer.device import describe, dtype_of, find_device
from trainer.draw import Request, conditioner, draw, file_name, save_picture, save_strip
from trainer.errors import DatasetError, NotFiniteError
from trainer.lora_file.metadata import Training, metadata, thumbnail
from trainer.lora_file.save import save_lora
from trainer.optim import build_optimizer, rate_factor, set_rate
from trainer.prepare import cache_latents, cache_text, resolution_of
from trainer.run import Run, sweep
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.text import Conditioning, encode
from trainer.stop import StopSignal

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def train(run: Run, models: Path, heard: int | None = None) -> str:
    """Trains a run to its end, or until it is told to stop: "finished" or "stopped".

    Goes on from the newest checkpoint when there is one. The same seed on the same machine gives the same bytes,
    interrupted or not: batches, noise and dropout of a step are drawn from the seed and the step's number alone.
    Under `torchrun` every process calls it; only the first one's run speaks and writes.

    Args:
        heard: how far into `commands.jsonl` an earlier process has read; what is said after it counts.
    """
    config, manifest = run.config, run.manifest
    started = time.time()
    stop = StopSignal(run, heard)
    if run.speaks:
        sweep(run)
    run.say("started")

    # 1 The base, frozen.
    device = find_device()
    dtype = dtype_of(config.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="fp16" if dtype == torch.float16 else "no")
    base = open_base(config.base, models)
    run.say("stage", stage="opening the base", device=describe(device))
    alphas = base.scheduler().alphas_cumprod
    trains_text = config.train_text_encoder_1 or config.train_text_encoder_2

    # 2 What frozen parts say of pictures and captions, from the cache on disk; then they leave memory.
    cache = Cache(run.path.parent / ".cache", base.fingerprint)
    pictures = cache_latents(run, manifest, config, base, cache, device, stop)
    samples = sample_prompts(config, manifest)
    captions = sorted({item.caption for item in pictures.items} | set(samples) | {""})
    text: dict[str, Conditioning] = {}
    if not trains_text:
        text = cache_text(run, captions, base, cache, device, stop)
    if told_to_stop(accelerator, stop):
        return "stopped"  # the caches keep what was done

    # 3 The adapter: two thin matrices beside each attention layer, B = 0.
    unet = base.unet(device, dtype)
    encoders: Any = base.text_encoders(device, torch.float32) if trains_text else None
    tokenizers = base.tokenizers() if trains_text else None
    adapter = Adapter()
    models_of = {"unet": unet, **({"text_encoder": encoders[0], "text_encoder_2": encoders[1]} if encoders else {})}
    for part, size in part_sizes(config).items():
        paths = linear_paths(part, models_of[part], feed_forward=config.train_feed_forward)
        adapter.attach(part, models_of[part], dict.fromkeys(paths, size))
    adapter.start(config.seed)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # SDXL has no dropout; diffusers recomputes only in this mode

    # 4 Optimizer.
    rates = part_rates(config)
    groups = [{"params": adapter.parameters(part), "lr": rates[part]} for part in sorted(adapter.layers)]
    group_rates = [group["lr"] for group in groups]
    optimizer: Any = build_optimizer(config, groups, device)
    if accelerator.scaler is not None or accelerator.num_processes > 1:
        optimizer = accelerator.prepare_optimizer(optimizer)

    # 5 Resume.
    first, damaged = state.load_newest(run, adapter, getattr(optimizer, "optimizer", optimizer))
    for name in damaged:
        run.say("problem", message=f"checkpoint {name} is damaged and was passed over")
    if first:
        run.say("stage", stage="resuming", done=first, total=config.steps)

    # 6 The loop.
    batches = Batches(pictures.items, pictures.buckets, config.batch, config.seed)
    parameters = adapter.parameters()
    clock = time.monotonic()
    step, stopped = first, False
    while step < config.steps:
        if told_to_stop(accelerator, stop):
            stopped = True
            break
        set_rate(optimizer, group_rates, rate_factor(config, step))
        loss_sum = 0.0
        for micro in range(config.accumulation):
            # Each process takes its own batch of the same order.
            position = (step * config.accumulation + micro) * accelerator.num_processes + accelerator.process_index
            rows = batches.at(position)
            draw_from = torch.Generator().manual_seed((config.seed << 32) + position)
            latents = pictures.latents(rows, draw_from)
            noise_NCHW = noise.draw_noise(latents.shape, config.noise_offset, draw_from)
            timesteps = torch.randint(len(alphas), (len(rows),), generator=draw_from)
            dropped = torch.rand(len(rows), generator=draw_from) < config.caption_dropout
            prompts = ["" if drop else pictures.items[row].caption for row, drop in zip(rows, dropped, strict=True)]
            if encoders and tokenizers:
                wanted = encode(prompts, tokenizers, encoders)
            else:
                wanted = Conditioning.stack([text[prompt] for prompt in prompts])
            wanted = wanted.to(device, dtype)

            noisy = noise.add_noise(latents, noise_NCHW, timesteps, alphas).to(device, dtype)
            answer = noise.target(base.prediction_type, latents, noise_NCHW, timesteps, alphas).to(device)
            weights = noise.loss_weight(base.prediction_type, timesteps, alphas, config.min_snr_gamma)
            weights = (weights * torch.tensor([pictures.items[row].weight for row in rows])).to(device)

            added = {"text_embeds": wanted.pooled_NP, "time_ids": pictures.time_ids(rows).to(device, dtype)}
            predicted = unet(noisy, timesteps.to(device), wanted.text_NTD, added_cond_kwargs=added).sample
            error_N = (predicted.float() - answer).square().mean(dim=(1, 2, 3))
            # A bucket's last batch may be smaller: its pictures count as much as all others.
            loss = (weights * error_N).sum() / (config.batch * config.accumulation)
            loss_value = loss.item()
            if not torch.isfinite(loss.detach()):
                save_good_weights(run, step, adapter, optimizer, config, first)
                raise NotFiniteError(step + 1, [pictures.items[row].name for row in rows])
            accelerator.backward(loss)
            loss_sum += loss_value
        average_over_processes(accelerator, parameters)
        norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        if accelerator.scaler is None and norm is not None and not torch.isfinite(norm):
            save_good_weights(run, step, adapter, optimizer, config, first)
            raise NotFiniteError(step + 1, [pictures.items[row].name for row in rows])
        optimizer.step()
        optimizer.zero_grad()
        step += 1

        seconds = time.monotonic() - clock
        left = seconds / (step - first) * (config.steps - step)
        rate = optimizer.param_groups[0]["lr"]
        run.say("step", step=step, steps=config.steps, loss=loss_sum, learning_rate=rate, seconds_left=round(left, 1))
        if run.speaks and (step % config.checkpoint_every == 0 or step == config.steps):
            state.save_checkpoint(run, step, adapter, getattr(optimizer, "optimizer", optimizer), keep=config.keep_checkpoints)
        if config.sample_every and step % config.sample_every == 0 and step < config.steps and run.speaks:
            draw_samples(run, config, base, samples, step, unet, adapter, text, encoders, tokenizers, device)

    if not run.speaks:
        return "stopped" if stopped else "finished"
    if stopped and step > 0 and step % config.checkpoint_every:
        state.save_checkpoint(run, step, adapter, getattr(optimizer, "optimizer", optimizer), keep=config.keep_checkpoints)
    if stopped and (stop.by_signal or step == 0):
        return "stopped"  # told by the system: leave at once, `resume` goes on

    # 7 The file, its check, then the word that it is there; pictures come after, so that they can't cost the file.
    run.say("stage", stage="saving")
    training = Training(
        base_name=base.name, prediction_type=base.prediction_type, resolution=resolution_of(config, base),
        precision=str(dtype).removeprefix("torch."), started=started, finished=time.time(), steps=step,
        pictures=sum(item.repeats for item in pictures.items),
        epochs=-(-step * config.accumulation // batches.per_epoch), batches_per_epoch=batches.per_epoch,
        bucket_counts=pictures.bucket_counts(),
    )  # fmt: skip
    facts = metadata(config, manifest, training)
    if config.thumbnail == "picture":
        with contextlib.suppress(DatasetError):  # moved away since the start: no reason to lose the file
            facts["modelspec.thumbnail"] = thumbnail(open_picture(Path(pictures.items[0].path)))
    save_lora(run.lora_file, adapter, facts, format=config.format)
    run.say("saved", sync=True, file=run.lora_file.name, step=step)
    del optimizer, groups
    gc.collect()
    drawn = draw_samples(run, config, base, samples, None, unet, adapter, text, encoders, tokenizers, device)
    run.say("strip", pictures=drawn)
    return "stopped" if stopped else "finished"


def sample_prompts(config: TrainConfig, manifest: Manifest) -> tuple[str, ...]:
    """The user's, or four captions spread over the set."""
    if config.sample_prompts:
        return config.sample_prompts
    captions = list(dict.fromkeys(item.caption for item in manifest.items))
    return tuple(captions[:: max(1, len(captions) // 4)][:4])


def draw_samples(
    run: Run, config: TrainConfig, base: Base, prompts: tuple[str, ...], step: int | None,
    unet: Any, adapter: Adapter, text: dict[str, Conditioning], encoders: Any, tokenizers: Any, device: torch.device,
) -> list[dict[str, Any]]:  # fmt: skip
    """Pictures of a step at strength 1, or (step None) the final strip. Returns their facts for the page.

    Pictures never cost the training: when memory or disk does not suffice for them, that is told and it goes on.
    """
    final = step is None
    request = Request(prompts=prompts, strengths=STRENGTHS if final else (1.0,), seed=config.seed, steps=config.sample_steps)
    run.say("stage", stage="drawing")
    unet.eval()

    def encode_one(prompt: str) -> Conditioning:
        return encode([prompt], tokenizers, encoders)

    facts = []
    try:
        drawn = draw(
            request, unet=unet, vae=base.vae(device), scheduler=base.scheduler(), adapter=adapter,
            conditioning=conditioner(text, encode_one, adapter, changes_text=bool(encoders), zeros_for_empty=base.zeros_for_empty_prompt),
            size=(base.native_size, base.native_size), latent_factor=base.latent_factor,
        )  # fmt: skip
        for cell in drawn:
            name = file_name(cell) if final else f"step-{step:06d}_{file_name(cell)}"
            save_picture(cell, request, run.samples / name, base=base.name, lora=config.name)
            facts.append({"file": name, "prompt": prompts[cell.prompt_index], "strength": cell.strength, "made": time.time_ns()})
            if not final:
                run.say("sample", step=step, **facts[-1])
        if final:
            save_strip(drawn, request, run.samples)
    except (OSError, torch.OutOfMemoryError) as error:
        lacked = "memory" if isinstance(error, torch.OutOfMemoryError) else "disk"
        run.say("problem", message=f"the {lacked} did not suffice to draw pictures {'of the end' if final else f'at step {step}'}")
        facts = []
    finally:
        if config.gradient_checkpointing:
            unet.train()
    return facts


def told_to_stop(accelerator: Accelerator, stop: StopSignal) -> bool:
    """Whether any process has heard it: all leave at the same step."""
    asked = stop.asked()
    if accelerator.num_processes == 1:
        return asked
    heard = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(heard, reduction="sum") > 0)  # pyright: ignore


def average_over_processes(accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> None:
    if accelerator.num_processes > 1:
        for parameter in parameters:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")  # pyright: ignore


def save_good_weights(run: Run, step: int, adapter: Adapter, optimizer: Any, config: TrainConfig, first: int) -> None:
    """Before a failure is told: the weights of the last step whose loss was a number."""
    finite = all(bool(torch.isfinite(p).all()) for p in adapter.parameters())
    if run.speaks and finite and step > first:
        state.save_checkpoint(run, step, adapter, getattr(optimizer, "optimizer", optimizer), keep=config.keep_checkpoints)
