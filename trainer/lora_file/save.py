"""From an adapter to a file, and the check that the file on disk is the adapter in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from trainer.adapter.lora import Adapter
from trainer.errors import LoraFileError
from trainer.lora_file.metadata import with_hashes
from trainer.lora_file.names import diffusers_name, kohya_name
from trainer.run import write_atomically


def kohya_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """fp16 down, up and 0-dim alpha of every layer."""
    tensors = {}
    for part, path, layer in adapter.walk():
        name = kohya_name(part, path)
        tensors[f"{name}.lora_down.weight"] = _half(layer.down)
        tensors[f"{name}.lora_up.weight"] = _half(layer.up)
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float16)
    return tensors


def diffusers_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """`lora_A` and `lora_B` as `load_lora_weights` takes them.

    This form has no alpha, and its readers take alpha = rank: the scale is folded into B.
    """
    tensors = {}
    for part, path, layer in adapter.walk():
        name = diffusers_name(part, path)
        tensors[f"{name}.lora_A.weight"] = _half(layer.down)
        tensors[f"{name}.lora_B.weight"] = _half(layer.up * (layer.alpha / layer.rank))
    return tensors


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().to(torch.float16).contiguous()


def save_lora(path: Path, adapter: Adapter, facts: dict[str, str], *, format: str = "kohya") -> None:
    """Writes the file whole or not at all, reads it back and accounts for every tensor. Raises LoraFileError."""
    tensors = kohya_tensors(adapter) if format == "kohya" else diffusers_tensors(adapter)
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise LoraFileError(
            f"{len(broken)} matrices do not fit fp16 ({broken[0]}), so {path.name} was not written; lower the learning rate"
        )
    header = with_hashes(tensors, {"format": "pt", **facts})
    write_atomically(path, save(tensors, header))
    verify(path, tensors)


def verify(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Raises LoraFileError unless the file holds exactly `expected`."""
    with safe_open(path, framework="pt") as file:
        found = set(file.keys())
        wrong = sorted(found ^ set(expected))
        wrong += [name for name in sorted(found & set(expected)) if not torch.equal(file.get_tensor(name), expected[name])]
    if wrong:
        raise LoraFileError(f"{path.name} differs from what was trained ({wrong[0]}); check the disk and save again")
