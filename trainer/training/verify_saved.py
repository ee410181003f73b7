"""After saving: would other tools take the whole file, and does the file draw what the adapter in memory draws?"""

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

# Mean difference of two pictures in steps of 255: fp16 rounds the matrices, which moves pixels by less.
MOST = 4.0


def verify_saved(run: Run, sampler: TrainingSamples, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Facts for the `checked` event; problems are said on the way.

    Args:
        models: the parts that the adapter is attached to, by name.
    """
    base = sampler.base
    report = check_file(run.lora_file, base=base.path if base.path.is_dir() else None, bases=base.path.parent)
    takes = [verdict.tool for verdict in report.verdicts if verdict.is_complete]
    if not report.ok and run.config.format == "kohya":
        run.emit(
            "problem",
            message=f"not every tool takes the whole file: python -m trainer lora check {run.lora_file.name} says which",
        )
    try:
        differs = difference(sampler.one(), _drawn_from_file(run, sampler, models))
    except LoraFileError as error:
        run.emit("problem", message=f"the file can't be read back: {error}")
        return {"takes": takes}
    except (OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, OSError) and not lacks_memory(error):
            raise
        run.emit(
            "problem",
            message="memory or disk did not suffice to compare the file's picture with the training's",
        )
        return {"takes": takes}
    if differs > MOST:
        run.emit(
            "problem",
            message=f"the file draws another picture than the training did (they differ by {differs:.1f} of 255)",
        )
    return {"takes": takes, "difference": round(differs, 3)}


def _drawn_from_file(run: Run, sampler: TrainingSamples, models: dict[str, nn.Module]) -> Image.Image:
    with detached(sampler.adapter, models):
        loaded = attach_lora(run.lora_file, models)
        try:
            return dataclasses.replace(sampler, adapter=loaded).one()
        finally:
            for part in list(loaded.layers):
                loaded.detach(part, models[part])


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, in steps of 255."""
    return float(np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)).mean())


@contextlib.contextmanager
def detached(adapter: Adapter, models: dict[str, nn.Module]) -> Iterator[None]:
    """The models have their own layers back, and the adapter's again afterwards."""
    for part, layers in adapter.layers.items():
        for path, layer in layers.items():
            models[part].set_submodule(path, layer.base)
    try:
        yield
    finally:
        for part, layers in adapter.layers.items():
            for path, layer in layers.items():
                models[part].set_submodule(path, layer)
