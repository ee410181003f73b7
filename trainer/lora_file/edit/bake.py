"""Baking of a LoRA into the weights of a base, for tools that can't load LoRAs.

The new weight is W + strength * alpha / rank * up down, or the formula of the network in `LoraModule.change`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from trainer.atomic_files import replacing
from trainer.errors import BaseError, LoraFileError
from trainer.headers.safetensors import read_header
from trainer.lora_file.base_weights import PartWeights, base_weights
from trainer.lora_file.edit.bake_metadata import (
    BakedModel,
    copy_with_metadata,
    states_another_model,
    write_hash,
)
from trainer.lora_file.modules import LoraFile, LoraModule
from trainer.lora_file.reader import read_modules


def bake(source: Path, out: Path, base: Path, strength: float = 1.0) -> int:
    """Writes a copy of `base`, a folder or a single file, with a LoRA in its weights.

    One tensor is in memory at a time. Dtypes and all other tensors stay as they are. The title and hashes in the
    metadata are those of the baked model. `out` appears complete or not at all.

    Returns:
        The number of weights that the LoRA changes.

    Raises:
        BaseError: the base can't be opened.
        LoraFileError: `out` exists, or a module of the file does not fit the base.
    """
    if out.exists():
        raise LoraFileError(f"{out} exists; choose another name")
    if base.is_file() and out.suffix != ".safetensors":
        raise LoraFileError(f"{out.name} must end in .safetensors, as {base.name} does")
    file, weights = read_modules(source), base_weights(base)
    _expect_fit(file, weights, base.name)
    if any(place.scale for part in weights.values() for place in part.places.values()):
        raise BaseError(
            f"{base.name} stores its weights in scaled float8; give its fp16 version to bake into"
        )
    used = {place.file for part in weights.values() for place in part.places.values()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        if base.is_file():
            files = {base: temporary}
        else:
            shutil.copytree(
                base, temporary, ignore=lambda folder, names: _left_out(Path(folder), names, base, used)
            )
            files = {original: temporary / original.relative_to(base) for original in sorted(used)}
        model = BakedModel(_title(out), _title(base), _title(file.path))
        for original, copy in files.items():
            is_renamed = base.is_file() or states_another_model(original)
            if is_renamed:
                copy_with_metadata(original, copy, model)
            _bake_file(copy, original, file, weights, strength)
            if is_renamed:
                write_hash(copy)
    return len(file.modules)


def _title(path: Path) -> str:
    """The name of a model: that of its folder, or of its file without the ending."""
    return path.stem if path.suffix == ".safetensors" else path.name


def _left_out(folder: Path, names: list[str], base: Path, used: set[Path]) -> set[str]:
    """Files that are not copied: further copies of the weights, which would stay without the LoRA.

    These are fp16 variants, pickles, and a single file beside the folders.
    """
    baked_parts = {"unet", "text_encoder", "text_encoder_2"}
    if folder != base and folder.name not in baked_parts:
        return set()
    weights = {
        name
        for name in names
        if Path(name).suffix in (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".onnx_data")
    }
    return {name for name in weights if folder / name not in used}


def _expect_fit(file: LoraFile, weights: dict[str, PartWeights], base: str) -> None:
    """Raises LoraFileError unless every module of the file fits a weight of the base."""
    for module in file.modules:
        shape = weights[module.part].shape(module.path)
        if shape is None:
            raise LoraFileError(
                f"{base} has no {module.part}.{module.path}, which {file.path.name} changes; choose its base"
            )
        if module.network is None:
            raise LoraFileError(module.unsupported())
        if module.sides != (shape[0], torch.Size(shape[1:]).numel()):
            raise LoraFileError(
                f"{file.path.name} was trained on a base of another shape than {base} ({module.path}); "
                "choose its base"
            )


def _changed(module: LoraModule, weight: torch.Tensor, strength: float, name: str) -> torch.Tensor:
    """The new weight in the dtype of the old one. Raises LoraFileError where that can't hold a value."""
    new = weight.float() + strength * module.change(weight)
    new = new.to(weight.dtype)
    if not bool(torch.isfinite(new.float()).all()):
        raise LoraFileError(
            f"{name} at strength {strength:g} does not fit {weight.dtype} in {module.path}; take a lower "
            "strength"
        )
    return new


def _bake_file(
    copy: Path, original: Path, file: LoraFile, weights: dict[str, PartWeights], strength: float
) -> None:
    """Overwrites the changed tensors of a weight file; dtypes and shapes stay, so no other byte changes."""
    header = read_header(copy, BaseError)
    copy.chmod(copy.stat().st_mode | 0o200)  # a hub's cache is read-only
    with copy.open("r+b") as stream:
        for module in file.modules:
            place = weights[module.part].places[module.path]
            if place.file != original:
                continue
            changed = _changed(module, weights[module.part].tensor(module.path), strength, file.path.name)
            data = (
                (changed.T if place.source.transposed else changed)
                .contiguous()
                .flatten()
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
            stream.seek(header.tensors[place.source.key].start + (place.source.third or 0) * len(data))
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
