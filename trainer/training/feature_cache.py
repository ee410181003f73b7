"""What the frozen VAE and text encoders say, on disk: computed once, found again by content.

outputs/.cache/latents/<key>.safetensors    mean, logvar      key: picture bytes, variant, base, tile where it took several
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

from trainer.atomic_files import write_atomically
from trainer.dataset.augmentations import Augmentation
from trainer.dataset.manifest import Item
from trainer.sdxl.text import DEFAULT_ENCODING, Conditioning, PromptEncoding

Latents = tuple[torch.Tensor, torch.Tensor]  # of one picture: mean and log-variance


@dataclass(frozen=True)
class FeatureCache:
    folder: Path
    base: str  # the base's fingerprint
    tile: int = 0  # px, of the tiles that larger pictures are encoded in; 0 takes them whole

    def latents(self, item: Item, variant: Augmentation) -> Latents | None:
        """Mean and log-variance (1, C, H/8, W/8); None where they are not kept, or damaged.

        Where they would be made in tiles, those of the whole picture serve too; never the other way round.
        """
        for key in self._latents_keys(item, variant):
            found = self._found("latents", key, ("mean", "logvar"))
            if found:
                return found["mean"], found["logvar"]
        return None

    def store_latents(self, item: Item, variant: Augmentation, latents: Latents) -> None:
        key = self._latents_keys(item, variant)[0]
        self._kept("latents", key, dict(zip(("mean", "logvar"), latents, strict=True)))

    def _latents_keys(self, item: Item, variant: Augmentation) -> list[str]:
        """Under which they are kept, first, and others that serve."""
        more = () if variant.is_plain else (repr(variant.is_mirrored), repr(variant.colours))
        facts = ("latents", self.base, item.digest, repr(variant.placement), *more)
        whole = _key(*facts)
        return (
            [_key(*facts, f"tiles of {self.tile}"), whole]
            if 0 < self.tile < max(variant.placement.bucket)
            else [whole]
        )

    def text(self, prompt: str, reading: PromptEncoding, compute: Callable[[], Conditioning]) -> Conditioning:
        """Conditioning of one prompt as it is read, fp32 on the CPU."""
        key = _key("text", self.base, prompt, *([] if reading == DEFAULT_ENCODING else [reading.cache_key]))
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
