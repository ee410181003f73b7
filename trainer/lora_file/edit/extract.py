"""Extraction of a LoRA from the difference between two checkpoints, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.base_weights import PartWeights, base_weights
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.resize import ResizedLayer
from trainer.lora_file.edit.svd import of_matrix
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import LoraModule, lora_module


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    rank: int,
    text_encoders: bool = False,
    overwrite: bool = False,
    report: Callable[[ResizedLayer], None] = lambda layer: None,
) -> list[ResizedLayer]:
    """Writes the best approximation by a LoRA of `rank` of the difference `tuned` - `base`, in fp16.

    Args:
        text_encoders: extract from the layers of the text encoders too.
        report: called after each linear or convolution layer that differs.

    Raises:
        BaseError: a checkpoint can't be opened.
        LoraFileError: the checkpoints have different shapes, or are equal.
    """
    expect_free(out, overwrite)
    first, second = base_weights(base), base_weights(tuned)
    modules: list[LoraModule] = []
    layers: list[ResizedLayer] = []
    for part in first if text_encoders else ["unet"]:
        for path in _layers(first[part], second[part], f"{tuned.name}/{part}"):
            change = second[part].tensor(path).float() - first[part].tensor(path).float()
            if not bool(change.any()):
                continue
            spectrum = of_matrix(change.flatten(1))
            up, down = spectrum.factors(rank)
            modules.append(lora_module(part, path, up, down, alpha=up.shape[1], dtype=torch.float16))
            layers.append(ResizedLayer(part, path, up.shape[1], spectrum.share(rank)))
            report(layers[-1])
    if not modules:
        raise LoraFileError(
            f"{tuned.name} has the same layers as {base.name}, so there is nothing to extract; give the "
            "tuned checkpoint second"
        )
    metadata = _metadata(base, tuned, out, modules)
    write_lora(out, tensors_of(modules, "kohya", out.name), metadata, overwrite=overwrite)
    return layers


def _layers(base: PartWeights, tuned: PartWeights, where: str) -> list[str]:
    """Paths of the linear and convolution layers. Raises LoraFileError where their shapes differ."""
    paths = [
        path
        for path, place in base.places.items()
        if len(place.shape) >= 2 and not path.startswith("embeddings.")
    ]
    for path in paths:
        expected, shape = base.shape(path), tuned.shape(path)
        if shape != expected:
            raise LoraFileError(
                f"{where} differs in {path} ({shape or 'missing'}, not {expected}); give two checkpoints of "
                "one family"
            )
    return sorted(paths)


def _metadata(base: Path, tuned: Path, out: Path, modules: list[LoraModule]) -> dict[str, str]:
    """Metadata of the new file."""
    return {
        **network_metadata(modules, {}),
        "ss_sd_model_name": base.name,
        "ss_output_name": out.stem,
        "ss_training_comment": f"extracted: {tuned.name} - {base.name}",
        "modelspec.title": out.stem,
    }
