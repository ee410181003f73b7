"""Latents and text embeddings on disk: the outputs of the frozen VAE and text encoders, found by content.

outputs/.cache/latents/<key>.safetensors    mean, logvar    key: image bytes, augmentation, base, tile if any
outputs/.cache/masks/<key>.safetensors      weights         key: mask's bytes, augmentation, cell, weight outside
outputs/.cache/text/<key>.safetensors       text, pooled    key: caption, base, encoding if not default
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

Latents = tuple[torch.Tensor, torch.Tensor]  # of one image: mean and log-variance, each (1, C, H/8, W/8)


@dataclass(frozen=True)
class MaskKind:
    """A mask and how it is turned into weights.

    Attributes:
        digest: of the mask's file.
        cell: side of a latent cell in px.
        outside: weight of black areas.
    """

    digest: str
    cell: int
    outside: float


@dataclass(frozen=True)
class FeatureCache:
    """The cache of one base model.

    Attributes:
        base: the base's fingerprint.
        tile: px, side of the tiles in which larger images are encoded; 0 encodes them whole.
    """

    folder: Path
    base: str
    tile: int = 0

    def load_latents(self, item: Item, augmentation: Augmentation) -> Latents | None:
        """Returns mean and log-variance, or None where they are missing or damaged.

        Latents of the whole image also serve a training that encodes in tiles, since they are the more exact
        ones. Latents of tiles never serve a training that encodes whole images.
        """
        for key in self._latent_keys(item, augmentation):
            tensors = self._load("latents", key, ("mean", "logvar"))
            if tensors:
                return tensors["mean"], tensors["logvar"]
        return None

    def store_latents(self, item: Item, augmentation: Augmentation, latents: Latents) -> None:
        """Writes mean and log-variance of an image."""
        key = self._latent_keys(item, augmentation)[0]
        self._store("latents", key, dict(zip(("mean", "logvar"), latents, strict=True)))

    def load_mask(self, kind: MaskKind, augmentation: Augmentation) -> torch.Tensor | None:
        """Returns the weights (1, 1, H/8, W/8) of a mask, or None where they are missing or damaged."""
        tensors = self._load("masks", _mask_key(kind, augmentation), ("weights",))
        return tensors["weights"] if tensors else None

    def store_mask(
        self, kind: MaskKind, augmentation: Augmentation, weights_11HW: torch.Tensor
    ) -> torch.Tensor:
        """Writes and returns the weights of a mask."""
        return self._store("masks", _mask_key(kind, augmentation), {"weights": weights_11HW})["weights"]

    def _latent_keys(self, item: Item, augmentation: Augmentation) -> list[str]:
        """Returns the key under which latents are stored, and after it other keys that may be loaded."""
        extra = () if augmentation.is_plain else (repr(augmentation.is_mirrored), repr(augmentation.colours))
        parts = ("latents", self.base, item.digest, repr(augmentation.placement), *extra)
        whole = _key(*parts)
        if 0 < self.tile < max(augmentation.placement.bucket):
            return [_key(*parts, f"tiles of {self.tile}"), whole]
        return [whole]

    def text(
        self, prompt: str, encoding: PromptEncoding, compute: Callable[[], Conditioning]
    ) -> Conditioning:
        """Returns a prompt's conditioning, fp32 on the CPU; computes and stores it where it is missing."""
        key = _key("text", self.base, prompt, *([] if encoding == DEFAULT_ENCODING else [encoding.cache_key]))
        tensors = self._load("text", key, ("text", "pooled"))
        if tensors is None:
            computed = compute()
            tensors = {"text": computed.text_NTD.float().cpu(), "pooled": computed.pooled_NP.float().cpu()}
            tensors = self._store("text", key, tensors)
        return Conditioning(tensors["text"], tensors["pooled"])

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.safetensors"

    def _load(self, kind: str, key: str, names: tuple[str, ...]) -> dict[str, torch.Tensor] | None:
        try:
            tensors = load_file(self._path(kind, key))
        except (OSError, SafetensorError):  # missing or damaged: computed again
            return None
        return tensors if all(name in tensors for name in names) else None

    def _store(self, kind: str, key: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        path = self._path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(path, save(tensors))
        return tensors


def _mask_key(kind: MaskKind, augmentation: Augmentation) -> str:
    placement, is_mirrored = augmentation.placement, augmentation.is_mirrored
    return _key("mask", kind.digest, repr((kind.cell, kind.outside)), repr(placement), repr(is_mirrored))


def _key(*parts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join(parts))).hexdigest()
