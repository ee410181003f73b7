"""The recipe: a run directory becomes a LoRA file. `train` reads from top to bottom."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from trainer import __version__
from trainer.adapter.targets import parameter_groups, text_parameters
from trainer.dataset.caption_rules import CaptionRules
from trainer.hardware.device import describe, find_device
from trainer.hardware.precision import precision_for
from trainer.planning.budget import give_back_memory, peak_bytes
from trainer.planning.plan import config_of_earlier_run, encoding_tile_of_earlier_run
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run, remove_temporary_files
from trainer.sdxl.base import open_base
from trainer.sdxl.unet import predict
from trainer.training import caching, checkpoint, metrics, models, optim, preflight, processes
from trainer.training.ema import EmaWeights
from trainer.training.examples import Batch
from trainer.training.finish import Circumstances, base_hashes, file_metadata, finish
from trainer.training.live_preview import LivePreview
from trainer.training.objective import objective_of
from trainer.training.prior_preservation import NoisyBatch, replace_targets_with_base
from trainer.training.samples import TrainingSamples, sample_configs
from trainer.training.setup import Setup
from trainer.training.validation import Validation


def train(run: Run, models_folder: Path, commands_offset: int | None = None) -> str:
    """Trains a run to its end, or until a stop command; returns "finished" or "stopped".

    Continues from the newest checkpoint where there is one. The same seed on the same machine gives the same
    bytes, interrupted or not: batches, noise and dropout depend on the seed and the step's number alone.
    Under `torchrun` every process calls this function; only the first one writes files and events. Commands
    before `commands_offset`, in bytes (None: the end of commands.jsonl), are ignored. Raises TrainerError.
    """
    config, manifest, started = run.config, run.manifest, time.time()
    cache_folder = run.path.parent / ".cache"
    inbox = CommandInbox(run, commands_offset)
    if run.is_main_process:
        remove_temporary_files(run)
    run.emit("started", version=__version__)

    # 1 The base model, frozen, and a plan that fits into memory.
    device = find_device()
    base = open_base(config.base, models_folder)
    dtype = precision_for(config.precision, device, base.configs, cache_folder)
    accelerator = processes.open_accelerator(config, run.path, device, dtype)
    run.emit("stage", stage="opening the base", device=describe(device))
    hashes = base_hashes(run, base, cache_folder)
    objective = objective_of(config, base)
    plan = preflight.plan_training(config_of_earlier_run(run), manifest, base, device, cache_folder)
    chosen = plan.options.chosen(config)
    run.emit("planned", words=plan.summary(), **plan.event_fields())
    for notice in preflight.setting_notices(config, device):
        run.emit("problem", message=notice)

    # 2 Caches: latents of images, embeddings of captions. The VAE and the text encoders then leave memory.
    tile = encoding_tile_of_earlier_run(run) or plan.options.encoding_tile
    extractor = caching.feature_extractor(run, base, device, inbox, tile)
    dataset = extractor.latents(manifest.training_items)
    batches = dataset.batches(config.batch, config.seed)
    samplings = sample_configs(config, manifest, base)
    validation_dataset = extractor.validation_latents(manifest.validation_items)
    captions = CaptionRules(config)
    batches_per_step = config.accumulation * accelerator.num_processes
    used = caching.UsedCaptions(captions, batches, config.steps * batches_per_step, validation_dataset)
    conditioner, sample_conditioner = caching.prepare_text(extractor, used, samplings)
    if processes.stop_requested(accelerator, inbox):
        return "stopped"  # the next start finds in the caches what is done

    # 3 The adapter: low-rank matrices beside each trained layer, one of each pair zero.
    give_back_memory()
    unet = base.unet(device, dtype, chosen.quantised_base).to(memory_format=torch.channels_last)
    parts = {"unet": unet, **conditioner.trained_encoders()}
    adapter = models.attach_adapter(run, parts)
    models.prepare_unet(unet, chosen, cache_folder)

    # 4 The optimizer.
    groups = parameter_groups(chosen, adapter)
    learning_rates = [group["lr"] for group in groups]
    optimizer = optim.build_optimizer(chosen, groups, device)
    stepper = processes.prepare_optimizer(accelerator, optimizer)
    text_stop = optim.text_encoder_stop(config)

    # 5 Resume.
    ema = EmaWeights(adapter, optimizer, config.ema_decay)
    state = checkpoint.TrainingState(adapter, optimizer, ema, accelerator.scaler)
    first_step = checkpoint.resume(run, state)
    setup = Setup(config, base, objective, dataset, batches, captions, conditioner, unet, adapter, dtype)
    samples = TrainingSamples(run, setup, samplings, sample_conditioner, plan.options.sampling_limits)
    live_preview = LivePreview(samples, inbox, ema)
    validation = Validation(run, setup, validation_dataset, first_step)
    writer = checkpoint.CheckpointWriter(run, state, config.keep_checkpoints)
    if first_step == 0 and run.is_main_process:
        if config.sample_at_start:
            samples.at_step(0)
        if validation.is_on:
            validation.measure(0)

    # 6 The loop.
    deferred = metrics.DeferredMetrics(device, first_step, config.steps)
    reporter = metrics.StepReporter(run, accelerator)
    vectors = adapter.vectors()
    adapter.zero_grad()
    step, stopped = first_step, False
    while step < config.steps and not (stopped := processes.stop_requested(accelerator, inbox)):
        live_preview.serve_requests()
        optim.set_learning_rates(stepper, learning_rates, optim.learning_rate_factor(config, step))
        loss, names, rows = torch.zeros((), device=device), [""], 0
        for micro_step in range(config.accumulation):
            position = processes.batch_position(accelerator, step * config.accumulation + micro_step)
            batch = dataset.batch(batches.at(position), config.seed, position)
            micro_loss = training_step(setup, batch, position, text_is_frozen=step >= text_stop)
            accelerator.backward(micro_loss)
            loss, names, rows = loss + micro_loss.detach(), batch.names, rows + len(batch.names)
        norm = processes.average_and_clip_gradients(accelerator, vectors, config.max_grad_norm)
        # The gradient is divided by full batches (`training_step`), the reported loss by the rows there are.
        mean_loss = loss * (config.batch * config.accumulation / rows)
        deferred.add(step + 1, mean_loss, norm, stepper.param_groups[0]["lr"], names)
        is_checkpoint = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps
        done: list[metrics.StepMetrics] = []
        if deferred.is_due or is_checkpoint:
            with writer.saved_on_divergence(step, validation.best_step):
                done = deferred.read()
        elif norm is not None:
            metrics.zero_grads_unless_finite(vectors, norm)
        if step >= text_stop:
            optim.freeze(text_parameters(adapter, groups))
        stepper.step()
        adapter.mark_dirty()
        if config.scale_weight_norms:
            adapter.limit_norms(config.scale_weight_norms)
        adapter.zero_grad()
        ema.step()
        step += 1
        reporter.emit(done)
        if not run.is_main_process:
            continue
        if validation.is_due(step):
            with ema.swapped_in():
                accelerator.log({"validation_loss": validation.measure(step)}, step=step)
        if is_checkpoint or step == validation.best_step:
            writer.write(step, always_keep=validation.best_step)
        if samples.is_due(step, batches_per_step):
            with ema.swapped_in():
                samples.at_step(step)

    outcome = "stopped" if stopped else "finished"
    if not run.is_main_process:
        return outcome
    if stopped and step % config.checkpoint_every:
        writer.write(step, always_keep=validation.best_step)
    writer.close()
    if stopped and (inbox.stopped_by_signal or step == 0):
        return outcome  # the system ends this process, so there is no time for the rest; `resume` continues

    # 7 The file, its check, then images: nothing that may fail comes before the file.
    ema.apply()
    circumstances = Circumstances(started, accelerator.num_processes, hashes)
    fields = file_metadata(setup, chosen, manifest, step, circumstances)
    finish(run, setup, parts, samples, validation, optimizer, fields)
    run.emit("memory", peak=peak_bytes(device), planned=plan.peak)
    return outcome


def training_step(setup: Setup, batch: Batch, position: int, *, text_is_frozen: bool) -> torch.Tensor:
    """Returns the loss of one batch, to be summed over the micro-steps of a step.

    The sum over the rows is divided by the full batch size, also where a bucket's last batch has fewer rows:
    each image then has the same weight in the gradients of an epoch, and not a larger one for its batch being
    small. A mean over the rows, as it is reported, would weigh the only row of a batch as much as a full one.
    Everything random comes from the seed and the batch's position in the training.

    Args:
        text_is_frozen: the text encoders are trained no more, so that each prompt is encoded only once.
    """
    config, objective, unet, dtype = setup.config, setup.objective, setup.unet, setup.dtype
    device = unet.device
    generator = setup.generator(position)
    setup.adapter.dropout.batch_seed = (config.seed << 32) + position

    latents = batch.latents(generator)
    noise = objective.noise(latents.shape, generator)
    timesteps = objective.timesteps(len(latents), generator)
    drops_caption = (torch.rand(len(latents), generator=generator) < config.caption_dropout).tolist()
    captions = setup.captions.at(batch.items, position)
    is_base_prior = [is_prior for _, is_prior in captions]
    prompts = [
        "" if drops and not is_prior else caption
        for (caption, is_prior), drops in zip(captions, drops_caption, strict=True)
    ]
    encode = setup.conditioner.frozen if text_is_frozen else setup.conditioner.encode
    conditioning = encode(prompts).to(device, dtype)

    noisy = NoisyBatch(
        metrics.to_device(objective.noisy(latents, noise, timesteps, generator), device, dtype),
        metrics.to_device(timesteps, device),
        metrics.to_device(batch.time_ids(), device, dtype),
        prompts,
    )
    target = metrics.to_device(objective.target(latents, noise, timesteps), device)
    target = replace_targets_with_base(target, is_base_prior, noisy, unet, setup.adapter, setup.conditioner)
    loss_weights = objective.weight(timesteps) * batch.weights(is_base_prior, config.prior_weight)
    mask = batch.masks(is_base_prior)

    prediction = predict(unet, noisy.noisy_latents_NCHW, noisy.timesteps_N, conditioning, noisy.time_ids_N6)
    if mask is not None:
        mask = metrics.to_device(mask, device)
    row_losses = objective.error(prediction.float(), target, timesteps, mask)
    weighted = metrics.to_device(loss_weights, device) * row_losses
    return weighted.sum() / (config.batch * config.accumulation)
