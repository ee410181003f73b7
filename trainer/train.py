"""The recipe: a run directory becomes a LoRA file. Read it from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import dropout_settings, layer_specs, parameter_groups, text_parameters
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError, NotFiniteError
from trainer.hardware.activation_checkpointing import enable_activation_checkpointing
from trainer.hardware.compile import compile_blocks, should_compile
from trainer.hardware.device import describe, find_device
from trainer.hardware.memory_watch import SpillWatch
from trainer.hardware.precision import precision_for
from trainer.lora_file.attach import start_from
from trainer.lora_file.metadata import Training, metadata, thumbnail
from trainer.lora_file.writer import save_lora
from trainer.planning.budget import give_back_memory, peak_bytes
from trainer.planning.plan import config_of_earlier_run, encoding_tile_of_earlier_run
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run, remove_temporary_files
from trainer.sdxl.base import open_base
from trainer.sdxl.text import Conditioning
from trainer.sdxl.unet import predict
from trainer.training import checkpoint as state
from trainer.training.batches import Batches
from trainer.training.caching import cache_latents, cache_text, cache_validation_latents
from trainer.training.ema import EmaWeights
from trainer.training.examples import resolution_of
from trainer.training.feature_cache import FeatureCache
from trainer.training.live_preview import LivePreview
from trainer.training.metrics import DeferredMetrics, to_device, zero_grads_unless_finite
from trainer.training.noise import position_seed
from trainer.training.objective import objective_of
from trainer.training.optim import build_optimizer, learning_rate_factor, set_learning_rates
from trainer.training.preflight import plan_training
from trainer.training.prior_preservation import replace_targets_with_base
from trainer.training.samples import TrainingSamples, sample_configs, sample_is_due, sample_prompts_of
from trainer.training.text_conditioning import (
    MAX_CACHED_PROMPTS,
    TextConditioner,
    caption_encoding,
    sample_encoding,
    training_captions,
)
from trainer.training.trackers import start_tracker, tracker_options
from trainer.training.validation import Validation, save_step
from trainer.training.verify_saved import verify_saved
from trainer.version import __version__

TEXT_STAYS = f"captions will be drawn in more than {MAX_CACHED_PROMPTS} ways, so the text encoders stay in memory and read them step by step"


def train(run: Run, models: Path, commands_offset: int | None = None) -> str:
    """Trains a run to its end, or until it is told to stop: "finished" or "stopped".

    Goes on from the newest checkpoint when there is one. The same seed on the same machine gives the same bytes,
    interrupted or not: batches, noise and dropout of a step are drawn from the seed and the step's number alone.
    Under `torchrun` every process calls it; only the first one's run speaks and writes.

    Args:
        commands_offset: byte offset in `commands.jsonl`; commands before it are ignored. None: the current end.
    """
    config, manifest = run.config, run.manifest
    started = time.time()
    stop = CommandInbox(run, commands_offset)
    if run.is_main_process:
        remove_temporary_files(run)
    run.emit("started", version=__version__)

    # 1 The base, frozen.
    device = find_device()
    base = open_base(config.base, models)
    dtype = precision_for(config.precision, device, base.configs, run.path.parent / ".cache")
    mixed = "fp16" if dtype == torch.float16 else "no"
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision=mixed, **tracker_options(config, run.path)
    )
    start_tracker(accelerator, config)
    run.emit("stage", stage="opening the base", device=describe(device))
    objective = objective_of(config, base)
    planned = plan_training(config_of_earlier_run(run), manifest, base, device, run.path.parent / ".cache")
    chosen = planned.options.chosen(config)
    run.emit("planned", words=planned.summary(), **planned.event_fields())
    trains_text = config.train_text_encoder_1 or config.train_text_encoder_2
    text_stops = math.floor(config.text_encoder_stop * config.steps) if trains_text else config.steps

    # 2 What frozen parts say of pictures and captions, from the cache on disk; then they leave memory.
    cache = FeatureCache(
        run.path.parent / ".cache",
        base.fingerprint,
        encoding_tile_of_earlier_run(run) or planned.options.encoding_tile,
    )
    pictures = cache_latents(run, manifest.training_items, config, base, cache, device, stop)
    batches = Batches(pictures.items, pictures.buckets, config.batch, config.seed)
    captions = CaptionRules(config)
    samples = sample_configs(config, manifest, base)
    set_aside = cache_validation_latents(run, manifest, config, base, cache, device, stop)
    aside_captions = [captions.fixed(item) for item in set_aside.items]
    reading = sample_encoding(config, sample_prompts_of(samples), base.tokenizers()[0])
    text: dict[str, Conditioning] = {}
    sample_text: dict[str, Conditioning] = {}
    drawable: set[str] | None = set()
    if not trains_text and pictures.items:
        drawable = training_captions(
            captions, batches, config.steps * config.accumulation * accelerator.num_processes
        )
        text = cache_text(
            run, {*(drawable or ()), *aside_captions, ""}, caption_encoding(config), base, cache, device, stop
        )
        sample_text = cache_text(run, sample_prompts_of(samples), reading, base, cache, device, stop)
    if drawable is None:
        run.emit("problem", message=TEXT_STAYS)
    if told_to_stop(accelerator, stop):
        return "stopped"  # the caches keep what was done

    # 3 The adapter: thin matrices beside each layer that learns, one of them zero.
    give_back_memory()
    unet = base.unet(device, dtype, chosen.quantised_base).to(memory_format=torch.channels_last)
    reads_text = trains_text or drawable is None
    encoders: Any = base.text_encoders(device, torch.float32) if reads_text else None
    tokenizers = base.tokenizers() if reads_text else None
    texts = TextConditioner(text, encoders, tokenizers, caption_encoding(config), are_trained=trains_text)
    sample_texts_of = TextConditioner(sample_text, encoders, tokenizers, reading, are_trained=trains_text)
    adapter = Adapter(dropout_settings(config))
    models_of = {
        "unet": unet,
        **({"text_encoder": encoders[0], "text_encoder_2": encoders[1]} if trains_text else {}),
    }
    for part, sizes in layer_specs(config, models_of).items():
        adapter.attach(part, models_of[part], sizes)
    adapter.init_weights(config.seed)
    if config.start_from and (Path(config.start_from).exists() or not state.checkpoints(run)):
        left_out = start_from(Path(config.start_from), adapter)
        if left_out:
            run.emit("problem", message=left_out)
    enable_activation_checkpointing(unet, chosen.gradient_checkpointing)
    if should_compile(chosen, unet):
        compile_blocks(unet, run.path.parent / ".cache" / "compiled")

    # 4 Optimizer.
    groups = parameter_groups(chosen, adapter)
    group_rates = [group["lr"] for group in groups]
    optimizer: Any = build_optimizer(chosen, groups, device)
    if accelerator.scaler is not None or accelerator.num_processes > 1:
        optimizer = accelerator.prepare_optimizer(optimizer)

    # 5 Resume.
    plain_optimizer = getattr(optimizer, "optimizer", optimizer)
    average = EmaWeights(adapter, plain_optimizer, config.ema_decay)
    first, damaged = state.load_newest(run, adapter, plain_optimizer, average, accelerator.scaler)
    for name in damaged:
        run.emit("problem", message=f"checkpoint {name} is damaged and was passed over")
    if first:
        run.emit("stage", stage="resuming", done=first, total=config.steps)
    sampler = TrainingSamples(
        run, config, base, samples, unet, adapter, sample_texts_of, planned.options.sampling_limits
    )
    between = LivePreview(sampler, stop, average)
    validation = Validation(run, set_aside, aside_captions, objective, texts, unet, adapter, first)

    keeper = state.CheckpointWriter(run, config.keep_checkpoints)

    def keep(step: int) -> None:
        spare = validation.best_step  # whatever its age
        keeper.write(state.snapshot(step, adapter, plain_optimizer, average, accelerator.scaler), spare=spare)

    if first == 0 and run.is_main_process:
        if config.sample_at_start:
            sampler.at_step(0)
        if validation.is_on:
            validation.measure(0)

    # 6 The loop.
    vectors = adapter.vectors()
    adapter.zero_grad()
    progress, spill = DeferredMetrics(device, first, config.steps), SpillWatch(device)
    step, stopped = first, False
    while step < config.steps:
        if told_to_stop(accelerator, stop):
            stopped = True
            break
        between.answer()
        set_learning_rates(optimizer, group_rates, learning_rate_factor(config, step))
        loss_sum = torch.zeros((), device=device)
        for micro in range(config.accumulation):
            # Each process takes its own batch of the same order.
            position = (
                step * config.accumulation + micro
            ) * accelerator.num_processes + accelerator.process_index
            batch = pictures.draw(batches.at(position), config.seed, position)
            draw_from = torch.Generator().manual_seed(position_seed(config.seed, position))
            adapter.dropout.batch_seed = (config.seed << 32) + position
            latents = batch.latents(draw_from)
            noise_NCHW = objective.noise(latents.shape, draw_from)
            timesteps = objective.timesteps(len(batch.shown), draw_from)
            dropped = torch.rand(len(batch.shown), generator=draw_from) < config.caption_dropout
            drawn = captions.at(batch.items, position)
            base_prior = [keeps_base for _, keeps_base in drawn]
            prompts = [
                "" if drop and not keeps else prompt
                for (prompt, keeps), drop in zip(drawn, dropped.tolist(), strict=True)
            ]
            wanted = (texts.of(prompts) if step < text_stops else texts.settled(prompts)).to(device, dtype)

            noisy = to_device(objective.noisy(latents, noise_NCHW, timesteps, draw_from), device, dtype)
            answer = to_device(objective.target(latents, noise_NCHW, timesteps), device)
            weights = to_device(
                objective.weight(timesteps) * batch.weights(base_prior, config.prior_weight), device
            )
            mask = batch.masks(base_prior)
            time_ids = to_device(batch.time_ids(), device, dtype)
            answer = replace_targets_with_base(
                answer,
                base_prior,
                prompts,
                unet=unet,
                adapter=adapter,
                texts=texts,
                noisy_NCHW=noisy,
                timestep_N=timesteps,
                time_ids=time_ids,
            )

            predicted = predict(unet, noisy, to_device(timesteps, device), wanted, time_ids)
            error_N = objective.error(
                predicted.float(), answer, timesteps, None if mask is None else to_device(mask, device)
            )
            # A bucket's last batch may be smaller: its pictures count as much as all others.
            loss = (weights * error_N).sum() / (config.batch * config.accumulation)
            accelerator.backward(loss)
            loss_sum += loss.detach()
        average_over_processes(accelerator, vectors)
        norm = accelerator.clip_grad_norm_(vectors, config.max_grad_norm or math.inf)
        norm = (
            norm if accelerator.scaler is None else None
        )  # a step that overflows in fp16 is left out by the scaler
        progress.add(
            step + 1, loss=loss_sum, norm=norm, rate=optimizer.param_groups[0]["lr"], names=batch.names
        )
        told = []
        if progress.is_due or step + 1 == config.steps or (step + 1) % config.checkpoint_every == 0:
            try:
                told = progress.read()
            except NotFiniteError:
                keep_good_weights(run, step, first, adapter, keep)
                keeper.settle()
                raise
        elif norm is not None:
            zero_grads_unless_finite(vectors, norm)
        if step >= text_stops:  # neither decay nor momentum moves what has no gradient
            for parameter in text_parameters(adapter, groups):
                parameter.grad = None
        optimizer.step()
        adapter.mark_dirty()
        if config.scale_weight_norms:
            adapter.limit_norms(config.scale_weight_norms)
        adapter.zero_grad()
        average.step()
        step += 1

        for facts, seconds in told:
            slow = spill.check(seconds)
            if slow:
                run.emit("problem", message=slow)
            run.emit("step", **facts)
            accelerator.log(
                {"loss": facts["loss"], "learning_rate": facts["learning_rate"]}, step=facts["step"]
            )
        if (
            run.is_main_process
            and validation.is_on
            and (step % config.validation_every == 0 or step == config.steps)
        ):
            with average.shown():
                validation.measure(step)
            accelerator.log({"validation_loss": validation.curve[step]}, step=step)
        if run.is_main_process and (
            step % config.checkpoint_every == 0 or step in (config.steps, validation.best_step)
        ):
            keep(step)
        batches_seen = (config.accumulation * accelerator.num_processes * done for done in (step - 1, step))
        if (
            run.is_main_process
            and step < config.steps
            and sample_is_due(config, step, *(seen // batches.per_epoch for seen in batches_seen))
        ):
            with average.shown():
                sampler.at_step(step)

    if not run.is_main_process:
        return "stopped" if stopped else "finished"
    if stopped and step > 0 and step % config.checkpoint_every:
        keep(step)
    keeper.close()
    if stopped and (stop.stopped_by_signal or step == 0):
        return "stopped"  # told by the system: leave at once, `resume` goes on

    # 7 The file, its check, then the word that it is there; pictures come after, so that they can't cost the file.
    run.emit("stage", stage="saving")
    average.settle()
    training = Training(
        base_name=base.name,
        prediction_type=objective.prediction_type,
        zero_terminal_snr=objective.zero_terminal_snr,
        resolution=resolution_of(config, base),
        precision=str(dtype).removeprefix("torch."),
        gradient_checkpointing=chosen.gradient_checkpointing != "none",
        started=started,
        finished=time.time(),
        steps=step,
        pictures=sum(item.repeats for item in pictures.items if item.role == "train")
        // max(1, len(config.resolutions)),
        epochs=-(-step * config.accumulation // batches.per_epoch),
        batches_per_epoch=batches.per_epoch,
        bucket_counts=pictures.bucket_counts(),
    )
    facts = metadata(chosen, manifest, training)
    if config.thumbnail == "picture":
        with contextlib.suppress(DatasetError):  # moved away since the start: no reason to lose the file
            facts["modelspec.thumbnail"] = thumbnail(open_picture(Path(pictures.items[0].path)))
    save_lora(run.lora_file, adapter, facts, format=config.format)
    run.emit("saved", sync=True, file=run.lora_file.name, step=step)
    if validation.is_on:
        advice = validation.advice(step)
        if advice["step"] != step:
            save_step(run, advice["step"], adapter, facts, form=config.format)
        run.emit("advice", sync=True, **advice)
    plain_optimizer.state.clear()  # its moments leave memory before pictures need it
    give_back_memory()
    run.emit("checked", sync=True, **verify_saved(run, sampler, models_of))
    give_back_memory()
    run.emit("strip", pictures=sampler.at_end())
    run.emit("memory", peak=peak_bytes(device), planned=planned.peak)
    return "stopped" if stopped else "finished"


def told_to_stop(accelerator: Accelerator, stop: CommandInbox) -> bool:
    """Whether any process has heard it: all leave at the same step."""
    asked = stop.stop_requested()
    if accelerator.num_processes == 1:
        return asked
    heard = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(heard, reduction="sum") > 0)  # pyright: ignore


def average_over_processes(accelerator: Accelerator, vectors: list[torch.nn.Parameter]) -> None:
    if accelerator.num_processes > 1:
        for vector in vectors:
            assert vector.grad is not None
            vector.grad.copy_(accelerator.reduce(vector.grad, reduction="mean"))  # pyright: ignore


def keep_good_weights(
    run: Run, step: int, first: int, adapter: Adapter, keep: Callable[[int], object]
) -> None:
    """Before a failure is told: a checkpoint of the last step whose loss was a number."""
    finite = all(bool(torch.isfinite(vector).all()) for vector in adapter.vectors())
    if run.is_main_process and finite and step > first:
        keep(step)
