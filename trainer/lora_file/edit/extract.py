"""A LoRA of the difference between two checkpoints, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.base_weights import PartWeights, base_weights
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.resize import Kept
from trainer.lora_file.edit.svd import of_matrix
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import Module, lora_module


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    rank: int,
    text_encoders: bool = False,
    overwrite: bool = False,
    report: Callable[[Kept], None] = lambda kept: None,
) -> list[Kept]:
    """Writes the best LoRA of `rank`, in fp16, of what `tuned` changed in the linear and convolution layers of `base`.

    Args:
        text_encoders: theirs too, not only the UNet's.
        report: called after each layer.

    Raises:
        BaseError: a folder can't be opened.
        LoraFileError: the two are of different shapes, or don't differ.
    """
    expect_free(out, overwrite)
    first, second = base_weights(base), base_weights(tuned)
    modules, kept = [], []
    for part in first if text_encoders else ["unet"]:
        for path in _layers(first[part], second[part], f"{tuned.name}/{part}"):
            change = second[part].tensor(path).float() - first[part].tensor(path).float()
            if not bool(change.any()):
                continue
            spectrum = of_matrix(change.flatten(1))
            up, down = spectrum.factors(rank)
            modules.append(lora_module(part, path, up, down, alpha=up.shape[1], dtype=torch.float16))
            kept.append(Kept(part, path, up.shape[1], spectrum.share(rank)))
            report(kept[-1])
    if not modules:
        raise LoraFileError(
            f"{tuned.name} has the same layers as {base.name}, so there is nothing to extract; give the tuned one second"
        )
    write_lora(
        out, tensors_of(modules, "kohya", out.name), _facts(base, tuned, out, modules), overwrite=overwrite
    )
    return kept


def _layers(base: PartWeights, tuned: PartWeights, where: str) -> list[str]:
    """Paths of the linear and convolution layers. Raises LoraFileError when the two have other layers."""
    paths = [
        path
        for path, place in base.places.items()
        if len(place.shape) >= 2 and not path.startswith("embeddings.")
    ]
    for path in paths:
        ours, theirs = base.shape(path), tuned.shape(path)
        if theirs != ours:
            raise LoraFileError(
                f"{where} differs in {path} ({theirs or 'missing'}, not {ours}); give two checkpoints of one family"
            )
    return sorted(paths)


def _facts(base: Path, tuned: Path, out: Path, modules: list[Module]) -> dict[str, str]:
    return {
        **network_metadata(modules, {}),
        "ss_sd_model_name": base.name,
        "ss_output_name": out.stem,
        "ss_training_comment": f"extracted: {tuned.name} - {base.name}",
        "modelspec.title": out.stem,
    }
