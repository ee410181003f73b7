"""The end of a training: its LoRA file, advice, the check of the file, and sample images at all strengths."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError
from trainer.lora_file.metadata import Training, metadata, thumbnail
from trainer.lora_file.writer import save_lora
from trainer.planning.budget import give_back_memory
from trainer.runs.run import Run
from trainer.training.examples import resolution_of
from trainer.training.samples import TrainingSamples
from trainer.training.setup import Setup
from trainer.training.validation import Validation, save_step
from trainer.training.verify_saved import verify_saved


def file_metadata(
    setup: Setup, chosen: TrainConfig, manifest: Manifest, step: int, started: float
) -> dict[str, str]:
    """Returns the metadata of the LoRA file after `step` steps.

    Args:
        chosen: the config with the memory plan's choices.
        started: seconds since 1970.
    """
    config, base, objective = setup.config, setup.base, setup.objective
    items, per_epoch = setup.dataset.items, setup.batches.per_epoch
    images = sum(item.repeats for item in items if item.role == "train") // max(1, len(config.resolutions))
    training = Training(
        base_name=base.name,
        prediction_type=objective.prediction_type,
        zero_terminal_snr=objective.zero_terminal_snr,
        resolution=resolution_of(config, base),
        precision=str(setup.dtype).removeprefix("torch."),
        gradient_checkpointing=chosen.gradient_checkpointing != "none",
        started=started,
        finished=time.time(),
        steps=step,
        pictures=images,
        epochs=-(-step * config.accumulation // per_epoch),
        batches_per_epoch=per_epoch,
        bucket_counts=setup.dataset.bucket_counts(),
    )
    fields = metadata(chosen, manifest, training)
    if config.thumbnail == "picture":
        # An image that was moved away since the start must not cost the file.
        with contextlib.suppress(DatasetError):
            fields["modelspec.thumbnail"] = thumbnail(open_picture(Path(items[0].path)))
    return fields


def finish(
    run: Run,
    setup: Setup,
    parts: dict[str, nn.Module],
    samples: TrainingSamples,
    validation: Validation,
    optimizer: torch.optim.Optimizer,
    fields: dict[str, str],
) -> None:
    """Saves and checks the LoRA file with the adapter's weights, then generates the last sample images.

    The `saved` event follows the complete file, and everything that may fail follows that event.

    Args:
        parts: the models that the adapter is attached to.
        optimizer: emptied, since the images need the memory of its moments.
        fields: metadata of the file.
    """
    step = int(fields["ss_steps"])
    run.emit("stage", stage="saving")
    save_lora(run.lora_file, setup.adapter, fields, format=setup.config.format)
    run.emit("saved", sync=True, file=run.lora_file.name, step=step)
    if validation.is_on:
        advice = validation.advice(step)
        if advice["step"] != step:
            save_step(run, advice["step"], setup.adapter, fields)
        run.emit("advice", sync=True, **advice)
    optimizer.state.clear()
    give_back_memory()
    run.emit("checked", sync=True, **verify_saved(run, samples, parts))
    give_back_memory()
    run.emit("strip", pictures=samples.at_end())
