"""The end of a training: its LoRA file, advice, the check of the file, and sample images at all strengths."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError
from trainer.headers.model_hashes import HashesInBackground
from trainer.lora_file.dataset_metadata import BucketedImage
from trainer.lora_file.metadata import Training, metadata, thumbnail
from trainer.lora_file.writer import save_lora
from trainer.planning.budget import give_back_memory
from trainer.runs.run import Run
from trainer.sdxl.base import Base
from trainer.sdxl.weight_files import FileWeights
from trainer.training.examples import resolution_of
from trainer.training.samples import TrainingSamples
from trainer.training.setup import Setup
from trainer.training.validation import Validation, save_step
from trainer.training.verify_saved import verify_saved


@dataclass(frozen=True)
class Circumstances:
    """The circumstances of a training that its file records.

    Attributes:
        started: seconds since 1970.
        processes: number of processes that train together.
        hashes: of the base's files.
    """

    started: float
    processes: int
    hashes: HashesInBackground


def base_hashes(run: Run, base: Base, cache: Path) -> HashesInBackground:
    """Starts to compute the hashes of a single-file base and of a VAE beside it, in the process that writes.

    A diffusers folder has no hash.
    """
    files = {"base": base.path, "vae": _separate_vae(base)} if run.is_main_process else {}
    return HashesInBackground({name: path for name, path in files.items() if path and path.is_file()}, cache)


def _separate_vae(base: Base) -> Path | None:
    """The file of a VAE that is not in the base's own file, or None."""
    vae = base.weights.vae if isinstance(base.weights, FileWeights) else None
    return vae if vae and vae != base.path else None


def file_metadata(
    setup: Setup, chosen: TrainConfig, manifest: Manifest, step: int, circumstances: Circumstances
) -> dict[str, str]:
    """Returns the metadata of the LoRA file after `step` steps.

    Args:
        chosen: the config with the memory plan's choices.
    """
    config, base, objective = setup.config, setup.base, setup.objective
    items, vae = setup.dataset.items, _separate_vae(base)
    per_epoch = math.ceil(setup.batches.per_epoch / circumstances.processes)
    images = sum(item.repeats for item in items if item.role == "train") // max(1, len(config.resolutions))
    training = Training(
        base_file=base.path.name,
        vae_file=vae.name if vae else "",
        hashes=circumstances.hashes.result(),
        processes=circumstances.processes,
        prediction_type=objective.prediction_type,
        zero_terminal_snr=objective.zero_terminal_snr,
        resolution=resolution_of(config, base),
        precision=str(setup.dtype).removeprefix("torch."),
        gradient_checkpointing=chosen.gradient_checkpointing != "none",
        started=circumstances.started,
        finished=time.time(),
        steps=step,
        pictures=images,
        epochs=-(-step * config.accumulation // per_epoch),
        batches_per_epoch=per_epoch,
        images=tuple(starmap(BucketedImage, zip(items, setup.dataset.buckets, strict=True))),
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
