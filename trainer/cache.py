"""What the frozen VAE and text encoders say, on disk: computed once, found again by content.

outputs/.cache/latents/<key>.safetensors    mean, logvar      key: picture bytes, variant, base
outputs/.cache/text/<key>.safetensors       text, pooled      key: caption, base
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from trainer.dataset.manifest import Item
from trainer.dataset.variants import Variant
from trainer.run import write_atomically
from trainer.sdxl.text import PLAIN, Conditioning, Reading

Latents = tuple[torch.Tensor, torch.Tensor]  # of one picture: mean and log-variance


@dataclass(frozen=True)
class Cache:
    folder: Path
    base: str  # the base's fingerprint

    def latents(self, item: Item, variant: Variant) -> Latents | None:
        """Mean and log-variance (1, C, H/8, W/8); None where they are not kept, or damaged."""
        found = self._found("latents", self._latents_key(item, variant), ("mean", "logvar"))
        return (found["mean"], found["logvar"]) if found else None

    def keep_latents(self, item: Item, variant: Variant, latents: Latents) -> None:
        self._kept("latents", self._latents_key(item, variant), dict(zip(("mean", "logvar"), latents, strict=True)))

    def _latents_key(self, item: Item, variant: Variant) -> str:
        more = () if variant.is_plain else (repr(variant.is_mirrored), repr(variant.colours))
        return _key("latents", self.base, item.digest, repr(variant.placement), *more)

    def text(self, prompt: str, reading: Reading, compute: Callable[[], Conditioning]) -> Conditioning:
        """Conditioning of one prompt as it is read, fp32 on the CPU."""
        key = _key("text", self.base, prompt, *([] if reading == PLAIN else [repr(reading)]))
        found = self._found("text", key, ("text", "pooled"))
        if found is None:
            made = compute()
            parts = {"text": made.text_NTD.float().cpu(), "pooled": made.pooled_NP.float().cpu()}
            found = self._kept("text", key, parts)
        return Conditioning(found["text"], found["pooled"])

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.safetensors"

    def _found(self, kind: str, key: str, names: tuple[str, ...]) -> dict[str, torch.Tensor] | None:
        path = self._path(kind, key)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError):  # absent or damaged: computed anew
            return None
        return tensors if all(name in tensors for name in names) else None

    def _kept(self, kind: str, key: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        path = self._path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(path, save(tensors))
        return tensors


def _key(*facts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join(facts))).hexdigest()
