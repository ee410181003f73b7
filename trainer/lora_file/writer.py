"""Writing of an adapter into a LoRA file, with a comparison of the file on disk with the adapter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from trainer.adapter.lora import Adapter
from trainer.atomic_files import write_atomically
from trainer.errors import ConfigError, LoraFileError
from trainer.lora_file.metadata import with_hashes
from trainer.lora_file.module_names import diffusers_name, kohya_name
from trainer.lora_file.modules import alpha_tensor
from trainer.lora_file.tensor_names import ALPHA, DORA, suffix_of


def kohya_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The matrices of every layer in fp16, its 0-dim alpha, and DoRA's magnitudes in fp32.

    Within a part all layers with A and B get one alpha, the rest of their scale going into B: diffusers reads
        mixed alphas wrongly.
    """
    tensors, alphas = {}, _part_alphas(adapter)
    for part, path, layer in adapter.walk():
        name = kohya_name(part, path)
        alpha = alphas[part] if layer.network in ("lora", "dora") else layer.alpha
        for role, matrix in layer.tensors().items():
            folded = matrix * (layer.alpha / alpha) if role == "up" and alpha != layer.alpha else matrix
            # fp16 would move every weight of the column by up to 0.05 %.
            tensors[name + suffix_of(role)] = (
                folded.detach().cpu().float().contiguous() if role == DORA else _half(folded)
            )
        tensors[name + suffix_of(ALPHA)] = alpha_tensor(alpha)
    return tensors


def _part_alphas(adapter: Adapter) -> dict[str, float]:
    """The most common alpha of the layers of each part."""
    counts: dict[str, Counter[float]] = {}
    for part, _, layer in adapter.walk():
        counts.setdefault(part, Counter())[layer.alpha] += 1
    return {part: count.most_common(1)[0][0] for part, count in counts.items()}


def diffusers_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """`lora_A` and `lora_B` of every layer in fp16, as diffusers' `load_lora_weights` reads them.

    This format has no alpha, and its readers use alpha = rank: B is multiplied by the scale.

    Raises:
        ConfigError: the network is not LoRA.
    """
    tensors = {}
    for part, path, layer in adapter.walk():
        if layer.network != "lora":
            raise ConfigError(
                [f"the diffusers format can't hold the network {layer.network}; save it in the kohya format"]
            )
        name, matrices = diffusers_name(part, path), layer.tensors()
        tensors[f"{name}.lora_A.weight"] = _half(matrices["down"])
        tensors[f"{name}.lora_B.weight"] = _half(matrices["up"] * (layer.alpha / layer.rank))
    return tensors


def _half(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp16 on the CPU."""
    return tensor.detach().cpu().to(torch.float16).contiguous()


def save_lora(path: Path, adapter: Adapter, metadata: dict[str, str], *, format: str = "kohya") -> None:
    """Writes the file completely or not at all, reads it back and compares every tensor.

    Args:
        metadata: without hashes, which are added.
        format: `kohya` or `diffusers`.

    Raises:
        ConfigError: the format can't hold the network.
        LoraFileError: a value does not fit fp16, or the file on disk differs from the tensors.
    """
    tensors = kohya_tensors(adapter) if format == "kohya" else diffusers_tensors(adapter)
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise LoraFileError(
            f"{len(broken)} matrices do not fit fp16 ({broken[0]}), so {path.name} was not written; lower "
            "the learning rate"
        )
    header = with_hashes(tensors, {"format": "pt", **metadata})
    write_atomically(path, save(tensors, header))
    verify(path, tensors)


def verify(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Raises LoraFileError unless the file holds exactly `expected`."""
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        wrong = sorted(keys ^ set(expected))
        wrong += [
            name
            for name in sorted(keys & set(expected))
            if not torch.equal(file.get_tensor(name), expected[name])
        ]
    if wrong:
        raise LoraFileError(
            f"{path.name} differs from what was trained ({wrong[0]}); check the disk and save again"
        )
