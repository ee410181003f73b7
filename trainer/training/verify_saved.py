"""Checks after saving: other tools load the whole file, and it gives the same image as memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from trainer.adapter.lora import Adapter
from trainer.errors import LoraFileError, lacks_memory
from trainer.lora_file.attach import attach_lora
from trainer.lora_file.compatibility.check import check_file
from trainer.runs.run import Run
from trainer.training.samples import TrainingSamples

# Mean difference of two images in steps of 255. Rounding the matrices to fp16 moves pixels by less.
MAX_DIFFERENCE = 4.0


def verify_saved(run: Run, samples: TrainingSamples, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Returns the fields of the `checked` event; emits a `problem` event for each check that fails.

    Args:
        models: the parts that the adapter is attached to: `unet`, `text_encoder`, `text_encoder_2`.
    """
    base = samples.setup.base
    report = check_file(run.lora_file, base=base.path if base.path.is_dir() else None, bases=base.path.parent)
    fields: dict[str, Any] = {"takes": [verdict.tool for verdict in report.verdicts if verdict.is_complete]}
    if not report.ok and run.config.format == "kohya":
        command = f"python -m trainer lora check {run.lora_file.name}"
        run.emit("problem", message=f"some tools do not load the whole file; {command} lists them")
    try:
        difference = image_difference(samples.first_image(), _image_from_file(run, samples, models))
    except LoraFileError as error:
        run.emit("problem", message=f"the file can't be read back: {error}")
        return fields
    except (OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, OSError) and not lacks_memory(error):
            raise
        message = "not enough memory or disk space to compare the file's image with the training's"
        run.emit("problem", message=message)
        return fields
    if difference > MAX_DIFFERENCE:
        message = f"the file gives another image than the training (they differ by {difference:.1f} of 255)"
        run.emit("problem", message=message)
    return {**fields, "difference": round(difference, 3)}


def _image_from_file(run: Run, samples: TrainingSamples, models: dict[str, nn.Module]) -> Image.Image:
    with detached(samples.setup.adapter, models):
        loaded = attach_lora(run.lora_file, models)
        try:
            setup = dataclasses.replace(samples.setup, adapter=loaded)
            return dataclasses.replace(samples, setup=setup).first_image()
        finally:
            for part in list(loaded.layers):
                loaded.detach(part, models[part])


def image_difference(one: Image.Image, other: Image.Image) -> float:
    """Returns the mean absolute difference of two images, in steps of 255."""
    return float(np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)).mean())


@contextlib.contextmanager
def detached(adapter: Adapter, models: dict[str, nn.Module]) -> Iterator[None]:
    """Gives the models their own layers back for a block, and afterwards the adapter's layers again."""
    for part, layers in adapter.layers.items():
        for path, layer in layers.items():
            models[part].set_submodule(path, layer.base)
    try:
        yield
    finally:
        for part, layers in adapter.layers.items():
            for path, layer in layers.items():
                models[part].set_submodule(path, layer)
