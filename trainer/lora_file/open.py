"""From a file to an adapter: any spelling of SDXL LoRA keys, with every tensor accounted for."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trainer.adapter.lora import Adapter, Size
from trainer.errors import LoraFileError
from trainer.lora_file.names import accepted_names

MAX_HEADER = 16 << 20
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight")


@dataclass(frozen=True)
class Matrices:
    down: torch.Tensor  # (rank, in)
    up: torch.Tensor  # (out, rank)
    alpha: float


def read_lora(path: Path) -> dict[str, Matrices]:
    """Module name -> matrices. Raises LoraFileError when the file is no LoRA of linear layers."""
    read_header(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoraFileError(f"{path.name} can't be read ({error}); download or save it again") from None
    if not tensors:
        raise LoraFileError(f"{path.name} holds no tensors; save it again")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, role = _split(key, path)
        modules.setdefault(module, {})[role] = tensor
    return {module: _matrices(module, found, path) for module, found in modules.items()}


def _split(key: str, path: Path) -> tuple[str, str]:
    for role, endings in (("down", _DOWN), ("up", _UP), ("alpha", (".alpha",))):
        for ending in endings:
            if key.endswith(ending):
                return key.removesuffix(ending), role
    raise LoraFileError(f"{path.name} holds {key!r}, which is no part of a LoRA; DoRA, LoHa and LoKr are not read yet")


def _matrices(module: str, found: dict[str, torch.Tensor], path: Path) -> Matrices:
    down, up, alpha = found.get("down"), found.get("up"), found.get("alpha")
    if down is None or up is None or down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise LoraFileError(f"{path.name}: the matrices of {module} are missing or don't fit; save the file again")
    if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
        raise LoraFileError(f"{path.name}: {module} holds values that are no numbers; use an earlier checkpoint")
    return Matrices(down.float(), up.float(), float(alpha) if alpha is not None else float(down.shape[0]))


def attach_lora(path: Path, models: dict[str, nn.Module]) -> Adapter:
    """An adapter of the file's matrices in `models` (part -> model).

    Raises LoraFileError when a module of the file is not in the models: a LoRA that is only half applied looks wrong
    without a word.
    """
    adapter = Adapter()
    try:
        _attach_all(path, adapter, models)
    except BaseException:
        for part in list(adapter.layers):  # the models are themselves again
            adapter.detach(part, models[part])
        raise
    return adapter


def _attach_all(path: Path, adapter: Adapter, models: dict[str, nn.Module]) -> None:
    matrices = read_lora(path)
    for part, model in models.items():
        sizes, chosen = {}, {}
        for module_path, module in model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            name = next((name for name in accepted_names(part, module_path) if name in matrices), None)
            if name is None:
                continue
            found = chosen[module_path] = matrices.pop(name)
            if found.down.shape[1] != module.in_features or found.up.shape[0] != module.out_features:
                raise LoraFileError(f"{path.name} was trained on a base of another shape ({name}); choose that base")
            sizes[module_path] = Size(rank=found.down.shape[0], alpha=found.alpha)
        if sizes:
            adapter.attach(part, model, sizes)
            with torch.no_grad():
                for module_path, found in chosen.items():
                    adapter.layers[part][module_path].down.copy_(found.down)
                    adapter.layers[part][module_path].up.copy_(found.up)
    if matrices:
        raise LoraFileError(
            f"{path.name} holds {len(matrices)} modules that this base lacks, such as {next(iter(matrices))}; choose its base"
        )


def parts_of(path: Path) -> set[str]:
    """Which of `unet`, `text_encoder`, `text_encoder_2` a file changes, from its header alone."""
    header = read_header(path)
    marks = {"unet": ("lora_unet_", "unet."), "text_encoder": ("lora_te1_", "lora_te_", "text_encoder."),
             "text_encoder_2": ("lora_te2_", "text_encoder_2.")}  # fmt: skip
    return {part for part, starts in marks.items() if any(key.startswith(starts) for key in header)}


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file. Raises LoraFileError; nothing else of the file is read."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= MAX_HEADER:
                raise LoraFileError(f"{path.name} is not a .safetensors file; pickle files (.ckpt, .pt) are not opened")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise LoraFileError(f"{path} does not exist; give the path of a .safetensors file") from None
    except OSError as error:
        raise LoraFileError(f"{path.name} can't be read ({error.strerror})") from None
    except ValueError:
        raise LoraFileError(f"{path.name} is not a .safetensors file; pickle files (.ckpt, .pt) are not opened") from None
    if not isinstance(header, dict):
        raise LoraFileError(f"{path.name} is not a .safetensors file")
    return header


def describe(path: Path) -> Iterator[tuple[str, str]]:
    """(label, value) lines for `lora inspect`."""
    matrices, header = read_lora(path), read_header(path)
    facts = header.get("__metadata__", {})
    yield "file", f"{path.name}, {path.stat().st_size:,} bytes"
    for part, label in (("lora_unet_", "UNet"), ("lora_te1_", "text encoder 1"), ("lora_te2_", "text encoder 2")):
        dotted = {"lora_unet_": "unet.", "lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."}[part]
        found = [m for name, m in matrices.items() if name.startswith((part, dotted))]
        if found:
            ranks = sorted({m.down.shape[0] for m in found})
            alphas = sorted({m.alpha for m in found})
            yield label, f"{len(found)} modules, rank {_span(ranks)}, alpha {_span(alphas)}"
    yield "parameters", f"{sum(m.down.numel() + m.up.numel() for m in matrices.values()):,}"
    change = sum(float((m.up @ m.down).norm()) * m.alpha / m.down.shape[0] for m in matrices.values()) / len(matrices)
    yield "mean change", f"{change:.4g} (Frobenius norm of alpha/rank B A)"
    for key, value in facts.items():
        if key.startswith(("modelspec.", "sshs_", "ss_base", "ss_output", "ss_network_dim", "ss_network_alpha", "ss_sd_model_name")):
            yield key, value if len(value) <= 100 else f"{value[:60]}… ({len(value):,} characters)"


def _span(values: list) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}–{values[-1]:g}"
